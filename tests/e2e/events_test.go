//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"

	"mqtt-integration/libs/naming"
	"mqtt-integration/libs/testkit"
)

// facts are an event as the CloudEvents SDK sees it, in a form that can be
// compared: attributes and extensions as text, the data as bytes.
type facts map[string]string

func factsOf(e *event.Event) facts {
	f := facts{
		"specversion": e.SpecVersion(), "id": e.ID(), "source": e.Source(), "type": e.Type(), "subject": e.Subject(),
		"datacontenttype": e.DataContentType(), "dataschema": e.DataSchema(),
	}
	if !e.Time().IsZero() {
		f["time"] = e.Time().UTC().String()
	}
	for name, value := range e.Extensions() {
		f[name] = fmt.Sprint(value)
	}
	for name, value := range f {
		if value == "" {
			delete(f, name)
		}
	}
	data := e.Data()
	if strings.Contains(e.DataContentType(), "json") {
		data = bytes.TrimSpace(data) // the JSON format does not keep the space around
	}
	f["data"] = string(data)
	return f
}

// bySDK reads a message in a Kafka record's form with the CloudEvents SDK.
func bySDK(t *testing.T, value []byte, contentType string, headers map[string][]byte) facts {
	t.Helper()
	e, err := binding.ToEvent(context.Background(), kafka_sarama.NewMessage(value, contentType, headers))
	if err != nil {
		t.Fatalf("the SDK does not read %q with %q: %v", value, headers, err)
	}
	if err := e.Validate(); err != nil {
		t.Fatalf("the SDK says that %v is not valid: %v", e, err)
	}
	return factsOf(e)
}

// ofRecord is the event in a Kafka record.
func ofRecord(t *testing.T, r testkit.Record) facts {
	t.Helper()
	headers := map[string][]byte{}
	for _, h := range r.Headers {
		headers[strings.ToLower(h.Name)] = h.Value
	}
	return bySDK(t, r.Value, string(headers["content-type"]), headers)
}

// ofStructured is the event in an MQTT message in structured mode.
func ofStructured(t *testing.T, s sample, payload []byte) facts {
	t.Helper()
	if !s.suffix {
		return ofJSON(t, payload)
	}
	// What the SDK cannot read is the same event with a type that it knows.
	var attributes map[string]json.RawMessage
	if err := json.Unmarshal(payload, &attributes); err != nil {
		t.Fatalf("%q: %v", payload, err)
	}
	var contentType string
	if err := json.Unmarshal(attributes["datacontenttype"], &contentType); err != nil {
		t.Fatalf("%q: %v", payload, err)
	}
	attributes["datacontenttype"] = json.RawMessage(`"application/json"`)
	readable, err := json.Marshal(attributes)
	if err != nil {
		t.Fatal(err)
	}
	f := ofJSON(t, readable)
	f["datacontenttype"] = contentType
	return f
}

// ofJSON reads the JSON format.
func ofJSON(t *testing.T, payload []byte) facts {
	t.Helper()
	var e event.Event
	if err := json.Unmarshal(payload, &e); err != nil {
		t.Fatalf("the SDK does not read %q: %v", payload, err)
	}
	if err := e.Validate(); err != nil {
		t.Fatalf("the SDK says that %q is not valid: %v", payload, err)
	}
	return factsOf(&e)
}

// ofBinary is the event in an MQTT message in binary mode, which differs from a Kafka
// record in the prefix of names alone.
func ofBinary(t *testing.T, payload []byte, contentType string, properties map[string]string) facts {
	t.Helper()
	headers := map[string][]byte{}
	if contentType != "" {
		headers["content-type"] = []byte(contentType)
	}
	for name, value := range properties {
		headers["ce_"+name] = []byte(value)
	}
	return bySDK(t, payload, contentType, headers)
}

// sample is a Kafka record.
type sample struct {
	name   string
	record testkit.Record
	// spaces says that a value has spaces, which mosquitto_sub's output in binary
	// mode does not tell from those between properties.
	spaces bool
	// suffix says that the data is JSON by the suffix of its type alone. In the JSON
	// format the SDK does not read such data, though CloudEvents 1.0.2 says that
	// it is to be written like this (JSON format, section 3.1).
	suffix bool
}

