package share

import (
	"bytes"
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"mqtt-integration/services/event-fanout/internal/cursor"
)

// spot is where an event is in the topic.
type spot struct {
	partition int32
	offset    int64
}

// record is what a claim brings.
type record struct {
	offset int64
	key    uint64 // hash of the key
	keyed  bool
	event  []byte // nil: it is passed
}

// entry is an event that a claim brought and that was not acknowledged.
type entry struct {
	claim *claim // nil when it has ended: what becomes of the event does not matter here
	at    spot
	seq   uint64 // order of arrival
	key   uint64
	keyed bool
	event []byte
	taken bool // by the stream of the member that holds it
}

// claim is a partition while it is ours. Guarded by the dealer's mu, but for what
// never changes.
type claim struct {
	partition int32
	wake      chan struct{} // there is room, or nothing is held any more

	tracker cursor.Tracker
	next    int64 // offset after the last record; negative before the first
	queued  int   // events that wait for a member
	bytes   int
	held    int // events that members hold
	ending  bool
}

// Bounds of what waits for members, per claim. What Kafka had sent already comes
// on top: about one fetch.
const (
	highEvents = 1000
	lowEvents  = highEvents / 2
	highBytes  = 2 << 20
	lowBytes   = highBytes / 2
)

func (c *claim) full() bool  { return c.queued >= highEvents || c.bytes >= highBytes }
func (c *claim) roomy() bool { return c.queued <= lowEvents && c.bytes <= lowBytes }

func (c *claim) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// position is the first offset that is not acknowledged, and negative while that
// is not known.
func (c *claim) position() int64 {
	if first, ok := c.tracker.First(); ok {
		return first
	}
	return c.next
}

// dealer deals what the claims of a group bring to its members.
type dealer struct {
	mu      sync.Mutex
	members []*Member
	claims  map[int32]*claim
	// ghosts are events that members hold though their claim has ended. When the
	// claim comes back, they are not delivered twice.
	ghosts map[spot]*entry
	anyone fifo // waits for whichever member has room
	seq    uint64
	turn   int

	redelivered, passed int64 // counted until collected
}

func newDealer() dealer {
	return dealer{claims: map[int32]*claim{}, ghosts: map[spot]*entry{}}
}

