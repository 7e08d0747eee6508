package cloudevent

import "bytes"

// Names of the extension for distributed tracing, and of the Kafka headers.
const (
	attrTraceParent = "traceparent"
	attrTraceState  = "tracestate"
)

// TraceContext is where the event comes from: the W3C trace context of the Kafka
// headers, else that of the CloudEvents extension, else nothing. What cannot be
// a header is no trace context; more is not checked.
func (e *Event) TraceContext() (parent, state string) {
	if e.TraceParent != "" {
		return e.TraceParent, e.TraceState
	}
	attributes := e.Attributes
	if e.Structured != nil && attributes == nil {
		if !bytes.Contains(e.Structured, []byte(attrTraceParent)) {
			return "", "" // as usual, and expanding is work
		}
		expanded := *e
		if expanded.Expand() != nil {
			return "", ""
		}
		attributes = expanded.Attributes
	}
	for i := range attributes {
		switch a := &attributes[i]; a.Name {
		case attrTraceParent:
			parent = traceValue([]byte(a.Value))
		case attrTraceState:
			state = traceValue([]byte(a.Value))
		}
	}
	if parent == "" {
		return "", ""
	}
	return parent, state
}
