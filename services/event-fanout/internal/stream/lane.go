package stream

import (
	"slices"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"

	"mqtt-integration/services/event-fanout/internal/commit"
	"mqtt-integration/services/event-fanout/internal/cursor"
	"mqtt-integration/services/event-fanout/internal/kafka"
	"mqtt-integration/services/event-fanout/internal/tail"
)

// state says what a cursor waits for.
type state uint8

const (
	// ready cursors are in the ready list of their lane.
	ready state = iota
	// live cursors are in the live list of their lane: at its head, or ahead of it.
	live
	// stalled cursors wait for acknowledgements.
	stalled
	// fetching cursors wait for a chunk, or for their turn to read one.
	fetching
	// closed cursors are gone.
	closed
)

// cursorOf is where a subscription stands in a partition.
type cursorOf struct {
	sub      *subscription
	lane     *lane
	state    state
	next     int64 // offset of the next event to deliver
	tracker  cursor.Tracker
	position *commit.Position
	chunk    *tail.Chunk // just read for it
}

// settle takes the position to the first unacknowledged event.
func (c *cursorOf) settle() {
	at, ok := c.tracker.First()
	if !ok {
		at = c.next
	}
	c.position.Move(at)
}

// subscription is an open subscription. Guarded by the stream's mu.
type subscription struct {
	handle      uint64
	session     *session
	application string
	topic       string
	opened      bool // Opened was answered
	closing     bool // it is closed, perhaps while it was being opened

	windowEvents, windowBytes int64
	events, bytes             int64 // outstanding
	cursors                   []*cursorOf
	stalled                   int       // cursors that are
	last                      *cursorOf // the one that was served last
}

// allows says whether an event of so many bytes may be delivered now.
func (s *subscription) allows(size int) bool {
	return s.events == 0 || (s.events < s.windowEvents && s.bytes+int64(size) <= s.windowBytes)
}

// cursorAt returns the cursor of a partition, or nil.
func (s *subscription) cursorAt(partition int32) *cursorOf {
	if i := int(partition); i >= 0 && i < len(s.cursors) && s.cursors[i].lane.place.Partition == partition {
		return s.cursors[i]
	}
	for _, c := range s.cursors {
		if c.lane.place.Partition == partition {
			return c
		}
	}
	return nil
}

// lane is all cursors of a stream on one partition. Guarded by the stream's mu.
type lane struct {
	stream     *stream
	place      kafka.Place
	ring       *tail.Ring
	watcher    *tail.Watcher
	notified   atomic.Bool
	generation uint64

	cursors []*cursorOf // all of them
	head    int64       // offset that is next for the live ones; means nothing without
	live    []*cursorOf
	ready   []*cursorOf // first come, first served

	inLive, inReady bool // in the queues of the stream
}

// sweep delivers events to those of the active cursors that have not passed them,
// until the events or the frame end or nobody has a window left. It returns the
// cursors that may go on, and how many events it has dealt with. A frame that is
// full ends it before the first event that does not fit.
func (s *stream) sweep(f *frame, l *lane, active []*cursorOf, entries []tail.Entry) (rest []*cursorOf, dealt int, full bool) {
	for i := range entries {
		e := &entries[i]
		size := len(e.Event)
		if !f.fits(size, len(active)) {
			return active, i, true
		}
		if size > s.maxEvent {
			s.undeliverable(active, e)
			continue
		}
		recipients, n := s.recipients[:0], 0
		kept := active[:0]
		for _, c := range active {
			if c.next > e.Offset {
				kept = append(kept, c)
				continue
			}
			sub := c.sub
			if !sub.allows(size) {
				s.stall(c)
				continue
			}
			c.tracker.Add(e.Offset, size)
			c.next = e.Offset + 1
			sub.events++
			sub.bytes += int64(size)
			recipients = protowire.AppendVarint(recipients, sub.handle)
			sub.last = c
			n++
			kept = append(kept, c)
		}
		clear(active[len(kept):])
		active = kept
		if n > 0 {
			f.add(e.Event, recipients, n, l.place.Partition, e.Offset)
		}
		s.recipients = recipients[:0]
		if len(active) == 0 {
			return active, i, false
		}
	}
	return active, len(entries), false
}

// undeliverable passes an event that the frontend cannot take.
func (s *stream) undeliverable(active []*cursorOf, e *tail.Entry) {
	for _, c := range active {
		if c.next <= e.Offset {
			c.next = e.Offset + 1
			s.server.metrics.undeliverable(1)
		}
	}
}

// stall takes a cursor out until an acknowledgement comes.
func (s *stream) stall(c *cursorOf) {
	c.state = stalled
	c.chunk = nil
	c.sub.stalled++
	c.settle()
}

// serveLive delivers what has come in to the live cursors of a lane. It says
// whether there is more than the frame could take.
func (s *stream) serveLive(f *frame, l *lane) (more bool) {
	s.checkGeneration(l)
	for len(l.live) > 0 {
		entries, next, where := l.ring.Read(l.head)
		switch where {
		case tail.AtEnd:
			l.passed(l.live, next)
			l.head = max(l.head, next)
			return false
		case tail.Behind:
			// The ring has overtaken them: a burst, or retention.
			for _, c := range l.live {
				s.makeReady(c)
			}
			l.live = l.live[:0]
			return false
		case tail.Inside:
		}
		before := f.events
		rest, dealt, full := s.sweep(f, l, l.live, entries)
		l.live = rest
		s.server.metrics.fromRing(f.events - before)
		if full {
			l.head = entries[dealt].Offset
			return true
		}
		l.head = next
		l.passed(rest, next)
	}
	return false
}

// passed moves cursors over what holds no events.
func (l *lane) passed(cursors []*cursorOf, next int64) {
	for _, c := range cursors {
		if c.next < next {
			c.next = next
		}
		if c.tracker.Len() == 0 {
			c.position.Move(c.next)
		}
	}
}

