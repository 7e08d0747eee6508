package delivery

import (
	"context"
	"fmt"
	"sync"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

// Subscription is a subscription that was opened. All methods are safe for
// concurrent use.
type Subscription struct {
	session    *Session
	attachment *attachment
	request    OpenRequest
	sink       Sink
	opened     chan *OpenError // the outcome of the first Open

	// Scratch of the goroutine that receives, for one frame.
	frame       uint64
	first, last int32

	// Guarded by the lane's mu.
	ended   bool
	retries int

	mu         sync.Mutex
	link       *link  // where events come from; nil: from nowhere
	handle     uint64 // there
	sent       bool   // Open was sent there
	ready      bool   // Opened came there: it takes acknowledgements
	positioned bool   // Opened came on whatever stream
	positions  positions
	window     Window
	resized    bool          // the window is to be sent
	dirty      bool          // it is in the list of those with something to send
	calling    bool          // the sink is being called
	idle       chan struct{} // when not nil: closed when it is not called any more
}

// Acknowledge says that an event that was delivered need not come again. It is
// cheap; any order. Without effect after Close.
func (s *Subscription) Acknowledge(partition int32, offset int64) {
	s.mu.Lock()
	mark := s.positions.acknowledge(partition, offset) && s.markLocked()
	l := s.attachment.lane.Load() // it does not change while there is a stream
	s.mu.Unlock()
	if mark {
		l.mark(s)
	}
}

// SetWindow replaces the window.
func (s *Subscription) SetWindow(events uint32, bytes uint64) {
	s.mu.Lock()
	s.window = Window{Events: events, Bytes: bytes}
	s.resized = true
	mark := s.markLocked()
	l := s.attachment.lane.Load()
	s.mu.Unlock()
	if mark {
		l.mark(s)
	}
}

// markLocked says whether the subscription has to be put into the list of those
// with something to send.
func (s *Subscription) markLocked() bool {
	if s.dirty || !s.ready {
		return false
	}
	s.dirty = true
	return true
}

// Close ends the subscription; with unsubscribe its position is forgotten.
// Nothing reaches the sink after it returned, whatever the error. Do not call it
// with a lock that the sink takes.
func (s *Subscription) Close(ctx context.Context, unsubscribe bool) error {
	how := closeKeep
	if unsubscribe {
		how = closeForget
	}
	s.session.forget(s)
	answered := s.end(how, nil)
	s.wait()
	came, err := answered.wait(ctx)
	if err == nil && !came && unsubscribe {
		err = errBroke // nobody knows whether the position is forgotten
	}
	if err != nil {
		return fmt.Errorf("close subscription: %w", err)
	}
	return nil
}

// wait returns when the sink is not being called.
func (s *Subscription) wait() {
	s.mu.Lock()
	if !s.calling {
		s.mu.Unlock()
		return
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	<-idle
}

// enter begins a call of the sink from a stream. It is false when nothing may
// come from there. The caller holds mu, and calls leave after the call.
func (s *Subscription) enterLocked(from *link) bool {
	for s.link == from && s.calling {
		// A lane that it has just left is not done yet.
		if s.idle == nil {
			s.idle = make(chan struct{})
		}
		idle := s.idle
		s.mu.Unlock()
		<-idle
		s.mu.Lock()
	}
	if s.link != from {
		return false
	}
	s.calling = true
	return true
}

func (s *Subscription) leave() {
	s.mu.Lock()
	s.calling = false
	idle := s.idle
	s.idle = nil
	s.mu.Unlock()
	if idle != nil {
		close(idle)
	}
}

// end ends a subscription here, and tells the server. Open, if it waits, gets err.
func (s *Subscription) end(how closing, err *OpenError) answer {
	l := s.attachment.lock()
	defer l.mu.Unlock()
	return l.endLocked(s, how, err)
}

// disconnectLocked ends its delivery by a stream.
func (s *Subscription) disconnectLocked() {
	s.link, s.handle = nil, 0
	s.sent, s.ready = false, false
	if s.positions.unordered {
		// What is outstanding comes again, here or elsewhere.
		s.positions.forget()
	}
}

// open builds the Open frame, unless the subscription is not with this stream any
// more.
func (s *Subscription) open(on *link, handle, session uint64) *eventsv1.DeliverRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != on || s.handle != handle {
		return nil
	}
	s.sent = true
	s.resized = false
	open := &eventsv1.Open{
		Subscription: handle,
		Session:      session,
		Application:  s.request.Application,
		ShareName:    s.request.ShareName,
		Options: &eventsv1.SubscriptionOptions{
			Qos:                    uint32(s.request.QoS),
			Binary:                 s.request.Binary,
			SubscriptionIdentifier: s.request.SubscriptionID,
		},
		Window: &eventsv1.Window{Events: s.window.Events, Bytes: s.window.Bytes},
	}
	switch {
	case s.request.ShareName != "":
		info := &s.session.info
		open.Key = &eventsv1.SessionKey{Issuer: info.Issuer, Subject: info.Subject, ClientId: info.ClientID}
		open.Epoch = &eventsv1.Epoch{TimeMicros: info.Epoch, FrontendId: s.session.client.frontendID}
	case s.positioned:
		open.Resume = s.positions.resume()
	}
	return &eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Open{Open: open}}
}
