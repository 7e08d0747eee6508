package cloudevent_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/cloudevent"
)

func TestDecodeJudgesRecords(t *testing.T) {
	t.Parallel()
	tombstone := record("", "x-other", "1")
	tombstone.Value = nil
	tombstoneStructured := record("", "content-type", structuredType)
	tombstoneStructured.Value = nil
	withoutData := record("", required("content-type", "application/json")...)
	withoutData.Value = nil
	halfEvent := record("", "ce_specversion", "1.0", "ce_id", "1")
	halfEvent.Value = nil
	long := strings.Repeat("x", 65536)
	deep := strings.Repeat("[", 1_000_000)
	deepInvalid := `{"specversion":"1.0","id":"1","source":"/s","type":"t","data":` + deep
	const attributes = `"specversion":"1.0","id":"1","source":"/s","type":"t"`
	tests := []struct {
		name   string
		record *cloudevent.Record
		want   cloudevent.Result
	}{
		{"event", record("{}", required()...), cloudevent.Result{}},
		{"null value with the headers of an event is an event without data", withoutData, cloudevent.Result{}},
		{"null value", tombstone, cloudevent.Result{Verdict: cloudevent.Tombstone}},
		{"null value in structured mode", tombstoneStructured, cloudevent.Result{Verdict: cloudevent.Tombstone}},
		{"null value with half of the headers", halfEvent, cloudevent.Result{Verdict: cloudevent.Tombstone}},
		{
			"no headers", record("{}"),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonNoSpecVersion},
		},
		{
			"unknown specversion", record("{}", "ce_specversion", "2.0", "ce_id", "1", "ce_source", "/", "ce_type", "t"),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonSpecVersion},
		},
		{
			"no type", record("{}", "ce_specversion", "1.0", "ce_id", "1", "ce_source", "/"),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonMissingAttribute, Attribute: "type"},
		},
		{
			"blank id", record("{}", "ce_specversion", "1.0", "ce_id", " ", "ce_source", "/", "ce_type", "t"),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonMissingAttribute, Attribute: "id"},
		},
		{
			"attribute that would be the data", record("{}", required("ce_data", "x")...),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonReservedName, Attribute: "data"},
		},
		{
			"attribute with U+0000", record("{}", required("ce_ext", "a\x00b")...),
			cloudevent.Result{Verdict: cloudevent.Undeliverable, Reason: cloudevent.ReasonAttributeString, Attribute: "ext"},
		},
		{
			"attribute that is not UTF-8", record("{}", required("ce_ext", "a\xff")...),
			cloudevent.Result{Verdict: cloudevent.Undeliverable, Reason: cloudevent.ReasonAttributeString, Attribute: "ext"},
		},
		{
			"attribute with a surrogate", record("{}", required("ce_ext", "\xed\xa0\x80")...),
			cloudevent.Result{Verdict: cloudevent.Undeliverable, Reason: cloudevent.ReasonAttributeString, Attribute: "ext"},
		},
		{
			"attribute that is too long", record("{}", required("ce_ext", long)...),
			cloudevent.Result{Verdict: cloudevent.Undeliverable, Reason: cloudevent.ReasonAttributeString, Attribute: "ext"},
		},
		{"attribute of the greatest length", record("{}", required("ce_ext", long[1:])...), cloudevent.Result{}},
		{
			"content type with U+0000", record("{}", required("content-type", "text/plain\x00")...),
			cloudevent.Result{Verdict: cloudevent.Undeliverable, Reason: cloudevent.ReasonAttributeString, Attribute: "datacontenttype"},
		},
		{
			"batch", record("[]", "content-type", "application/cloudevents-batch+json"),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonFormat},
		},
		{
			"structured in another format, with the headers of an event", record("x", required("content-type", "application/cloudevents+avro")...),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonFormat},
		},
		{
			"structured that is no JSON", record("{", "content-type", structuredType),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonInvalidJSON},
		},
		{
			"structured that is not UTF-8", record("{"+attributes+",\"x\":\"\xff\"}", "content-type", structuredType),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonInvalidJSON},
		},
		{
			"structured that is no object", record(`["specversion"]`, "content-type", structuredType),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonInvalidJSON},
		},
		{
			"structured nested too deep", record(deepInvalid, "content-type", structuredType),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonInvalidJSON},
		},
		{
			"structured without specversion", record(`{"id":"1"}`, "content-type", structuredType),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonNoSpecVersion},
		},
		{
			"structured without source", record(`{"specversion":"1.0","id":"1","type":"t"}`, "content-type", structuredType),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonMissingAttribute, Attribute: "source"},
		},
		{
			"structured with a number as id", record(`{"specversion":"1.0","id":1,"source":"/","type":"t"}`, "content-type", structuredType),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonAttributeType, Attribute: "id"},
		},
		{
			"structured with invalid base64", record("{"+attributes+`,"data_base64":"a"}`, "content-type", structuredType),
			cloudevent.Result{Verdict: cloudevent.Wrapped, Reason: cloudevent.ReasonInvalidBase64, Attribute: "data_base64"},
		},
		{
			"structured with U+0000 in an attribute", record("{"+attributes+`,"ext":"\u0000"}`, "content-type", structuredType),
			cloudevent.Result{Verdict: cloudevent.Undeliverable, Reason: cloudevent.ReasonAttributeString, Attribute: "ext"},
		},
		{
			"structured with U+0000 in the data", record("{"+attributes+`,"data":"\u0000"}`, "content-type", structuredType),
			cloudevent.Result{},
		},
		{
			"structured with escaped names", record(`{"\u0073pecversion":"1.0","i\u0064":"1","source":"\/","type":"t"}`, "content-type", structuredType),
			cloudevent.Result{},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, got := cloudevent.Decode(tt.record, cloudevent.Options{})
			if got != tt.want {
				t.Errorf("Decode() = %+v, want %+v", got, tt.want)
			}
			if tt.want.Verdict == cloudevent.Wrapped {
				_, got = cloudevent.Decode(tt.record, cloudevent.Options{SkipForeign: true})
				if got.Verdict != cloudevent.Skipped || got.Reason != tt.want.Reason {
					t.Errorf("Decode(skip) = %+v, want it skipped for %q", got, tt.want.Reason)
				}
			}
		})
	}
}

