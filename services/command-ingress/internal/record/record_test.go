package record_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"mqtt-integration/libs/cloudevent"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/command-ingress/internal/record"
)

var update = flag.Bool("update", false, "write the golden files")

var at = time.Date(2026, 11, 22, 10, 11, 12, 123456789, time.UTC)

func minimal() *commandsv1.Command {
	return &commandsv1.Command{
		Correlation: 7, Id: "019e0a3c-0000-7000-8000-000000000001",
		Application: "example-app", Device: "device1", Command: "set-temp", Time: timestamppb.New(at), Payload: []byte(`{"target": 21.50}`),
	}
}

func full() *commandsv1.Command {
	c := minimal()
	c.Application, c.Device, c.Command = "Grüße.app", "sensor/1 ü", "set/temp"
	c.ContentType = new("text/plain; charset=utf-8")
	c.Payload = []byte("on\x00\xff")
	c.AuthType, c.AuthId = "api_key", "dev/3f1c"
	c.ExpireTime = timestamppb.New(at.Add(time.Minute))
	c.ResponseTopic, c.CorrelationData = new("reply/to/me"), []byte{0, 1, 0xff}
	c.UserProperties = []*commandsv1.UserProperty{
		{Name: "a", Value: "1"},
		{Name: "a", Value: "2"},
		{Name: "ce_source", Value: "forged"},
		{Name: "", Value: "no name"},
		{Name: "traceparent", Value: "x"},
		{Name: "tracestate", Value: "x"},
		{Name: "baggage", Value: "x"},
		{Name: "Content-Type", Value: "x"},
	}
	c.Traceparent, c.Tracestate = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b"
	c.Duplicate = true
	return c
}

// dump shows a record to the letter.
func dump(r record.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "key %q\n", r.Key)
	for _, h := range r.Headers {
		fmt.Fprintf(&b, "header %q %q\n", h.Key, h.Value)
	}
	fmt.Fprintf(&b, "value %q\n", r.Value)
	return b.String()
}

func TestRecordToTheLetter(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]*commandsv1.Command{"minimal": minimal(), "full": full()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := record.Build(c, "drogue")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".golden")
			got := dump(r)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

// TestConsumersSeeTheEvent reads the record as a consumer of ours would.
func TestConsumersSeeTheEvent(t *testing.T) {
	t.Parallel()
	r, err := record.Build(full(), "drogue")
	if err != nil {
		t.Fatal(err)
	}
	in := cloudevent.Record{Topic: "iot-commands", Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		in.Headers = append(in.Headers, cloudevent.Header(h))
	}
	e, result := cloudevent.Decode(&in, cloudevent.Options{})
	if result.Verdict != cloudevent.Deliver {
		t.Fatalf("Decode() = %+v", result)
	}
	want := map[string]string{
		"specversion": "1.0", "id": "019e0a3c-0000-7000-8000-000000000001", "type": "io.drogue.event.v1",
		"source":  "drogue://Gr%C3%BC%C3%9Fe%2Eapp/sensor%2F1%20%C3%BC",
		"subject": "set/temp", "time": "2026-11-22T10:11:12.123456Z", "datacontenttype": "text/plain; charset=utf-8",
		"application": "Grüße.app", "device": "sensor/1 ü", "sender": "sensor/1 ü",
		"partitionkey": "Gr%C3%BC%C3%9Fe%2Eapp/sensor%2F1%20%C3%BC", "instance": "drogue",
		"authtype": "api_key", "authid": "dev/3f1c", "expirytime": "2026-11-22T10:12:12.123456Z",
	}
	got := map[string]string{}
	for _, a := range e.Attributes {
		got[a.Name] = a.Value
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if string(e.Data) != "on\x00\xff" || e.TraceParent != full().GetTraceparent() || e.TraceState != "a=b" {
		t.Errorf("data %q, trace %q %q", e.Data, e.TraceParent, e.TraceState)
	}
}

func TestContentType(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		given   *string
		payload string
		want    string
	}{
		{"given", new("image/png"), "{}", "image/png"},
		{"given, to the letter", new("Text/Plain;charset=UTF-8 "), "{}", "Text/Plain;charset=UTF-8 "},
		{"none, JSON", nil, ` {"a": 1.0} `, "application/json"},
		{"none, JSON scalar", nil, `21.5`, "application/json"},
		{"none, text", nil, "on", "application/octet-stream"},
		{"none, empty", nil, "", "application/octet-stream"},
		{"none, JSON that is not UTF-8", nil, "\"\xff\"", "application/octet-stream"},
		{"empty counts as none", new(""), "{}", "application/json"},
		{"a structured event would speak for itself", new("application/cloudevents+json"), `{"specversion":"1.0"}`, "application/json"},
		{"in any spelling", new(" Application/CloudEvents+JSON; charset=utf-8"), "x", "application/octet-stream"},
		{"and as a batch", new("application/cloudevents-batch+json"), "[]", "application/json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := minimal()
			c.ContentType, c.Payload = tt.given, []byte(tt.payload)
			r, err := record.Build(c, "drogue")
			if err != nil {
				t.Fatal(err)
			}
			if got := header(r, "content-type"); got != tt.want {
				t.Errorf("content-type = %q, want %q", got, tt.want)
			}
			if string(r.Value) != tt.payload || r.Value == nil {
				t.Errorf("value = %q, want %q", r.Value, tt.payload)
			}
		})
	}
}

