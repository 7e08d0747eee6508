package outbound

import (
	"errors"
	"net"
	"sync"
	"time"
)

// ErrEnded is what the engine gives to those who still want something from it
// after it has ended.
var ErrEnded = errors.New("connection has ended")

const (
	// batchSize is where a batch is written; it may be larger by one packet.
	batchSize = 8 << 10
	// copyLimit is the size from which on a payload is not copied into the batch
	// but written from where it is.
	copyLimit = 2 << 10
	// maxKeptBatch is the size up to which batch buffers are used again.
	maxKeptBatch = 64 << 10
	// controlLimit is how many bytes of control packets may wait before reading
	// from the client stops.
	controlLimit = 64 << 10
	// keptControl is the size up to which an idle connection keeps the buffer of
	// its control packets.
	keptControl = 256
)

// Config is what an engine needs. All fields are required.
type Config struct {
	Conn net.Conn
	// WriteTimeout ends a write that makes no progress, and the connection.
	WriteTimeout time.Duration
	// Failed is called once, from the writing goroutine, when a write failed.
	Failed func(error)
	// Passed is called when an event could not be delivered to this client and
	// was passed (acknowledged without having been sent). The error says why.
	Passed func(application string, err error)
}

// Limits of the client, known after CONNECT.
type Limits struct {
	// Level is the MQTT protocol level, 4 or 5.
	Level byte
	// Events and Bytes bound what may be unacknowledged on the connection. One
	// event is always allowed when nothing is. Both are positive.
	Events int
	Bytes  int64
	// MaxPacketSize of the client in bytes; 0 means that there is none.
	MaxPacketSize uint32
}

// Engine writes for one connection. Make it with [New]. All methods are safe for
// concurrent use.
type Engine struct {
	cfg Config

	mu      sync.Mutex
	space   sync.Cond // control became short, or the engine ended
	limits  Limits
	control []byte
	ready   [2]rotation // queues that have events, by QoS
	window  window
	writing bool
	state   state
	err     error
	drained chan struct{} // closed when nothing will be written any more
}

// state of an engine only ever grows.
type state uint8

const (
	stateOpen   state = iota
	stateEnding       // only the control packets that wait are still written
	stateEnded        // nothing is
)

// New returns an engine for a connection. It sends control packets at once, and
// events after [Engine.Start].
func New(cfg Config) *Engine {
	e := &Engine{cfg: cfg, drained: make(chan struct{})}
	e.space.L = &e.mu
	return e
}

// Start sets the client's limits. It is called once, before any queue has events.
func (e *Engine) Start(limits Limits) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.limits = limits
	e.window.init(limits.Events)
}

// Control queues a control packet, which it copies, and never blocks. Packets
// that come after [Engine.End] are dropped.
func (e *Engine) Control(packet []byte) {
	e.mu.Lock()
	if e.state != stateOpen {
		e.mu.Unlock()
		return
	}
	e.control = append(e.control, packet...)
	e.wakeLocked()
	e.mu.Unlock()
}

// Throttle blocks while so many control packets wait that the client cannot be
// reading them, and returns [ErrEnded] when the connection ended. Whoever reads
// from the client calls it before reading on, which bounds the queue.
func (e *Engine) Throttle() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.control) > controlLimit && e.state == stateOpen {
		e.space.Wait()
	}
	if e.state != stateOpen {
		return ErrEnded
	}
	return nil
}

// End stops the delivery of events, queues a last packet (nil: none), and lets
// the engine end when everything that was queued has been written, or failed.
// Only the first call counts. It does not block; see [Engine.Done].
func (e *Engine) End(last []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state != stateOpen {
		return
	}
	e.state = stateEnding
	e.control = append(e.control, last...)
	e.ready = [2]rotation{}
	e.space.Broadcast()
	if !e.writing && len(e.control) == 0 {
		e.endedLocked()
		return
	}
	e.wakeLocked()
}

// Done is closed when the engine has ended: nothing is written any more.
func (e *Engine) Done() <-chan struct{} { return e.drained }

// Kick lets the engine send what may be sent since acknowledgements came in.
func (e *Engine) Kick() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ready[0].head != nil || (e.ready[1].head != nil && e.roomLocked()) {
		e.wakeLocked()
	}
}

// Unacknowledged is the number of events that were sent and not acknowledged.
func (e *Engine) Unacknowledged() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.window.used
}

