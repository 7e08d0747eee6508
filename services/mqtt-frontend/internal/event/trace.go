package event

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/telemetry"
)

// Names of the user properties, which are those of the CloudEvents extension.
const (
	traceParentName = "traceparent"
	traceStateName  = "tracestate"
)

// destination is what the topics of all events have in common.
const destination = "app/{application}"

// sending is the trace context that a content mode goes out with.
type sending struct{ parent, state string }

var nothing = &sending{}

// begin starts the send span of a content mode and returns the trace context to go
// out with: that of the span, or what the event came with if nothing is recorded.
// An event without a context has no span: it is for event-fanout to begin a trace.
// The two forms of structured mode have one span. The caller holds mu, and ends
// the span, which may be nil.
func (s *Shared) begin(binary bool) (*sending, trace.Span) {
	if binary { // has one form, which is made once
		return s.start("binary")
	}
	var span trace.Span
	if s.sending == nil {
		s.sending, span = s.start("structured")
	}
	return s.sending, span
}

func (s *Shared) start(mode string) (*sending, trace.Span) {
	parent, state := s.event.TraceContext()
	if parent == "" {
		return nothing, nil
	}
	out := &sending{parent, state}
	if s.tracer == nil {
		return out, nil
	}
	before := telemetry.ParseTraceContext(parent, state)
	if !before.IsValid() {
		return out, nil
	}
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), before)
	_, span := s.tracer.Start(ctx, "publish "+destination, trace.WithSpanKind(trace.SpanKindProducer))
	if span.IsRecording() {
		span.SetAttributes(
			semconv.MessagingSystemKey.String("mqtt"), semconv.MessagingOperationName("publish"), semconv.MessagingOperationTypeSend,
			semconv.MessagingDestinationTemplate(destination), attribute.String("mqtt_integration.content_mode", mode),
		)
		out.parent, out.state = telemetry.FormatTraceContext(span.SpanContext())
	}
	return out, span
}

// end ends a send span, if there is one.
func end(span trace.Span, e *Encoded) {
	if span == nil {
		return
	}
	if e.err != nil {
		span.SetAttributes(semconv.ErrorTypeKey.String("undeliverable"))
		span.SetStatus(codes.Error, "the event cannot be an MQTT packet")
	} else {
		span.SetAttributes(semconv.MessagingMessageBodySize(len(e.payload)))
	}
	span.End()
}

// appendProperties appends the trace context as user properties.
func (s *sending) appendProperties(head []byte) ([]byte, error) {
	var err error
	for _, p := range [...]struct{ name, value string }{{traceParentName, s.parent}, {traceStateName, s.state}} {
		if p.value == "" {
			continue
		}
		head = append(head, propertyUser)
		head, _ = appendString(head, p.name)
		if head, err = appendString(head, p.value); err != nil {
			return nil, err
		}
	}
	return head, nil
}
