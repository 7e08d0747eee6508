package cloudevent_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"mqtt-integration/libs/cloudevent"
)

// benchRecord is a typical event: 12 ce headers and JSON data of about size bytes.
func benchRecord(size int) *cloudevent.Record {
	var data strings.Builder
	data.WriteString(`{"values":[`)
	for data.Len() < size {
		data.WriteString(`{"name":"temperature","value":21.5},`)
	}
	return record(strings.TrimSuffix(data.String(), ",")+"]}", required("ce_subject", "state",
		"ce_time", "2026-11-22T10:11:12.123456Z", "content-type", "application/json", "ce_partitionkey", "foo/bar",
		"ce_application", "foo", "ce_applicationuid", "0e5b5b5a", "ce_device", "bar", "ce_sender", "bar", "ce_instance", "drogue")...)
}

var benchSizes = []int{150, 1024, 8192}

func BenchmarkDecode(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			r := benchRecord(size)
			b.ReportAllocs()
			for b.Loop() {
				if _, result := cloudevent.Decode(r, cloudevent.Options{}); result.Verdict != cloudevent.Deliver {
					b.Fatal(result)
				}
			}
		})
	}
}

func BenchmarkAppendStructured(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			e, _ := cloudevent.Decode(benchRecord(size), cloudevent.Options{})
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf = e.AppendStructured(buf[:0])
			}
		})
	}
}

func BenchmarkAppendWire(b *testing.B) {
	e, _ := cloudevent.Decode(benchRecord(150), cloudevent.Options{})
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = e.AppendWire(buf[:0])
	}
}

func BenchmarkParseWire(b *testing.B) {
	e, _ := cloudevent.Decode(benchRecord(150), cloudevent.Options{})
	wire := e.AppendWire(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := cloudevent.ParseWire(wire); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRecordToStructured is the whole way of an event in structured mode.
func BenchmarkRecordToStructured(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprintf("ours/%d", size), func(b *testing.B) {
			r := benchRecord(size)
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				e, _ := cloudevent.Decode(r, cloudevent.Options{})
				buf = e.AppendStructured(buf[:0])
			}
		})
		b.Run(fmt.Sprintf("sdk/%d", size), func(b *testing.B) {
			r := benchRecord(size)
			b.ReportAllocs()
			for b.Loop() {
				e, err := decodeSDK(r)
				if err != nil {
					b.Fatal(err)
				}
				if _, err = json.Marshal(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecodeStructured(b *testing.B) {
	plain, _ := cloudevent.Decode(benchRecord(150), cloudevent.Options{})
	r := record(string(plain.AppendStructured(nil)), "content-type", structuredType)
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			cloudevent.Decode(r, cloudevent.Options{})
		}
	})
	b.Run("sdk", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodeSDK(r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
