package share

import (
	"hash/fnv"

	"github.com/IBM/sarama"

	"mqtt-integration/services/event-fanout/internal/tail"
)

// recordOf decodes a message. It keeps nothing of it.
func recordOf(decoder *tail.MessageDecoder, m *sarama.ConsumerMessage) record {
	r := record{offset: m.Offset, keyed: m.Key != nil, event: decoder.Event(m)}
	if r.keyed && r.event != nil {
		h := fnv.New64a()
		_, _ = h.Write(m.Key) // never fails
		r.key = h.Sum64()
	}
	return r
}
