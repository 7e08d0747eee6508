package outbound

import (
	"net"
	"slices"
	"sync"
	"time"

	"mqtt-integration/services/mqtt-frontend/internal/event"
)

// batch is what goes out with one write.
type batch struct {
	buf    []byte
	start  int // where in buf the part begins that is not in segments yet
	shared int // bytes of payloads in segments
	// segments is used once a payload is too large to be copied.
	segments net.Buffers
	// acks are due when the batch was written: events of QoS 0, and those that
	// were passed.
	acks    []ack
	lastQoS int
}

type ack struct {
	queue     *Queue
	partition int32
	offset    int64
	err       error // why it was passed
}

var batches = sync.Pool{New: func() any { return &batch{buf: make([]byte, 0, batchSize+copyLimit+1024)} }}

func (b *batch) reset() {
	b.buf, b.start, b.shared = b.buf[:0], 0, 0
	clear(b.segments)
	b.segments = b.segments[:0]
	clear(b.acks)
	b.acks = b.acks[:0]
}

func (b *batch) release() {
	b.reset()
	if cap(b.buf) <= maxKeptBatch {
		batches.Put(b)
	}
}

// add appends a PUBLISH packet.
func (b *batch) add(e *event.Encoded, o event.Options) {
	payload := e.Payload()
	if len(payload) < copyLimit {
		b.buf = e.Append(b.buf, o)
		return
	}
	b.buf = e.AppendHead(b.buf, o)
	b.segments = append(b.segments, b.buf[b.start:], payload)
	b.start = len(b.buf)
	b.shared += len(payload)
}

func (b *batch) writeTo(conn net.Conn, timeout time.Duration) error {
	if len(b.buf)+b.shared > chunkSize {
		return b.writeChunks(conn, timeout)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if len(b.segments) == 0 {
		_, err := conn.Write(b.buf)
		return err
	}
	b.flatten()
	segments := b.segments // WriteTo consumes it
	_, err := segments.WriteTo(conn)
	return err
}

// chunkSize is what a client has to take within the write timeout. A large packet
// on a slow line takes longer, and is making progress.
const chunkSize = 64 << 10

func (b *batch) writeChunks(conn net.Conn, timeout time.Duration) error {
	b.flatten()
	for _, segment := range b.segments {
		for chunk := range slices.Chunk(segment, chunkSize) {
			if err := conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
				return err
			}
			if _, err := conn.Write(chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// flatten puts what is left of the buffer into segments.
func (b *batch) flatten() {
	if b.start < len(b.buf) {
		b.segments = append(b.segments, b.buf[b.start:])
		b.start = len(b.buf)
	}
}

// acknowledge does so for what was written without wanting an acknowledgement,
// or was passed.
func (b *batch) acknowledge(passed func(string, error)) {
	for i := range b.acks {
		a := &b.acks[i]
		if a.err != nil {
			passed(a.queue.application, a.err)
		}
		a.queue.acknowledger.Acknowledge(a.partition, a.offset)
	}
	clear(b.acks)
	b.acks = b.acks[:0]
}
