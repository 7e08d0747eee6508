package tail

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/cloudevent"
)

const (
	headerParent    = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	extensionParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	notSampled      = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
)

func recordWith(value string, headers ...string) *cloudevent.Record {
	headers = append([]string{"ce_specversion", "1.0", "ce_id", "1", "ce_source", "s", "ce_type", "t"}, headers...)
	r := &cloudevent.Record{Topic: "events-app", Partition: 3, Offset: 42, Value: []byte(value)}
	for i := 0; i < len(headers); i += 2 {
		r.Headers = append(r.Headers, cloudevent.Header{Key: []byte(headers[i]), Value: []byte(headers[i+1])})
	}
	return r
}

func TestSpanOfARecord(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name            string
		record          *cloudevent.Record
		parent          string // of the span: trace and span
		outcome         string // no span without
		state           string
		travels, failed bool // the span's context is in the event; error
	}{
		{
			name: "header", record: recordWith("1", "traceparent", headerParent, "tracestate", "a=b", "ce_traceparent", extensionParent),
			parent: headerParent, outcome: "deliver", state: "a=b", travels: true,
		},
		{
			name: "extension", record: recordWith("1", "ce_traceparent", extensionParent),
			parent: extensionParent, outcome: "deliver", travels: true,
		},
		{name: "no context", record: recordWith("1"), outcome: "deliver", travels: true},
		{name: "no valid context", record: recordWith("1", "traceparent", "nonsense"), outcome: "deliver", travels: true},
		{name: "not sampled", record: recordWith("1", "traceparent", notSampled)},
		{
			name:    "no CloudEvent",
			record:  &cloudevent.Record{Topic: "events-app", Partition: 3, Offset: 42, Value: []byte("1")},
			outcome: "wrapped", travels: true,
		},
		{name: "tombstone", record: &cloudevent.Record{Topic: "events-app"}},
		{
			name: "too large", record: recordWith(strings.Repeat("x", 2000), "traceparent", headerParent),
			parent: headerParent, outcome: "too_large", failed: true,
		},
		{
			name: "no room for the context", record: recordWith(strings.Repeat("x", 930)),
			outcome: "deliver",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			exporter := tracetest.NewInMemoryExporter()
			provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
			o := outcomes{decoder: &Decoder{MaxBytes: 1000, Tracer: provider.Tracer("test")}}
			event, size, deliver := o.decode(tt.record)
			if deliver && size != event.WireSize() {
				t.Errorf("size is %d, want %d", size, event.WireSize())
			}
			spans := exporter.GetSpans()
			if tt.outcome == "" {
				if len(spans) != 0 {
					t.Errorf("%d spans, want none", len(spans))
				}
				if deliver && event.TraceParent != notSampled {
					t.Errorf("the event has %q, want what the record has", event.TraceParent)
				}
				return
			}
			if len(spans) != 1 {
				t.Fatalf("%d spans, want 1", len(spans))
			}
			span := spans[0]
			if span.Name != "process events-{application}" || span.SpanKind != trace.SpanKindConsumer || (span.Status.Code == codes.Error) != tt.failed {
				t.Errorf("span %q of kind %v, status %v", span.Name, span.SpanKind, span.Status)
			}
			parent := ""
			if span.Parent.IsValid() {
				parent = "00-" + span.Parent.TraceID().String() + "-" + span.Parent.SpanID().String() + "-01"
			}
			if parent != tt.parent {
				t.Errorf("parent is %q, want %q", parent, tt.parent)
			}
			travels := ""
			if tt.travels {
				travels = "00-" + span.SpanContext.TraceID().String() + "-" + span.SpanContext.SpanID().String() + "-01"
			}
			if deliver && (event.TraceParent != travels || event.TraceState != tt.state) {
				t.Errorf("the event has %q, %q, want %q, %q", event.TraceParent, event.TraceState, travels, tt.state)
			}
			want := map[string]string{
				"messaging.system": "kafka", "messaging.operation.name": "process", "messaging.operation.type": "process",
				"messaging.destination.template": "events-{application}", "messaging.destination.name": "events-app",
				"messaging.destination.partition.id": "3", "messaging.kafka.offset": "42",
				"mqtt_integration.outcome": tt.outcome,
			}
			if tt.failed {
				want["error.type"] = tt.outcome
			}
			if diff := cmp.Diff(want, attributesOf(span.Attributes, "messaging.message.body.size")); diff != "" {
				t.Errorf("attributes (-want +got):\n%s", diff)
			}
		})
	}
}

func attributesOf(attributes []attribute.KeyValue, without string) map[string]string {
	got := map[string]string{}
	for _, a := range attributes {
		if string(a.Key) != without {
			got[string(a.Key)] = a.Value.String()
		}
	}
	return got
}

func BenchmarkDecode(b *testing.B) {
	for name, headers := range map[string][]string{
		"no context": nil, "sampled": {"traceparent", headerParent}, "not sampled": {"traceparent", notSampled},
	} {
		record := recordWith(`{"temp":1.5}`, headers...)
		for tracing, tracer := range map[string]trace.Tracer{"off": nil, "on": sdktrace.NewTracerProvider().Tracer("test")} {
			b.Run(name+"/tracing "+tracing, func(b *testing.B) {
				b.ReportAllocs()
				o := outcomes{decoder: &Decoder{MaxBytes: 1000, Tracer: tracer}}
				for b.Loop() {
					_, _, _ = o.decode(record)
				}
			})
		}
	}
}
