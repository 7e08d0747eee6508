package kafkatrace

import (
	"context"
	"slices"

	"github.com/IBM/sarama"
	"go.opentelemetry.io/otel/propagation"
)

// Inject writes the trace context of ctx into the headers of message and
// replaces what is there under the same names.
func Inject(ctx context.Context, propagator propagation.TextMapPropagator, message *sarama.ProducerMessage) {
	propagator.Inject(ctx, &ProducerCarrier{Message: message})
}

// Extract returns ctx with the trace context of a consumed record's headers, or
// ctx itself when they have none.
func Extract(ctx context.Context, propagator propagation.TextMapPropagator, headers []*sarama.RecordHeader) context.Context {
	return propagator.Extract(ctx, ConsumerCarrier(headers))
}

// ProducerCarrier is the headers of a record to be produced. Not safe for
// concurrent use.
type ProducerCarrier struct {
	Message *sarama.ProducerMessage
}

var _ propagation.TextMapCarrier = (*ProducerCarrier)(nil)

// Get returns the last value of a header, as Kafka's own lastHeader does, or "".
func (c *ProducerCarrier) Get(key string) string {
	for _, header := range slices.Backward(c.Message.Headers) {
		if string(header.Key) == key {
			return string(header.Value)
		}
	}
	return ""
}

// Set replaces every header of this name by one.
func (c *ProducerCarrier) Set(key, value string) {
	kept := c.Message.Headers[:0]
	for _, header := range c.Message.Headers {
		if string(header.Key) != key {
			kept = append(kept, header)
		}
	}
	c.Message.Headers = append(kept, sarama.RecordHeader{Key: []byte(key), Value: []byte(value)})
}

// Keys lists the names of all headers.
func (c *ProducerCarrier) Keys() []string {
	keys := make([]string, 0, len(c.Message.Headers))
	for _, header := range c.Message.Headers {
		keys = append(keys, string(header.Key))
	}
	return keys
}

// ConsumerCarrier is the headers of a consumed record. It is read only.
type ConsumerCarrier []*sarama.RecordHeader

var _ propagation.TextMapCarrier = ConsumerCarrier(nil)

// Get returns the last value of a header, as Kafka's own lastHeader does, or "".
func (c ConsumerCarrier) Get(key string) string {
	for _, header := range slices.Backward(c) {
		if header != nil && string(header.Key) == key {
			return string(header.Value)
		}
	}
	return ""
}

// Set does nothing: what was consumed is not ours to change.
func (ConsumerCarrier) Set(_, _ string) {}

// Keys lists the names of all headers.
func (c ConsumerCarrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for _, header := range c {
		if header != nil {
			keys = append(keys, string(header.Key))
		}
	}
	return keys
}
