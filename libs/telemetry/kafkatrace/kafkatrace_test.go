package kafkatrace_test

import (
	"context"
	"testing"

	"github.com/IBM/sarama"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/telemetry/kafkatrace"
)

func header(key, value string) sarama.RecordHeader {
	return sarama.RecordHeader{Key: []byte(key), Value: []byte(value)}
}

// consumed is what a consumer sees of a produced record.
func consumed(message *sarama.ProducerMessage) []*sarama.RecordHeader {
	var headers []*sarama.RecordHeader
	for i := range message.Headers {
		headers = append(headers, &message.Headers[i])
	}
	return headers
}

func TestTraceContextSurvivesARecord(t *testing.T) {
	t.Parallel()
	propagator := propagation.TraceContext{}
	state, err := trace.ParseTraceState("vendor=value")
	if err != nil {
		t.Fatal(err)
	}
	want := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, TraceState: state, Remote: true,
	})
	message := &sarama.ProducerMessage{Headers: []sarama.RecordHeader{
		header("traceparent", "stale"), header("ce_traceparent", "the producer's"), header("traceparent", "staler"),
	}}
	kafkatrace.Inject(trace.ContextWithSpanContext(t.Context(), want), propagator, message)

	got := trace.SpanContextFromContext(kafkatrace.Extract(t.Context(), propagator, consumed(message)))
	if !got.Equal(want) {
		t.Errorf("the record carries %v, want %v", got, want)
	}
	keys := map[string]int{}
	for _, h := range message.Headers {
		keys[string(h.Key)]++
	}
	if diff := cmp.Diff(map[string]int{"traceparent": 1, "tracestate": 1, "ce_traceparent": 1}, keys); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}

func TestNothingToCarry(t *testing.T) {
	t.Parallel()
	propagator := propagation.TraceContext{}
	message := &sarama.ProducerMessage{Headers: []sarama.RecordHeader{header("x", "y")}}
	kafkatrace.Inject(t.Context(), propagator, message)
	if len(message.Headers) != 1 {
		t.Errorf("headers are %v, want x only", message.Headers)
	}
	if ctx := kafkatrace.Extract(t.Context(), propagator, consumed(message)); trace.SpanContextFromContext(ctx).IsValid() {
		t.Error("a record without trace context has one")
	}
}

func TestCarriers(t *testing.T) {
	t.Parallel()
	message := &sarama.ProducerMessage{Headers: []sarama.RecordHeader{header("a", "1"), header("b", "2"), header("a", "3")}}
	for name, carrier := range map[string]propagation.TextMapCarrier{
		"producer": &kafkatrace.ProducerCarrier{Message: message},
		"consumer": kafkatrace.ConsumerCarrier(append(consumed(message), nil)),
	} {
		if got := carrier.Get("a"); got != "3" {
			t.Errorf("%s: Get(a) = %q, want the last one, 3", name, got)
		}
		if got := carrier.Get("A"); got != "" {
			t.Errorf("%s: Get(A) = %q, want nothing: names of Kafka headers have case", name, got)
		}
		if diff := cmp.Diff([]string{"a", "b", "a"}, carrier.Keys()); diff != "" {
			t.Errorf("%s: Keys() (-want +got):\n%s", name, diff)
		}
	}
	kafkatrace.ConsumerCarrier(consumed(message)).Set("a", "9")
	if len(message.Headers) != 3 || string(message.Headers[0].Value) != "1" {
		t.Error("a consumed record was changed")
	}
}

func BenchmarkExtract(b *testing.B) {
	propagator := propagation.TraceContext{}
	for name, headers := range map[string][]*sarama.RecordHeader{
		"present": {{Key: []byte("traceparent"), Value: []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")}},
		"absent":  {{Key: []byte("ce_id"), Value: []byte("1")}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			ctx := context.Background()
			for b.Loop() {
				_ = kafkatrace.Extract(ctx, propagator, headers)
			}
		})
	}
}
