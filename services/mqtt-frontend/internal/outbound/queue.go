package outbound

import (
	"errors"

	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/event"
)

// ErrTooLarge says that an event is larger than the client's Maximum Packet Size.
var ErrTooLarge = errors.New("larger than the client's maximum packet size")

// Acknowledger learns that an event need not be delivered again. It is called
// from any goroutine and must not block.
type Acknowledger interface {
	Acknowledge(partition int32, offset int64)
}

// Options of a subscription that matter for what is sent.
type Options struct {
	// QoS is the granted QoS, 0 or 1.
	QoS byte
	// Binary selects the binary content mode; MQTT 5 only.
	Binary bool
	// SubscriptionID is the client's subscription identifier; 0: none.
	SubscriptionID uint32
}

// Queue holds the events of one subscription that were not sent yet. It has no
// bound of its own: its subscription's window, which bounds what is neither
// acknowledged nor delivered, is one. Make it with [Engine.NewQueue]. All methods
// are safe for concurrent use.
type Queue struct {
	engine       *Engine
	application  string
	acknowledger Acknowledger

	// Guarded by engine.mu.
	options Options
	items   fifo
	gaps    map[int32]int64 // offsets skipped right before the next event
	next    *Queue          // in the rotation
	waiting bool            // in the rotation
	open    bool
}

// NewQueue returns a queue whose events wait until it is opened.
func (e *Engine) NewQueue(application string, o Options) *Queue {
	return &Queue{engine: e, application: application, options: o}
}

// Open lets events be sent. Acknowledgements go to a.
func (q *Queue) Open(a Acknowledger) {
	q.engine.mu.Lock()
	defer q.engine.mu.Unlock()
	q.acknowledger = a
	q.open = true
	q.readyLocked()
	q.engine.wakeLocked()
}

// SetOptions changes how events are sent from now on.
func (q *Queue) SetOptions(o Options) {
	q.engine.mu.Lock()
	defer q.engine.mu.Unlock()
	if q.waiting {
		q.engine.ready[q.options.QoS].remove(q)
		q.waiting = false
	}
	q.options = o
	q.readyLocked()
	q.engine.wakeLocked()
}

// Close drops what was not sent. What was is still acknowledged when the client
// does so.
func (q *Queue) Close() {
	q.engine.mu.Lock()
	defer q.engine.mu.Unlock()
	if q.waiting {
		q.engine.ready[q.options.QoS].remove(q)
		q.waiting = false
	}
	q.open = false
	q.items = fifo{}
}

// Add appends events. It does not keep the slice.
func (q *Queue) Add(deliveries []delivery.Delivery) {
	q.engine.mu.Lock()
	defer q.engine.mu.Unlock()
	if q.engine.state != stateOpen {
		return
	}
	for i := range deliveries {
		d := &deliveries[i]
		q.items.push(item{event: d.Event, partition: d.Partition, offset: d.Offset})
	}
	q.wakeLocked()
}

// Skip notes that retention has removed count offsets in front of the next event
// of the partition.
func (q *Queue) Skip(partition int32, count int64) {
	q.engine.mu.Lock()
	defer q.engine.mu.Unlock()
	q.items.push(item{partition: partition, offset: count})
	q.wakeLocked()
}

// wakeLocked gets the queue's events going, if that is possible now.
func (q *Queue) wakeLocked() {
	q.readyLocked()
	if q.waiting && (q.options.QoS == 0 || q.engine.roomLocked()) {
		q.engine.wakeLocked()
	}
}

// readyLocked puts the queue at the end of the rotation if it has events.
func (q *Queue) readyLocked() {
	if q.waiting || !q.open || q.items.len() == 0 || q.engine.state != stateOpen {
		return
	}
	q.waiting = true
	q.engine.ready[q.options.QoS].push(q)
}

func (q *Queue) gap(partition int32, count int64) {
	if q.gaps == nil {
		q.gaps = make(map[int32]int64)
	}
	q.gaps[partition] += count
}

func (q *Queue) publishOptions(partition int32, level byte) event.Options {
	o := event.Options{QoS: q.options.QoS}
	if level < 5 {
		return o
	}
	o.SubscriptionID = q.options.SubscriptionID
	if len(q.gaps) > 0 {
		o.Skipped, o.SkippedPartition = q.gaps[partition], partition
	}
	return o
}

// rotation is a list of queues, each in it at most once.
type rotation struct{ head, tail *Queue }

func (r *rotation) push(q *Queue) {
	if r.tail == nil {
		r.head = q
	} else {
		r.tail.next = q
	}
	r.tail = q
}

func (r *rotation) pop() *Queue {
	q := r.head
	r.head = q.next
	if r.head == nil {
		r.tail = nil
	}
	q.next = nil
	return q
}

func (r *rotation) remove(q *Queue) {
	var before *Queue
	for p := r.head; p != nil; before, p = p, p.next {
		if p != q {
			continue
		}
		if before == nil {
			r.head = q.next
		} else {
			before.next = q.next
		}
		if r.tail == q {
			r.tail = before
		}
		q.next = nil
		return
	}
}

// item is an event, or with a nil event a gap of offset records.
type item struct {
	event     *event.Shared
	partition int32
	offset    int64
}

// fifo is a queue in a ring that grows, and goes when it is empty and large.
type fifo struct {
	ring  []item
	first int
	count int
}

// keptItems is the size up to which an empty ring is kept.
const keptItems = 64

func (f *fifo) len() int { return f.count }

func (f *fifo) push(i item) {
	if f.count == len(f.ring) {
		ring := make([]item, max(4, 2*len(f.ring)))
		n := copy(ring, f.ring[f.first:])
		copy(ring[n:], f.ring[:f.first])
		f.ring, f.first = ring, 0
	}
	f.ring[(f.first+f.count)&(len(f.ring)-1)] = i
	f.count++
}

func (f *fifo) pop() item {
	i := f.ring[f.first]
	f.ring[f.first] = item{}
	f.first = (f.first + 1) & (len(f.ring) - 1)
	f.count--
	if f.count == 0 && len(f.ring) > keptItems {
		*f = fifo{}
	}
	return i
}