func TestAppendStructuredKeepsOrderAndBytes(t *testing.T) {
	t.Parallel()
	structured := ` { "type":"t","source":"/s", "id":"1","specversion":"1.0","n":1.0e2,"data" : {"b":1,"a":1.50} }`
	tests := []struct {
		name   string
		record *cloudevent.Record
		want   string
	}{
		{
			"attributes in the order of the record after the required ones",
			record(`{"b": 1.50, "a":"<\u00fc>"}`, "content-type", "application/vnd.x+json", "ce_zoo", "1", "ce_type", "t",
				"ce_time", "2026-11-22T10:00:00.5+01:00", "ce_id", "1", "ce_source", "/s", "ce_specversion", "1.0", "ce_abc", "2"),
			`{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"application/vnd.x+json","zoo":"1",` +
				`"time":"2026-11-22T10:00:00.5+01:00","abc":"2","data":{"b": 1.50, "a":"<\u00fc>"}}`,
		},
		{
			"JSON type with invalid JSON becomes base64", record(`{"a"`, required("content-type", "Application/JSON")...),
			`{"specversion":"1.0","id":"1","source":"drogue://foo/bar","type":"io.drogue.event.v1","datacontenttype":"Application/JSON",` +
				`"data_base64":"eyJhIg=="}`,
		},
		{
			"text", record("a\x00\"ü\u2028", required("content-type", "text/html; a=b; charset=us-ascii")...),
			`{"specversion":"1.0","id":"1","source":"drogue://foo/bar","type":"io.drogue.event.v1",` +
				`"datacontenttype":"text/html; a=b; charset=us-ascii","data":"a\u0000\"ü` + "\u2028" + `"}`,
		},
		{
			"the SDK's place for datacontenttype, when there is no header of the binding",
			record("a", required("ce_datacontenttype", "text/plain")...),
			`{"specversion":"1.0","id":"1","source":"drogue://foo/bar","type":"io.drogue.event.v1","datacontenttype":"text/plain","data":"a"}`,
		},
		{
			"empty optional attributes are none", record("", required("ce_subject", "", "ce_ext", "", "content-type", "")...),
			`{"specversion":"1.0","id":"1","source":"drogue://foo/bar","type":"io.drogue.event.v1","ext":""}`,
		},
		{"structured 1.0 byte for byte", record(structured, "content-type", "APPLICATION/CloudEvents+JSON;charset=utf-8"), structured},
		{
			"0.3 in binary mode",
			record(`eyJhIjoxfQ==`, "ce_specversion", "0.3", "ce_id", "1", "ce_source", "/s", "ce_type", "t",
				"ce_schemaurl", "/schema", "ce_datacontentencoding", "Base64", "content-type", "application/json"),
			`{"specversion":"1.0","id":"1","source":"/s","type":"t","dataschema":"/schema","datacontenttype":"application/json","data":{"a":1}}`,
		},
		{
			"0.3 in structured mode",
			record(`{"id":"1","specversion":"0.3","source":"/s","type":"t","schemaurl":"/x","ext":1.0,"data":{"a" : 1}}`,
				"content-type", structuredType),
			`{"id":"1","specversion":"1.0","source":"/s","type":"t","dataschema":"/x","ext":1.0,"data":{"a" : 1}}`,
		},
		{
			"0.3 in structured mode with base64",
			record(`{"id":"1","specversion":"0.3","source":"/s","type":"t","data":"AAE=","datacontentencoding":"base64"}`,
				"content-type", structuredType),
			`{"id":"1","specversion":"1.0","source":"/s","type":"t","data_base64":"AAE="}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, result := cloudevent.Decode(tt.record, cloudevent.Options{})
			if result.Verdict != cloudevent.Deliver {
				t.Fatalf("Decode() = %+v, want deliver", result)
			}
			if diff := cmp.Diff(tt.want, string(e.AppendStructured([]byte{}))); diff != "" {
				t.Errorf("AppendStructured() (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExpandReadsStructuredEvents(t *testing.T) {
	t.Parallel()
	const head = `{"specversion":"1.0","id":"1","source":"/s","type":"t",`
	tests := []struct {
		name  string
		value string
		want  map[string]string
	}{
		{
			"JSON data as its bytes", `"datacontenttype":"application/json","data": {"a" : 1.0} }`,
			map[string]string{"datacontenttype": "application/json", "data": `{"a" : 1.0}`},
		},
		{"implied content type", `"data":[1]}`, map[string]string{"datacontenttype": "application/json", "data": `[1]`}},
		{"JSON string stays quoted", `"data":"a\n"}`, map[string]string{"datacontenttype": "application/json", "data": `"a\n"`}},
		{
			"text is unquoted", `"datacontenttype":"text/plain","data":"a\nü\ud83d\ude80"}`,
			map[string]string{"datacontenttype": "text/plain", "data": "a\nü🚀"},
		},
		{
			"XML is unquoted", `"datacontenttype":"application/xml","data":"<a\/>"}`,
			map[string]string{"datacontenttype": "application/xml", "data": "<a/>"},
		},
		{
			"object of a type that is not JSON stays as it is", `"datacontenttype":"text/plain","data":{"a":1}}`,
			map[string]string{"datacontenttype": "text/plain", "data": `{"a":1}`},
		},
		{
			"base64", `"datacontenttype":"image/png","data_base64":"iVBO\nRw=="}`,
			map[string]string{"datacontenttype": "image/png", "data": "\x89PNG"},
		},
		{"base64 without a content type", `"data_base64":"YQ=="}`, map[string]string{"data": "a"}},
		{
			"attributes of every type", `"n":-1,"f":1.50,"t":true,"o":null,"s":"x","time":"2026-01-02T03:04:05.000000001+01:00","subject":""}`,
			map[string]string{"n": "-1", "f": "1.50", "t": "true", "s": "x", "time": "2026-01-02T03:04:05.000000001+01:00", "data": ""},
		},
		{"null data", `"datacontenttype":"text/plain","data":null}`, map[string]string{"datacontenttype": "text/plain", "data": ""}},
		{"the last of a name counts", `"x":"1","id":"2","x":"3"}`, map[string]string{"id": "2", "x": "3", "data": ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, result := cloudevent.Decode(record(head+tt.value, "content-type", structuredType), cloudevent.Options{})
			if result.Verdict != cloudevent.Deliver {
				t.Fatalf("Decode() = %+v, want deliver", result)
			}
			want := map[string]string{"id": "1", "source": "/s", "type": "t"}
			maps.Copy(want, tt.want)
			if diff := cmp.Diff(want, summarize(t, e)); diff != "" {
				t.Errorf("event (-want +got):\n%s", diff)
			}
			if got := string(e.AppendStructured(nil)); got != head+tt.value {
				t.Errorf("AppendStructured() = %s, want the record", got)
			}
		})
	}
}

func TestDecodeWrapsForeignRecords(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 11, 12, 13, 456_000_000, time.FixedZone("", 3600))
	tests := []struct {
		name   string
		record *cloudevent.Record
		key    string
		want   string
	}{
		{
			"JSON", record(`{"a":1}`, "content-type", "application/json"), "k",
			`{"specversion":"1.0","id":"events-foo/3/42","source":"kafka:events-foo","type":"mqtt-integration.kafka.record.v1",` +
				`"datacontenttype":"application/json","time":"2026-11-22T10:12:13.456000Z","partitionkey":"k","data":{"a":1}}`,
		},
		{
			"without a content type", record(`{"a":1}`), "\xff",
			`{"specversion":"1.0","id":"events-foo/3/42","source":"kafka:events-foo","type":"mqtt-integration.kafka.record.v1",` +
				`"time":"2026-11-22T10:12:13.456000Z","data_base64":"eyJhIjoxfQ=="}`,
		},
		{
			"batch", record(`[]`, "content-type", "application/cloudevents-batch+json"), "",
			`{"specversion":"1.0","id":"events-foo/3/42","source":"kafka:events-foo","type":"mqtt-integration.kafka.record.v1",` +
				`"datacontenttype":"application/json","time":"2026-11-22T10:12:13.456000Z","data":[]}`,
		},
		{
			"other structured format", record(`x`, "content-type", "application/cloudevents+avro"), "",
			`{"specversion":"1.0","id":"events-foo/3/42","source":"kafka:events-foo","type":"mqtt-integration.kafka.record.v1",` +
				`"datacontenttype":"application/octet-stream","time":"2026-11-22T10:12:13.456000Z","data_base64":"eA=="}`,
		},
		{
			"content type that MQTT cannot carry", record(`x`, "content-type", "text/plain\x00"), "",
			`{"specversion":"1.0","id":"events-foo/3/42","source":"kafka:events-foo","type":"mqtt-integration.kafka.record.v1",` +
				`"time":"2026-11-22T10:12:13.456000Z","data_base64":"eA=="}`,
		},
		{
			"empty", record(""), "",
			`{"specversion":"1.0","id":"events-foo/3/42","source":"kafka:events-foo","type":"mqtt-integration.kafka.record.v1",` +
				`"time":"2026-11-22T10:12:13.456000Z"}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.record.Timestamp, tt.record.Key = at, []byte(tt.key)
			e, result := cloudevent.Decode(tt.record, cloudevent.Options{})
			if result.Verdict != cloudevent.Wrapped {
				t.Fatalf("Decode() = %+v, want wrapped", result)
			}
			if diff := cmp.Diff(tt.want, string(e.AppendStructured(nil))); diff != "" {
				t.Errorf("AppendStructured() (-want +got):\n%s", diff)
			}
			if _, err := parseSDK(e.AppendStructured(nil)); err != nil {
				t.Errorf("the SDK does not read it: %v", err)
			}
		})
	}
}

