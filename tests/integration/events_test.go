//go:build integration

package integration_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/tests/internal/oracle"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

const (
	jsonFormat     = "application/cloudevents+json; charset=utf-8"
	recordTypeJSON = "application/cloudevents+json; charset=UTF-8"

	// Samples that the SDK needs help with.
	otherJSON    = "JSON of another kind"
	implicitJSON = "structured without content type, in another order"
)

// binaryRecord is a CloudEvent in binary mode, with further headers.
func binaryRecord(value string, more ...string) testkit.Record {
	return testkit.Record{Value: []byte(value), Headers: testkit.Headers(append([]string{
		"ce_specversion", "1.0", "ce_id", "1", "ce_source", "drogue://app/device", "ce_type", "io.drogue.event.v1",
	}, more...)...)}
}

func structuredRecord(value string) testkit.Record {
	return testkit.Record{Value: []byte(value), Headers: testkit.Headers("content-type", recordTypeJSON)}
}

// everyAttribute are the attributes that producers of events set, and others.
var everyAttribute = []string{
	"ce_subject", "state", "ce_time", "2026-11-22T10:11:12.123456789+01:00", "ce_dataschema", "https://example.com/schema#v1",
	"content-type", "application/json", "ce_partitionkey", "app/device", "ce_application", "app", "ce_applicationuid",
	"4c1d6a5e", "ce_device", "device", "ce_deviceuid", "77", "ce_sender", "gateway", "ce_senderuid", "78",
	"ce_instance", "drogue", "ce_sequence", "007", "ce_flag", "true", "ce_number", "-1.50", "ce_text", "ü \"quoted\" \\ 🚀",
	"ce_traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}

// eventSamples are records that are CloudEvents.
var eventSamples = []struct {
	name   string
	record testkit.Record
}{
	{"JSON", binaryRecord(`{"temp": 1.50, "b":[1,2 ,3], "big": 12345678901234567890.10, "z":1, "a":2}`, "content-type", "application/json")},
	{"JSON with charset", binaryRecord(`{"ü": "\u00fc"}`, "content-type", "application/json; charset=utf-8")},
	{otherJSON, binaryRecord(`{"a": 1}`, "content-type", "application/senml+json")},
	{"JSON with space around", binaryRecord(" {\"a\":1}\n", "content-type", "application/json")},
	{"JSON scalar", binaryRecord(`12345678901234567890.10`, "content-type", "application/json")},
	{"JSON string", binaryRecord(`"a \"text\""`, "content-type", "application/json")},
	{"JSON null", binaryRecord(`null`, "content-type", "application/json")},
	{"invalid JSON", binaryRecord(`{"temp": `, "content-type", "application/json")},
	{"two JSON values", binaryRecord(`{} {}`, "content-type", "application/json")},
	{"JSON that is not UTF-8", binaryRecord("\"\xff\"", "content-type", "application/json")},
	{"text", binaryRecord("a \"quoted\" \\ text\r\n\tand \x01 control \u2028 ü 🚀 <&>", "content-type", "text/plain")},
	{"text with charset", binaryRecord("grüezi", "content-type", `text/plain; charset="UTF-8"`)},
	{"text in Latin 1", binaryRecord("gr\xfcezi", "content-type", "text/plain; charset=iso-8859-1")},
	{"text that is not UTF-8", binaryRecord("gr\xfcezi", "content-type", "text/plain")},
	{"XML", binaryRecord("<a/>", "content-type", "application/xml")},
	{"binary", binaryRecord("\x00\x01\xff\xfe", "content-type", "application/octet-stream")},
	{"large binary", binaryRecord(strings.Repeat("\x00\xffab", 50_000), "content-type", "application/octet-stream")},
	{"no content type", binaryRecord(`{"a":1}`)},
	{"empty", binaryRecord("", "content-type", "application/json")},
	{"empty without content type", binaryRecord("")},
	{"all attributes", binaryRecord(`{}`, everyAttribute...)},
	{"all attributes and binary data", binaryRecord("\xff", append(everyAttribute, "content-type", "application/octet-stream")...)},
	{"headers in another case", testkit.Record{Value: []byte(`{}`), Headers: testkit.Headers(
		"CE_SpecVersion", "1.0", "Ce_ID", "1", "ce_SOURCE", "/s", "ce_type", "t", "Content-Type", "application/json", "ce_MyExt", "x")}},
	{"headers of others", binaryRecord(`{}`, "content-type", "application/json", "x-other", "1", "mqtt_user_a", "2")},
	{"key", testkit.Record{Key: []byte("app/device"), Value: []byte("1"), Headers: binaryRecord("").Headers}},
	{"CloudEvents 0.3", testkit.Record{Value: []byte(`{"a":1}`), Headers: testkit.Headers(
		"ce_specversion", "0.3", "ce_id", "1", "ce_source", "/s", "ce_type", "t", "ce_subject", "u",
		"ce_schemaurl", "https://example.com/schema", "ce_time", "2026-01-02T03:04:05Z", "content-type", "application/json", "ce_ext", "x")}},

	{"structured", structuredRecord(`{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"application/json",
		"data":{"n": 1.0, "z":0,"a":[ ]},"num":5,"flag":true,"time":"2026-01-02T03:04:05.1Z","subject":"ü"}`)},
	{implicitJSON, structuredRecord(`{"data":{"a":1},"ext":"x","type":"t","id":"1","source":"/s","specversion":"1.0"}`)},
	{"structured text", structuredRecord(`{"data":"a\"\u00fc\n","specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"text/plain"}`)},
	{"structured JSON string", structuredRecord(`{"data":"a","specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"application/json"}`)},
	{"structured base64", structuredRecord(`{"data_base64":"AAH\/\/g==","specversion":"1.0","id":"1","source":"/s","type":"t",
		"datacontenttype":"application/octet-stream"}`)},
	{"structured base64 of JSON", structuredRecord(`{"data_base64":"` + base64.StdEncoding.EncodeToString([]byte(`{"a": 1}`)) +
		`","specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"application/json"}`)},
	{"structured without data", structuredRecord(`{"specversion":"1.0","id":"1","source":"/s","type":"t"}`)},
}

// readers are the ways to get events.
var readers = []struct {
	name    string
	version rawmqtt.Version
	mode    string // the user property content-mode; none is structured
	binary  bool
}{
	{"MQTT 3.1.1", rawmqtt.V311, "", false},
	{"MQTT 5", rawmqtt.V5, "", false},
	{"MQTT 5, structured", rawmqtt.V5, "structured", false},
	{"MQTT 5, binary", rawmqtt.V5, "binary", true},
}

// deliver produces records and returns, for each of readers, what arrived.
func deliver(t *testing.T, s *system.System, records []testkit.Record, count int) (written []testkit.Record, got [][]rawmqtt.Packet) {
	t.Helper()
	app := s.CreateApplication(t, 1)
	clients := make([]*client, len(readers))
	for i, r := range readers {
		clients[i] = connect(t, s, dial{version: r.version, user: app.Owner})
		var properties rawmqtt.Properties
		if r.mode != "" {
			properties = append(properties, rawmqtt.User("content-mode", r.mode))
		}
		clients[i].subscribe("app/"+app.Name, properties...)
	}
	written = testkit.ProduceTo(t, s.Brokers, app.Topic, 0, records...)
	end := map[int32]int64{0: written[len(written)-1].Offset + 1}
	for i, c := range clients {
		packets := c.take(count)
		c.acknowledge(packets...)
		wantCommitted(t, s, c, app, end)
		for _, p := range packets {
			if p.Topic != "app/"+app.Name || p.QoS != 1 || p.Retain || p.Dup {
				t.Errorf("%s: got %v", readers[i].name, p)
			}
		}
		got = append(got, packets)
	}
	return written, got
}

// fromPacket gives the SDK a packet to read.
func fromPacket(p rawmqtt.Packet) oracle.Packet {
	contentType, _ := p.Properties.Text(rawmqtt.ContentType)
	packet := oracle.Packet{ContentType: contentType, Payload: p.Payload}
	for _, q := range p.Properties {
		if q.ID == rawmqtt.UserProperty {
			packet.UserProperties = append(packet.UserProperties, q.Name, q.Text)
		}
	}
	return packet
}

// Whatever the mode, the version and the form of the record: to the CloudEvents
// SDK the event that arrives is the one that is in Kafka.
func TestEventsAreTheSameToTheSDK(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	records := make([]testkit.Record, len(eventSamples))
	for i, sample := range eventSamples {
		records[i] = sample.record
	}
	records, got := deliver(t, s, records, len(records))
	for i, sample := range eventSamples {
		want, err := oracle.FromKafka(records[i])
		if err != nil {
			t.Fatalf("%s: the SDK does not read the sample: %v", sample.name, err)
		}
		for n, reader := range readers {
			t.Run(sample.name+", "+reader.name, func(t *testing.T) {
				p := got[n][i]
				want := want.Clone()
				switch {
				case reader.binary && sample.name == implicitJSON:
					// What only the JSON format implies has to be said elsewhere.
					want.SetDataContentType("application/json")
				case !reader.binary && sample.name == otherJSON:
					// The SDK takes no JSON for a media type in +json.
					if !bytes.Contains(p.Payload, append([]byte(`"data":`), sample.record.Value...)) {
						t.Errorf("payload %q, want the data as it is", p.Payload)
					}
					return
				}
				received, err := oracle.FromMQTT(fromPacket(p))
				if err != nil {
					t.Fatalf("the SDK does not read %q with %v: %v", p.Payload, p.Properties, err)
				}
				if diff := oracle.Diff(&want, received); diff != "" {
					t.Errorf("event (-in Kafka +received):\n%s", diff)
				}
				if reader.binary {
					checkBinary(t, p, records[i], want.DataContentType())
				} else {
					checkStructured(t, p, records[i], reader.version)
				}
			})
		}
	}
}

func checkStructured(t *testing.T, p rawmqtt.Packet, r testkit.Record, version rawmqtt.Version) {
	t.Helper()
	if contentType, _ := r.Header("content-type"); contentType == recordTypeJSON && !bytes.Equal(p.Payload, r.Value) {
		t.Errorf("payload %q, want that of the record byte for byte: %q", p.Payload, r.Value)
	}
	if version == rawmqtt.V311 {
		return
	}
	contentType, _ := p.Properties.Text(rawmqtt.ContentType)
	format, _ := p.Properties.Number(rawmqtt.PayloadFormatIndicator)
	if contentType != jsonFormat || format != 1 {
		t.Errorf("content type %q and payload format indicator %d, want %q and 1", contentType, format, jsonFormat)
	}
}

// checkBinary checks what the SDK does not look at: the form of values.
func checkBinary(t *testing.T, p rawmqtt.Packet, r testkit.Record, wantType string) {
	t.Helper()
	contentType, _ := p.Properties.Text(rawmqtt.ContentType)
	if contentType != wantType {
		t.Errorf("content type %q, want %q", contentType, wantType)
	}
	if version, _ := p.Properties.User("specversion"); version != "1.0" {
		t.Errorf("specversion %q, want 1.0", version)
	}
	if contentType, _ := r.Header("content-type"); contentType == recordTypeJSON {
		return
	}
	if !bytes.Equal(p.Payload, r.Value) {
		t.Errorf("payload %q, want %q", p.Payload, r.Value)
	}
	for _, h := range r.Headers {
		name, ok := strings.CutPrefix(strings.ToLower(h.Name), "ce_")
		if !ok || name == "specversion" {
			continue
		}
		if name == "schemaurl" {
			name = "dataschema"
		}
		if got, _ := p.Properties.User(name); got != string(h.Value) {
			t.Errorf("user property %q is %q, want %q", name, got, h.Value)
		}
	}
}

// Records that are no CloudEvents become the data of one; tombstones are passed,
// and the position with them.
func TestRecordsThatAreNoCloudEvents(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	samples := []struct {
		name   string
		record testkit.Record
		// wantType is the content type; tombstones have none of this.
		wantType  string
		tombstone bool
	}{
		{"text", testkit.Record{Value: []byte("hello")}, "", false},
		{"tombstone", testkit.Record{Key: []byte("app/device")}, "", true},
		{"JSON with a content type", testkit.Record{
			Value: []byte(`{"a":1}`), Headers: testkit.Headers("content-type", "application/json"),
		}, "application/json", false},
		{"bytes with a key", testkit.Record{Key: []byte("k"), Value: []byte("\x00\xff")}, "", false},
		{"empty", testkit.Record{Value: []byte{}}, "", false},
		{"tombstone with a header", testkit.Record{Headers: testkit.Headers("x", "y")}, "", true},
		{"unknown specversion", testkit.Record{Value: []byte("v"), Headers: testkit.Headers(
			"ce_specversion", "2.0", "ce_id", "1", "ce_source", "/s", "ce_type", "t")}, "", false},
		{"attribute is missing", testkit.Record{Value: []byte("v"), Headers: testkit.Headers(
			"ce_specversion", "1.0", "ce_id", "1", "ce_type", "t", "content-type", "text/plain")}, "text/plain", false},
		{"structured, but no JSON", structuredRecord(`{"specversion":"1.0"`), "", false},
		{"batch", testkit.Record{Value: []byte(`[]`), Headers: testkit.Headers("content-type", "application/cloudevents-batch+json")}, "", false},
	}
	var records []testkit.Record
	count := 0
	for _, sample := range samples {
		records = append(records, sample.record)
		if !sample.tombstone {
			count++
		}
	}
	records, got := deliver(t, s, records, count)
	for n, reader := range readers {
		next := 0
		for i, sample := range samples {
			if sample.tombstone {
				continue
			}
			p, r := got[n][next], records[i]
			next++
			t.Run(sample.name+", "+reader.name, func(t *testing.T) {
				e, err := oracle.FromMQTT(fromPacket(p))
				if err != nil {
					t.Fatalf("the SDK does not read %q with %v: %v", p.Payload, p.Properties, err)
				}
				if want := fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Offset); e.ID() != want {
					t.Errorf("id %q, want %q", e.ID(), want)
				}
				if want := "kafka:" + r.Topic; e.Source() != want || e.Type() != "mqtt-integration.kafka.record.v1" {
					t.Errorf("source %q and type %q, want %q and mqtt-integration.kafka.record.v1", e.Source(), e.Type(), want)
				}
				if !bytes.Equal(e.Data(), r.Value) {
					t.Errorf("data %q, want %q", e.Data(), r.Value)
				}
				if sample.wantType != "" && e.DataContentType() != sample.wantType {
					t.Errorf("content type %q, want %q", e.DataContentType(), sample.wantType)
				}
			})
		}
	}
}

