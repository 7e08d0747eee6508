package tail

import (
	"github.com/IBM/sarama"

	"mqtt-integration/libs/cloudevent"
)

// MessageDecoder decodes what a consumer of sarama brings. Not safe for concurrent
// use.
type MessageDecoder struct {
	record   cloudevent.Record
	outcomes outcomes
}

// Messages returns a decoder for one goroutine.
func (d *Decoder) Messages() *MessageDecoder {
	return &MessageDecoder{outcomes: outcomes{decoder: d}}
}

// Event returns the serialised event in a message, or nil for what is to be passed.
func (m *MessageDecoder) Event(message *sarama.ConsumerMessage) []byte {
	recordOf(&m.record, message.Topic, message.Partition, message.Offset,
		message.Key, message.Value, message.Headers, message.Timestamp)
	event, size, deliver := m.outcomes.decode(&m.record)
	if !deliver {
		return nil
	}
	return event.AppendWire(make([]byte, 0, size))
}

// Flush counts what was decoded.
func (m *MessageDecoder) Flush() { m.outcomes.flush() }
