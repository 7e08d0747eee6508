package cloudevent

import (
	"iter"
)

// ContentTypeStructured is the MQTT content type of what
// [Event.AppendStructured] writes.
const ContentTypeStructured = "application/cloudevents+json; charset=utf-8"

// Names of attributes that the codec itself looks at.
const (
	attrSpecVersion         = "specversion"
	attrID                  = "id"
	attrSource              = "source"
	attrType                = "type"
	attrSubject             = "subject"
	attrTime                = "time"
	attrDataSchema          = "dataschema"
	attrDataContentType     = "datacontenttype"
	attrDataContentEncoding = "datacontentencoding" // 0.3 only
	attrSchemaURL           = "schemaurl"           // 0.3 only
	attrPartitionKey        = "partitionkey"

	memberData       = "data"
	memberDataBase64 = "data_base64"
)

// Attribute is one context attribute or extension.
type Attribute struct {
	Name string
	// Value is the attribute in the canonical string form of CloudEvents.
	Value string
}

// DataKind says how data has to appear in the JSON format. It is decided once,
// where the record is read, because finding out costs more than everything else.
type DataKind uint8

// The kinds of data. The numbers are those of the wire form.
const (
	// None is an event without data.
	None DataKind = 0
	// Binary data appears as data_base64.
	Binary DataKind = 1
	// Text is valid UTF-8 that appears as a JSON string.
	Text DataKind = 2
	// JSON is valid JSON in valid UTF-8, and appears verbatim.
	JSON DataKind = 3
)

// String returns the kind in lower case, for logs and tests.
func (k DataKind) String() string {
	switch k {
	case None:
		return "none"
	case Binary:
		return "binary"
	case Text:
		return "text"
	case JSON:
		return "json"
	default:
		return "unknown"
	}
}

// Event is a CloudEvent 1.0 between a Kafka record and an MQTT payload. The zero
// value is no valid event.
type Event struct {
	// Attributes holds specversion, id, source and type, in this order, and then
	// the rest in the order of the record, datacontenttype included. It is empty
	// for a structured record until Expand is called.
	Attributes []Attribute
	// Data is the data as its producer wrote it: for JSON the JSON text, for Text
	// the text, for Binary the bytes.
	Data []byte
	Kind DataKind
	// Structured is the JSON format of the event, where the record had it (or had
	// 0.3, rewritten to 1.0). It is nil for a record in binary mode.
	Structured []byte
	// TraceParent and TraceState are the W3C trace context of the Kafka headers of
	// these names, empty without. The CloudEvents extensions of the same names
	// stay attributes.
	TraceParent string
	TraceState  string
}

// Attribute returns the value of the named attribute. A structured event has to
// be expanded before.
func (e *Event) Attribute(name string) (value string, ok bool) {
	for i := range e.Attributes {
		if e.Attributes[i].Name == name {
			return e.Attributes[i].Value, true
		}
	}
	return "", false
}

// ContentType returns datacontenttype, or "" without: the content type of the
// event in MQTT's binary mode. A structured event has to be expanded before.
func (e *Event) ContentType() string {
	value, _ := e.Attribute(attrDataContentType)
	return value
}

// Properties iterates over what binary mode carries as user properties: every
// attribute but datacontenttype, under its own name. A structured event has to
// be expanded before.
func (e *Event) Properties() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for i := range e.Attributes {
			if a := &e.Attributes[i]; a.Name != attrDataContentType && !yield(a.Name, a.Value) {
				return
			}
		}
	}
}

// Size is about what the event holds in memory, in bytes, for budgets. It counts
// views as if they were copies, since the event keeps their buffer alive.
func (e *Event) Size() int {
	const event, attribute = 160, 32 // the structs themselves
	size := event + len(e.Data) + len(e.Structured) + len(e.TraceParent) + len(e.TraceState)
	for i := range e.Attributes {
		size += attribute + len(e.Attributes[i].Name) + len(e.Attributes[i].Value)
	}
	return size
}

// Discouraged returns the name of the first attribute with a character that
// receivers of MQTT strings may refuse: a control character or a non-character
// [MQTT 5, 1.5.4]. Some clients close the connection on one, so that such an event
// is better not sent in binary mode; in structured mode it is harmless. A
// structured event has to be expanded before.
func (e *Event) Discouraged() (name string, found bool) {
	for i := range e.Attributes {
		if a := &e.Attributes[i]; hasDiscouraged(a.Name) || hasDiscouraged(a.Value) {
			return a.Name, true
		}
	}
	return "", false
}
