package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"mqtt-integration/libs/config"
)

func TestSecretIsNeverPrinted(t *testing.T) {
	t.Parallel()
	const value = "hunter2"
	type holder struct{ Secret config.Secret }
	h := holder{Secret: value}

	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10s"} {
		fmt.Fprintf(&out, verb+"\n", h.Secret)
		fmt.Fprintf(&out, verb+"\n", h)
		fmt.Fprintf(&out, verb+"\n", &h)
	}
	fmt.Fprintln(&out, errors.New("with "+h.Secret.String()))
	slog.New(slog.NewTextHandler(&out, nil)).Info("text", slog.Any("secret", h.Secret), slog.Any("holder", h))
	slog.New(slog.NewJSONHandler(&out, nil)).Info("json", slog.Any("secret", h.Secret), slog.Any("holder", h))
	for _, marshal := range []func(any) ([]byte, error){json.Marshal, yaml.Marshal} {
		data, err := marshal(map[string]any{"secret": h.Secret, "holder": h})
		if err != nil {
			t.Fatal(err)
		}
		out.Write(data)
	}
	for _, leak := range []string{value, fmt.Sprintf("%x", value), fmt.Sprintf("%X", value)} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("the secret was printed:\n%s", &out)
		}
	}
	if got, want := strings.Count(out.String(), "[redacted]"), 3*9+1+2*2+2*2; got != want {
		t.Errorf("[redacted] is there %d times, want %d:\n%s", got, want, &out)
	}
	if h.Secret.Reveal() != value {
		t.Errorf("Reveal() = %q, want %q", h.Secret.Reveal(), value)
	}
	if got := config.Secret("").String(); got != "" {
		t.Errorf("an empty secret prints as %q, want nothing", got)
	}
}

func TestReadSecret(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name  string
		value config.Secret
		file  string
		want  config.Secret
		err   string
	}{
		{name: "neither"},
		{name: "value", value: "v", want: "v"},
		{name: "file", file: file("plain", "f"), want: "f"},
		{name: "one line end is not part of it", file: file("lf", " f \n"), want: " f "},
		{name: "nor is that of Windows", file: file("crlf", "f\r\n"), want: "f"},
		{name: "two line ends", file: file("two", "f\n\n"), want: "f\n"},
		{name: "both", value: "v", file: "f", err: "only one of them is possible"},
		{name: "empty file", file: file("empty", "\n"), err: "empty is empty"},
		{name: "no file", file: filepath.Join(dir, "none"), err: "none: no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := config.ReadSecret(tt.value, tt.file)
			if got.Reveal() != tt.want.Reveal() {
				t.Errorf("ReadSecret() = %q, want %q", got.Reveal(), tt.want.Reveal())
			}
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("ReadSecret() error = %v, want %q", err, tt.err)
			}
		})
	}
}

func TestByteSize(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text   string
		want   config.ByteSize
		prints string
	}{
		{"0", 0, "0"},
		{"123", 123, "123"},
		{"5B", 5, "5"},
		{"64KiB", 64 << 10, "64KiB"},
		{"10 MiB", 10 << 20, "10MiB"},
		{"1536KiB", 1536 << 10, "1536KiB"},
		{"1024KiB", 1 << 20, "1MiB"},
		{"3GiB", 3 << 30, "3GiB"},
		{"8191TiB", 8191 << 40, "8191TiB"},
		{"2kB", 2000, "2000"},
		{"5MB", 5e6, "5000000"},
	}
	for _, tt := range tests {
		var got config.ByteSize
		if err := got.UnmarshalText([]byte(tt.text)); err != nil || got != tt.want || got.String() != tt.prints {
			t.Errorf("UnmarshalText(%q) = %d (%s), %v, want %d (%s)", tt.text, got, got, err, tt.want, tt.prints)
		}
	}
	for _, text := range []string{"", "KiB", "-1", "-1KiB", "1.5MiB", "1mib", "1 000", "9223372036854775808", "8388608TiB"} {
		var got config.ByteSize
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("UnmarshalText(%q) = %d, want an error", text, got)
		}
	}
}

func TestUnder(t *testing.T) {
	t.Parallel()
	cause := errors.New("b: is required")
	err := config.Under("kafka", errors.Join(cause, errors.Join(fmt.Errorf("tls.x: %w", os.ErrNotExist))))
	if got, want := err.Error(), "kafka.b: is required\nkafka.tls.x: file does not exist"; got != want {
		t.Errorf("Under() = %q, want %q", got, want)
	}
	if !errors.Is(err, cause) || !errors.Is(err, os.ErrNotExist) {
		t.Error("Under() does not wrap what it was given")
	}
	if err := config.Under("kafka", nil); err != nil {
		t.Errorf("Under(nil) = %v, want nil", err)
	}
}
