package cloudevent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/cloudevent"
)

// sdkMessage is a Kafka record as the SDK's Kafka binding sees it, without the
// extensions about offsets that the binding adds of its own.
type sdkMessage struct {
	headers map[string]string
	value   []byte
}

var sdkSpecs = spec.WithPrefix("ce_")

func newSDKMessage(r *cloudevent.Record) *sdkMessage {
	m := &sdkMessage{headers: map[string]string{}, value: r.Value}
	for _, h := range r.Headers {
		m.headers[strings.ToLower(string(h.Key))] = string(h.Value)
	}
	return m
}

func (m *sdkMessage) format() format.Format { return format.Lookup(m.headers["content-type"]) }
func (m *sdkMessage) version() spec.Version { return sdkSpecs.Version(m.headers["ce_specversion"]) }

func (m *sdkMessage) ReadEncoding() binding.Encoding {
	switch {
	case m.format() != nil:
		return binding.EncodingStructured
	case m.version() != nil:
		return binding.EncodingBinary
	default:
		return binding.EncodingUnknown
	}
}

func (m *sdkMessage) ReadStructured(ctx context.Context, w binding.StructuredWriter) error {
	if m.format() == nil {
		return binding.ErrNotStructured
	}
	return w.SetStructuredEvent(ctx, m.format(), bytes.NewReader(m.value))
}

func (m *sdkMessage) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	version := m.version()
	if version == nil {
		return binding.ErrNotBinary
	}
	// The version decides what the other attributes mean, so it goes first.
	if err := w.SetAttribute(version.AttributeFromKind(spec.SpecVersion), m.headers["ce_specversion"]); err != nil {
		return err
	}
	for name, value := range m.headers {
		var err error
		if name == "content-type" {
			err = w.SetAttribute(version.AttributeFromKind(spec.DataContentType), value)
		} else if extension, ok := strings.CutPrefix(name, "ce_"); ok {
			if a := version.Attribute(name); a != nil {
				err = w.SetAttribute(a, value)
			} else {
				err = w.SetExtension(extension, value)
			}
		}
		if err != nil {
			return err
		}
	}
	return w.SetData(bytes.NewBuffer(m.value))
}

func (m *sdkMessage) GetAttribute(k spec.Kind) (spec.Attribute, any) {
	a := m.version().AttributeFromKind(k)
	if a == nil {
		return nil, nil
	}
	return a, m.headers[a.PrefixedName()]
}

func (m *sdkMessage) GetExtension(name string) any { return m.headers["ce_"+name] }

func (*sdkMessage) Finish(error) error { return nil }

// decodeSDK reads a record with the SDK.
func decodeSDK(r *cloudevent.Record) (*event.Event, error) {
	e, err := binding.ToEvent(context.Background(), newSDKMessage(r))
	if err != nil {
		return nil, err
	}
	return e, e.Validate()
}

// parseSDK reads the JSON format with the SDK.
func parseSDK(b []byte) (*event.Event, error) {
	var e event.Event
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("%w in %s", err, b)
	}
	return &e, e.Validate()
}

// summary is an SDK event in a form that can be compared: as strings, data as bytes.
func summary(e *event.Event) map[string]string {
	m := map[string]string{
		"id": e.ID(), "source": e.Source(), "type": e.Type(), "subject": e.Subject(),
		"datacontenttype": e.DataContentType(), "dataschema": e.DataSchema(),
	}
	if !e.Time().IsZero() {
		m["time"] = e.Time().String()
	}
	for name, value := range e.Extensions() {
		m[name] = fmt.Sprint(value)
	}
	for name, value := range m {
		// The SDK trims some attributes, and only where it decodes some forms.
		if m[name] = strings.TrimSpace(value); m[name] == "" {
			delete(m, name)
		}
	}
	m["data"] = string(bytes.TrimSpace(e.Data()))
	return m
}

// summarize is the same for our binary mode.
func summarize(tb testing.TB, e cloudevent.Event) map[string]string {
	tb.Helper()
	if err := e.Expand(); err != nil {
		tb.Fatalf("Expand() = %v", err)
	}
	m := map[string]string{}
	for name, value := range e.Properties() {
		if name != "specversion" && value != "" {
			m[name] = value
		}
	}
	if contentType := e.ContentType(); contentType != "" {
		m["datacontenttype"] = contentType
	}
	m["data"] = string(bytes.TrimSpace(e.Data))
	return m
}

func record(value string, headers ...string) *cloudevent.Record {
	r := &cloudevent.Record{Topic: "events-foo", Partition: 3, Offset: 42, Value: []byte(value)}
	for i := 0; i < len(headers); i += 2 {
		r.Headers = append(r.Headers, cloudevent.Header{Key: []byte(headers[i]), Value: []byte(headers[i+1])})
	}
	return r
}

// required are the headers that every binary record has.
func required(more ...string) []string {
	return append([]string{
		"ce_specversion", "1.0", "ce_id", "1", "ce_source", "drogue://foo/bar", "ce_type", "io.drogue.event.v1",
	}, more...)
}

