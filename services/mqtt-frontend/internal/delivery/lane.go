package delivery

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

const (
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 2 * time.Second
)

// lane is the sessions and subscriptions that share a stream to one instance. It
// outlives the streams.
//
// Locks: a session's mu, then the client's, then mu, then that of a subscription;
// dirtyMu is last. Of two lanes, the one with the lower number is first. Neither
// sinks nor the callers' functions are called under one.
type lane struct {
	client  *Client
	api     eventsv1.EventsServiceClient
	address string
	number  uint64
	frame   uint64 // number of the last frame received; of the goroutine that receives

	// idleSince is when the lane lost its stream, in ns after the client was made,
	// or began to look for its first one; 0: it has one.
	idleSince atomic.Int64
	// left is true when the instance has asked to leave it, until the next stream.
	left atomic.Bool

	queued chan struct{} // there is something in the queue of the link
	marked chan struct{} // there is something in dirty

	mu          sync.Mutex
	closed      bool  // nothing is opened any more
	gone        bool  // it takes no attachments any more
	streaming   bool  // there is a stream, perhaps one that takes nothing any more
	link        *link // the stream that takes frames; nil: none
	attachments map[*attachment]struct{}

	dirtyMu sync.Mutex
	dirty   []*Subscription // with acknowledgements or windows to send
}

// link is what there is of a lane on one stream. Guarded by the lane's mu.
type link struct {
	queue    []func() any // what is to be sent; what returns nil is not
	leaving  bool         // nothing more is put into the queue
	subs     handles
	sessions map[uint64]*attachment
	last     uint64            // handle of a session
	closing  map[uint64]answer // by handle of the subscription
	leavers  map[uint64]answer // by handle of the session
}

func newLane(c *Client, api eventsv1.EventsServiceClient, address string) *lane {
	l := &lane{
		client: c, api: api, address: address, number: c.lanes.Add(1),
		queued:      make(chan struct{}, 1),
		marked:      make(chan struct{}, 1),
		attachments: map[*attachment]struct{}{},
	}
	l.idleSince.Store(c.now())
	return l
}

// mark puts a subscription into the list of those with something to send.
func (l *lane) mark(sub *Subscription) {
	l.dirtyMu.Lock()
	l.dirty = append(l.dirty, sub)
	l.dirtyMu.Unlock()
	signal(l.marked)
}

// put queues a frame. The caller holds mu, and there is a link.
func (l *lane) put(frame func() any) {
	l.link.queue = append(l.link.queue, frame)
	signal(l.queued)
}

func (l *lane) putRequest(request *eventsv1.DeliverRequest) {
	l.put(func() any { return request })
}

// add takes a subscription up. It is false when the session has ended.
func (a *attachment) add(sub *Subscription) bool {
	l := a.lock()
	defer l.mu.Unlock()
	if l.closed || a.ended {
		return false
	}
	a.subs[sub] = struct{}{}
	if l.link == nil {
		return true
	}
	switch a.state {
	case attached:
		l.open(sub)
	case detached:
		l.attach(a)
	case attaching:
	}
	return true
}

// attach sends Attach. The caller holds mu, and there is a link.
func (l *lane) attach(a *attachment) {
	if a.share != "" {
		a.state = attached
		l.openAll(a)
		return
	}
	l.link.last++
	a.handle, a.state = l.link.last, attaching
	l.link.sessions[a.handle] = a
	info := &a.session.info
	l.putRequest(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Attach{Attach: &eventsv1.Attach{
		Session:       a.handle,
		Key:           &eventsv1.SessionKey{Issuer: info.Issuer, Subject: info.Subject, ClientId: info.ClientID},
		Epoch:         &eventsv1.Epoch{TimeMicros: info.Epoch, FrontendId: l.client.frontendID},
		ConnectionId:  info.ConnectionID,
		Reattach:      a.before,
		ProtocolLevel: uint32(info.ProtocolLevel),
		ClientAddress: info.ClientAddress,
	}}})
}

// open sends Open. The caller holds mu, and the attachment is attached.
func (l *lane) open(sub *Subscription) {
	on, session := l.link, sub.attachment.handle
	handle := on.subs.add(sub)
	sub.mu.Lock()
	sub.disconnectLocked()
	sub.link, sub.handle = on, handle
	sub.mu.Unlock()
	l.put(func() any {
		if frame := sub.open(on, handle, session); frame != nil {
			return frame
		}
		return nil
	})
}

// openAll sends Open for those that wait for it. The caller holds mu.
func (l *lane) openAll(a *attachment) {
	if l.link == nil || a.state != attached {
		return
	}
	for sub := range a.subs {
		sub.mu.Lock()
		waiting := sub.link == nil
		sub.mu.Unlock()
		if waiting {
			l.open(sub)
		}
	}
}

// how a subscription is ended.
type closing uint8

const (
	closeDrop   closing = iota // it was not opened
	closeKeep                  // its position is kept
	closeForget                // its position is forgotten
	closeGone                  // the server knows
)

