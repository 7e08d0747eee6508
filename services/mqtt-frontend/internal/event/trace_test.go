package event_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/services/mqtt-frontend/internal/event"
)

const (
	incoming   = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	notSampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	own        = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)

// traceOf are the user properties about the trace, by level and mode.
func traceOf(t *testing.T, s *event.Shared, binary bool, level byte) []string {
	t.Helper()
	var got []string
	for _, u := range decode(t, level, s.Publish(binary, level, "app").Append(nil, event.Options{})).Properties.User {
		if strings.HasPrefix(u.Key, "trace") {
			got = append(got, u.Key+"="+u.Val)
		}
	}
	return got
}

func traced(t *testing.T, e cloudevent.Event, tracer trace.Tracer) *event.Shared {
	t.Helper()
	s, err := event.New(e.AppendWire(nil), tracer)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newTracer() (trace.Tracer, *tracetest.InMemoryExporter) {
	exporter := tracetest.NewInMemoryExporter()
	return sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)).Tracer("test"), exporter
}

func withExtension(e cloudevent.Event) cloudevent.Event {
	e.Attributes = append(e.Attributes, cloudevent.Attribute{Name: "traceparent", Value: own}, cloudevent.Attribute{Name: "tracestate", Value: "c=d"})
	return e
}

func TestTraceContextOfPublish(t *testing.T) {
	t.Parallel()
	with := func(e cloudevent.Event, parent, state string) cloudevent.Event {
		e.TraceParent, e.TraceState = parent, state
		return e
	}
	structured := cloudevent.Event{Structured: []byte(`{"specversion":"1.0","id":"1","source":"s","type":"t","traceparent":"` + own + `"}`)}
	const span = "the span's"
	for _, tt := range []struct {
		name               string
		event              cloudevent.Event
		traced             bool
		structured, binary []string
		spans              int
	}{
		{name: "nothing, not traced", event: example()},
		{name: "nothing, traced: event-fanout begins traces", event: example(), traced: true},
		{
			name: "not traced", event: with(example(), incoming, "a=b"),
			structured: []string{"traceparent=" + incoming, "tracestate=a=b"}, binary: []string{"traceparent=" + incoming, "tracestate=a=b"},
		},
		{
			name: "not traced, what is no trace context passes through", event: with(example(), "x", "y"),
			structured: []string{"traceparent=x", "tracestate=y"}, binary: []string{"traceparent=x", "tracestate=y"},
		},
		{
			name: "traced", event: with(example(), incoming, "a=b"), traced: true, spans: 2,
			structured: []string{span, "tracestate=a=b"}, binary: []string{span, "tracestate=a=b"},
		},
		{
			name: "not sampled", event: with(example(), notSampled, ""), traced: true,
			structured: []string{"traceparent=" + notSampled}, binary: []string{"traceparent=" + notSampled},
		},
		{
			name: "own extension, not traced", event: withExtension(with(example(), incoming, "")),
			structured: []string{"traceparent=" + incoming}, binary: []string{"traceparent=" + own, "tracestate=c=d"},
		},
		{
			name: "own extension, traced", event: withExtension(with(example(), incoming, "")), traced: true, spans: 2,
			structured: []string{span}, binary: []string{"traceparent=" + own, "tracestate=c=d"},
		},
		{
			name: "own extension alone, not traced", event: withExtension(example()),
			structured: []string{"traceparent=" + own, "tracestate=c=d"}, binary: []string{"traceparent=" + own, "tracestate=c=d"},
		},
		{
			name: "structured record with its extension", event: with(structured, incoming, ""), traced: true, spans: 2,
			structured: []string{span}, binary: []string{"traceparent=" + own},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var tracer trace.Tracer
			var exporter *tracetest.InMemoryExporter
			if tt.traced {
				tracer, exporter = newTracer()
			}
			s := traced(t, tt.event, tracer)
			for mode, want := range map[string][]string{"structured": tt.structured, "binary": tt.binary} {
				s.Publish(false, 4, "app") // first: the forms of structured mode share the span
				got := traceOf(t, s, mode == "binary", 5)
				want := append([]string(nil), want...)
				for i := range want {
					if want[i] == span {
						want[i] = "traceparent=" + contextOf(t, exporter, mode)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", mode, diff)
				}
			}
			if got := traceOf(t, s, false, 4); got != nil {
				t.Errorf("MQTT 3.1.1 has %v", got)
			}
			if exporter != nil && len(exporter.GetSpans()) != tt.spans {
				t.Errorf("%d spans, want %d", len(exporter.GetSpans()), tt.spans)
			}
		})
	}
}

// contextOf is the context of the send span of a mode.
func contextOf(t *testing.T, exporter *tracetest.InMemoryExporter, mode string) string {
	t.Helper()
	for _, span := range exporter.GetSpans() {
		for _, a := range span.Attributes {
			if a.Key == "mqtt_integration.content_mode" && a.Value.AsString() == mode {
				return "00-" + span.SpanContext.TraceID().String() + "-" + span.SpanContext.SpanID().String() + "-01"
			}
		}
	}
	t.Fatalf("no span of %s mode", mode)
	return ""
}

func TestSpanOfPublish(t *testing.T) {
	t.Parallel()
	tracer, exporter := newTracer()
	e := example()
	e.TraceParent = incoming
	e.Attributes = append(e.Attributes, cloudevent.Attribute{Name: "null", Value: "\x00"})
	s := traced(t, e, tracer)
	s.Publish(false, 5, "app")
	s.Publish(false, 4, "app")
	s.Publish(true, 5, "app")
	spans := exporter.GetSpans()
	if len(spans) != 2 {
		t.Fatalf("%d spans, want one for each mode", len(spans))
	}
	for i, mode := range []string{"structured", "binary"} {
		span := spans[i]
		if span.Name != "publish app/{application}" || span.SpanKind != trace.SpanKindProducer || span.Parent.SpanID().String() != "b7ad6b7169203331" {
			t.Errorf("%s: span %q of kind %v, parent %v", mode, span.Name, span.SpanKind, span.Parent)
		}
		got := map[string]string{}
		for _, a := range span.Attributes {
			got[string(a.Key)] = a.Value.String()
		}
		want := map[string]string{
			"messaging.system": "mqtt", "messaging.operation.name": "publish", "messaging.operation.type": "send",
			"messaging.destination.template": "app/{application}", "mqtt_integration.content_mode": mode,
		}
		if mode == "structured" {
			want["messaging.message.body.size"] = got["messaging.message.body.size"]
		} else {
			want["error.type"] = "undeliverable"
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: attributes (-want +got):\n%s", mode, diff)
		}
		if failed := span.Status.Code == codes.Error; failed != (mode == "binary") {
			t.Errorf("%s: status %v", mode, span.Status)
		}
	}
}
