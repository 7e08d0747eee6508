package share

import "time"

// Subscriber is who takes events of a group.
type Subscriber struct {
	// Notify says that there is something to Take. It must neither block nor call
	// this package.
	Notify func()
	// Expire says that nothing was acknowledged for too long. The subscriber has to
	// leave, and may do so within the call.
	Expire func()
	// MaxEvent is the size of the largest event that it can take, in bytes.
	MaxEvent int
}

// Window bounds what a member may hold and not have acknowledged. One event is
// always allowed.
type Window struct {
	Events, Bytes int64
}

// Member is a subscriber in its group. Its methods may be used from several
// goroutines.
type Member struct {
	group      *group
	subscriber Subscriber
	id         uint64 // random, for the choice by key
	leave      func() // gives its place in the hub back

	// Guarded by the dealer's mu.
	gone          bool
	window        Window
	events, bytes int64           // held
	held          map[spot]*entry // given to it and not acknowledged
	outbox        fifo            // of those, what was not taken
	waiting       fifo            // what it is to be given when its window allows
	progress      time.Time       // when it acknowledged something, or began to hold something
}

func (m *Member) allows(size int) bool {
	return m.events == 0 || m.events < m.window.Events && m.bytes+int64(size) <= m.window.Bytes
}

// Take calls f for what the member was given, in order, until it returns false;
// that event comes again with the next call. f must not call this package. It
// returns false when nothing is left.
func (m *Member) Take(f func(partition int32, offset int64, event []byte) bool) (more bool) {
	d := &m.group.dealer
	d.mu.Lock()
	defer d.mu.Unlock()
	for m.outbox.len() > 0 {
		e := m.outbox.first()
		if !f(e.at.partition, e.at.offset, e.event) {
			return true
		}
		m.outbox.pop()
		e.taken = true
	}
	return false
}

// Acknowledge acknowledges what was taken, from first to last, both inclusive.
// Other offsets do not count.
func (m *Member) Acknowledge(partition int32, first, last int64) {
	m.group.dealer.acknowledge(m, partition, first, last)
}

// SetWindow replaces the window.
func (m *Member) SetWindow(w Window) { m.group.dealer.setWindow(m, w) }

// Leave ends the membership. What was not acknowledged is given to another member,
// here or elsewhere.
func (m *Member) Leave() {
	if m.group.dealer.remove(m) {
		m.leave()
	}
}