// endLocked ends a subscription here, and tells the server.
func (l *lane) endLocked(sub *Subscription, how closing, err *OpenError) answer {
	if sub.ended {
		return nil
	}
	a := sub.attachment
	if a.share != "" {
		a.ended = true
		delete(l.attachments, a)
	}
	if _, taken := a.subs[sub]; !taken {
		return nil // its session was faster to end than it to begin
	}
	delete(a.subs, sub)
	acks := &acknowledgements{}
	on, handle, sent, positioned := l.release(sub, acks, err)
	if how == closeGone {
		return nil
	}
	if !sent || on != l.link {
		if how == closeForget && positioned {
			broken := make(answer)
			close(broken)
			return broken
		}
		return nil
	}
	l.putAcknowledgements(acks)
	l.putRequest(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Close{Close: &eventsv1.Close{
		Subscription: handle, Unsubscribe: how == closeForget,
	}}})
	answered := make(answer, 1)
	on.closing[handle] = answered
	return answered
}

// release frees what a subscription holds; what it had to acknowledge is added to
// acks. The caller holds mu.
func (l *lane) release(sub *Subscription, acks *acknowledgements, err *OpenError) (on *link, handle uint64, sent, positioned bool) {
	sub.ended = true
	l.client.count.Add(-1)
	sub.mu.Lock()
	on, handle, sent, positioned = sub.link, sub.handle, sub.sent, sub.positioned
	if sub.ready {
		acks.take(sub)
	}
	sub.disconnectLocked()
	sub.positions.forget()
	sub.mu.Unlock()
	if on != nil {
		on.subs.remove(handle)
	}
	select {
	case sub.opened <- err:
	default:
	}
	return on, handle, sent, positioned
}

func (l *lane) putAcknowledgements(acks *acknowledgements) {
	for _, frame := range acks.finish() {
		l.put(func() any { return frame })
	}
}

// detach ends an attachment here, and tells the server. It returns the
// subscriptions that ended.
func (a *attachment) detach(options DetachOptions) ([]*Subscription, answer) {
	l := a.lock()
	defer l.mu.Unlock()
	if a.ended {
		return nil, nil
	}
	a.ended = true
	delete(l.attachments, a)
	var subs []*Subscription
	acks := &acknowledgements{}
	for sub := range a.subs {
		l.release(sub, acks, openUnavailable("the session has ended"))
		subs = append(subs, sub)
	}
	a.subs = nil
	if l.link == nil || a.state == detached {
		return subs, nil
	}
	l.putAcknowledgements(acks)
	l.putRequest(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Detach{Detach: &eventsv1.Detach{
		Session: a.handle, DropWill: options.DropWill, Discard: options.Discard,
	}}})
	delete(l.link.sessions, a.handle)
	answered := make(answer, 1)
	l.link.leavers[a.handle] = answered
	return subs, answered
}

// connect takes up a stream.
func (l *lane) connect() *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streaming = true
	l.link = &link{
		sessions: map[uint64]*attachment{},
		closing:  map[uint64]answer{},
		leavers:  map[uint64]answer{},
	}
	for a := range l.attachments {
		if a.before || len(a.subs) > 0 {
			l.attach(a)
		}
	}
	return l.link
}

// leave puts nothing more on a stream. Events still come from it until it ends.
func (l *lane) leave(on *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	on.leaving = true
	if l.link == on {
		l.link = nil
	}
	signal(l.queued)
}

// disconnect ends a stream.
func (l *lane) disconnect(on *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streaming = false
	if l.link == on {
		l.link = nil
	}
	for a := range l.attachments {
		a.state, a.handle = detached, 0
		for sub := range a.subs {
			sub.mu.Lock()
			sub.disconnectLocked()
			sub.mu.Unlock()
		}
	}
	for _, answered := range on.closing {
		close(answered)
	}
	for _, answered := range on.leavers {
		close(answered)
	}
	on.queue, on.leaving = nil, true
}

// close ends it all.
func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for a := range l.attachments {
		for sub := range a.subs {
			if !sub.isPositioned() {
				l.endLocked(sub, closeGone, openUnavailable("shutting down"))
			}
		}
	}
}

// reopenLater opens a subscription again after a while. The caller holds mu.
func reopenLater(sub *Subscription) {
	sub.retries++
	time.AfterFunc(delay(sub.retries), func() {
		l := sub.attachment.lock()
		defer l.mu.Unlock()
		if sub.ended || l.link == nil || sub.attachment.state != attached {
			return // or whoever attaches opens it
		}
		sub.mu.Lock()
		waiting := sub.link == nil
		sub.mu.Unlock()
		if waiting {
			l.open(sub)
		}
	})
}

// reattachLater attaches a session again after a while. The caller holds mu.
func reattachLater(a *attachment) {
	a.retries++
	time.AfterFunc(delay(a.retries), func() {
		l := a.lock()
		defer l.mu.Unlock()
		if !a.ended && l.link != nil && a.state == detached {
			l.attach(a)
		}
	})
}

// delay is how long to wait before an attempt; not the same for all.
func delay(attempt int) time.Duration {
	d := min(firstBackoff<<min(attempt-1, 10), maxBackoff)
	return d/2 + rand.N(d/2) //nolint:gosec // no secret
}

// signal puts a token into a channel of one, if there is none.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
