package cloudevent

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Header is a Kafka record header. It has the layout of sarama.RecordHeader, so
// that one converts to the other: cloudevent.Header(*h).
type Header struct {
	Key   []byte
	Value []byte
}

// Record is what Decode needs to know of a Kafka record.
type Record struct {
	Topic     string
	Partition int32
	Offset    int64
	// Key is nil without a key.
	Key []byte
	// Value is nil for a null value, which is not the same as an empty one.
	Value   []byte
	Headers []Header
	// Timestamp may be zero.
	Timestamp time.Time
}

// Options says how to decode. The zero value is the default of the product.
type Options struct {
	// SkipForeign skips records that are no CloudEvents instead of wrapping them.
	SkipForeign bool
}

// Verdict says what has to happen with a record.
type Verdict uint8

const (
	// Deliver is the verdict on a CloudEvent.
	Deliver Verdict = iota
	// Wrapped is the verdict on a record that is no CloudEvent and was made the
	// data of one: deliver it.
	Wrapped
	// Skipped is the verdict on a record that is no CloudEvent where Options say
	// so: pass it.
	Skipped
	// Tombstone is the verdict on a null record without CloudEvents headers: pass it.
	Tombstone
	// Undeliverable is the verdict on a CloudEvent that MQTT cannot carry: pass and
	// count it.
	Undeliverable
)

// Deliverable says whether the event goes to subscribers.
func (v Verdict) Deliverable() bool { return v == Deliver || v == Wrapped }

// String returns the verdict in lower case, fit for a metric's attribute.
func (v Verdict) String() string {
	switch v {
	case Deliver:
		return "deliver"
	case Wrapped:
		return "wrapped"
	case Skipped:
		return "skipped"
	case Tombstone:
		return "tombstone"
	case Undeliverable:
		return "undeliverable"
	default:
		return "unknown"
	}
}

// Result is the verdict on a record and the reason for it.
type Result struct {
	Verdict Verdict
	// Reason is one of the Reason constants, empty for Deliver and Tombstone.
	Reason string
	// Attribute names the attribute that is the reason, where one is. It comes from
	// the record: quote it in logs, and keep it out of metrics.
	Attribute string
}

// Reasons why a record is no CloudEvent or cannot be delivered. They are few and
// constant, fit for a metric's attribute.
const (
	ReasonNoSpecVersion    = "no specversion"
	ReasonSpecVersion      = "unknown specversion"
	ReasonMissingAttribute = "missing attribute"
	ReasonReservedName     = "reserved attribute name"
	ReasonFormat           = "unknown event format"
	ReasonInvalidJSON      = "invalid JSON"
	ReasonInvalidBase64    = "invalid base64"
	ReasonAttributeType    = "attribute type"
	ReasonAttributeString  = "attribute is no MQTT string"
)

// Type and source prefix of events that wrap a record.
const (
	WrappedType         = "mqtt-integration.kafka.record.v1"
	wrappedSourcePrefix = "kafka:"
)

// timeLayout is RFC 3339 with microseconds; times are UTC.
const timeLayout = "2006-01-02T15:04:05.000000Z07:00"

// Positions of the required attributes in Event.Attributes.
const (
	slotSpecVersion = iota
	slotID
	slotSource
	slotType
	slots
)

var slotNames = [slots]string{attrSpecVersion, attrID, attrSource, attrType}

// headers is what one look over the headers of a record finds.
type headers struct {
	contentType string // value of content-type, "" without
	specVersion string // value of ce_specversion, "" without
	attributes  int    // number of ce_ headers
	traceParent string
	traceState  string
}

