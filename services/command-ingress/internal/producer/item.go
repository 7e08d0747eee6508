package producer

import (
	"time"

	"github.com/IBM/sarama"

	"mqtt-integration/services/command-ingress/internal/record"
)

// item is a record on its way. What is not constant is guarded by Producer.mu.
type item struct {
	message     sarama.ProducerMessage // sarama's while it has it
	correlation uint64
	sink        Sink
	accepted    time.Time
	deadline    time.Time
	recordBytes int
	bytes       int64

	sentAt     time.Time
	resolved   bool // has its outcome
	prev, next *item
}

// itemOverhead is what an item costs in memory besides its bytes, about, with what
// sarama makes of it.
const itemOverhead = 1024

func newItem(r record.Record, topic string, correlation uint64, sink Sink, now, deadline time.Time) *item {
	size := r.Size()
	it := &item{
		correlation: correlation, sink: sink, accepted: now, deadline: deadline,
		recordBytes: size, bytes: int64(size + itemOverhead),
	}
	it.message = sarama.ProducerMessage{
		Topic: topic, Key: sarama.ByteEncoder(r.Key), Value: sarama.ByteEncoder(r.Value), Headers: r.Headers, Metadata: it,
	}
	return it
}

// list is a list of items in which any can be removed at once.
type list struct {
	head, tail *item
}

func (l *list) pushBack(it *item) {
	it.prev, it.next = l.tail, nil
	if l.tail == nil {
		l.head = it
	} else {
		l.tail.next = it
	}
	l.tail = it
}

func (l *list) pushFront(it *item) {
	it.prev, it.next = nil, l.head
	if l.head == nil {
		l.tail = it
	} else {
		l.head.prev = it
	}
	l.head = it
}

func (l *list) remove(it *item) {
	if it.prev == nil {
		l.head = it.next
	} else {
		it.prev.next = it.next
	}
	if it.next == nil {
		l.tail = it.prev
	} else {
		it.next.prev = it.prev
	}
	it.prev, it.next = nil, nil
}