// begin takes up a claim.
func (d *dealer) begin(partition int32, next int64) *claim {
	c := &claim{partition: partition, next: next, wake: make(chan struct{}, 1)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.claims[partition] = c
	return c
}

// add takes what a claim brought, and says whether that is enough for now.
func (d *dealer) add(c *claim, records []record) (full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range records {
		r := &records[i]
		c.next = r.offset + 1
		if r.event == nil {
			continue
		}
		c.tracker.Add(r.offset, 0)
		at := spot{c.partition, r.offset}
		if ghost := d.ghosts[at]; ghost != nil {
			delete(d.ghosts, at)
			if bytes.Equal(ghost.event, r.event) {
				ghost.claim = c
				c.held++
				continue
			}
			d.forget(at) // the topic is another one
		}
		d.seq++
		e := &entry{claim: c, at: at, seq: d.seq, key: r.key, keyed: r.keyed, event: r.event}
		d.queue(e)
	}
	d.spread()
	return c.full()
}

// forget takes an event from the member that holds it.
func (d *dealer) forget(at spot) {
	for _, m := range d.members {
		if e := m.held[at]; e != nil && e.claim == nil {
			m.release(e)
			d.feed(m)
		}
	}
}

// release is the end of holding an event.
func (m *Member) release(e *entry) {
	delete(m.held, e.at)
	m.events--
	m.bytes -= int64(len(e.event))
}

// queue has an event wait for whoever is to have it, or gives it at once.
func (d *dealer) queue(e *entry) {
	e.claim.queued++
	e.claim.bytes += len(e.event)
	if len(d.members) == 0 || !e.keyed {
		d.anyone.push(e)
		return
	}
	m := d.choose(e)
	switch {
	case m == nil:
		d.pass(e)
	case m.waiting.len() == 0 && m.allows(len(e.event)):
		d.give(m, e)
	default:
		m.waiting.push(e)
	}
}

// choose finds the member for the key of an event: the same one as long as the
// members are the same. nil if none can take it.
func (d *dealer) choose(e *entry) *Member {
	var chosen *Member
	var highest uint64
	for _, m := range d.members {
		if len(e.event) > m.subscriber.MaxEvent {
			continue
		}
		if weight := mix(m.id ^ e.key); chosen == nil || weight > highest {
			chosen, highest = m, weight
		}
	}
	return chosen
}

// mix spreads the bits of x.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// pass is for an event that nobody here can take.
func (d *dealer) pass(e *entry) {
	d.dequeued(e)
	e.claim.tracker.Ack(e.at.offset, e.at.offset)
	d.passed++
}

func (d *dealer) dequeued(e *entry) {
	c := e.claim
	wasRoomy := c.roomy()
	c.queued--
	c.bytes -= len(e.event)
	if !wasRoomy && c.roomy() {
		c.signal()
	}
}

// give hands a waiting event to a member.
func (d *dealer) give(m *Member, e *entry) {
	d.dequeued(e)
	e.claim.held++
	if old := m.held[e.at]; old != nil {
		m.release(old)
	}
	if m.events == 0 {
		m.progress = time.Now()
	}
	e.taken = false
	m.held[e.at] = e
	m.events++
	m.bytes += int64(len(e.event))
	m.outbox.push(e)
	m.subscriber.Notify()
}

// spread gives what is for anyone to those who have room, and least to do.
func (d *dealer) spread() {
	for len(d.members) > 0 && d.anyone.len() > 0 {
		e := d.anyone.first()
		size := len(e.event)
		var chosen *Member
		able := false
		d.turn++
		for i := range d.members {
			m := d.members[(d.turn+i)%len(d.members)]
			if size > m.subscriber.MaxEvent {
				continue
			}
			able = true
			mayTake := m.allows(size) && (m.waiting.len() == 0 || e.seq < m.waiting.first().seq)
			if mayTake && (chosen == nil || m.events < chosen.events) {
				chosen = m
			}
		}
		switch {
		case chosen != nil:
			d.give(chosen, d.anyone.pop())
		case !able:
			d.pass(d.anyone.pop())
		default:
			return
		}
	}
}

// feed gives a member what waits for it, or for anyone, whichever came first.
func (d *dealer) feed(m *Member) {
	for m.waiting.len() > 0 && m.allows(len(m.waiting.first().event)) {
		if d.anyone.len() > 0 && d.anyone.first().seq < m.waiting.first().seq {
			before := d.anyone.len()
			if d.spread(); d.anyone.len() < before {
				continue
			}
		}
		d.give(m, m.waiting.pop())
	}
	d.spread()
}

func (d *dealer) acknowledge(m *Member, partition int32, first, last int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m.gone {
		return
	}
	before := m.events
	if last-first < int64(len(m.held)) {
		for offset := first; offset <= last; offset++ {
			d.acknowledged(m, m.held[spot{partition, offset}])
		}
	} else {
		for at, e := range m.held {
			if at.partition == partition && first <= at.offset && at.offset <= last {
				d.acknowledged(m, e)
			}
		}
	}
	if m.events < before {
		m.progress = time.Now()
		d.feed(m)
	}
}

func (d *dealer) acknowledged(m *Member, e *entry) {
	if e == nil || !e.taken {
		return
	}
	m.release(e)
	c := e.claim
	if c == nil {
		d.laid(e)
		return
	}
	c.tracker.Ack(e.at.offset, e.at.offset)
	if c.held--; c.held == 0 && c.ending {
		c.signal()
	}
}

// laid is the end of a ghost.
func (d *dealer) laid(e *entry) {
	if d.ghosts[e.at] == e {
		delete(d.ghosts, e.at)
	}
}

func (d *dealer) setWindow(m *Member, w Window) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m.window = w
	if !m.gone {
		d.feed(m)
	}
}