// Decode turns a record into an event. Only with a verdict that is Deliverable is
// the event complete. Header names are compared without regard to case, as the
// CloudEvents SDK does; of a header that comes twice the last one counts.
func Decode(r *Record, opts Options) (Event, Result) {
	h := inspect(r.Headers)
	if h.attributes == 0 && r.Value == nil {
		return Event{}, Result{Verdict: Tombstone}
	}
	var e Event
	var result Result
	switch {
	case hasPrefixFold(h.contentType, mediaTypeCloudEvents):
		if !strings.EqualFold(mediaType(h.contentType), mediaTypeCloudEventsJSON) {
			result = Result{Verdict: Wrapped, Reason: ReasonFormat}
			break
		}
		e, result = decodeStructured(r.Value)
	case h.specVersion == "":
		result = Result{Verdict: Wrapped, Reason: ReasonNoSpecVersion}
	default:
		e, result = decodeBinary(r, &h)
	}
	if result.Verdict == Wrapped {
		if r.Value == nil {
			return Event{}, Result{Verdict: Tombstone}
		}
		if opts.SkipForeign {
			result.Verdict = Skipped
			return Event{}, result
		}
		e = wrap(r, h.contentType)
	}
	e.TraceParent, e.TraceState = h.traceParent, h.traceState
	return e, result
}

func inspect(hs []Header) headers {
	var h headers
	for i := range hs {
		key := hs[i].Key
		switch {
		case len(key) >= len(headerPrefix) && equalFold(key[:len(headerPrefix)], headerPrefix):
			h.attributes++
			if equalFold(key[len(headerPrefix):], attrSpecVersion) {
				h.specVersion = view(hs[i].Value)
			}
		case equalFold(key, headerContentType):
			h.contentType = view(hs[i].Value)
		case equalFold(key, headerTraceParent):
			h.traceParent = traceValue(hs[i].Value)
		case equalFold(key, headerTraceState):
			h.traceState = traceValue(hs[i].Value)
		}
	}
	if h.traceParent == "" {
		h.traceState = "" // it means nothing alone
	}
	return h
}

const (
	headerPrefix      = "ce_"
	headerContentType = "content-type"
	headerTraceParent = "traceparent"
	headerTraceState  = "tracestate"
)

// decodeBinary reads an event in binary mode.
func decodeBinary(r *Record, h *headers) (Event, Result) {
	v03 := false
	switch h.specVersion {
	case "1.0":
	case "0.3":
		v03 = true
	default:
		return Event{}, Result{Verdict: Wrapped, Reason: ReasonSpecVersion}
	}
	a := attributes{list: make([]Attribute, slots, slots+h.attributes+1)}
	for i, name := range slotNames {
		a.list[i].Name = name
	}
	base64Encoded := false
	for i := range r.Headers {
		key, value := r.Headers[i].Key, view(r.Headers[i].Value)
		var name string
		switch {
		case len(key) >= len(headerPrefix) && equalFold(key[:len(headerPrefix)], headerPrefix):
			name = attributeName(key[len(headerPrefix):])
			if name == attrDataContentType && h.contentType != "" {
				continue // the binding's place for it is content-type
			}
		case h.contentType != "" && equalFold(key, headerContentType):
			name, value = attrDataContentType, h.contentType
		default:
			continue
		}
		if name == memberData || name == memberDataBase64 {
			return Event{}, Result{Verdict: Wrapped, Reason: ReasonReservedName, Attribute: name}
		}
		if v03 {
			switch name {
			case attrSpecVersion:
				value = "1.0"
			case attrSchemaURL:
				name = attrDataSchema
			case attrDataContentEncoding:
				base64Encoded = strings.EqualFold(strings.TrimSpace(value), "base64")
				if base64Encoded {
					continue
				}
			}
		}
		if value == "" && isOptional(name) {
			continue // CloudEvents has no empty values of these
		}
		a.set(name, value)
	}
	for i := range slots {
		if strings.TrimSpace(a.list[i].Value) == "" {
			return Event{}, Result{Verdict: Wrapped, Reason: ReasonMissingAttribute, Attribute: slotNames[i]}
		}
	}
	if name, ok := illegal(a.list); !ok {
		return Event{}, Result{Verdict: Undeliverable, Reason: ReasonAttributeString, Attribute: name}
	}
	data := r.Value
	if base64Encoded {
		decoded, err := base64.StdEncoding.AppendDecode(nil, data)
		if err != nil {
			return Event{}, Result{Verdict: Wrapped, Reason: ReasonInvalidBase64}
		}
		data = decoded
	}
	e := Event{Attributes: a.list, Data: data}
	e.Kind = kindOf(e.ContentType(), data)
	return e, Result{}
}

