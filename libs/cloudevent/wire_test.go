package cloudevent_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"mqtt-integration/libs/cloudevent"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

// generated is the event as the generated type has it.
func generated(e *cloudevent.Event) *eventsv1.Event {
	m := &eventsv1.Event{Structured: e.Structured, Traceparent: e.TraceParent, Tracestate: e.TraceState}
	if e.Structured == nil {
		m.Data, m.DataKind = e.Data, eventsv1.DataKind(e.Kind)
		for _, a := range e.Attributes {
			m.Attributes = append(m.Attributes, &eventsv1.Attribute{Name: a.Name, Value: a.Value})
		}
	}
	return m
}

func TestWireFormIsThatOfTheGeneratedType(t *testing.T) {
	t.Parallel()
	for _, tt := range samples {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, _ := cloudevent.Decode(tt.record, cloudevent.Options{})
			e.TraceParent, e.TraceState = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b"
			wire := e.AppendWire(nil)
			var m eventsv1.Event
			if err := proto.Unmarshal(wire, &m); err != nil {
				t.Fatalf("the generated type does not read it: %v", err)
			}
			if want := generated(&e); !proto.Equal(&m, want) {
				t.Errorf("generated type read %v, want %v", &m, want)
			}
			if got := e.WireSize(); got != len(wire) {
				t.Errorf("WireSize() = %d, want %d", got, len(wire))
			}
			parsed, err := cloudevent.ParseWire(wire)
			if err != nil {
				t.Fatalf("ParseWire() = %v", err)
			}
			if len(e.Data) == 0 {
				e.Data = nil // protobuf cannot tell
			}
			if diff := cmp.Diff(e, parsed); diff != "" {
				t.Errorf("event after a round trip (-sent +received):\n%s", diff)
			}
		})
	}
}

// A field that is added to the messages has to be added to the codec as well.
func TestWireFormHasEveryField(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		message proto.Message
		want    []string
	}{
		{&eventsv1.Event{}, []string{"attributes", "data", "data_kind", "structured", "traceparent", "tracestate"}},
		{&eventsv1.Attribute{}, []string{"name", "value"}},
	} {
		var got []string
		fields := tt.message.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			got = append(got, string(fields.Get(i).Name()))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("fields of %T (-codec +generated):\n%s", tt.message, diff)
		}
	}
}

func TestExpandedEventTravelsAsItsBytes(t *testing.T) {
	t.Parallel()
	e, _ := cloudevent.Decode(record(`{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1}`,
		"content-type", structuredType), cloudevent.Options{})
	before := string(e.AppendWire(nil))
	if err := e.Expand(); err != nil {
		t.Fatalf("Expand() = %v", err)
	}
	if got := string(e.AppendWire(nil)); got != before {
		t.Errorf("AppendWire() = %q after Expand, want %q", got, before)
	}
}

func TestParseWireRefusesGarbage(t *testing.T) {
	t.Parallel()
	tests := map[string][]byte{
		"cut":                     {0x0a, 0x05, 0x0a},
		"attribute not UTF-8":     {0x0a, 0x03, 0x0a, 0x01, 0xff},
		"traceparent not UTF-8":   {0x2a, 0x01, 0xff},
		"field number zero":       {0x02, 0x00},
		"length beyond the end":   {0x12, 0x7f},
		"varint without an end":   {0x18, 0xff},
		"cut attribute":           {0x0a, 0x01, 0x0a},
		"group that does not end": {0x3b},
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if e, err := cloudevent.ParseWire(b); err == nil {
				t.Errorf("ParseWire(%x) = %+v, want an error", b, e)
			}
		})
	}
}
