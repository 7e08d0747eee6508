package cloudevent

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
	"unsafe"
)

// Media types that the codec knows.
const (
	mediaTypeCloudEvents     = "application/cloudevents"
	mediaTypeCloudEventsJSON = "application/cloudevents+json"
	mediaTypeJSON            = "application/json"
	mediaTypeTextJSON        = "text/json"
	mediaTypeOctetStream     = "application/octet-stream"
)

// maxMQTTString is what the two bytes of a length can say.
const maxMQTTString = 65535

// view returns b as a string without a copy. The owner of b must not change it.
func view(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b)) //nolint:gosec // documented: events are views
}

// isMQTTString says whether s can be a string of an MQTT packet: UTF-8 without
// U+0000 that fits into 65535 bytes [MQTT-1.5.4-1, MQTT-1.5.4-2].
func isMQTTString(s string) bool {
	if len(s) > maxMQTTString {
		return false
	}
	ascii := true
	for i := range len(s) {
		if s[i] == 0 {
			return false
		}
		ascii = ascii && s[i] < utf8.RuneSelf
	}
	return ascii || utf8.ValidString(s)
}

// traceValue returns a trace header, or "" where it is none: a header that is
// no printable ASCII cannot be a user property and means nothing to anybody.
func traceValue(b []byte) string {
	const limit = 1024 // traceparent has 55, tracestate must be carried up to 512
	if len(b) > limit {
		return ""
	}
	for _, c := range b {
		if c < ' ' || c > '~' {
			return ""
		}
	}
	return view(b)
}

// equalFold compares b with s, which is in lower case, without regard to ASCII case.
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// hasPrefixFold says whether s begins with prefix, which is in lower case.
func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// mediaType returns the media type of a content type, without parameters.
func mediaType(contentType string) string {
	name, _, _ := strings.Cut(contentType, ";")
	return strings.TrimSpace(name)
}

// isJSON says whether a media type is declared to be JSON.
func isJSON(mediaType string) bool {
	const suffix = "+json"
	return strings.EqualFold(mediaType, mediaTypeJSON) || strings.EqualFold(mediaType, mediaTypeTextJSON) ||
		len(mediaType) > len(suffix) && strings.EqualFold(mediaType[len(mediaType)-len(suffix):], suffix)
}

// isText says whether a content type is text that JSON can show as a string
// without a change of bytes.
func isText(contentType string) bool {
	if !hasPrefixFold(contentType, "text/") {
		return false
	}
	_, params, _ := strings.Cut(contentType, ";")
	for params != "" {
		var param string
		param, params, _ = strings.Cut(params, ";")
		name, value, _ := strings.Cut(param, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "charset") {
			continue
		}
		value = strings.Trim(strings.TrimSpace(value), `"`)
		return strings.EqualFold(value, "utf-8") || strings.EqualFold(value, "us-ascii")
	}
	return true
}

// kindOf says how data of a content type appears in JSON.
func kindOf(contentType string, data []byte) DataKind {
	contentType = strings.TrimSpace(contentType)
	switch {
	case len(data) == 0:
		return None
	case isJSON(mediaType(contentType)):
		if utf8.Valid(data) && json.Valid(data) {
			return JSON
		}
	case isText(contentType):
		if utf8.Valid(data) {
			return Text
		}
	}
	return Binary
}

// ValidString says whether s has only the characters that a CloudEvents String may
// have: valid UTF-8 without control characters and non-characters.
func ValidString(s string) bool {
	return utf8.ValidString(s) && !hasDiscouraged(s)
}

// hasDiscouraged says whether valid UTF-8 has characters that MQTT strings should
// not have.
func hasDiscouraged(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f {
			return strings.ContainsFunc(s[i:], func(r rune) bool {
				return r < ' ' || 0x7f <= r && r <= 0x9f || 0xfdd0 <= r && r <= 0xfdef || r&0xfffe == 0xfffe
			})
		}
	}
	return false
}
