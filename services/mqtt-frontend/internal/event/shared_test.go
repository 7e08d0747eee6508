package event_test

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/services/mqtt-frontend/internal/event"
)

func newEvent(tb testing.TB, e cloudevent.Event) *event.Shared {
	tb.Helper()
	s, err := event.New(e.AppendWire(make([]byte, 0, e.WireSize())), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func example() cloudevent.Event {
	return cloudevent.Event{
		Attributes: []cloudevent.Attribute{
			{Name: "specversion", Value: "1.0"},
			{Name: "id", Value: "1"},
			{Name: "source", Value: "drogue://app/dev"},
			{Name: "type", Value: "io.drogue.event.v1"},
			{Name: "datacontenttype", Value: "application/json"},
			{Name: "dataschema", Value: "urn:s"},
		},
		Data: []byte(`{"temp":1.10}`),
		Kind: cloudevent.JSON,
	}
}

// decode is the other end: the codec of the MQTT library.
func decode(t *testing.T, level byte, packet []byte) packets.Packet {
	t.Helper()
	var pk packets.Packet
	if err := pk.FixedHeader.Decode(packet[0]); err != nil {
		t.Fatal(err)
	}
	rest := bytes.NewBuffer(packet[1:])
	n, _, err := packets.DecodeLength(rest)
	if err != nil || n != rest.Len() {
		t.Fatalf("remaining length %d, %d bytes follow, err %v", n, rest.Len(), err)
	}
	pk.ProtocolVersion = level
	pk.FixedHeader.Remaining = n
	if err := pk.PublishDecode(rest.Bytes()); err != nil {
		t.Fatal(err)
	}
	return pk
}

func TestPublishForms(t *testing.T) {
	t.Parallel()
	const json = `{"specversion":"1.0","id":"1","source":"drogue://app/dev","type":"io.drogue.event.v1",` +
		`"datacontenttype":"application/json","dataschema":"urn:s","data":{"temp":1.10}}`
	structured := packets.Properties{
		ContentType: "application/cloudevents+json; charset=utf-8", PayloadFormat: 1, PayloadFormatFlag: true,
	}
	for _, tt := range []struct {
		name       string
		binary     bool
		level      byte
		options    event.Options
		payload    string
		properties packets.Properties
	}{
		{name: "3.1.1 is structured", level: 4, options: event.Options{QoS: 1, PacketID: 7}, payload: json},
		{name: "3.1.1 has no binary mode", binary: true, level: 4, payload: json},
		{name: "structured", level: 5, payload: json, properties: structured},
		{
			name: "subscription identifier and skipped offsets", level: 5, payload: json,
			options: event.Options{QoS: 1, PacketID: 65535, SubscriptionID: 268_435_455, Skipped: 12, SkippedPartition: 3},
			properties: packets.Properties{
				ContentType: structured.ContentType, PayloadFormat: 1, PayloadFormatFlag: true,
				SubscriptionIdentifier: []int{268_435_455},
				User:                   []packets.UserProperty{{Key: "offsets-skipped", Val: "3:12"}},
			},
		},
		{
			name: "binary", binary: true, level: 5, options: event.Options{QoS: 1, PacketID: 1}, payload: `{"temp":1.10}`,
			properties: packets.Properties{ContentType: "application/json", User: []packets.UserProperty{
				{Key: "specversion", Val: "1.0"},
				{Key: "id", Val: "1"},
				{Key: "source", Val: "drogue://app/dev"},
				{Key: "type", Val: "io.drogue.event.v1"},
				{Key: "dataschema", Val: "urn:s"},
			}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := newEvent(t, example()).Publish(tt.binary, tt.level, "app")
			if err := e.Undeliverable(); err != nil {
				t.Fatal(err)
			}
			packet := e.Append([]byte("before"), tt.options)[len("before"):]
			if got := e.Size(tt.options); got != len(packet) {
				t.Errorf("Size = %d, the packet has %d bytes", got, len(packet))
			}
			pk := decode(t, tt.level, packet)
			if pk.TopicName != "app/app" || pk.FixedHeader.Qos != tt.options.QoS || pk.FixedHeader.Retain || pk.FixedHeader.Dup {
				t.Errorf("topic %q, header %+v", pk.TopicName, pk.FixedHeader)
			}
			if tt.options.QoS > 0 && pk.PacketID != tt.options.PacketID {
				t.Errorf("packet id %d, want %d", pk.PacketID, tt.options.PacketID)
			}
			if diff := cmp.Diff(tt.payload, string(pk.Payload)); diff != "" {
				t.Errorf("payload (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.properties, pk.Properties); diff != "" {
				t.Errorf("properties (-want +got):\n%s", diff)
			}
		})
	}
}

func TestStructuredRecordKeepsItsBytes(t *testing.T) {
	t.Parallel()
	const record = `{ "type":"t","specversion":"1.0", "id":"1","source":"s","datacontenttype":"text/plain","data":"hé\u0000" }`
	s := newEvent(t, cloudevent.Event{Structured: []byte(record)})
	if got := string(s.Publish(false, 5, "a").Payload()); got != record {
		t.Errorf("structured payload %q, want %q", got, record)
	}
	if got, want := string(s.Publish(true, 5, "a").Payload()), "hé\x00"; got != want {
		t.Errorf("binary payload %q, want %q", got, want)
	}
}

func TestUndeliverable(t *testing.T) {
	t.Parallel()
	long := example()
	long.Attributes = append(long.Attributes, cloudevent.Attribute{Name: "long", Value: strings.Repeat("x", 65536)})
	null := example()
	null.Attributes = append(null.Attributes, cloudevent.Attribute{Name: "null", Value: "a\x00b"})
	contentType := example()
	contentType.Attributes[4].Value = "a\x00"
	for _, tt := range []struct {
		name   string
		event  cloudevent.Event
		binary bool
		topic  string
		want   bool
	}{
		{name: "long attribute in binary mode", event: long, binary: true, want: true},
		{name: "long attribute in structured mode", event: long},
		{name: "U+0000 in binary mode", event: null, binary: true, want: true},
		{name: "U+0000 in structured mode", event: null},
		{name: "content type", event: contentType, binary: true, want: true},
		{name: "topic", event: example(), topic: strings.Repeat("x", 65536), want: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEvent(t, tt.event).Publish(tt.binary, 5, tt.topic)
			if got := e.Undeliverable() != nil; got != tt.want {
				t.Errorf("Undeliverable() = %v, want an error: %t", e.Undeliverable(), tt.want)
			}
		})
	}
}

func TestNewRefusesWhatIsNoEvent(t *testing.T) {
	t.Parallel()
	for _, wire := range []string{"", "\xff\xff", "\x18\x01"} {
		if _, err := event.New([]byte(wire), nil); err == nil {
			t.Errorf("New(%q) has no error", wire)
		}
	}
}

func TestFormsAreMadeOnceAndShareTheirPayload(t *testing.T) {
	t.Parallel()
	s := newEvent(t, example())
	got := make([]*event.Encoded, 16)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i] = s.Publish(false, 4+byte(i%2), "app") })
	}
	wg.Wait()
	for i, e := range got {
		if e != got[i%2] {
			t.Errorf("call %d made another form", i)
		}
		if &e.Payload()[0] != &got[0].Payload()[0] {
			t.Errorf("call %d has a payload of its own", i)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	e := newEvent(b, example()).Publish(true, 5, "app")
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = e.Append(buf[:0], event.Options{QoS: 1, PacketID: 77, SubscriptionID: 5})
	}
}