func (e *Engine) wakeLocked() {
	if !e.writing && e.state != stateEnded {
		e.writing = true
		go e.write()
	}
}

func (e *Engine) endedLocked() {
	if e.state == stateEnded {
		return
	}
	e.state = stateEnded
	e.control = nil
	e.ready = [2]rotation{}
	e.window = window{}
	e.space.Broadcast()
	close(e.drained)
}

// write is the writing goroutine: it runs while there is something to send.
func (e *Engine) write() {
	b := batches.Get().(*batch) //nolint:forcetypeassert,errcheck // the pool has nothing else
	defer b.release()
	for e.fill(b) {
		err := b.writeTo(e.cfg.Conn, e.cfg.WriteTimeout)
		if err != nil {
			e.fail(err)
			return
		}
		b.acknowledge(e.cfg.Passed)
	}
	// Events may have been passed in a batch that had nothing to write.
	b.acknowledge(e.cfg.Passed)
}

func (e *Engine) fail(err error) {
	e.mu.Lock()
	failed := e.state != stateEnded
	e.err = err
	e.writing = false
	e.endedLocked()
	e.mu.Unlock()
	if failed {
		e.cfg.Failed(err)
	}
}

// fill takes the next batch. It returns false, and the engine is no longer
// writing, when there is nothing to write.
func (e *Engine) fill(b *batch) bool {
	b.reset()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state == stateEnded {
		e.writing = false
		return false
	}
	if len(e.control) > 0 {
		b.buf = append(b.buf, e.control...)
		e.control = e.control[:0]
		e.space.Broadcast()
	}
	for len(b.buf)+b.shared < batchSize {
		if !e.nextLocked(b) {
			break
		}
	}
	if len(b.buf) > 0 || b.shared > 0 {
		return true
	}
	if cap(e.control) > keptControl {
		e.control = nil // an idle connection holds no large buffer
	}
	e.writing = false
	if e.state == stateEnding {
		e.endedLocked()
	}
	return false
}

// nextLocked puts the next event that may be sent into the batch. QoS 0 and 1
// take turns, so that neither starves the other.
func (e *Engine) nextLocked(b *batch) bool {
	qos := 1 - b.lastQoS
	for range 2 {
		if e.ready[qos].head != nil && (qos == 0 || e.roomLocked()) {
			b.lastQoS = qos
			e.sendLocked(b, e.ready[qos].pop())
			return true
		}
		qos = 1 - qos
	}
	return false
}

func (e *Engine) roomLocked() bool {
	return e.window.used == 0 || (e.window.used < e.limits.Events && e.window.bytes < e.limits.Bytes)
}

// sendLocked takes the first event of a queue into the batch.
func (e *Engine) sendLocked(b *batch, q *Queue) {
	q.waiting = false
	i := q.items.pop()
	for i.event == nil { // a gap
		q.gap(i.partition, i.offset)
		if q.items.len() == 0 {
			return
		}
		i = q.items.pop()
	}
	defer q.readyLocked()
	o := q.publishOptions(i.partition, e.limits.Level)
	encoded := i.event.Publish(q.options.Binary, e.limits.Level, q.application)
	err := encoded.Undeliverable()
	size := 0
	if err == nil {
		size = encoded.Size(o)
		if e.limits.MaxPacketSize != 0 && size > int(e.limits.MaxPacketSize) {
			err = ErrTooLarge
		}
	}
	if err != nil {
		b.acks = append(b.acks, ack{queue: q, partition: i.partition, offset: i.offset, err: err})
		return
	}
	if o.Skipped != 0 {
		delete(q.gaps, i.partition)
	}
	if o.QoS > 0 {
		o.PacketID = e.window.take(slot{queue: q, partition: i.partition, offset: i.offset, size: size})
	} else {
		b.acks = append(b.acks, ack{queue: q, partition: i.partition, offset: i.offset})
	}
	b.add(encoded, o)
}

// Acknowledge ends the delivery of the event with this packet identifier. It
// reports false when there is none. It does not send what may be sent now: see
// [Engine.Kick].
func (e *Engine) Acknowledge(id uint16) bool {
	e.mu.Lock()
	s, ok := e.window.free(id)
	e.mu.Unlock()
	if ok {
		s.queue.acknowledger.Acknowledge(s.partition, s.offset)
	}
	return ok
}
