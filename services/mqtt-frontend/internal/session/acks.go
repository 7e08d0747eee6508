package session

import (
	"context"
	"slices"
	"sync"

	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// acks keeps the acknowledgements of PUBLISH packets in the order of the packets,
// and the packet identifiers that their sender has not released yet.
type acks struct {
	session *Session
	limit   int

	mu        sync.Mutex
	changed   sync.Cond // less is pending, held or stalled, or closed
	pending   []*slot
	received  idSet // QoS 2: PUBREC with success was sent, PUBREL has not come
	unsettled int   // commands without a result, of any QoS
	held      int   // what these take of maxHeld
	stalled   int   // commands that wait to be tried again
	closed    bool
}

// slot is the place of one PUBLISH packet in the order.
type slot struct {
	id     uint16
	qos    byte
	done   bool
	code   wire.Code
	reason string
	// repeated is only there to be acknowledged again.
	repeated bool
}

func (a *acks) init(s *Session, limit int) {
	a.session, a.limit = s, limit
	a.changed.L = &a.mu
}

const (
	// maxHeld is how many bytes of commands without a result a connection may have:
	// the room for commands is everybody's, and whoever sends faster than Kafka
	// takes is to slow down itself. One command is always allowed.
	maxHeld = 1 << 20
	// heldByQoS0 is what a command with QoS 0 takes besides its payload. Others are
	// counted by our Receive Maximum.
	heldByQoS0 = 4 << 10
)

func held(p *wire.Publish) int {
	if p.QoS == 0 {
		return heldByQoS0 + len(p.Payload)
	}
	return len(p.Payload)
}

// room blocks while the client has sent more than is taken from it. It reports
// false when the connection ended.
func (a *acks) room(ctx context.Context, p *wire.Publish) bool {
	a.until(ctx, func() bool { return a.held == 0 || a.held+held(p) <= maxHeld })
	return ctx.Err() == nil
}

// wait blocks while the client, which has no Receive Maximum in MQTT 3.1.1, has
// too much without a result, or a command waits to be tried again. It reports false
// when the connection ended. PUBREL is not waited for: we have to read it.
func (a *acks) wait(ctx context.Context) bool {
	a.until(ctx, func() bool { return len(a.pending) < a.limit && a.stalled == 0 })
	return ctx.Err() == nil
}

// until blocks until done, which is called with the lock, or the context ends.
func (a *acks) until(ctx context.Context, done func() bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if done() {
		return
	}
	stop := context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.changed.Broadcast()
	})
	defer stop()
	for !a.closed && ctx.Err() == nil && !done() {
		a.changed.Wait()
	}
}

// place is what there is for a PUBLISH packet.
type place uint8

const (
	placeNew      place = iota // a place in the order, with QoS 0 none
	placeRepeated              // it was here before, and is answered
	placeInUse                 // a place, but the packet identifier is that of another one
	placeFull                  // none: our Receive Maximum is exceeded
)

// reserve takes the next place. QoS 0 has none, and nil is returned.
func (a *acks) reserve(p *wire.Publish, maximum bool) (*slot, place) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.QoS == 0 {
		a.unsettled++
		a.held += held(p)
		return nil, placeNew
	}
	result := placeNew
	for _, s := range a.pending {
		switch {
		case s.id != p.PacketID:
		case s.qos == 2 && p.QoS == 2: // whatever DUP says [MQTT-4.3.3-10]: its PUBREC is on its way
			return nil, placeRepeated
		case s.qos != p.QoS:
			result = placeInUse
		}
	}
	if a.received.has(p.PacketID) {
		if p.QoS == 2 {
			a.pending = append(a.pending, &slot{id: p.PacketID, qos: 2, done: true, repeated: true})
			a.sendLocked()
			return nil, placeRepeated
		}
		result = placeInUse
	}
	if maximum && a.usedLocked() >= a.limit {
		return nil, placeFull
	}
	a.unsettled++
	a.held += held(p)
	s := &slot{id: p.PacketID, qos: p.QoS}
	a.pending = append(a.pending, s)
	return s, result
}

// usedLocked is how much of our Receive Maximum the client has used up. PUBREC does
// not give anything back, unless it says no.
func (a *acks) usedLocked() int {
	n := a.received.n
	for _, s := range a.pending {
		if !s.repeated {
			n++
		}
	}
	return n
}

// release ends QoS 2 for a packet identifier. It reports false when it has not
// begun.
func (a *acks) release(id uint16) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.received.remove(id) {
		return false
	}
	// Who releases it has had PUBREC, and may use it for something else now.
	a.pending = slices.DeleteFunc(a.pending, func(s *slot) bool { return s.repeated && s.id == id })
	return true
}

// settle sends the acknowledgement, once those before it have been sent.
func (a *acks) settle(p *wire.Publish, slot *slot, code wire.Code, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unsettled--
	a.held -= held(p)
	a.changed.Broadcast()
	if slot == nil || a.closed {
		return
	}
	slot.done, slot.code, slot.reason = true, code, reason
	a.sendLocked()
}

// sendLocked sends the acknowledgements that are due.
func (a *acks) sendLocked() {
	sent := 0
	for _, p := range a.pending {
		if !p.done {
			break
		}
		sent++
		if p.qos == 2 && !p.repeated && !a.session.refuses(p) {
			a.received.add(p.id) // before the client can answer
		}
		if !a.session.acknowledge(p) {
			break
		}
	}
	clear(a.pending[:sent])
	if a.pending = a.pending[sent:]; len(a.pending) == 0 {
		a.pending = nil
	}
}

// stall stops or resumes reading from a client of MQTT 3.1.1.
func (a *acks) stall(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stalled += n
	a.changed.Broadcast()
}

// settled waits until every command has its result.
func (a *acks) settled(ctx context.Context) {
	a.until(ctx, func() bool { return a.unsettled == 0 })
}

func (a *acks) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.pending, a.received = nil, idSet{}
	a.changed.Broadcast()
}

// idSet is a set of packet identifiers, of 8 KiB at most. The zero value is empty.
type idSet struct {
	n    int
	bits []uint64
}

func (s *idSet) has(id uint16) bool {
	return int(id/64) < len(s.bits) && s.bits[id/64]&(1<<(id%64)) != 0
}

func (s *idSet) add(id uint16) {
	if s.has(id) {
		return
	}
	if short := int(id/64) + 1 - len(s.bits); short > 0 {
		s.bits = append(s.bits, make([]uint64, short)...)
	}
	s.bits[id/64] |= 1 << (id % 64)
	s.n++
}

// keptIDs is the size in words up to which an empty set keeps its memory.
const keptIDs = 16

func (s *idSet) remove(id uint16) bool {
	if !s.has(id) {
		return false
	}
	s.bits[id/64] &^= 1 << (id % 64)
	if s.n--; s.n == 0 && len(s.bits) > keptIDs {
		s.bits = nil
	}
	return true
}
