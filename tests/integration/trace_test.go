//go:build integration

package integration_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/IBM/sarama"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/trace"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlptrace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"mqtt-integration/libs/telemetry"
	"mqtt-integration/libs/testkit"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

// span is a span as it was exported.
type span struct {
	Service, Name, Kind string
	// ID and Parent are hexadecimal; Parent is empty for a root.
	ID, Parent string
	Failed     bool
	Attributes map[string]string
}

// collector receives OTLP over HTTP, as an OpenTelemetry Collector does.
type collector struct {
	mu    sync.Mutex
	spans map[string][]span // by trace
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var request collectortrace.ExportTraceServiceRequest
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = proto.Unmarshal(body, &request)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		http.Error(w, fmt.Sprintf("%s: %v", r.URL.Path, err), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range request.GetResourceSpans() {
		service := ""
		for _, a := range resource.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				id := hex.EncodeToString(s.GetTraceId())
				c.spans[id] = append(c.spans[id], fromOTLP(service, s))
			}
		}
	}
}

func fromOTLP(service string, s *otlptrace.Span) span {
	got := span{
		Service: service, Name: s.GetName(), Kind: strings.ToLower(strings.TrimPrefix(s.GetKind().String(), "SPAN_KIND_")),
		ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
		Failed: s.GetStatus().GetCode() == otlptrace.Status_STATUS_CODE_ERROR, Attributes: map[string]string{},
	}
	for _, a := range s.GetAttributes() {
		value := a.GetValue().GetStringValue()
		if value == "" {
			value = strconv.FormatInt(a.GetValue().GetIntValue(), 10)
		}
		got.Attributes[a.GetKey()] = value
	}
	return got
}

// tracing are the tracers of all services, which export to the collector.
type tracing struct {
	*collector

	providers map[string]*telemetry.Providers
}

// startTracing sets tracing up from the environment, as the processes do.
func startTracing(t *testing.T) *tracing {
	t.Helper()
	tr := &tracing{collector: &collector{spans: map[string][]span{}}, providers: map[string]*telemetry.Providers{}}
	server := httptest.NewServer(tr.collector)
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
	for _, service := range []string{"authorization", "event-fanout", "command-ingress", "mqtt-frontend"} {
		p, err := telemetry.Setup(t.Context(), telemetry.Service{Name: service}, os.Environ())
		if err != nil {
			t.Fatal(err)
		}
		tr.providers[service] = p
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
			defer cancel()
			if err := p.Shutdown(ctx); err != nil {
				t.Errorf("shut down telemetry of %s: %v", service, err)
			}
		})
	}
	return tr
}

// tracer is for system.Options.
func (tr *tracing) tracer(service string) trace.TracerProvider {
	if p, ok := tr.providers[service]; ok {
		return p.Tracer
	}
	return nil
}

// trace waits until a trace has so many spans, and returns them.
func (tr *tracing) trace(t *testing.T, id string, n int) []span {
	t.Helper()
	var got []span
	eventually(t, func() error {
		for _, p := range tr.providers {
			if flusher, ok := p.Tracer.(interface{ ForceFlush(context.Context) error }); ok {
				if err := flusher.ForceFlush(t.Context()); err != nil {
					return err
				}
			}
		}
		tr.collector.mu.Lock()
		defer tr.collector.mu.Unlock()
		got = slices.Clone(tr.spans[id])
		if len(got) < n {
			return fmt.Errorf("%d of %d spans of trace %s are there: %v", len(got), n, id, got)
		}
		return nil
	})
	return got
}

// one returns the span with this name and these attributes, which has to be the
// only one.
func one(t *testing.T, spans []span, name string, attributes ...string) span {
	t.Helper()
	var found []span
	for _, s := range spans {
		matches := s.Name == name
		for i := 0; i < len(attributes); i += 2 {
			matches = matches && s.Attributes[attributes[i]] == attributes[i+1]
		}
		if matches {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans %q with %v in %v, want 1", len(found), name, attributes, spans)
	}
	return found[0]
}

// wantSpan checks all of a span but its identifier.
func wantSpan(t *testing.T, got, want span) {
	t.Helper()
	want.ID = got.ID
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("span %q (-want +got):\n%s", got.Name, diff)
	}
}

