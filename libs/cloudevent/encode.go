package cloudevent

import (
	"encoding/base64"
)

// AppendStructured appends the event in the CloudEvents JSON format to dst and
// returns the extended buffer. A structured record is appended as it is; else
// attributes become strings in their order, and the data comes last.
func (e *Event) AppendStructured(dst []byte) []byte {
	if e.Structured != nil {
		return append(dst, e.Structured...)
	}
	separator := byte('{')
	for i := range e.Attributes {
		dst = append(dst, separator)
		dst = appendJSONString(dst, e.Attributes[i].Name)
		dst = append(dst, ':')
		dst = appendJSONString(dst, e.Attributes[i].Value)
		separator = ','
	}
	if separator == '{' {
		dst = append(dst, '{')
		separator = ' '
	}
	switch e.Kind {
	case JSON:
		dst = append(dst, separator)
		dst = append(dst, `"data":`...)
		dst = append(dst, e.Data...)
	case Text:
		dst = append(dst, separator)
		dst = append(dst, `"data":`...)
		dst = appendJSONString(dst, view(e.Data))
	case Binary:
		dst = append(dst, separator)
		dst = append(dst, `"data_base64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, e.Data)
		dst = append(dst, '"')
	case None:
	}
	return append(dst, '}')
}

const hexDigits = "0123456789abcdef"

// appendJSONString appends s, which is valid UTF-8, as a JSON string. It escapes
// what JSON wants escaped and nothing else.
func appendJSONString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
