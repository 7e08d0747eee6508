package stream

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"mqtt-integration/libs/naming"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/event-fanout/internal/share"
)

// shared is a share subscription. Guarded by the stream's mu, but for notified.
type shared struct {
	handle  uint64
	session *session // nil: it is owned elsewhere, and the frontend closes this one
	request share.Request
	member  *share.Member      // nil until it is positioned
	cancel  context.CancelFunc // ends its opening
	ended   bool
	queued  bool // in the queue of the stream

	notified atomic.Bool
}

// openShared begins to open a share subscription, or says what is wrong with it.
// The caller holds mu.
func (s *stream) openShared(frame *eventsv1.Open) error {
	var owner *session
	if handle := frame.GetSession(); handle != 0 {
		if owner = s.sessions[handle]; owner == nil || !owner.attached {
			return refuse(invalid, "the session is not attached")
		}
	}
	switch {
	case s.leaving || s.ended:
		return refuse(moved, "shutting down")
	case owner == nil && (!keyOf(frame.GetKey()).valid() || frame.GetEpoch().GetTimeMicros() == 0):
		return refuse(invalid, "key or epoch of the session is not complete")
	case frame.GetFilter() != "":
		return refuse(invalid, "the user property filter is for own subscriptions only")
	case s.full():
		return refuse(quotaExceeded, "this instance has too many subscriptions")
	}
	if err := naming.ValidateApplication(frame.GetApplication()); err != nil {
		return refuse(invalid, err.Error())
	}
	if err := naming.ValidateShare(frame.GetShareName()); err != nil {
		return refuse(invalid, err.Error())
	}
	sub := &shared{handle: frame.GetSubscription(), session: owner}
	sub.request = share.Request{
		Application: frame.GetApplication(), Share: frame.GetShareName(), Topic: naming.EventsTopic(frame.GetApplication()),
	}
	sub.request.Window.Events, sub.request.Window.Bytes = s.windowOf(frame.GetWindow())
	s.shared[sub.handle] = sub
	if owner != nil {
		if owner.shared == nil {
			owner.shared = map[uint64]*shared{}
		}
		owner.shared[sub.handle] = sub
	}
	s.server.subscriptions.Add(1)
	ctx, cancel := context.WithTimeout(s.server.ctx, s.server.cfg.OpenTimeout)
	sub.cancel = cancel
	request := sub.request
	s.server.done.Go(func() { s.joining(ctx, sub, request) })
	return nil
}

// joining makes a share subscription a member of its group, and answers once that
// is positioned.
func (s *stream) joining(ctx context.Context, sub *shared, request share.Request) {
	defer sub.cancel()
	// Kafka's answers may keep it longer than its deadline, but not the frontend.
	late := context.AfterFunc(ctx, func() { s.notJoined(ctx, sub, ctx.Err()) })
	defer late()
	_, err := s.partitions(ctx, request.Topic)
	var member *share.Member
	if err == nil {
		member, err = s.server.cfg.Share.Join(ctx, request, share.Subscriber{
			Notify: func() { s.notifyShared(sub) }, Expire: func() { s.expire(sub) }, MaxEvent: s.maxEvent,
		})
	}
	if err != nil {
		s.notJoined(ctx, sub, err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub.ended {
		member.Leave()
		return
	}
	sub.member = member
	if sub.request.Window != request.Window {
		member.SetWindow(sub.request.Window)
	}
	s.answer(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Opened{Opened: &eventsv1.Opened{Subscription: sub.handle}}})
	s.queueShared(sub)
}

// notJoined answers an Open that failed, once.
func (s *stream) notJoined(ctx context.Context, sub *shared, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub.ended || sub.member != nil {
		return
	}
	switch {
	case errors.Is(err, share.ErrTooManyGroups):
		err = refuse(quotaExceeded, "too many share groups")
	case errors.Is(err, share.ErrClosed):
		err = refuse(moved, "shutting down")
	default:
		s.log.WarnContext(ctx, "share subscription not opened", slog.String("kafka_topic", sub.request.Topic), slog.Any("error", err))
	}
	s.endShared(sub)
	s.refuse(sub.handle, err)
}

// endShared takes a share subscription out of its group. The caller holds mu.
func (s *stream) endShared(sub *shared) {
	if sub.ended {
		return
	}
	sub.ended = true
	delete(s.shared, sub.handle)
	if sub.session != nil {
		delete(sub.session.shared, sub.handle)
	}
	sub.cancel()
	if sub.member != nil {
		sub.member.Leave()
	}
	s.server.subscriptions.Add(-1)
}

// expire ends the session of a share subscription that holds its group up.
func (s *stream) expire(sub *shared) {
	s.mu.Lock()
	if sub.ended {
		s.mu.Unlock()
		return
	}
	failure := &eventsv1.SessionError{
		Reason:  eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ACKNOWLEDGE_TIMEOUT,
		Message: "nothing was acknowledged for too long",
	}
	gone := sub.session
	if gone != nil {
		failure.Session = gone.handle
		s.endSession(gone)
	} else {
		failure.Subscription = sub.handle
		s.endShared(sub)
	}
	s.answer(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_SessionError{SessionError: failure}})
	s.mu.Unlock()
	if gone != nil && s.server.owners.release(gone, false, time.Now().Add(s.server.cfg.Grace)) {
		s.server.deleteGroup(gone, gone.group)
	}
}

// acknowledgeShared is for an acknowledgement that is of no own subscription. The
// caller holds mu.
func (s *stream) acknowledgeShared(a *eventsv1.Acknowledgement) {
	sub := s.shared[a.GetSubscription()]
	if sub == nil || sub.member == nil {
		return
	}
	for _, r := range a.GetRanges() {
		sub.member.Acknowledge(a.GetPartition(), r.GetFirst(), r.GetLast())
	}
}

// resizeShared replaces a window. The caller holds mu.
func (s *stream) resizeShared(sub *shared, w *eventsv1.Window) {
	sub.request.Window.Events, sub.request.Window.Bytes = s.windowOf(w)
	if sub.member != nil {
		sub.member.SetWindow(sub.request.Window)
	}
}

// notifyShared is called by the group of a share subscription.
func (s *stream) notifyShared(sub *shared) {
	if sub.notified.Swap(true) {
		return
	}
	s.notifiedMu.Lock()
	s.notifiedShared = append(s.notifiedShared, sub)
	s.notifiedMu.Unlock()
	s.signal()
}

// queueShared has a share subscription served. The caller holds mu.
func (s *stream) queueShared(sub *shared) {
	if !sub.queued && !sub.ended && sub.member != nil {
		sub.queued = true
		s.sharedReady.push(sub)
	}
}

// fillShared fills a frame from share subscriptions, each in its turn.
func (s *stream) fillShared(f *frame) {
	before := f.events
	defer func() { s.server.metrics.fromShare(f.events - before) }()
	for s.sharedReady.len() > 0 {
		sub := s.sharedReady.pop()
		sub.queued = false
		if sub.ended {
			continue
		}
		recipient := protowire.AppendVarint(s.recipients[:0], sub.handle)
		more := sub.member.Take(func(partition int32, offset int64, event []byte) bool {
			if !f.fits(len(event), 1) {
				return false
			}
			f.add(event, recipient, 1, partition, offset)
			return true
		})
		s.recipients = recipient[:0]
		if more {
			s.queueShared(sub)
			return
		}
	}
}
