package tail

import (
	"context"
	"time"

	"github.com/IBM/sarama"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/cloudevent"
)

// Decoder makes events of records. It may be used from several goroutines.
type Decoder struct {
	// Options say what becomes of records that are no CloudEvents.
	Options cloudevent.Options
	// MaxBytes is the largest event; larger ones are undeliverable.
	MaxBytes int
	// Records counts decoded records by "outcome", and may be nil.
	Records metric.Int64Counter
	// Tracer records a span for each record that is read, and may be nil.
	Tracer trace.Tracer
}

const tooLarge = "too_large"

// outcomes counts what became of records until it is flushed.
type outcomes struct {
	decoder  *Decoder
	verdicts [cloudevent.Undeliverable + 1]int64
	large    int64
}

// decode returns the event in a record and its serialised size, and false for
// what is to be passed.
func (o *outcomes) decode(record *cloudevent.Record) (event cloudevent.Event, size int, deliver bool) {
	var began time.Time
	traced := o.decoder.Tracer != nil
	if traced {
		began = time.Now()
	}
	event, result := cloudevent.Decode(record, o.decoder.Options)
	deliver = result.Verdict.Deliverable()
	outcome := ""
	if deliver {
		size = event.WireSize()
	}
	if size > o.decoder.MaxBytes {
		deliver, outcome = false, tooLarge
		o.large++
	} else {
		o.verdicts[result.Verdict]++
	}
	// What is not for anybody leaves no trace.
	if traced && (deliver || outcome == tooLarge || result.Verdict == cloudevent.Undeliverable) {
		if outcome == "" {
			outcome = result.Verdict.String()
		}
		o.trace(began, record, &event, outcome, deliver)
		size = event.WireSize()
	}
	return event, size, deliver
}

func (o *outcomes) flush() {
	if o.decoder.Records == nil {
		return
	}
	for verdict, n := range o.verdicts {
		if n > 0 {
			o.count(cloudevent.Verdict(verdict).String(), n)
			o.verdicts[verdict] = 0
		}
	}
	if o.large > 0 {
		o.count(tooLarge, o.large)
		o.large = 0
	}
}

func (o *outcomes) count(outcome string, n int64) {
	o.decoder.Records.Add(context.Background(), n, metric.WithAttributes(attribute.String("outcome", outcome)))
}

// recordOf fills a record for the codec. Headers are reused between calls.
func recordOf(into *cloudevent.Record, topic string, partition int32, offset int64, key, value []byte,
	headers []*sarama.RecordHeader, timestamp time.Time,
) {
	into.Topic, into.Partition, into.Offset = topic, partition, offset
	into.Key, into.Value, into.Timestamp = key, value, timestamp
	into.Headers = into.Headers[:0]
	for _, h := range headers {
		if h != nil {
			into.Headers = append(into.Headers, cloudevent.Header(*h))
		}
	}
}
