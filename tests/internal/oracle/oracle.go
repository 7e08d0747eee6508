package oracle

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"slices"
	"strings"

	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/testkit"
)

// FromKafka reads a Kafka record with the SDK's Kafka binding. An event of
// CloudEvents 0.3 becomes one of 1.0.
func FromKafka(r testkit.Record) (*event.Event, error) {
	headers, contentType := map[string][]byte{}, ""
	for _, h := range r.Headers {
		name := strings.ToLower(h.Name)
		headers[name] = h.Value
		if name == "content-type" {
			contentType = string(h.Value)
		}
	}
	return read(kafka_sarama.NewMessage(r.Value, contentType, headers))
}

// Packet is what the SDK has to know of an MQTT packet.
type Packet struct {
	// ContentType is the property of MQTT 5. In 3.1.1, where every event is
	// structured, it is empty.
	ContentType string
	// UserProperties are names and values in turn.
	UserProperties []string
	Payload        []byte
}

// FromMQTT reads an MQTT packet with the SDK, by the rules of the CloudEvents
// MQTT binding: structured mode by its content type (and without content type
// and specversion), else binary mode, where attributes are user properties under
// their own names.
func FromMQTT(p Packet) (*event.Event, error) {
	m := &message{Packet: p, properties: map[string]string{}}
	for pair := range slices.Chunk(p.UserProperties, 2) {
		if _, ok := m.properties[pair[0]]; ok {
			return nil, fmt.Errorf("user property %q comes twice", pair[0])
		}
		m.properties[pair[0]] = pair[1]
	}
	mediaType, _, _ := mime.ParseMediaType(p.ContentType)
	_, isBinary := m.properties["specversion"]
	switch {
	case strings.HasPrefix(mediaType, "application/cloudevents"):
		m.format = format.Lookup(mediaType)
	case p.ContentType == "" && !isBinary:
		m.format = format.JSON
	default:
		m.version = specs.Version(m.properties["specversion"])
	}
	return read(m)
}

func read(m binding.Message) (*event.Event, error) {
	e, err := binding.ToEvent(context.Background(), m)
	if err != nil {
		return nil, err
	}
	if e.SpecVersion() != event.CloudEventsVersionV1 {
		e.SetSpecVersion(event.CloudEventsVersionV1)
	}
	if err := e.Validate(); err != nil {
		return nil, err
	}
	return e, nil
}

// Diff compares two events, and returns nothing when they are equal: all
// attributes and extensions in their canonical string form, and the data byte
// for byte, but for space around JSON, which the JSON format does not keep.
func Diff(want, got *event.Event) string {
	return cmp.Diff(summary(want), summary(got))
}

func summary(e *event.Event) map[string]string {
	m := map[string]string{
		"specversion": e.SpecVersion(), "id": e.ID(), "source": e.Source(), "type": e.Type(), "subject": e.Subject(),
		"datacontenttype": e.DataContentType(), "dataschema": e.DataSchema(),
	}
	if !e.Time().IsZero() {
		m["time"] = e.Time().UTC().String()
	}
	for name, value := range e.Extensions() {
		m["extension "+name] = fmt.Sprint(value)
	}
	for name, value := range m {
		if value == "" {
			delete(m, name)
		}
	}
	data := e.Data()
	if strings.Contains(e.DataContentType(), "json") {
		data = bytes.TrimSpace(data)
	}
	m["data"] = string(data)
	return m
}

// message is an MQTT packet in the terms of the SDK.
type message struct {
	Packet

	properties map[string]string
	format     format.Format
	version    spec.Version
}

var (
	_ binding.Message               = (*message)(nil)
	_ binding.MessageMetadataReader = (*message)(nil)

	specs = spec.WithPrefix("")
)

func (m *message) ReadEncoding() binding.Encoding {
	switch {
	case m.format != nil:
		return binding.EncodingStructured
	case m.version != nil:
		return binding.EncodingBinary
	default:
		return binding.EncodingUnknown
	}
}

func (m *message) ReadStructured(ctx context.Context, w binding.StructuredWriter) error {
	if m.format == nil {
		return binding.ErrNotStructured
	}
	return w.SetStructuredEvent(ctx, m.format, bytes.NewReader(m.Payload))
}

func (m *message) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	if m.version == nil {
		return binding.ErrNotBinary
	}
	// The version decides what the other attributes mean, so it goes first.
	specVersion := m.version.AttributeFromKind(spec.SpecVersion)
	if err := w.SetAttribute(specVersion, m.properties["specversion"]); err != nil {
		return err
	}
	if m.ContentType != "" {
		if err := w.SetAttribute(m.version.AttributeFromKind(spec.DataContentType), m.ContentType); err != nil {
			return err
		}
	}
	for name, value := range m.properties {
		var err error
		switch a := m.version.Attribute(name); {
		case name == "specversion":
		case name == "datacontenttype":
			err = fmt.Errorf("%s is a user property, not the content type", name)
		case a != nil:
			err = w.SetAttribute(a, value)
		default:
			err = w.SetExtension(name, value)
		}
		if err != nil {
			return fmt.Errorf("user property %q: %w", name, err)
		}
	}
	return w.SetData(io.Reader(bytes.NewReader(m.Payload)))
}

func (m *message) GetAttribute(k spec.Kind) (spec.Attribute, any) {
	a := m.version.AttributeFromKind(k)
	switch {
	case a == nil:
		return nil, nil
	case k == spec.DataContentType:
		return a, m.ContentType
	default:
		return a, m.properties[a.Name()]
	}
}

func (m *message) GetExtension(name string) any { return m.properties[name] }

func (m *message) Finish(error) error { return nil }