// traceProperties are those about the trace.
func traceProperties(p rawmqtt.Packet) map[string]string {
	got := map[string]string{}
	for _, q := range p.Properties {
		if q.ID == rawmqtt.UserProperty && strings.HasPrefix(q.Name, "trace") {
			got[q.Name] += q.Text // twice would show
		}
	}
	return got
}

const (
	traceID    = "0af7651916cd43dd8448eb211c80319c"
	parentSpan = "b7ad6b7169203331"
)

// traceparent is a context in a trace of this test.
func traceparent(id, spanID, flags string) string { return "00-" + id + "-" + spanID + "-" + flags }

// One trace goes from the header of a record to the PUBLISH packets of its
// subscribers: one span for reading it, and one for each mode in which it is
// sent, however many subscribers there are.
func TestTraceOfAnEvent(t *testing.T) { // not parallel: it sets the environment
	tr := startTracing(t)
	s := system.Start(t, system.Options{Tracer: tr.tracer})
	app := s.CreateApplication(t, 1)
	modes := map[string]string{"a": "structured", "b": "structured", "c": "binary", "d": "binary", "e": ""}
	clients := map[string]*client{}
	for _, name := range slices.Sorted(maps.Keys(modes)) {
		d := dial{user: app.Owner}
		var properties rawmqtt.Properties
		if modes[name] == "" {
			d.version = rawmqtt.V311
		} else {
			properties = rawmqtt.Properties{rawmqtt.User("content-mode", modes[name])}
		}
		clients[name] = connect(t, s, d)
		clients[name].subscribe("app/"+app.Name, properties...)
	}

	const otherTrace, otherSpan = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	extension := traceparent(otherTrace, otherSpan, "01")
	for i, tt := range []struct {
		name        string
		headers     []string
		id, parent  string // of the trace
		state       string
		ownInBinary string
	}{
		{
			name: "header", headers: []string{"traceparent", traceparent(traceID, parentSpan, "01"), "tracestate", "vendor=value"},
			id: traceID, parent: parentSpan, state: "vendor=value",
		},
		{name: "extension", headers: []string{"ce_traceparent", extension}, id: otherTrace, parent: otherSpan, ownInBinary: extension},
	} {
		written := testkit.ProduceTo(t, s.Brokers, app.Topic, 0, binaryRecord(`{}`, append([]string{"content-type", "application/json"}, tt.headers...)...))
		properties := map[string]map[string]string{}
		size := ""
		for name, c := range clients {
			p := c.next()
			c.acknowledge(p)
			properties[name] = traceProperties(p)
			if modes[name] == "structured" {
				size = strconv.Itoa(len(p.Payload))
			}
		}
		spans := tr.trace(t, tt.id, 3)
		if len(spans) != 3 {
			t.Errorf("%s: %d spans in the trace, want 3: %v", tt.name, len(spans), spans)
		}
		process := one(t, spans, "process events-{application}")
		wantSpan(t, process, span{
			Service: "event-fanout", Name: "process events-{application}", Kind: "consumer", Parent: tt.parent,
			Attributes: map[string]string{
				"messaging.system": "kafka", "messaging.operation.name": "process", "messaging.operation.type": "process",
				"messaging.destination.template": "events-{application}", "messaging.destination.name": app.Topic,
				"messaging.destination.partition.id": "0", "messaging.kafka.offset": strconv.FormatInt(written[0].Offset, 10),
				"messaging.message.body.size": "2", "mqtt_integration.outcome": "deliver",
			},
		})
		if written[0].Offset != int64(i) {
			t.Errorf("%s: offset %d", tt.name, written[0].Offset)
		}
		want := map[string]map[string]string{"structured": {}, "binary": {}, "": {}}
		for mode, bytes := range map[string]string{"structured": size, "binary": "2"} {
			send := one(t, spans, "publish app/{application}", "mqtt_integration.content_mode", mode)
			wantSpan(t, send, span{
				Service: "mqtt-frontend", Name: "publish app/{application}", Kind: "producer", Parent: process.ID,
				Attributes: map[string]string{
					"messaging.system": "mqtt", "messaging.operation.name": "publish", "messaging.operation.type": "send",
					"messaging.destination.template": "app/{application}", "mqtt_integration.content_mode": mode,
					"messaging.message.body.size": bytes,
				},
			})
			want[mode]["traceparent"] = traceparent(tt.id, send.ID, "01")
			if tt.state != "" {
				want[mode]["tracestate"] = tt.state
			}
		}
		if tt.ownInBinary != "" {
			want["binary"] = map[string]string{"traceparent": tt.ownInBinary}
		}
		for name, mode := range modes {
			if diff := cmp.Diff(want[mode], properties[name]); diff != "" {
				t.Errorf("%s: PUBLISH of client %s, mode %q (-want +got):\n%s", tt.name, name, mode, diff)
			}
		}
	}
}

