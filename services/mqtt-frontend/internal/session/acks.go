package session

import (
	"context"
	"sync"

	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// acks keeps the acknowledgements of PUBLISH packets in the order of the packets.
type acks struct {
	session *Session
	limit   int

	mu        sync.Mutex
	changed   sync.Cond // less is pending, held or stalled, or closed
	pending   []*slot
	unsettled int // commands without a result, of any QoS
	held      int // what these take of maxHeld
	stalled   int // commands that wait to be tried again
	closed    bool
}

// slot is the place of one PUBLISH packet in the order.
type slot struct {
	id     uint16
	done   bool
	code   wire.Code
	reason string
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

// full reports whether the client has used up our Receive Maximum.
func (a *acks) full() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.pending) >= a.limit
}

// wait blocks while the client, which has no Receive Maximum in MQTT 3.1.1, has
// too much unacknowledged, or a command waits to be tried again. It reports false
// when the connection ended.
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

// reserve takes the next place. QoS 0 has none, and nil is returned.
func (a *acks) reserve(p *wire.Publish) *slot {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unsettled++
	a.held += held(p)
	if p.QoS == 0 {
		return nil
	}
	slot := &slot{id: p.PacketID}
	a.pending = append(a.pending, slot)
	return slot
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
	sent := 0
	for _, p := range a.pending {
		if !p.done {
			break
		}
		sent++
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
	a.pending = nil
	a.changed.Broadcast()
}