const structuredType = "application/cloudevents+json; charset=UTF-8"

// samples are records that we and the SDK have to read alike.
var samples = []struct {
	name   string
	record *cloudevent.Record
}{
	{"JSON", record(`{"temp": 1.50, "b":[1,2 ,3]}`, required("content-type", "application/json")...)},
	{"JSON with charset", record(`{"ü": "\u00fc"}`, required("content-type", "application/json; charset=utf-8")...)},
	{"JSON surrounded by space", record(" {\"a\":1}\n", required("content-type", "application/json")...)},
	{"JSON scalar", record(`12345678901234567890.10`, required("content-type", "application/json")...)},
	{"JSON null", record(`null`, required("content-type", "application/json")...)},
	{"invalid JSON", record(`{"temp": `, required("content-type", "application/json")...)},
	{"invalid UTF-8 in JSON", record("\"\xff\"", required("content-type", "application/json")...)},
	{"text", record("a \"quoted\" \\ text\r\n\tand \x01 control \u2028 ü 🚀", required("content-type", "text/plain")...)},
	{"text with charset", record("grüezi", required("content-type", `text/plain; charset="UTF-8"`)...)},
	{"text in Latin 1", record("gr\xfcezi", required("content-type", "text/plain; charset=iso-8859-1")...)},
	{"text that is not UTF-8", record("gr\xfcezi", required("content-type", "text/plain")...)},
	{"binary", record("\x00\x01\xff\xfe", required("content-type", "application/octet-stream")...)},
	{"no content type", record(`{"a":1}`, required()...)},
	{"empty", record("", required("content-type", "application/json")...)},
	{"all attributes", record(`{}`, required("ce_subject", "state", "ce_time", "2026-11-22T10:11:12.123456Z",
		"ce_dataschema", "https://example.com/schema", "content-type", "application/json", "ce_partitionkey", "foo/bar",
		"ce_application", "foo", "ce_device", "bar", "ce_instance", "drogue", "ce_sequence", "007")...)},
	{"escapes in attributes", record(`{}`, required("ce_subject", "a\"b\\c\n\u0001ü", "content-type", "application/json")...)},
	{"headers in other case", record(`{}`, "CE_SpecVersion", "1.0", "Ce_ID", "1", "ce_SOURCE", "/s", "ce_type", "t",
		"Content-Type", "application/json", "ce_MyExt", "x")},
	{"headers that come twice", record(`{}`, required("ce_ext", "1", "ce_id", "2", "ce_ext", "2",
		"content-type", "text/plain", "content-type", "application/json")...)},
	{"headers of others", record(`{}`, required("content-type", "application/json", "x-other", "1", "ce", "2", "ce-x", "3")...)},
	{"structured", record(`{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"application/json",
		"data":{"n":1.0},"num":5,"flag":true,"time":"2026-01-02T03:04:05Z"}`, "content-type", structuredType)},
	{"structured text", record(`{"data":"a\"\u00fc\n","specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"text/plain"}`,
		"content-type", "application/cloudevents+json")},
	{"structured base64", record(`{"data_base64":"AAH\/\/g==","specversion":"1.0","id":"1","source":"/s","type":"t",
		"datacontenttype":"application/octet-stream"}`, "content-type", structuredType)},
	{"structured without data", record(`{"specversion":"1.0","id":"1","source":"/s","type":"t"}`, "content-type", structuredType)},
}

func TestStructuredModeIsWhatTheSDKReads(t *testing.T) {
	t.Parallel()
	for _, tt := range samples {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want, err := decodeSDK(tt.record)
			if err != nil {
				t.Fatalf("the SDK does not read the sample: %v", err)
			}
			e, result := cloudevent.Decode(tt.record, cloudevent.Options{})
			if result.Verdict != cloudevent.Deliver {
				t.Fatalf("Decode() = %+v, want deliver", result)
			}
			got, err := parseSDK(e.AppendStructured(nil))
			if err != nil {
				t.Fatalf("the SDK does not read what we write: %v", err)
			}
			if diff := cmp.Diff(summary(want), summary(got)); diff != "" {
				t.Errorf("event (-SDK +ours):\n%s", diff)
			}
		})
	}
}

func TestBinaryModeIsWhatTheSDKReads(t *testing.T) {
	t.Parallel()
	for _, tt := range samples {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want, err := decodeSDK(tt.record)
			if err != nil {
				t.Fatalf("the SDK does not read the sample: %v", err)
			}
			e, _ := cloudevent.Decode(tt.record, cloudevent.Options{})
			got := summarize(t, e)
			expected := summary(want)
			// Times go out as they came; the SDK has parsed them.
			delete(got, "time")
			delete(expected, "time")
			if diff := cmp.Diff(expected, got); diff != "" {
				t.Errorf("event (-SDK +ours):\n%s", diff)
			}
		})
	}
}