// isOptional says whether name is one of the optional attributes of the
// specification, which are never empty.
func isOptional(name string) bool {
	switch name {
	case attrSubject, attrTime, attrDataSchema, attrDataContentType:
		return true
	default:
		return false
	}
}

// illegal returns the first attribute that cannot be a user property.
func illegal(list []Attribute) (name string, ok bool) {
	for i := range list {
		if !isMQTTString(list[i].Name) || !isMQTTString(list[i].Value) || list[i].Name == "" {
			return list[i].Name, false
		}
	}
	return "", true
}

// wrap makes an event of a record that is none.
func wrap(r *Record, contentType string) Event {
	id := make([]byte, 0, len(r.Topic)+24)
	id = append(id, r.Topic...)
	id = append(id, '/')
	id = strconv.AppendInt(id, int64(r.Partition), 10)
	id = append(id, '/')
	id = strconv.AppendInt(id, r.Offset, 10)
	list := make([]Attribute, 0, 7)
	list = append(list,
		Attribute{attrSpecVersion, "1.0"},
		Attribute{attrID, view(id)},
		Attribute{attrSource, wrappedSourcePrefix + r.Topic},
		Attribute{attrType, WrappedType},
	)
	switch {
	case !hasPrefixFold(contentType, mediaTypeCloudEvents):
	case isJSON(mediaType(contentType)):
		// In binary mode MQTT clients would take the wrapper for a structured event.
		contentType = mediaTypeJSON
	default:
		contentType = mediaTypeOctetStream
	}
	if contentType != "" && isMQTTString(contentType) {
		list = append(list, Attribute{attrDataContentType, contentType})
	}
	if !r.Timestamp.IsZero() {
		list = append(list, Attribute{attrTime, r.Timestamp.UTC().Format(timeLayout)})
	}
	if len(r.Key) > 0 && isMQTTString(view(r.Key)) {
		list = append(list, Attribute{attrPartitionKey, view(r.Key)})
	}
	e := Event{Attributes: list, Data: r.Value}
	e.Kind = kindOf(e.ContentType(), r.Value)
	return e
}

// attributes collects attributes by name, the last one of a name winning at the
// place of the first.
type attributes struct {
	list  []Attribute
	index map[string]int // from manyAttributes on
}

// manyAttributes is where looking one by one would let a record of a thousand
// headers cost a million comparisons.
const manyAttributes = 32

func (a *attributes) set(name, value string) {
	if a.index == nil {
		if len(a.list) < manyAttributes {
			if i := slices.IndexFunc(a.list, func(x Attribute) bool { return x.Name == name }); i >= 0 {
				a.list[i].Value = value
				return
			}
			a.list = append(a.list, Attribute{name, value})
			return
		}
		a.index = make(map[string]int, 2*len(a.list))
		for i := range a.list {
			a.index[a.list[i].Name] = i
		}
	}
	if i, ok := a.index[name]; ok {
		a.list[i].Value = value
		return
	}
	a.index[name] = len(a.list)
	a.list = append(a.list, Attribute{name, value})
}

// attributeName is the name of the attribute that a header is for: in lower
// case. Names that we know do not keep the record alive.
func attributeName(key []byte) string {
	switch string(key) {
	case attrSpecVersion:
		return attrSpecVersion
	case attrID:
		return attrID
	case attrSource:
		return attrSource
	case attrType:
		return attrType
	case attrSubject:
		return attrSubject
	case attrTime:
		return attrTime
	case attrDataSchema:
		return attrDataSchema
	case attrPartitionKey:
		return attrPartitionKey
	}
	for _, c := range key {
		if 'A' <= c && c <= 'Z' {
			return string(bytes.ToLower(key))
		}
	}
	return view(key)
}