// One trace goes from the PUBLISH of a command to the headers of its record.
// What a client says about sampling does not count.
func TestTraceOfACommand(t *testing.T) { // not parallel: it sets the environment
	tr := startTracing(t)
	s := system.Start(t, system.Options{Tracer: tr.tracer})
	app := s.CreateApplication(t, 1)
	reader := testkit.NewReader(t, s.Brokers, s.CommandsTopic, sarama.OffsetOldest)
	c := connect(t, s, dial{user: app.Owner})
	for i, flags := range []string{"01", "00"} {
		id := traceID[:31] + strconv.Itoa(i+1)
		puback := c.command(rawmqtt.Publish{
			Topic: "command/" + app.Name + "/device/on", Payload: []byte("now"), QoS: 1,
			Properties: rawmqtt.Properties{
				rawmqtt.User("traceparent", traceparent(id, parentSpan, flags)), rawmqtt.User("tracestate", "vendor=value"),
			},
		})
		if puback.Code != 0 {
			t.Fatalf("got %v", puback)
		}
		record := reader.Read(1, patience)[0]
		messageID, _ := record.Header("ce_id")
		spans := tr.trace(t, id, 2)
		if len(spans) != 2 {
			t.Errorf("%d spans in the trace, want 2: %v", len(spans), spans)
		}
		const name = "process command/{application}/{device}/{command}"
		process := one(t, spans, name)
		wantSpan(t, process, span{
			Service: "mqtt-frontend", Name: name, Kind: "consumer", Parent: parentSpan,
			Attributes: map[string]string{
				"messaging.system": "mqtt", "messaging.operation.name": "process", "messaging.operation.type": "process",
				"messaging.destination.template": "command/{application}/{device}/{command}",
				"messaging.message.id":           messageID, "messaging.message.body.size": "3", "mqtt.qos": "1",
			},
		})
		send := one(t, spans, "send "+s.CommandsTopic)
		wantSpan(t, send, span{
			Service: "command-ingress", Name: "send " + s.CommandsTopic, Kind: "producer", Parent: process.ID,
			Attributes: map[string]string{
				"messaging.system": "kafka", "messaging.operation.name": "send", "messaging.operation.type": "send",
				"messaging.destination.name": s.CommandsTopic, "messaging.message.id": messageID, "messaging.message.body.size": "3",
			},
		})
		for header, want := range map[string]string{
			"traceparent": traceparent(id, send.ID, "01"), "tracestate": "vendor=value", "mqtt_user_traceparent": "", "mqtt_user_tracestate": "",
		} {
			if got, _ := record.Header(header); got != want {
				t.Errorf("header %s is %q, want %q", header, got, want)
			}
		}
	}
}
