package cloudevent

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"
)

// errNotStructured is what Expand returns for bytes that Decode would not have
// taken for a structured event.
var errNotStructured = errors.New("malformed structured event")

// structuredEvent is what one look over the members of a structured event finds.
type structuredEvent struct {
	specVersion string
	required    [slots]bool
	data        []byte // raw value of the member, nil without
	dataBase64  []byte // the same
	encoding    string // datacontentencoding
	schemaURL   bool   // there is a schemaurl
}

// decodeStructured reads a record in structured mode.
func decodeStructured(value []byte) (Event, Result) {
	if !utf8.Valid(value) || !json.Valid(value) {
		return Event{}, Result{Verdict: Wrapped, Reason: ReasonInvalidJSON}
	}
	s, result := inspectStructured(value)
	if result.Verdict != Deliver {
		return Event{}, result
	}
	switch s.specVersion {
	case "1.0":
		if s.dataBase64 != nil && !isBase64(s.dataBase64) {
			return Event{}, Result{Verdict: Wrapped, Reason: ReasonInvalidBase64, Attribute: memberDataBase64}
		}
	case "0.3":
		if value, result = upgrade(value, &s); result.Verdict != Deliver {
			return Event{}, result
		}
	case "":
		return Event{}, Result{Verdict: Wrapped, Reason: ReasonNoSpecVersion}
	default:
		return Event{}, Result{Verdict: Wrapped, Reason: ReasonSpecVersion}
	}
	for i, ok := range s.required {
		if !ok {
			return Event{}, Result{Verdict: Wrapped, Reason: ReasonMissingAttribute, Attribute: slotNames[i]}
		}
	}
	return Event{Structured: value}, Result{}
}

// inspectStructured looks over the members of valid JSON.
func inspectStructured(value []byte) (structuredEvent, Result) {
	var s structuredEvent
	var undeliverable Result
	m, ok := newMembers(value)
	if !ok {
		return s, Result{Verdict: Wrapped, Reason: ReasonInvalidJSON}
	}
	for {
		rawName, raw, more := m.next()
		if !more {
			break
		}
		name, _ := unquote(rawName)
		switch name {
		case memberData:
			s.data = raw
			continue
		case memberDataBase64:
			s.dataBase64 = nil
			if !isNull(raw) {
				s.dataBase64 = raw
			}
			continue
		}
		text, isString := unquote(raw)
		if !isString && isCore(name) && !isNull(raw) {
			return s, Result{Verdict: Wrapped, Reason: ReasonAttributeType, Attribute: name}
		}
		if !isMQTTString(text) || !isMQTTString(name) || !isString && len(raw) > maxMQTTString {
			undeliverable = Result{Verdict: Undeliverable, Reason: ReasonAttributeString, Attribute: name}
		}
		filled := strings.TrimSpace(text) != ""
		switch name {
		case attrSpecVersion:
			s.specVersion, s.required[slotSpecVersion] = text, filled
		case attrID:
			s.required[slotID] = filled
		case attrSource:
			s.required[slotSource] = filled
		case attrType:
			s.required[slotType] = filled
		case attrSchemaURL:
			s.schemaURL = isString
		case attrDataContentEncoding:
			s.encoding = text
		}
	}
	return s, undeliverable
}

// upgrade rewrites a structured event from 0.3 to 1.0. Members that did not
// change their meaning keep their place and their bytes.
func upgrade(value []byte, s *structuredEvent) ([]byte, Result) {
	encoded := strings.EqualFold(strings.TrimSpace(s.encoding), "base64")
	switch {
	case s.dataBase64 != nil:
		return nil, Result{Verdict: Wrapped, Reason: ReasonReservedName, Attribute: memberDataBase64}
	case encoded && s.data != nil && !isNull(s.data) && !isBase64(s.data):
		return nil, Result{Verdict: Wrapped, Reason: ReasonInvalidBase64, Attribute: memberData}
	}
	out := make([]byte, 0, len(value)+16)
	separator := byte('{')
	m, _ := newMembers(value)
	for {
		rawName, raw, more := m.next()
		if !more {
			return append(out, '}'), Result{}
		}
		name, _ := unquote(rawName)
		switch name {
		case attrSpecVersion:
			raw = []byte(`"1.0"`)
		case attrSchemaURL:
			name = attrDataSchema
		case attrDataSchema:
			if s.schemaURL {
				continue
			}
		case attrDataContentEncoding:
			if encoded {
				continue
			}
		case memberData:
			if encoded {
				name = memberDataBase64
			}
		case memberDataBase64:
			continue // null
		}
		out = append(out, separator)
		out = appendJSONString(out, name)
		out = append(out, ':')
		out = append(out, raw...)
		separator = ','
	}
}

