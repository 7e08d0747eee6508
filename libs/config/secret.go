package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

const redacted = "[redacted]"

// Secret is a password, key or token of the configuration. Whatever prints it
// (fmt with every verb, slog, JSON, YAML) prints "[redacted]", or nothing when
// it is empty; only [Secret.Reveal] gives the value.
//
// fmt cannot call methods on unexported fields: a Secret belongs into an
// exported field, or not into anything that is printed.
type Secret string

// Reveal returns the secret itself. Never log or wrap what it returns.
func (s Secret) Reveal() string { return string(s) }

// String implements [fmt.Stringer].
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString implements [fmt.GoStringer].
func (s Secret) GoString() string { return fmt.Sprintf("config.Secret(%q)", s.String()) }

// Format implements [fmt.Formatter], because %d or %x would otherwise show the
// value in spite of String.
func (s Secret) Format(f fmt.State, verb rune) {
	text := s.String()
	if verb == 'v' && f.Flag('#') {
		text = s.GoString()
	}
	_, _ = io.WriteString(f, text)
}

// LogValue implements [slog.LogValuer].
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements [encoding.TextMarshaler], which JSON uses.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML implements [yaml.Marshaler].
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// ReadSecret resolves a secret that may be given as a value or as the path of a
// file that holds it. One line end at the end of the file does not count. It
// returns an empty secret when neither is given (whether that is allowed is for
// the caller to say), and an error when both are, or when the file is empty.
func ReadSecret(value Secret, file string) (Secret, error) {
	switch {
	case file == "":
		return value, nil
	case value != "":
		return "", errors.New("given as a value and as a file; only one of them is possible")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if text == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	return Secret(text), nil
}
