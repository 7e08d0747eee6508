package session

import (
	"context"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/telemetry"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// commandTemplate is what the topics of all commands have in common.
const commandTemplate = "command/{application}/{device}/{command}"

// traceProperties are about the trace, not about the command.
var traceProperties = []string{"traceparent", "tracestate", "baggage"}

// commandTrace is the trace that a command is part of. The zero value is none.
type commandTrace struct {
	context trace.SpanContext // to travel with the command
	span    trace.Span        // nil: nothing is recorded
}

// startTrace starts the span of a command, as a child of what the client says.
// Whether it is sampled is not for clients to say, unless the configuration
// trusts them.
func (s *Session) startTrace(p *wire.Publish) commandTrace {
	parent := parentOf(p)
	if s.manager.tracer == nil {
		if !s.manager.settings.TrustRemoteSampling {
			parent = parent.WithTraceFlags(parent.TraceFlags().WithSampled(false))
		}
		return commandTrace{context: parent}
	}
	ctx := context.Background()
	switch {
	case !parent.IsValid():
	case s.manager.settings.TrustRemoteSampling:
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	default:
		ctx = telemetry.ContextWithUntrustedParent(ctx, parent)
	}
	_, span := s.manager.tracer.Start(ctx, "process "+commandTemplate, trace.WithSpanKind(trace.SpanKindConsumer))
	if span.IsRecording() {
		span.SetAttributes(
			semconv.MessagingSystemKey.String("mqtt"), semconv.MessagingOperationName("process"), semconv.MessagingOperationTypeProcess,
			semconv.MessagingDestinationTemplate(commandTemplate), semconv.MessagingMessageBodySize(len(p.Payload)),
			attribute.Int("mqtt.qos", int(p.QoS)),
		)
	}
	return commandTrace{context: span.SpanContext(), span: span}
}

// parentOf is the trace context in the user properties of a command. Of a name
// that comes twice the last one counts, as with Kafka's headers.
func parentOf(p *wire.Publish) trace.SpanContext {
	var parent, state string
	for _, u := range slices.Backward(p.UserProperties) {
		switch {
		case u.Name == "traceparent" && parent == "":
			parent = u.Value
		case u.Name == "tracestate" && state == "":
			state = u.Value
		}
	}
	return telemetry.ParseTraceContext(parent, state)
}

// travel puts the context into a command, from where it gets to Kafka.
func (t commandTrace) travel(c *commandsv1.Command) {
	if !t.context.IsValid() {
		return
	}
	c.Traceparent, c.Tracestate = telemetry.FormatTraceContext(t.context)
	if t.span != nil {
		t.span.SetAttributes(semconv.MessagingMessageID(c.GetId()))
	}
}

// end ends the span with what is acknowledged.
func (t commandTrace) end(code wire.Code, reason string) {
	if t.span == nil {
		return
	}
	if code != wire.Success {
		t.span.SetAttributes(semconv.ErrorTypeKey.String(code.String()))
		t.span.SetStatus(otelcodes.Error, reason)
	}
	t.span.End()
}
