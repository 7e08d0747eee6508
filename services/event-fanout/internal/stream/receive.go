package stream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/naming"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/event-fanout/internal/commit"
)

// receive handles the frames of the frontend until it half-closes.
func (s *stream) receive() error {
	for {
		request, err := s.grpc.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.handle(request); err != nil {
			return err
		}
		// A frontend that asks and does not read answers has to wait.
		for s.pendingAnswers() > maxAnswers {
			select {
			case <-s.room:
			case <-s.ctx.Done():
				return s.ctx.Err()
			}
		}
	}
}

func (s *stream) pendingAnswers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.answers)
}

func (s *stream) handle(request *eventsv1.DeliverRequest) error {
	switch f := request.GetFrame().(type) {
	case *eventsv1.DeliverRequest_Acknowledge:
		s.acknowledge(f.Acknowledge)
	case *eventsv1.DeliverRequest_Credit:
		s.credit(f.Credit)
	case *eventsv1.DeliverRequest_Open:
		return s.open(f.Open)
	case *eventsv1.DeliverRequest_Close:
		s.close(f.Close)
	case *eventsv1.DeliverRequest_Attach:
		return s.attach(f.Attach)
	case *eventsv1.DeliverRequest_Detach:
		s.detach(f.Detach)
	case *eventsv1.DeliverRequest_WillSettled:
		// Wills are not kept yet, so none was handed out.
	case *eventsv1.DeliverRequest_Hello:
		return status.Error(codes.InvalidArgument, "a second hello")
	default:
		return status.Error(codes.InvalidArgument, "a frame of a kind that is not known")
	}
	return nil
}

func (s *stream) acknowledge(frame *eventsv1.Acknowledge) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range frame.GetAcknowledgements() {
		sub := s.subscriptions[a.GetSubscription()]
		if sub == nil {
			s.acknowledgeShared(a)
			continue
		}
		c := sub.cursorAt(a.GetPartition())
		if c == nil {
			continue
		}
		acked := 0
		for _, r := range a.GetRanges() {
			events, bytes := c.tracker.Ack(r.GetFirst(), r.GetLast())
			acked += events
			sub.events -= int64(events)
			sub.bytes -= bytes
		}
		if acked > 0 {
			c.settle()
			s.wakeUp(sub)
		}
	}
	if s.readyLanes.len() > 0 {
		s.signal()
	}
}

func (s *stream) credit(frame *eventsv1.Credit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub := s.subscriptions[frame.GetSubscription()]; sub != nil {
		s.setWindow(sub, frame.GetWindow())
		s.wakeUp(sub)
		s.signal()
	}
	if sub := s.shared[frame.GetSubscription()]; sub != nil {
		s.resizeShared(sub, frame.GetWindow())
	}
}

func (s *stream) setWindow(sub *subscription, w *eventsv1.Window) {
	sub.windowEvents, sub.windowBytes = s.windowOf(w)
}

func (s *stream) windowOf(w *eventsv1.Window) (events, bytes int64) {
	return int64(min(max(w.GetEvents(), 1), uint32(s.server.cfg.MaxWindow))), //nolint:gosec // at most 65535
		int64(min(w.GetBytes(), 1<<62))
}

func (s *stream) attach(frame *eventsv1.Attach) error {
	next := &session{
		stream: s, handle: frame.GetSession(), key: keyOf(frame.GetKey()), reattached: frame.GetReattach(),
		subscriptions: map[string]*subscription{},
	}
	at := epochOf(frame.GetEpoch())
	switch {
	case next.handle == 0:
		return status.Error(codes.InvalidArgument, "attach: session is 0")
	case !next.key.valid():
		return status.Error(codes.InvalidArgument, "attach: the key is not complete")
	case frame.GetConnectionId() == "":
		return status.Error(codes.InvalidArgument, "attach: connection_id is empty")
	case at.micros == 0:
		return status.Error(codes.InvalidArgument, "attach: epoch is not set")
	}
	s.mu.Lock()
	_, used := s.sessions[next.handle]
	refuse := s.leaving || s.ended
	if !used && !refuse {
		s.sessions[next.handle] = next
	}
	s.mu.Unlock()
	if used {
		return status.Errorf(codes.InvalidArgument, "attach: session %d is in use", next.handle)
	}
	result := attaching{status: eventsv1.AttachStatus_ATTACH_STATUS_UNAVAILABLE, message: "shutting down"}
	if !refuse {
		result = s.server.owners.claim(next, at, frame.GetConnectionId(), s.server.cfg.MaxSessions, func() *commit.Group {
			return s.server.cfg.Scheduler.Group(transientGroup(next.key, frame.GetConnectionId()))
		})
	}
	if result.previous != nil {
		result.previous.stream.lose(result.previous, result.resumed)
	}
	if result.replaced != nil {
		s.server.deleteGroup(result.previous, result.replaced)
	}
	if s.attached(next, result) {
		// The stream ended meanwhile, perhaps before there was anything to release.
		s.server.owners.release(next, true, time.Now().Add(s.server.cfg.Grace))
	}
	return nil
}