// join adds a member.
func (d *dealer) join(m *Member) {
	m.id = rand.Uint64() //nolint:gosec // spreading load
	m.held = map[spot]*entry{}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members = append(d.members, m)
	d.again(nil)
}

// remove ends a membership; what was not acknowledged goes to others. False if it
// has ended before.
func (d *dealer) remove(m *Member) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m.gone {
		return false
	}
	m.gone = true
	d.members = slices.DeleteFunc(d.members, func(other *Member) bool { return other == m })
	back := m.waiting.takeAll(nil)
	for _, e := range m.held {
		c := e.claim
		if c == nil {
			d.laid(e)
			continue
		}
		if c.held--; c.ending {
			if c.held == 0 {
				c.signal()
			}
			continue // not acknowledged: whoever has the partition next gets it
		}
		if e.taken {
			d.redelivered++
		}
		c.queued++
		c.bytes += len(e.event)
		back = append(back, e)
	}
	m.held, m.outbox, m.events, m.bytes = nil, fifo{}, 0, 0
	d.again(back)
	return true
}

// again deals anew what waits, and what came back, in the order of arrival.
func (d *dealer) again(back []*entry) {
	back = d.anyone.takeAll(back)
	for _, m := range d.members {
		back = m.waiting.takeAll(back)
	}
	slices.SortFunc(back, func(a, b *entry) int { return cmp.Compare(a.seq, b.seq) })
	for _, e := range back {
		e.claim.queued--
		e.claim.bytes -= len(e.event)
		d.queue(e)
	}
	d.spread()
}

// end is for a claim that is taken from us: what nobody has seen is dropped. It
// returns how many events are held; the claim is woken when that is none.
func (d *dealer) end(c *claim) (held int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.ending = true
	ours := func(e *entry) bool {
		if e.claim != c {
			return false
		}
		c.queued--
		c.bytes -= len(e.event)
		return true
	}
	d.anyone.drop(ours)
	for _, m := range d.members {
		m.waiting.drop(ours)
		m.outbox.drop(func(e *entry) bool {
			if e.claim != c {
				return false
			}
			m.release(e)
			c.held--
			return true
		})
		d.feed(m)
	}
	return c.held
}

// abandon forgets a claim after its end. What members still hold of it stays with
// them. It returns the claim's position.
func (d *dealer) abandon(c *claim) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.claims[c.partition] == c {
		delete(d.claims, c.partition)
	}
	at := c.position()
	for _, m := range d.members {
		for _, e := range m.held {
			if e.claim == c {
				e.claim = nil
				d.ghosts[e.at] = e
			}
		}
	}
	return at
}

func (d *dealer) roomy(c *claim) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return c.roomy()
}

func (d *dealer) heldOf(c *claim) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return c.held
}

// positions are those of all claims, where they are known.
func (d *dealer) positions() map[*claim]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	positions := make(map[*claim]int64, len(d.claims))
	for _, c := range d.claims {
		if at := c.position(); at >= 0 {
			positions[c] = at
		}
	}
	return positions
}

// expired are the members that hold something and have not acknowledged anything
// since a time.
func (d *dealer) expired(since time.Time) []*Member {
	d.mu.Lock()
	defer d.mu.Unlock()
	var expired []*Member
	for _, m := range d.members {
		if m.events > 0 && m.progress.Before(since) {
			expired = append(expired, m)
		}
	}
	return expired
}

// counts returns what was counted since the last call.
func (d *dealer) counts() (redelivered, passed int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	redelivered, passed = d.redelivered, d.passed
	d.redelivered, d.passed = 0, 0
	return redelivered, passed
}

// size is the number of members.
func (d *dealer) size() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.members)
}