// samples are records of all kinds that the SDK reads. Every one has an id of its own.
func samples() []sample {
	all := []sample{
		{name: "JSON", record: binaryRecord("json", "state", "application/json", `{"temp": 1.50, "big":12345678901234567890, "b":[1,2 ,3]}`)},
		{name: "JSON with charset", record: binaryRecord("charset", "state", "application/json;charset=utf-8", `{"ü":"\u00fc"}`)},
		{name: "vendor JSON", suffix: true, record: binaryRecord("vendor", "state", "application/vnd.acme+json", `{"a":null}`)},
		{name: "JSON null", record: binaryRecord("null", "state", "application/json", `null`)},
		{name: "invalid JSON", record: binaryRecord("invalid", "state", "application/json", `{"temp": `)},
		{name: "text", record: binaryRecord("text", "log", "text/plain", "a \"quoted\" \\ text\r\n\tgrüezi \u2028 \U0001f680")},
		{name: "Latin 1", record: binaryRecord("latin", "log", "text/plain;charset=iso-8859-1", "gr\xfcezi")},
		{name: "bytes", record: binaryRecord("bytes", "raw", "application/octet-stream", "\x00\x01\xff\xfe\x80")},
		{name: "no data", record: binaryRecord("empty", "raw", "application/json", "")},
		{name: "large", record: binaryRecord("large", "raw", "application/octet-stream", strings.Repeat("\x00\xffdata", 20_000))},
		{name: "every attribute", record: testkit.Record{Key: []byte("dev"), Value: []byte(`{"on":true}`), Headers: testkit.Headers(
			"ce_specversion", "1.0", "ce_id", "every", "ce_source", "drogue://app/dev", "ce_type", "io.drogue.event.v1",
			"ce_subject", "state", "ce_time", "2026-11-22T10:11:12.123456Z", "ce_dataschema", "https://example.com/schema",
			"content-type", "application/json", "ce_application", "app", "ce_applicationuid", "4711", "ce_device", "dev",
			"ce_deviceuid", "4712", "ce_sender", "dev", "ce_instance", "drogue", "ce_partitionkey", "app/dev", "ce_sequence", "007",
		)}},
		{name: "unusual values", spaces: true, record: testkit.Record{Key: []byte("dev"), Value: []byte(`{}`), Headers: testkit.Headers(
			"ce_specversion", "1.0", "ce_id", "unusual", "ce_source", "drogue://app/dev", "ce_type", "io.drogue.event.v1",
			"ce_subject", `with space, "quotes", \ and ü`, "content-type", "application/json", "ce_other", "a=b&c",
		)}},
		{name: "structured in Kafka", record: structuredRecord(`{"specversion":"1.0","id":"structured","source":"/s","type":"t",` +
			`"datacontenttype":"application/json","num":5,"flag":true,"time":"2026-01-02T03:04:05Z","data":{"n":1.0}}`)},
		{name: "structured text in Kafka", record: structuredRecord(`{"data":"a\"\u00fc\n","specversion":"1.0","id":"structured-text",` +
			`"source":"/s","type":"t","datacontenttype":"text/plain"}`)},
		{name: "structured bytes in Kafka", record: structuredRecord(`{"data_base64":"AAH//g==","specversion":"1.0","id":"structured-bytes",` +
			`"source":"/s","type":"t","datacontenttype":"application/octet-stream"}`)},
	}
	return all
}

func structuredRecord(value string) testkit.Record {
	return testkit.Record{
		Key: []byte("dev"), Value: []byte(value), Headers: testkit.Headers("content-type", "application/cloudevents+json; charset=UTF-8"),
	}
}

// binaryRecord is an event of device "dev" in the binary mode of the Kafka binding.
func binaryRecord(id, subject, contentType, data string) testkit.Record {
	return testkit.Record{
		Key: []byte("dev"), Value: []byte(data),
		Headers: testkit.Headers("ce_specversion", "1.0", "ce_id", id, "ce_source", "drogue://app/dev", "ce_type", "io.drogue.event.v1",
			"ce_subject", subject, "content-type", contentType, "ce_device", "dev"),
	}
}

func partitionKey(application, device string) string { return naming.PartitionKey(application, device) }