// attached answers an Attach. True if the session has ended already.
func (s *stream) attached(next *session, result attaching) (ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if result.status != eventsv1.AttachStatus_ATTACH_STATUS_OK {
		delete(s.sessions, next.handle)
	} else if next.ended {
		// Somebody above us was faster.
		result.status = eventsv1.AttachStatus_ATTACH_STATUS_SUPERSEDED
		result.current = s.server.owners.epoch(next.key)
	}
	next.attached = true
	answer := &eventsv1.Attached{Session: next.handle, Status: result.status, Message: result.message}
	if result.status == eventsv1.AttachStatus_ATTACH_STATUS_SUPERSEDED {
		answer.CurrentEpoch = result.current.proto()
	}
	s.answer(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Attached{Attached: answer}})
	return next.ended
}

// lose ends a session here because it was attached again: by the same connection,
// which knows, or by a newer one.
func (s *stream) lose(lost *session, same bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endSession(lost)
	if !same && lost.attached {
		s.answer(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_SessionError{SessionError: &eventsv1.SessionError{
			Session: lost.handle, Reason: eventsv1.SessionErrorReason_SESSION_ERROR_REASON_TAKEN_OVER,
			Message: "a newer connection attached",
		}}})
	}
}

func (s *stream) detach(frame *eventsv1.Detach) {
	s.mu.Lock()
	gone := s.sessions[frame.GetSession()]
	if gone != nil {
		s.endSession(gone)
	}
	s.mu.Unlock()
	if gone != nil && s.server.owners.release(gone, false, time.Now().Add(s.server.cfg.Grace)) {
		s.server.deleteGroup(gone, gone.group)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Detached{Detached: &eventsv1.Detached{
		Session: frame.GetSession(),
	}}})
}

// endSession closes the subscriptions of a session. The caller holds mu.
func (s *stream) endSession(gone *session) {
	if gone.ended {
		return
	}
	gone.ended = true
	delete(s.sessions, gone.handle)
	for _, sub := range gone.subscriptions {
		s.endSubscription(sub)
	}
	for _, sub := range gone.shared {
		s.endShared(sub)
	}
}

// endSubscription has nothing delivered to a subscription any more; its positions
// stay. The caller holds mu.
func (s *stream) endSubscription(sub *subscription) {
	sub.closing = true
	delete(s.subscriptions, sub.handle)
	if sub.session.subscriptions[sub.application] == sub {
		delete(sub.session.subscriptions, sub.application)
	}
	for _, c := range sub.cursors {
		c.settle()
		s.removeCursor(c)
	}
	sub.cursors = nil
	s.server.subscriptions.Add(-1)
}

func (s *stream) close(frame *eventsv1.Close) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.subscriptions[frame.GetSubscription()]
	if sub != nil {
		s.endSubscription(sub)
		if frame.GetUnsubscribe() {
			topic, owner := naming.EventsTopic(sub.application), sub.session
			// After an Open that is still under way, and before a later one.
			owner.work.add(s.server, true, func(ctx context.Context) {
				ctx, cancel := context.WithTimeout(ctx, s.server.cfg.OpenTimeout)
				defer cancel()
				if err := owner.group.Forget(ctx, topic); err != nil && !errors.Is(err, commit.ErrGone) {
					s.log.WarnContext(ctx, "positions of a closed subscription not deleted",
						slog.String("kafka_topic", topic), slog.String("group", owner.group.Name()), slog.Any("error", err))
				}
			})
		}
	}
	if shared := s.shared[frame.GetSubscription()]; shared != nil {
		s.endShared(shared)
	}
	s.answer(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Closed{Closed: &eventsv1.Closed{
		Subscription: frame.GetSubscription(),
	}}})
}

// end is for when the stream is over: sessions wait for their frontend to come
// back, here or elsewhere.
func (s *stream) end() {
	s.mu.Lock()
	s.ended = true
	sessions := make([]*session, 0, len(s.sessions))
	for _, one := range s.sessions {
		sessions = append(sessions, one)
		s.endSession(one)
	}
	for _, sub := range s.shared {
		s.endShared(sub)
	}
	s.mu.Unlock()
	until := time.Now().Add(s.server.cfg.Grace)
	for _, one := range sessions {
		s.server.owners.release(one, true, until)
	}
}

// goaway asks the frontend to move everything elsewhere.
func (s *stream) goaway(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return
	}
	s.leaving = true
	s.answer(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Goaway{Goaway: &eventsv1.Goaway{Reason: reason}}})
}