// What MQTT cannot carry is passed, and what comes after it arrives.
func TestUndeliverableEventsArePassed(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	app := s.CreateApplication(t, 1)
	small := connect(t, s, dial{user: app.Owner, properties: rawmqtt.Properties{rawmqtt.Number(rawmqtt.MaximumPacketSize, 2000)}})
	small.subscribe("app/" + app.Name)
	large := connect(t, s, dial{user: app.Owner})
	large.subscribe("app/"+app.Name, rawmqtt.User("content-mode", "binary"))

	records := []testkit.Record{
		event("0"),
		binaryRecord(strings.Repeat("x", 3000)),
		event("1"),
		binaryRecord("", "ce_ext", "a\x00b"),
		event("2"),
	}
	testkit.ProduceTo(t, s.Brokers, app.Topic, 0, records...)
	got := small.take(3)
	wantNumbers(t, got, 0)
	for _, p := range got {
		if p.Size > 2000 {
			t.Errorf("a packet has %d bytes, more than Maximum Packet Size", p.Size)
		}
	}
	small.acknowledge(got...)
	wantCommitted(t, s, small, app, map[int32]int64{0: 5})

	got = large.take(4)
	if len(got[1].Payload) != 3000 {
		t.Errorf("the second event has %d bytes, want 3000", len(got[1].Payload))
	}
	large.acknowledge(got...)
	wantCommitted(t, s, large, app, map[int32]int64{0: 5})
}