// Expand fills Attributes, Data and Kind of a structured event; it does nothing
// to others or the second time. JSON data stays as its bytes, a string for another
// media type is unquoted, data_base64 is decoded; attributes that are numbers or
// booleans become their JSON text, null means absent. JSON data without a
// datacontenttype gets the one that the JSON format implies, application/json.
//
// It fails only for an event that was not made by Decode.
func (e *Event) Expand() error {
	if e.Structured == nil || e.Attributes != nil {
		return nil
	}
	m, ok := newMembers(e.Structured)
	if !ok {
		return errNotStructured
	}
	a := attributes{list: make([]Attribute, slots, slots+12)}
	for i, name := range slotNames {
		a.list[i].Name = name
	}
	var data, dataBase64 []byte
	for {
		rawName, raw, more := m.next()
		if !more {
			break
		}
		name, _ := unquote(rawName)
		text, isString := unquote(raw)
		switch {
		case name == memberData:
			data = raw
		case name == memberDataBase64:
			dataBase64 = nil
			if isString {
				dataBase64 = raw
			}
		case isNull(raw), name == "", text == "" && isOptional(name):
		case isString:
			a.set(name, text)
		default:
			a.set(name, view(raw))
		}
	}
	if !m.done() || a.list[slotSpecVersion].Value == "" || a.list[slotID].Value == "" ||
		a.list[slotSource].Value == "" || a.list[slotType].Value == "" {
		return errNotStructured
	}
	expanded := Event{Attributes: a.list}
	if err := expanded.setData(data, dataBase64); err != nil {
		return err
	}
	e.Attributes, e.Data, e.Kind = expanded.Attributes, expanded.Data, expanded.Kind
	return nil
}

// setData sets what the members data and data_base64 hold.
func (e *Event) setData(data, dataBase64 []byte) error {
	contentType := e.ContentType()
	switch {
	case dataBase64 != nil:
		text, _ := unquote(dataBase64)
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return errNotStructured
		}
		e.Data = decoded
		e.Kind = kindOf(contentType, decoded)
	case data == nil:
	case contentType == "":
		e.Attributes = append(e.Attributes, Attribute{attrDataContentType, mediaTypeJSON})
		e.Data, e.Kind = data, JSON
	case isJSON(mediaType(contentType)):
		e.Data, e.Kind = data, JSON
	case isNull(data):
	default:
		if text, isString := unquote(data); isString {
			data = []byte(text)
		}
		e.Data = data
		e.Kind = kindOf(contentType, data)
	}
	return nil
}

// isCore says whether name is an attribute that the specification defines as a string.
func isCore(name string) bool {
	switch name {
	case attrSpecVersion, attrID, attrSource, attrType:
		return true
	default:
		return isOptional(name)
	}
}

func isNull(raw []byte) bool { return string(raw) == "null" }

// isBase64 says whether a raw JSON value is a string that base64.StdEncoding
// decodes, line breaks included, without decoding it.
func isBase64(raw []byte) bool {
	text, ok := unquote(raw)
	if !ok {
		return false
	}
	digits, padding := 0, 0
	for i := range len(text) {
		switch c := text[i]; {
		case c == '\r', c == '\n':
		case c == '=':
			padding++
		case padding > 0:
			return false
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '+', c == '/':
			digits++
		default:
			return false
		}
	}
	return padding <= 2 && (digits+padding)%4 == 0
}

// unquote returns the string that a raw JSON value is; not ok when it is another
// value. Without escapes it is a view.
func unquote(raw []byte) (s string, ok bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	inner := view(raw[1 : len(raw)-1])
	if strings.IndexByte(inner, '\\') < 0 {
		return inner, true
	}
	return unescape(raw)
}

// unescape is apart from unquote because of its allocation.
func unescape(raw []byte) (string, bool) {
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}

// members iterates over the members of a JSON object without decoding values. It
// trusts the syntax inside of values, and stops early where brackets do not match.
type members struct {
	b   []byte
	pos int
	end bool
}

func newMembers(b []byte) (members, bool) {
	m := members{b: b}
	m.space()
	if m.pos >= len(b) || b[m.pos] != '{' {
		return m, false
	}
	m.pos++
	return m, true
}

// done says whether the object ended as it should.
func (m *members) done() bool { return m.end }

// next returns the raw name, with quotes, and the raw value of the next member.
func (m *members) next() (name, value []byte, ok bool) {
	m.space()
	if m.pos < len(m.b) && m.b[m.pos] == ',' {
		m.pos++
		m.space()
	}
	if m.pos >= len(m.b) {
		return nil, nil, false
	}
	if m.b[m.pos] != '"' {
		m.end = m.b[m.pos] == '}'
		return nil, nil, false
	}
	start := m.pos
	m.skipString()
	name = m.b[start:m.pos]
	m.space()
	if m.pos >= len(m.b) || m.b[m.pos] != ':' {
		return nil, nil, false
	}
	m.pos++
	m.space()
	start = m.pos
	m.skipValue()
	if start == m.pos {
		return nil, nil, false
	}
	return name, m.b[start:m.pos], true
}

func (m *members) space() {
	for m.pos < len(m.b) {
		switch m.b[m.pos] {
		case ' ', '\t', '\r', '\n':
			m.pos++
		default:
			return
		}
	}
}

func (m *members) skipString() {
	for m.pos++; m.pos < len(m.b); m.pos++ {
		switch m.b[m.pos] {
		case '\\':
			m.pos++
		case '"':
			m.pos++
			return
		}
	}
	m.pos = len(m.b)
}

func (m *members) skipValue() {
	depth := 0
	for m.pos < len(m.b) {
		switch m.b[m.pos] {
		case '"':
			m.skipString()
		case '{', '[':
			depth++
			m.pos++
		case '}', ']':
			if depth == 0 {
				return
			}
			depth--
			m.pos++
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return
			}
			m.pos++
			continue
		default:
			m.pos++
			continue
		}
		if depth == 0 {
			return
		}
	}
}
