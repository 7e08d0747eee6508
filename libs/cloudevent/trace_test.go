package cloudevent_test

import (
	"strings"
	"testing"

	"mqtt-integration/libs/cloudevent"
)

func TestTraceContext(t *testing.T) {
	t.Parallel()
	const header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	const extension = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	attributes := func(more ...string) []cloudevent.Attribute {
		a := []cloudevent.Attribute{
			{Name: "specversion", Value: "1.0"}, {Name: "id", Value: "1"}, {Name: "source", Value: "s"}, {Name: "type", Value: "t"},
		}
		for i := 0; i < len(more); i += 2 {
			a = append(a, cloudevent.Attribute{Name: more[i], Value: more[i+1]})
		}
		return a
	}
	structured := func(more string) []byte {
		return []byte(`{"specversion":"1.0","id":"1","source":"s","type":"t"` + more + `}`)
	}
	for _, tt := range []struct {
		name          string
		event         cloudevent.Event
		parent, state string
	}{
		{name: "nothing", event: cloudevent.Event{Attributes: attributes("x", "y")}},
		{
			name:   "header before extension",
			event:  cloudevent.Event{TraceParent: header, Attributes: attributes("traceparent", extension, "tracestate", "a=b")},
			parent: header,
		},
		{
			name:   "extension",
			event:  cloudevent.Event{Attributes: attributes("traceparent", extension, "tracestate", "a=b")},
			parent: extension, state: "a=b",
		},
		{name: "state alone means nothing", event: cloudevent.Event{Attributes: attributes("tracestate", "a=b")}},
		{name: "too long", event: cloudevent.Event{Attributes: attributes("traceparent", strings.Repeat("0", 2000))}},
		{name: "control characters", event: cloudevent.Event{Attributes: attributes("traceparent", extension+"\n")}},
		{name: "structured without", event: cloudevent.Event{Structured: structured("")}},
		{
			name:   "structured",
			event:  cloudevent.Event{Structured: structured(`,"traceparent":"` + extension + `","tracestate":"c=d"`)},
			parent: extension, state: "c=d",
		},
		{name: "structured, only in the data", event: cloudevent.Event{Structured: structured(`,"data":{"traceparent":"x"}`)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			parent, state := tt.event.TraceContext()
			if parent != tt.parent || state != tt.state {
				t.Errorf("TraceContext() = %q, %q, want %q, %q", parent, state, tt.parent, tt.state)
			}
			if tt.event.Structured != nil && tt.event.Attributes != nil {
				t.Error("the event was changed")
			}
		})
	}
}

func BenchmarkTraceContext(b *testing.B) {
	e := cloudevent.Event{Structured: []byte(`{"specversion":"1.0","id":"1","source":"s","type":"t","data":"` + strings.Repeat("x", 1000) + `"}`)}
	b.ReportAllocs()
	for b.Loop() {
		_, _ = e.TraceContext()
	}
}
