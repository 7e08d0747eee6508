package tail

import (
	"context"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/libs/telemetry"
)

// destination is what all topics of events have in common. Names of spans have to
// be few.
const destination = "events-{application}"

// trace records that a record was read, as a child of what its producer did, and
// puts the context of that into the event, for frontends. Where it is not to be
// recorded the context of the producer stays.
func (o *outcomes) trace(began time.Time, record *cloudevent.Record, event *cloudevent.Event, outcome string, delivered bool) {
	ctx := context.Background()
	if parent := telemetry.ParseTraceContext(event.TraceContext()); parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	}
	_, span := o.decoder.Tracer.Start(ctx, "process "+destination,
		trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(began))
	defer span.End()
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		semconv.MessagingSystemKafka, semconv.MessagingOperationName("process"), semconv.MessagingOperationTypeProcess,
		semconv.MessagingDestinationTemplate(destination), semconv.MessagingDestinationName(record.Topic),
		semconv.MessagingDestinationPartitionID(strconv.Itoa(int(record.Partition))),
		semconv.MessagingKafkaOffset(int(record.Offset)), semconv.MessagingMessageBodySize(len(record.Value)),
		attribute.String("mqtt_integration.outcome", outcome),
	)
	if !delivered {
		span.SetAttributes(semconv.ErrorTypeKey.String(outcome))
		span.SetStatus(codes.Error, "the event cannot be delivered")
		return
	}
	before := *event
	event.TraceParent, event.TraceState = telemetry.FormatTraceContext(span.SpanContext())
	if event.WireSize() > o.decoder.MaxBytes {
		*event = before // a trace is no reason not to deliver
	}
}
