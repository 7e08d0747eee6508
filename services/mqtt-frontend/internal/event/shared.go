package event

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/cloudevent"
)

// forms of a PUBLISH packet. Structured payloads differ between MQTT 3.1.1 and 5
// only in front of the payload, whose bytes they share.
const (
	structured4 = iota
	structured5
	binary5
	forms
)

// Shared is one CloudEvent. It is made once per process, however many
// connections it goes to.
type Shared struct {
	event   cloudevent.Event
	size    int
	tracer  trace.Tracer // nil: nothing is recorded
	encoded [forms]atomic.Pointer[Encoded]

	mu      sync.Mutex // held while a form is made
	payload []byte     // of structured mode, once it was needed
	sending *sending   // of structured mode, once it was needed
}

// New reads an event in the wire form of package cloudevent. The bytes belong to
// the event from then on. With a tracer, which may be nil, a span is recorded for
// each content mode in which the event is sent.
func New(wire []byte, tracer trace.Tracer) (*Shared, error) {
	e, err := cloudevent.ParseWire(wire)
	if err != nil {
		return nil, err
	}
	if len(e.Attributes) == 0 && e.Structured == nil {
		return nil, errors.New("parse event: it has neither attributes nor a structured form")
	}
	return &Shared{event: e, size: len(wire), tracer: tracer}, nil
}

// Size is the number of bytes of the wire form, in which delivery windows are
// counted.
func (s *Shared) Size() int { return s.size }

// Publish returns the PUBLISH packet of the event for a content mode, an MQTT
// protocol level (4 or 5) and the application that was subscribed to. Level 4
// has structured mode only. It is made at the first call, and shared: all calls
// for one event name the same application, because an event belongs to one.
func (s *Shared) Publish(binary bool, level byte, application string) *Encoded {
	form := structured4
	switch {
	case level >= 5 && binary:
		form = binary5
	case level >= 5:
		form = structured5
	}
	if e := s.encoded[form].Load(); e != nil {
		return e
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.encoded[form].Load(); e != nil {
		return e
	}
	e := s.encode(form, application)
	s.encoded[form].Store(e)
	return e
}

// encode makes a form. The caller holds mu.
func (s *Shared) encode(form int, application string) *Encoded {
	out, span := s.begin(form == binary5)
	e := s.encodeWith(form, application, out)
	end(span, e)
	return e
}

func (s *Shared) encodeWith(form int, application string, out *sending) *Encoded {
	head, err := appendString(nil, "app/"+application)
	if err != nil {
		return undeliverable(fmt.Errorf("topic: %w", err))
	}
	e := &Encoded{topicSize: len(head), hasProperties: form != structured4}
	switch form {
	case binary5:
		head, err = s.binaryProperties(head, e, out)
	case structured5:
		head = append(head, propertyPayloadFormat, 1, propertyContentType)
		if head, err = appendString(head, cloudevent.ContentTypeStructured); err == nil {
			head, err = out.appendProperties(head)
		}
		fallthrough
	default:
		e.payload = s.structured()
	}
	if err != nil {
		return undeliverable(err)
	}
	e.head = head
	if e.Size(Options{QoS: 1, SubscriptionID: maxSubscriptionID}) > maxPacket-maxSkipped {
		return undeliverable(errTooLarge)
	}
	return e
}

// structured returns the JSON format of the event. The caller holds mu.
func (s *Shared) structured() []byte {
	if s.payload == nil {
		s.payload = s.event.Structured
	}
	if s.payload == nil {
		s.payload = s.event.AppendStructured(make([]byte, 0, s.size+64+len(s.event.Data)/2))
	}
	return s.payload
}

// binaryProperties appends the properties of binary mode to head, and sets the
// payload. A trace context of the event itself is its producer's, and stays.
func (s *Shared) binaryProperties(head []byte, e *Encoded, out *sending) ([]byte, error) {
	expanded := s.event // a copy: others may read the event at the same time
	if err := expanded.Expand(); err != nil {
		return nil, fmt.Errorf("expand structured event: %w", err)
	}
	e.payload = expanded.Data
	var err error
	if contentType := expanded.ContentType(); contentType != "" {
		head = append(head, propertyContentType)
		if head, err = appendString(head, contentType); err != nil {
			return nil, fmt.Errorf("datacontenttype: %w", err)
		}
	}
	own := false
	for name, value := range expanded.Properties() {
		own = own || name == traceParentName || name == traceStateName
		head = append(head, propertyUser)
		if head, err = appendString(head, name); err != nil {
			return nil, fmt.Errorf("attribute name %.40q: %w", name, err)
		}
		if head, err = appendString(head, value); err != nil {
			return nil, fmt.Errorf("attribute %.40q: %w", name, err)
		}
	}
	if own {
		return head, nil
	}
	return out.appendProperties(head)
}