// header returns the only header of a name.
func header(r record.Record, name string) string {
	values := []string{}
	for _, h := range r.Headers {
		if string(h.Key) == name {
			values = append(values, string(h.Value))
		}
	}
	return strings.Join(values, " and ")
}

func TestWhatACloudEventCannotCarryIsInvalid(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*commandsv1.Command)
		want   string
	}{
		{"no id", func(c *commandsv1.Command) { c.Id = "" }, "id is missing"},
		{"no application", func(c *commandsv1.Command) { c.Application = "" }, "application is missing"},
		{"no device", func(c *commandsv1.Command) { c.Device = "" }, "device is missing"},
		{"blank command", func(c *commandsv1.Command) { c.Command = " " }, "command is missing"},
		{"control character", func(c *commandsv1.Command) { c.Device = "a\x01" }, "device has characters that a CloudEvent cannot carry"},
		{"non-character", func(c *commandsv1.Command) { c.Command = "\ufffe" }, "command has characters that a CloudEvent cannot carry"},
		{
			"line break in the content type", func(c *commandsv1.Command) { c.ContentType = new("a/b\r\nce_id: x") },
			"content type has characters that a CloudEvent cannot carry",
		},
		{"no time", func(c *commandsv1.Command) { c.Time = nil }, "time is missing or not valid"},
		{"time without a form", func(c *commandsv1.Command) { c.Time = &timestamppb.Timestamp{Seconds: 1 << 50} }, "time is missing or not valid"},
		{"expiry without a form", func(c *commandsv1.Command) { c.ExpireTime = &timestamppb.Timestamp{Seconds: 1 << 50} }, "expiry time is not valid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := minimal()
			tt.change(c)
			if _, err := record.Build(c, "drogue"); err == nil || err.Error() != tt.want {
				t.Errorf("Build() = %v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzBuild: whatever a client sends, the attributes are those of its command.
func FuzzBuild(f *testing.F) {
	f.Add("device1", "set", "application/json", []byte("{}"), "ce_source", "forged", "reply")
	f.Add("d\xff", "s", "application/cloudevents", []byte{}, "", "", "")
	f.Add("d", "s", "a/b", []byte(nil), "ource\x00", "\xff", "ce_")
	f.Fuzz(func(t *testing.T, device, command, contentType string, payload []byte, name, value, response string) {
		c := minimal()
		c.Device, c.Command, c.ContentType, c.Payload, c.ResponseTopic = device, command, &contentType, payload, &response
		c.UserProperties = []*commandsv1.UserProperty{{Name: name, Value: value}}
		r, err := record.Build(c, "drogue")
		if err != nil {
			return
		}
		in := cloudevent.Record{Topic: "t", Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			in.Headers = append(in.Headers, cloudevent.Header(h))
		}
		e, result := cloudevent.Decode(&in, cloudevent.Options{})
		if result.Verdict != cloudevent.Deliver || e.Structured != nil {
			t.Fatalf("Decode() = %+v, structured %q", result, e.Structured)
		}
		for name, want := range map[string]string{
			"id": c.GetId(), "type": record.Type, "subject": command, "device": device, "sender": device,
			"application": "example-app", "instance": "drogue", "partitionkey": string(r.Key),
		} {
			if got, _ := e.Attribute(name); got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
		}
		if len(e.Attributes) != 12 {
			t.Errorf("attributes = %v, want 12", e.Attributes)
		}
		if string(e.Data) != string(payload) {
			t.Errorf("data = %q, want %q", e.Data, payload)
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	c := minimal()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := record.Build(c, "drogue"); err != nil {
			b.Fatal(err)
		}
	}
}
