package session_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
	"mqtt-integration/services/mqtt-frontend/internal/session"
)

const (
	clientParent     = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	clientNotSampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
)

func tracedCommand(topic, parent string) []byte {
	return mqtttest.Encode(5, packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 9, TopicName: topic, Payload: []byte("x"),
		Properties: packets.Properties{User: []packets.UserProperty{
			{Key: "traceparent", Val: parent}, {Key: "tracestate", Val: "a=b"}, {Key: "baggage", Val: "c=d"},
		}},
	})
}

func trusting(s *session.Settings) { s.TrustRemoteSampling = true }

func TestTraceContextOfACommandThatIsNotTraced(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, parent, want, state string
		change                    []func(*session.Settings)
	}{
		{"sampled is not for clients to say", clientParent, clientNotSampled, "a=b", nil},
		{"unless they are trusted", clientParent, clientParent, "a=b", []func(*session.Settings){trusting}},
		{"no trace context", "nonsense", "", "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFrontend(t, tt.change...)
			c := f.connect(5, "c")
			c.Send(tracedCommand(topic, tt.parent))
			c.Want(packets.Puback)
			got := f.commands.sent()[0]
			if got.GetTraceparent() != tt.want || got.GetTracestate() != tt.state || len(got.GetUserProperties()) != 0 {
				t.Errorf("trace %q, %q, user properties %v", got.GetTraceparent(), got.GetTracestate(), got.GetUserProperties())
			}
		})
	}
}

func TestSpanOfACommand(t *testing.T) {
	t.Parallel()
	exporter := tracetest.NewInMemoryExporter()
	f := newTracedFrontend(t, sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)), trusting)
	c := f.connect(5, "c")
	c.Send(tracedCommand(topic, clientParent))
	c.Want(packets.Puback)
	c.Send(tracedCommand("nonsense", clientParent))
	if p := c.Want(packets.Puback); p.ReasonCode != 0x90 {
		t.Errorf("PUBACK %#x", p.ReasonCode)
	}
	eventually(t, "the spans end", func() bool { return len(exporter.GetSpans()) == 2 })
	sent := f.commands.sent()[0]
	for i, span := range exporter.GetSpans() {
		if span.Name != "process command/{application}/{device}/{command}" || span.SpanKind != trace.SpanKindConsumer ||
			span.Parent.SpanID().String() != "b7ad6b7169203331" || !span.Parent.IsRemote() {
			t.Errorf("span %q of kind %v, parent %v", span.Name, span.SpanKind, span.Parent)
		}
		got := map[string]string{}
		for _, a := range span.Attributes {
			got[string(a.Key)] = a.Value.String()
		}
		want := map[string]string{
			"messaging.system": "mqtt", "messaging.operation.name": "process", "messaging.operation.type": "process",
			"messaging.destination.template": "command/{application}/{device}/{command}", "messaging.message.body.size": "1", "mqtt.qos": "1",
		}
		if i == 0 {
			want["messaging.message.id"] = sent.GetId()
			parent := "00-" + span.SpanContext.TraceID().String() + "-" + span.SpanContext.SpanID().String() + "-01"
			if sent.GetTraceparent() != parent || sent.GetTracestate() != "a=b" {
				t.Errorf("the command has %q, %q, want %q", sent.GetTraceparent(), sent.GetTracestate(), parent)
			}
		} else {
			want["error.type"] = "0x90"
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("attributes (-want +got):\n%s", diff)
		}
		if failed := span.Status.Code == codes.Error; failed != (i == 1) {
			t.Errorf("status %v", span.Status)
		}
	}
}