func TestSubscriptionIdentifierAndQoS(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	app := s.CreateApplication(t, 1)
	once := connect(t, s, dial{user: app.Owner})
	once.subscribeWith("app/"+app.Name, 0, rawmqtt.Number(rawmqtt.SubscriptionIdentifier, 268435455))
	old := connect(t, s, dial{version: rawmqtt.V311, user: app.Owner})
	old.subscribeWith("app/"+app.Name, 0)
	acknowledged := connect(t, s, dial{user: app.Owner})
	acknowledged.subscribe("app/"+app.Name, rawmqtt.Number(rawmqtt.SubscriptionIdentifier, 1))

	const n = 1000 // More than any window, and nothing is acknowledged.
	testkit.ProduceTo(t, s.Brokers, app.Topic, 0, events(0, n)...)
	for _, c := range []*client{once, old} {
		got := c.take(n)
		wantNumbers(t, got, 0)
		for _, p := range got {
			id, _ := p.Properties.Number(rawmqtt.SubscriptionIdentifier)
			if p.QoS != 0 || (c == once && id != 268435455) {
				t.Fatalf("got %v with subscription identifier %d", p, id)
			}
		}
		// What was written counts as delivered.
		wantCommitted(t, s, c, app, map[int32]int64{0: n})
	}
	if id, _ := acknowledged.next().Properties.Number(rawmqtt.SubscriptionIdentifier); id != 1 {
		t.Errorf("subscription identifier %d, want 1", id)
	}
}
