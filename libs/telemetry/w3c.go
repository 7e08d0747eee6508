package telemetry

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// ParseTraceContext returns the remote span context in the values of traceparent
// and tracestate. It is not valid when traceparent is not; a tracestate that is
// not valid is left out.
func ParseTraceContext(parent, state string) trace.SpanContext {
	if parent == "" {
		return trace.SpanContext{}
	}
	carrier := w3c{parent, state}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), &carrier))
}

// FormatTraceContext returns the values of traceparent and tracestate for a span
// context, both empty when it is not valid.
func FormatTraceContext(sc trace.SpanContext) (parent, state string) {
	var carrier w3c
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(context.Background(), sc), &carrier)
	return carrier.parent, carrier.state
}

// w3c is a carrier of one trace context.
type w3c struct{ parent, state string }

func (c *w3c) Get(key string) string {
	switch key {
	case "traceparent":
		return c.parent
	case "tracestate":
		return c.state
	default:
		return ""
	}
}

func (c *w3c) Set(key, value string) {
	switch key {
	case "traceparent":
		c.parent = value
	case "tracestate":
		c.state = value
	}
}

func (*w3c) Keys() []string { return []string{"traceparent", "tracestate"} }
