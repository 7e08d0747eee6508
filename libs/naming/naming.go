// Package naming has the names that the services and everybody who looks into Kafka must agree on: topics, record keys
// and consumer groups. All functions are pure and safe for concurrent use.
package naming

import (
	"crypto/md5" //nolint:gosec // the name of a topic, not a secret: producers compute the same
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxApplication is the largest length of an application's name in bytes.
	MaxApplication = 128
	// maxPlainApplication is the largest name that an events topic carries as it is: 63 bytes, the length of a DNS
	// label, less the prefix.
	maxPlainApplication = 55
	maxEventsTopic      = 63
)

// EventsTopic is the name of the Kafka topic with the events of an application.
//
// A name of at most 55 bytes that is a DNS label stays readable, as "events-<name>"; any other one is made unique by its
// MD5, as "evt-<md5>-<what can be kept of the name>", in at most 63 bytes.
func EventsTopic(application string) string {
	if len(application) <= maxPlainApplication && isLabel(application) {
		return "events-" + application
	}
	sum := md5.Sum([]byte(application)) //nolint:gosec // see the import
	topic := []byte("evt-" + hex.EncodeToString(sum[:]) + "-")
	for _, c := range strings.ToLower(application) {
		if len(topic) == maxEventsTopic {
			break
		}
		if !isLabelRune(c) {
			c = '-'
		}
		topic = utf8.AppendRune(topic, c)
	}
	return strings.TrimRight(string(topic), "-")
}

// isLabel reports whether s matches [a-z0-9]([-a-z0-9]*[a-z0-9])?.
func isLabel(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range s {
		if !isLabelRune(c) {
			return false
		}
	}
	return true
}

func isLabelRune(c rune) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-'
}

// Escape percent-encodes every byte of s but ASCII letters and digits, with upper-case hexadecimal digits. The result is
// safe as a part of a Kafka group name, a record key and a URI, and no two strings have the same one.
func Escape(s string) string {
	plain := 0
	for plain < len(s) && isAlphanumeric(s[plain]) {
		plain++
	}
	if plain == len(s) {
		return s
	}
	const digits = "0123456789ABCDEF"
	b := make([]byte, plain, len(s)+2*(len(s)-plain))
	copy(b, s)
	for i := plain; i < len(s); i++ {
		if c := s[i]; isAlphanumeric(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return string(b)
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// PartitionKey is the key of the Kafka records of a device: its events and its commands.
func PartitionKey(application, device string) string {
	return Escape(application) + "/" + Escape(device)
}

// Source is the CloudEvents source of what a device sends and receives.
func Source(application, device string) string {
	return "drogue://" + PartitionKey(application, device)
}

// Prefixes of the consumer groups that belong to MQTT sessions. No share group may begin with one of them.
const (
	// SessionGroupPrefix begins the names of groups of stored sessions.
	SessionGroupPrefix = "mqtt-session/"
	// TransientGroupPrefix begins the names of groups of sessions that end with their connection.
	TransientGroupPrefix = "mqtt-transient/"
)

// SessionGroup is the Kafka consumer group of a stored session: alias and subject of its principal, and the MQTT client
// identifier.
func SessionGroup(alias, subject, clientID string) string {
	return SessionGroupPrefix + Escape(alias) + "/" + Escape(subject) + "/" + Escape(clientID)
}

// TransientGroup is the Kafka consumer group of a session that ends with its connection. The connection's identifier
// makes it unique for ever.
func TransientGroup(alias, subject, clientID, connection string) string {
	return TransientGroupPrefix + Escape(alias) + "/" + Escape(subject) + "/" + Escape(clientID) + "/" + Escape(connection)
}

// MaxShare is the largest length of a share name in bytes.
const MaxShare = 128

// ValidateShare reports what is wrong with the name of a share group, which MQTT calls ShareName: it has 1 to 128 bytes of
// UTF-8, no control characters, and none of "/", "+" and "#".
func ValidateShare(name string) error {
	switch {
	case name == "":
		return errors.New("a share name may not be empty")
	case len(name) > MaxShare:
		return fmt.Errorf("a share name has at most %d bytes, not %d", MaxShare, len(name))
	case !utf8.ValidString(name):
		return fmt.Errorf("share name %q is not UTF-8", name)
	case strings.ContainsAny(name, "/+#"):
		return fmt.Errorf("share name %q has one of the characters / + #", name)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("share name %q has a control character", name)
	}
	return nil
}

// ValidateApplication reports what is wrong with the name of an application: it has 1 to 128 bytes of UTF-8, no control
// characters, and none of "/", "+" and "#", which mean something else in an MQTT topic.
func ValidateApplication(name string) error {
	switch {
	case name == "":
		return errors.New("an application's name may not be empty")
	case len(name) > MaxApplication:
		return fmt.Errorf("an application's name has at most %d bytes, not %d", MaxApplication, len(name))
	case !utf8.ValidString(name):
		return fmt.Errorf("application %q is not UTF-8", name)
	case strings.ContainsAny(name, "/+#"):
		return fmt.Errorf("application %q has one of the characters / + #", name)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("application %q has a control character", name)
	}
	return nil
}