// serveReady delivers to the first ready cursor of a lane, and to those other
// ready ones that come to stand where it does. It says whether the frame is full.
func (s *stream) serveReady(f *frame, l *lane) (full bool) {
	s.checkGeneration(l)
	if len(l.ready) == 0 {
		return false
	}
	first := l.ready[0]
	if len(l.live) > 0 && first.next >= l.head {
		l.ready = l.ready[1:]
		s.goLive(l, first)
		return false
	}
	entries, next, where := l.ring.Read(first.next)
	source := s.server.metrics.fromRing
	switch where {
	case tail.AtEnd:
		l.ready = l.ready[1:]
		s.goLive(l, first)
		return false
	case tail.Behind:
		chunk := first.chunk
		first.chunk = nil
		if chunk == nil || first.next < chunk.From || first.next >= chunk.To {
			chunk = s.server.cfg.CatchUp.Kept(l.place, first.next)
		}
		if chunk == nil {
			l.ready = l.ready[1:]
			s.fetch(first)
			return false
		}
		entries, next = entriesFrom(chunk.Entries, first.next), chunk.To
		source = s.server.metrics.fromChunk
	case tail.Inside:
	}
	if len(l.live) > 0 && next > l.head {
		// From the head on they go together with the live ones.
		entries, next = entriesBelow(entries, l.head), l.head
	}
	// Those behind the first are not in this piece; their turn comes.
	group, others := s.group[:0], s.others[:0]
	for _, c := range l.ready {
		if c.next >= first.next && c.next < next {
			group = append(group, c)
		} else {
			others = append(others, c)
		}
	}
	before := f.events
	rest, _, full := s.sweep(f, l, group, entries)
	source(f.events - before)
	if !full {
		l.passed(rest, next)
	}
	l.ready = append(append(l.ready[:0], others...), rest...)
	clear(group)
	clear(others)
	s.group, s.others = group[:0], others[:0]
	return full
}

// goLive moves a cursor from ready to live. The caller takes it out of ready.
func (s *stream) goLive(l *lane, c *cursorOf) {
	c.chunk = nil
	// A live cursor may be ahead of the ring, if it was opened at an end of the log
	// that the ring has not reached; then those that come later may stand before it.
	if len(l.live) == 0 || c.next < l.head {
		l.head = c.next
	}
	c.state = live
	l.live = append(l.live, c)
	s.queueLive(l)
}

// makeReady puts a cursor at the end of the ready ones of its lane. The caller
// takes it out of where it was.
func (s *stream) makeReady(c *cursorOf) {
	c.state = ready
	c.lane.ready = append(c.lane.ready, c)
	s.queueReady(c.lane)
}

func (s *stream) queueLive(l *lane) {
	if !l.inLive {
		l.inLive = true
		s.liveLanes.push(l)
	}
}

func (s *stream) queueReady(l *lane) {
	if !l.inReady {
		l.inReady = true
		s.readyLanes.push(l)
	}
}

// checkGeneration takes cursors whose position is void to the start of the log.
func (s *stream) checkGeneration(l *lane) {
	generation, start, end := l.ring.Generation()
	if generation == l.generation {
		return
	}
	l.generation = generation
	for _, c := range l.cursors {
		if c.next > end {
			s.restart(c, start)
		}
	}
	for _, c := range l.live {
		s.makeReady(c)
	}
	clear(l.live)
	l.live = l.live[:0]
}

// restart takes a cursor to the start of a log that is another one.
func (s *stream) restart(c *cursorOf, start int64) {
	events, bytes := c.tracker.Reset()
	c.sub.events -= int64(events)
	c.sub.bytes -= bytes
	c.next = start
	c.chunk = nil
	c.position.Move(start)
	s.server.metrics.restarted(1)
	s.wakeUp(c.sub)
}

// wakeUp makes the stalled cursors of a subscription ready when there is room in
// its window.
func (s *stream) wakeUp(sub *subscription) {
	if sub.stalled == 0 || !sub.allows(0) {
		return
	}
	// The one that was served last comes last, else a small window would be its alone.
	after := slices.Index(sub.cursors, sub.last) + 1
	for i := range sub.cursors {
		if c := sub.cursors[(after+i)%len(sub.cursors)]; c.state == stalled {
			s.makeReady(c)
		}
	}
	sub.stalled = 0
}

// fetch has a chunk read for a cursor, or makes it wait for its turn.
func (s *stream) fetch(c *cursorOf) {
	c.state = fetching
	if s.reads >= maxReads {
		s.waiting = append(s.waiting, c)
		return
	}
	s.reads++
	place, offset := c.lane.place, c.next
	s.server.metrics.chunkRead()
	s.server.cfg.CatchUp.Read(place, offset, func(chunk *tail.Chunk, err error) { s.fetched(c, chunk, err) })
}

// entriesFrom are the entries from an offset on.
func entriesFrom(entries []tail.Entry, offset int64) []tail.Entry {
	return entries[search(entries, offset):]
}

// entriesBelow are the entries below an offset.
func entriesBelow(entries []tail.Entry, offset int64) []tail.Entry {
	return entries[:search(entries, offset)]
}

func search(entries []tail.Entry, offset int64) int {
	low, high := 0, len(entries)
	for low < high {
		if middle := int(uint(low+high) >> 1); entries[middle].Offset < offset {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}

// queue is a first-in-first-out queue.
type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) len() int { return len(q.items) - q.head }

func (q *queue[T]) push(item T) {
	if q.head > 32 && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, item)
}

func (q *queue[T]) pop() T {
	var zero T
	item := q.items[q.head]
	q.items[q.head] = zero
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return item
}
