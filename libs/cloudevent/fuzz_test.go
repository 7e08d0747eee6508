package cloudevent_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"mqtt-integration/libs/cloudevent"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

// packHeaders and unpackHeaders let the fuzzer make up any number of headers.
func packHeaders(headers []cloudevent.Header) []byte {
	var b []byte
	for _, h := range headers {
		b = append(append(append(append(b, h.Key...), 1), h.Value...), 2)
	}
	return b
}

func unpackHeaders(b []byte) []cloudevent.Header {
	var headers []cloudevent.Header
	for line := range bytes.SplitSeq(b, []byte{2}) {
		if key, value, ok := bytes.Cut(line, []byte{1}); ok {
			headers = append(headers, cloudevent.Header{Key: key, Value: value})
		}
	}
	return headers
}

// FuzzDecode: nothing panics, what is deliverable is valid in every form, the
// wire form loses nothing, and the SDK reads what it reads in the record.
func FuzzDecode(f *testing.F) {
	for _, s := range samples {
		f.Add(s.record.Value, packHeaders(s.record.Headers))
	}
	f.Add([]byte(`{"id":"1","specversion":"0.3","source":"/s","type":"t","data":"AAE=","datacontentencoding":"base64"}`),
		packHeaders(record("", "content-type", structuredType).Headers))
	f.Fuzz(func(t *testing.T, value, packed []byte) {
		r := &cloudevent.Record{Topic: "t", Value: value, Headers: unpackHeaders(packed)}
		e, result := cloudevent.Decode(r, cloudevent.Options{})
		if !result.Verdict.Deliverable() {
			return
		}
		structured := e.AppendStructured(nil)
		if !utf8.Valid(structured) || !json.Valid(structured) {
			t.Fatalf("AppendStructured() is not JSON: %q", structured)
		}
		wire := e.AppendWire(nil)
		if len(wire) != e.WireSize() {
			t.Errorf("WireSize() = %d, want %d", e.WireSize(), len(wire))
		}
		parsed, err := cloudevent.ParseWire(wire)
		if err != nil {
			t.Fatalf("ParseWire() = %v", err)
		}
		if again := parsed.AppendStructured(nil); !bytes.Equal(structured, again) {
			t.Errorf("JSON format after the wire is %s, was %s", again, structured)
		}
		if err := parsed.Expand(); err != nil {
			t.Fatalf("Expand() = %v", err)
		}
		want, err := decodeSDK(r)
		if err != nil || result.Verdict == cloudevent.Wrapped || want.SpecVersion() != "1.0" || hasJSONSuffix(want.DataMediaType()) {
			return // stricter than we are, or wrong about media types ending in +json
		}
		for _, a := range e.Attributes {
			if strings.TrimSpace(a.Value) != a.Value {
				return // the SDK trims a header and does not parse the same URI with a space in JSON
			}
		}
		got, err := parseSDK(structured)
		if err != nil {
			t.Fatalf("the SDK does not read what we write: %v", err)
		}
		if diff := cmp.Diff(summary(want), summary(got)); diff != "" {
			t.Errorf("event (-SDK +ours):\n%s", diff)
		}
	})
}

func hasJSONSuffix(mediaType string) bool {
	return bytes.HasSuffix(bytes.ToLower([]byte(mediaType)), []byte("+json"))
}

// FuzzExpand: nothing panics on bytes that Decode never saw.
func FuzzExpand(f *testing.F) {
	for _, s := range samples {
		f.Add(s.record.Value)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		e := cloudevent.Event{Structured: b}
		if e.Expand() == nil {
			e.AppendStructured(nil)
		}
	})
}

// FuzzParseWire: what we accept is what the generated type accepts, and it means
// the same.
func FuzzParseWire(f *testing.F) {
	for _, s := range samples {
		e, _ := cloudevent.Decode(s.record, cloudevent.Options{})
		f.Add(e.AppendWire(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var want eventsv1.Event
		wantErr := proto.Unmarshal(b, &want)
		e, err := cloudevent.ParseWire(b)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("ParseWire() = %v, generated type: %v", err, wantErr)
		}
		if err != nil || want.GetDataKind() < 0 || want.GetDataKind() > eventsv1.DataKind_DATA_KIND_JSON {
			return
		}
		got := &eventsv1.Event{
			Data: e.Data, DataKind: eventsv1.DataKind(e.Kind), Structured: e.Structured,
			Traceparent: e.TraceParent, Tracestate: e.TraceState,
		}
		for _, a := range e.Attributes {
			got.Attributes = append(got.Attributes, &eventsv1.Attribute{Name: a.Name, Value: a.Value})
		}
		discardUnknown(&want)
		if !proto.Equal(got, &want) {
			t.Errorf("ParseWire() = %v, generated type: %v", got, &want)
		}
	})
}

func discardUnknown(e *eventsv1.Event) {
	e.ProtoReflect().SetUnknown(nil)
	for _, a := range e.GetAttributes() {
		a.ProtoReflect().SetUnknown(nil)
	}
}