func TestDecodeReadsTheTraceContextOfHeaders(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	tests := []struct {
		name          string
		headers       []string
		parent, state string
	}{
		{"both", []string{"TraceParent", parent, "tracestate", "a=b"}, parent, "a=b"},
		{"state alone means nothing", []string{"tracestate", "a=b"}, "", ""},
		{"extensions are no headers", []string{"ce_traceparent", parent, "ce_tracestate", "a=b"}, "", ""},
		{"control characters", []string{"traceparent", parent + "\n", "tracestate", "a=b"}, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, _ := cloudevent.Decode(record("{}", required(tt.headers...)...), cloudevent.Options{})
			if e.TraceParent != tt.parent || e.TraceState != tt.state {
				t.Errorf("trace = %q, %q; want %q, %q", e.TraceParent, e.TraceState, tt.parent, tt.state)
			}
		})
	}
}

func TestManyHeadersCostLinearTime(t *testing.T) {
	t.Parallel()
	headers := required()
	for range 2 {
		for i := range 50_000 {
			headers = append(headers, "ce_x"+strings.Repeat("y", i%7)+string(rune('a'+i%26))+time.Duration(i).String(), "v")
		}
	}
	start := time.Now()
	e, result := cloudevent.Decode(record("{}", headers...), cloudevent.Options{})
	if result.Verdict != cloudevent.Deliver || len(e.Attributes) != 50_004 {
		t.Errorf("Decode() = %+v with %d attributes, want 50004", result, len(e.Attributes))
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("decoding took %v", took)
	}
}

func TestDiscouragedFindsWhatClientsRefuse(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{
		"plain": false, "grüezi 🚀": false, "": false, "\ufffd": false,
		"tab\t": true, "\x7f": true, "\u0085": true, "\ufdd0": true, "\uffff": true, "ü\U0001fffe": true,
	}
	if cloudevent.ValidString("\xff") {
		t.Error("ValidString takes invalid UTF-8")
	}
	for value, want := range tests {
		e := cloudevent.Event{Attributes: []cloudevent.Attribute{{Name: "id", Value: "1"}, {Name: "ext", Value: value}}}
		if name, got := e.Discouraged(); got != want || got && name != "ext" {
			t.Errorf("Discouraged() with %q = %q, %t; want %t", value, name, got, want)
		}
		if got := cloudevent.ValidString(value); got == want {
			t.Errorf("ValidString(%q) = %t", value, got)
		}
	}
}
