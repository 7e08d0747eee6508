package cloudevent

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of mqttintegration.events.v1.Event and its Attribute.
const (
	fieldAttributes  protowire.Number = 1
	fieldData        protowire.Number = 2
	fieldDataKind    protowire.Number = 3
	fieldStructured  protowire.Number = 4
	fieldTraceParent protowire.Number = 5
	fieldTraceState  protowire.Number = 6

	fieldName  protowire.Number = 1
	fieldValue protowire.Number = 2
)

var (
	errUTF8        = errors.New("string is not valid UTF-8")
	errFieldNumber = errors.New("invalid field number")
)

// AppendWire appends the serialised mqttintegration.events.v1.Event to dst and
// returns the extended buffer. What Expand made of a structured event stays here.
func (e *Event) AppendWire(dst []byte) []byte {
	if e.Structured == nil {
		for i := range e.Attributes {
			a := &e.Attributes[i]
			dst = protowire.AppendTag(dst, fieldAttributes, protowire.BytesType)
			dst = protowire.AppendVarint(dst, uint64(stringSize(a.Name)+stringSize(a.Value))) //nolint:gosec // not negative
			dst = appendString(dst, fieldName, a.Name)
			dst = appendString(dst, fieldValue, a.Value)
		}
		dst = appendString(dst, fieldData, view(e.Data))
		if e.Kind != None {
			dst = protowire.AppendTag(dst, fieldDataKind, protowire.VarintType)
			dst = protowire.AppendVarint(dst, uint64(e.Kind))
		}
	}
	dst = appendString(dst, fieldStructured, view(e.Structured))
	dst = appendString(dst, fieldTraceParent, e.TraceParent)
	return appendString(dst, fieldTraceState, e.TraceState)
}

// WireSize is the number of bytes that AppendWire appends.
func (e *Event) WireSize() int {
	size := stringSize(view(e.Structured)) + stringSize(e.TraceParent) + stringSize(e.TraceState)
	if e.Structured != nil {
		return size
	}
	size += stringSize(view(e.Data))
	if e.Kind != None {
		size += 2
	}
	for i := range e.Attributes {
		size += 1 + protowire.SizeBytes(stringSize(e.Attributes[i].Name)+stringSize(e.Attributes[i].Value))
	}
	return size
}

// stringSize is the size of a field that is absent when it is empty. All our field
// numbers take one byte.
func stringSize(s string) int {
	if s == "" {
		return 0
	}
	return 1 + protowire.SizeBytes(len(s))
}

func appendString(dst []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return dst
	}
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	return protowire.AppendString(dst, s)
}

// ParseWire parses a serialised mqttintegration.events.v1.Event. The event holds
// views into b. Fields that it does not know are skipped.
func ParseWire(b []byte) (Event, error) {
	var e Event
	count, err := countAttributes(b)
	if err != nil {
		return Event{}, fmt.Errorf("parse event: %w", err)
	}
	if count > 0 {
		e.Attributes = make([]Attribute, 0, count)
	}
	err = eachField(b, func(field protowire.Number, typ protowire.Type, value []byte, number uint64) error {
		switch {
		case typ == protowire.VarintType:
			if field == fieldDataKind {
				e.Kind = wireKind(number)
			}
			return nil
		case typ != protowire.BytesType:
			return nil
		}
		switch field {
		case fieldAttributes:
			a, err := parseAttribute(value)
			if err != nil {
				return err
			}
			e.Attributes = append(e.Attributes, a)
		case fieldData:
			e.Data = nonEmpty(value)
		case fieldStructured:
			e.Structured = nonEmpty(value)
		case fieldTraceParent:
			return setString(&e.TraceParent, value)
		case fieldTraceState:
			return setString(&e.TraceState, value)
		default: // of a newer peer
		}
		return nil
	})
	if err != nil {
		return Event{}, fmt.Errorf("parse event: %w", err)
	}
	return e, nil
}

func parseAttribute(b []byte) (Attribute, error) {
	var a Attribute
	err := eachField(b, func(field protowire.Number, typ protowire.Type, value []byte, _ uint64) error {
		switch {
		case typ != protowire.BytesType:
			return nil
		case field == fieldName:
			return setString(&a.Name, value)
		case field == fieldValue:
			return setString(&a.Value, value)
		}
		return nil
	})
	return a, err
}

// wireKind maps a kind that a newer peer may know to what is always right.
func wireKind(number uint64) DataKind {
	if number > uint64(JSON) {
		return Binary
	}
	return DataKind(number)
}

func setString(dst *string, value []byte) error {
	if !utf8.Valid(value) {
		return errUTF8
	}
	*dst = view(value)
	return nil
}

func nonEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return slices.Clip(b)
}

func countAttributes(b []byte) (int, error) {
	count := 0
	err := eachField(b, func(field protowire.Number, typ protowire.Type, _ []byte, _ uint64) error {
		if field == fieldAttributes && typ == protowire.BytesType {
			count++
		}
		return nil
	})
	return count, err
}

// eachField calls f for the fields of a message: with value for length-delimited
// ones, with number for varints, with neither for others.
func eachField(b []byte, f func(field protowire.Number, typ protowire.Type, value []byte, number uint64) error) error {
	for len(b) > 0 {
		field, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if field > protowire.MaxValidNumber {
			return errFieldNumber
		}
		b = b[n:]
		var value []byte
		var number uint64
		switch typ {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(field, typ, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(field, typ, value, number); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
