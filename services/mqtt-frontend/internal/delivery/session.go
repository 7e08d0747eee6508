package delivery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

var errBroke = errors.New("the stream to event-fanout broke")

// Session is the session of one connection. All methods are safe for concurrent
// use.
type Session struct {
	client  *Client
	info    SessionInfo
	onError func(SessionError)

	mu         sync.Mutex
	ended      bool
	attachment *attachment // nil until the first Open
	shared     map[*Subscription]struct{}
}

// attachment is a session on its lane. It outlives the streams, and moves to
// another lane when its own has lost its instance. Each share subscription has one
// of its own, which needs no Attach: it is where its group is.
type attachment struct {
	session     *Session
	application string // the first one: it chooses among the lanes of an instance
	share       string // share name; empty for the session itself

	// lane changes under the mu of both lanes, while it has no stream.
	lane atomic.Pointer[lane]

	// Guarded by the lane's mu.
	subs    map[*Subscription]struct{}
	ended   bool
	state   attachState
	handle  uint64 // on the present stream
	before  bool   // it was attached before, on whatever stream
	retries int
}

// attachState says how far an attachment is on the present stream.
type attachState uint8

const (
	detached attachState = iota
	attaching
	attached
)

// Open begins a subscription and returns when it is positioned: what is appended
// from now on will be delivered. The error is an [*OpenError], also when ctx
// ends; nothing reaches the sink after an error.
func (s *Session) Open(ctx context.Context, request OpenRequest, sink Sink) (*Subscription, error) {
	if err := s.check(&request); err != nil {
		return nil, err
	}
	if s.client.count.Add(1) > int64(s.client.cfg.MaxSubscriptions) {
		s.client.count.Add(-1)
		return nil, &OpenError{
			Reason:  eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_QUOTA_EXCEEDED,
			Message: "too many subscriptions",
		}
	}
	sub := &Subscription{
		session: s, request: request, sink: sink,
		window: request.Window, positions: positions{unordered: request.ShareName != ""},
		opened: make(chan *OpenError, 1),
	}
	if !s.attach(sub) || !sub.attachment.add(sub) {
		s.forget(sub)
		s.client.count.Add(-1)
		return nil, openUnavailable("the session has ended")
	}
	select {
	case err := <-sub.opened:
		if err != nil {
			s.forget(sub)
			sub.wait()
			return nil, err
		}
		return sub, nil
	case <-ctx.Done():
	}
	s.forget(sub)
	sub.end(closeDrop, nil)
	sub.wait()
	select {
	case err := <-sub.opened: // just now
		if err != nil {
			return nil, err
		}
	default:
	}
	return nil, openUnavailable("event-fanout did not answer in time")
}

// check refuses what would break the stream for everybody else on it.
func (s *Session) check(request *OpenRequest) *OpenError {
	info := &s.info
	for _, text := range []string{
		info.Issuer, info.Subject, info.ClientID, info.ConnectionID, info.ClientAddress, request.Application, request.ShareName,
	} {
		if !utf8.ValidString(text) {
			return &OpenError{
				Reason:  eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_INVALID,
				Message: "text that is not UTF-8",
			}
		}
	}
	if info.Issuer == "" || info.Subject == "" || info.ClientID == "" || info.ConnectionID == "" || info.Epoch == 0 {
		return &OpenError{
			Reason:  eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_INVALID,
			Message: "the session has no identity",
		}
	}
	return nil
}

// attach gives a subscription its attachment, and with the first one of the
// session a lane. It is false when the session has ended.
func (s *Session) attach(sub *Subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	application, share := sub.request.Application, sub.request.ShareName
	if share == "" && s.attachment != nil {
		sub.attachment = s.attachment
		return true
	}
	sub.attachment = &attachment{session: s, application: application, share: share, subs: map[*Subscription]struct{}{}}
	s.client.place(sub.attachment)
	if share == "" {
		s.attachment = sub.attachment
		return true
	}
	if s.shared == nil {
		s.shared = map[*Subscription]struct{}{}
	}
	s.shared[sub] = struct{}{}
	return true
}

// forget is for a subscription that has ended.
func (s *Session) forget(sub *Subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.shared, sub)
}

// place is what chooses among instances.
func (a *attachment) place() []string {
	if a.share != "" {
		return []string{a.application, a.share}
	}
	info := &a.session.info
	return []string{info.Issuer, info.Subject, info.ClientID}
}

// lock locks the mu of the lane where the attachment is, and returns the lane.
func (a *attachment) lock() *lane {
	for {
		l := a.lane.Load()
		l.mu.Lock()
		if a.lane.Load() == l {
			return l
		}
		l.mu.Unlock() // it has moved meanwhile
	}
}

func openUnavailable(message string) *OpenError {
	return &OpenError{Reason: eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNAVAILABLE, Message: message}
}

// Detach lets the session go with all its subscriptions, and returns when nothing
// comes any more. Nothing reaches a sink after it returned, whatever the error.
// Do not call it with a lock that a sink takes.
func (s *Session) Detach(ctx context.Context, options DetachOptions) error {
	subs, answers := s.end(options)
	for _, sub := range subs {
		sub.wait()
	}
	for _, answered := range answers {
		if _, err := answered.wait(ctx); err != nil {
			return fmt.Errorf("detach session: %w", err)
		}
	}
	return nil
}

// end ends the session here, and tells the servers. It returns the subscriptions
// that ended.
func (s *Session) end(options DetachOptions) (subs []*Subscription, answers []answer) {
	s.mu.Lock()
	s.ended = true
	a, shared := s.attachment, s.shared
	s.attachment, s.shared = nil, nil
	s.mu.Unlock()
	if a != nil {
		var answered answer
		subs, answered = a.detach(options)
		answers = append(answers, answered)
	}
	for sub := range shared {
		subs = append(subs, sub)
		answers = append(answers, sub.end(closeKeep, openUnavailable("the session has ended")))
	}
	return subs, answers
}

// lost ends the session because a server said so. Not called with a lock.
func (s *Session) lost(err SessionError) {
	s.mu.Lock()
	ended := s.ended
	s.mu.Unlock()
	s.end(DetachOptions{})
	if !ended && s.onError != nil {
		s.onError(err)
	}
}

// answer is what the server has to answer. nil: nothing.
type answer chan bool // true: it came; closed: the stream broke

// wait waits for the answer. It is false when the stream broke.
func (a answer) wait(ctx context.Context) (bool, error) {
	if a == nil {
		return true, nil
	}
	select {
	case came := <-a:
		return came, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}
