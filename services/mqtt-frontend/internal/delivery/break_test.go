package delivery_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
)

func resumePoint(positions ...*eventsv1.ResumePosition) *eventsv1.ResumePoint {
	return &eventsv1.ResumePoint{Positions: positions}
}

func wantResume(t *testing.T, got *eventsv1.Open, want *eventsv1.ResumePoint) {
	t.Helper()
	if diff := cmp.Diff(want, got.GetResume(), protocmp.Transform()); diff != "" {
		t.Errorf("ResumePoint (-want +got):\n%s", diff)
	}
}

func TestSubscriptionGoesOnAfterABreak(t *testing.T) {
	t.Parallel()
	s, p, session, sub, to, handle := one(t)
	p.send(t, frame(oneDelivery(0, 5, handle), oneDelivery(0, 6, handle), oneDelivery(0, 7, handle), oneDelivery(0, 9, handle)))
	to.want(t, "0:5 0:6 0:7 0:9")
	sub.Acknowledge(0, 6)
	p.acks(t)
	p.breakOff()
	sub.Acknowledge(0, 7) // while there is no stream
	sub.SetWindow(99, 9999)

	p = s.accept(t)
	if attach := p.attachOK(t); !attach.GetReattach() || attach.GetEpoch().GetTimeMicros() != 42 {
		t.Errorf("Attach = %v, want the same epoch again", attach)
	}
	again := p.wantOpen(t)
	wantResume(t, again, resumePoint(
		&eventsv1.ResumePosition{Partition: 0, NextOffset: 10, Unacknowledged: []*eventsv1.OffsetRange{{First: 5, Last: 5}, {First: 9, Last: 9}}},
		&eventsv1.ResumePosition{Partition: 1, NextOffset: 0},
	))
	if got := again.GetWindow().GetEvents(); got != 99 {
		t.Errorf("window = %d events, want 99", got)
	}
	// Between Open and Opened: the server does not know the subscription yet.
	sub.Acknowledge(0, 5)
	p.quiet(t)
	handle = again.GetSubscription()
	p.opened(t, handle, 5, 0, 3)
	if got, want := p.acks(t), fmt.Sprintf("%d/0:5-5", handle); got != want {
		t.Errorf("acknowledged %s, want %s", got, want)
	}
	p.send(t, frame(oneDelivery(0, 10, handle), oneDelivery(2, 3, handle)))
	to.want(t, "0:10 2:3")
	sub.Acknowledge(0, 9)
	p.acks(t)
	p.breakOff()

	p = s.accept(t)
	p.attachOK(t)
	wantResume(t, p.open(t), resumePoint(
		&eventsv1.ResumePosition{Partition: 0, NextOffset: 11, Unacknowledged: []*eventsv1.OffsetRange{{First: 10, Last: 10}}},
		&eventsv1.ResumePosition{Partition: 1, NextOffset: 0},
		&eventsv1.ResumePosition{Partition: 2, NextOffset: 4, Unacknowledged: []*eventsv1.OffsetRange{{First: 3, Last: 3}}},
	))
	to.wantNothing(t)
	_ = session
}

func TestOpenSurvivesABreak(t *testing.T) {
	t.Parallel()
	s := listen(t)
	client, _ := start(t, config(s))
	session := client.Session(sessionInfo("c1"), nil)
	result := open(t.Context(), session, "app", newSink())
	s.accept(t).breakOff()
	p := s.accept(t)
	p.next(t) // Attach
	p.breakOff()
	p = s.accept(t)
	if p.attachOK(t).GetReattach() {
		t.Error("reattach, though it was never attached")
	}
	p.wantOpen(t)
	p.breakOff()
	p = s.accept(t)
	if !p.attachOK(t).GetReattach() {
		t.Error("no reattach, though it was attached")
	}
	if resume := p.open(t, 3).GetResume(); resume != nil {
		t.Errorf("resume = %v, though it was never positioned", resume)
	}
	wantOpened(t, result)
}

func TestGoaway(t *testing.T) {
	t.Parallel()
	goaway := func(handles ...uint64) *eventsv1.DeliverResponse {
		return &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Goaway{
			Goaway: &eventsv1.Goaway{Subscriptions: handles, Reason: "test"},
		}}
	}
	t.Run("of the stream", func(t *testing.T) {
		t.Parallel()
		s, p, session, sub, to, handle := one(t)
		p.send(t, frame(oneDelivery(0, 5, handle), oneDelivery(0, 6, handle)))
		to.want(t, "0:5 0:6")
		p.stay.Store(true)
		p.send(t, goaway())
		p.closed(t)
		// What is on its way still arrives; what is acknowledged now goes elsewhere.
		p.send(t, frame(oneDelivery(0, 7, handle)))
		to.want(t, "0:7")
		sub.Acknowledge(0, 5)
		result := open(t.Context(), session, "other", newSink())
		p.end <- nil
		p = s.accept(t)
		p.attachOK(t)
		for range 2 {
			again := p.open(t, 0)
			if again.GetApplication() == "other" {
				continue
			}
			wantResume(t, again, resumePoint(
				&eventsv1.ResumePosition{Partition: 0, NextOffset: 8, Unacknowledged: []*eventsv1.OffsetRange{{First: 6, Last: 7}}},
				&eventsv1.ResumePosition{Partition: 1, NextOffset: 0},
			))
		}
		wantOpened(t, result)
	})
	t.Run("of a stream that does not end", func(t *testing.T) {
		t.Parallel()
		s, p, _, _, _, _ := one(t)
		p.stay.Store(true)
		p.send(t, goaway())
		p = s.accept(t)
		p.attachOK(t)
		p.open(t)
	})
	t.Run("of a subscription", func(t *testing.T) {
		t.Parallel()
		_, p, _, sub, to, handle := one(t)
		p.send(t, frame(oneDelivery(0, 5, handle), oneDelivery(0, 6, handle)))
		to.want(t, "0:5 0:6")
		sub.Acknowledge(0, 6)
		p.acks(t)
		p.send(t, goaway(handle))
		p.send(t, frame(oneDelivery(0, 7, handle))) // comes too late
		if closing := p.close(t); closing.GetSubscription() != handle || closing.GetUnsubscribe() {
			t.Errorf("Close = %v, want handle %d, not unsubscribed", closing, handle)
		}
		again := p.open(t)
		if again.GetSubscription() == handle {
			t.Error("the handle is used twice")
		}
		wantResume(t, again, resumePoint(
			&eventsv1.ResumePosition{Partition: 0, NextOffset: 7, Unacknowledged: []*eventsv1.OffsetRange{{First: 5, Last: 5}}},
			&eventsv1.ResumePosition{Partition: 1, NextOffset: 0},
		))
		p.send(t, frame(oneDelivery(0, 7, handle)))
		p.send(t, frame(oneDelivery(0, 7, again.GetSubscription())))
		to.want(t, "0:7")
		to.wantNothing(t)
	})
}

func TestErrorOfAnOpenSubscription(t *testing.T) {
	t.Parallel()
	for _, reason := range []eventsv1.SubscriptionErrorReason{unavailable, moved, quotaExceeded} {
		t.Run(reason.String()+" is a pause", func(t *testing.T) {
			t.Parallel()
			_, p, _, _, to, handle := one(t)
			p.send(t, frame(oneDelivery(0, 5, handle)))
			p.refuse(t, handle, reason)
			again := p.wantOpen(t)
			p.refuse(t, again.GetSubscription(), reason)
			again = p.wantOpen(t)
			wantResume(t, again, resumePoint(
				&eventsv1.ResumePosition{Partition: 0, NextOffset: 6, Unacknowledged: []*eventsv1.OffsetRange{{First: 5, Last: 5}}},
				&eventsv1.ResumePosition{Partition: 1, NextOffset: 0},
			))
			p.opened(t, again.GetSubscription())
			p.send(t, frame(oneDelivery(0, 6, again.GetSubscription())))
			to.want(t, "0:5")
			to.want(t, "0:6")
		})
	}
	for _, reason := range []eventsv1.SubscriptionErrorReason{noTopic, invalid, unimplemented} {
		t.Run(reason.String()+" is the end", func(t *testing.T) {
			t.Parallel()
			_, p, _, sub, to, handle := one(t)
			p.refuse(t, handle, reason)
			p.send(t, frame(oneDelivery(0, 5, handle)))
			to.want(t, "failed "+reason.String())
			to.wantNothing(t)
			if err := sub.Close(t.Context(), true); err != nil {
				t.Errorf("Close() after Failed = %v, want nil", err)
			}
			p.quiet(t)
		})
	}
}

func TestSessionError(t *testing.T) {
	t.Parallel()
	sessionError := func(handle uint64, reason eventsv1.SessionErrorReason) *eventsv1.DeliverResponse {
		return &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_SessionError{
			SessionError: &eventsv1.SessionError{Session: handle, Reason: reason, Message: "because"},
		}}
	}
	begin := func(t *testing.T) (*server, *peer, <-chan opening, *sink, <-chan delivery.SessionError, uint64) {
		t.Helper()
		s := listen(t)
		client, _ := start(t, config(s))
		lost := make(chan delivery.SessionError, 10)
		session := client.Session(sessionInfo("c1"), func(err delivery.SessionError) { lost <- err })
		to := newSink()
		result := open(t.Context(), session, "app", to)
		p := s.accept(t)
		return s, p, result, to, lost, p.attachOK(t).GetSession()
	}
	for _, reason := range []eventsv1.SessionErrorReason{
		eventsv1.SessionErrorReason_SESSION_ERROR_REASON_TAKEN_OVER,
		eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ADMINISTRATIVE,
		eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ACKNOWLEDGE_TIMEOUT,
	} {
		t.Run(reason.String(), func(t *testing.T) {
			t.Parallel()
			_, p, result, to, lost, handle := begin(t)
			sub := p.open(t, 0).GetSubscription()
			wantOpened(t, result)
			p.send(t, sessionError(handle, reason))
			p.send(t, sessionError(handle, reason))
			p.send(t, frame(oneDelivery(0, 0, sub)))
			if err := <-lost; err.Reason != reason {
				t.Errorf("session error %v, want %v", err, reason)
			}
			to.wantNothing(t)
			if len(lost) > 0 {
				t.Error("a second session error")
			}
		})
	}
	t.Run("superseded at a new stream", func(t *testing.T) {
		t.Parallel()
		s, p, result, to, lost, _ := begin(t)
		p.open(t, 0)
		wantOpened(t, result)
		p.breakOff()
		s.accept(t).attach(t, eventsv1.AttachStatus_ATTACH_STATUS_SUPERSEDED)
		if err := <-lost; err.Reason != eventsv1.SessionErrorReason_SESSION_ERROR_REASON_TAKEN_OVER {
			t.Errorf("session error %v, want taken over", err)
		}
		to.wantNothing(t)
	})
	t.Run("lost while it is opened", func(t *testing.T) {
		t.Parallel()
		_, p, result, _, lost, handle := begin(t)
		p.wantOpen(t)
		p.send(t, sessionError(handle, eventsv1.SessionErrorReason_SESSION_ERROR_REASON_TAKEN_OVER))
		wantError(t, result, unavailable)
		<-lost
	})
	t.Run("the owner does not know", func(t *testing.T) {
		t.Parallel()
		_, p, result, to, lost, handle := begin(t)
		first := p.open(t, 5).GetSubscription()
		wantOpened(t, result)
		p.send(t, frame(oneDelivery(0, 5, first)))
		p.send(t, sessionError(handle, eventsv1.SessionErrorReason_SESSION_ERROR_REASON_LOST))
		if !p.attachOK(t).GetReattach() {
			t.Error("no reattach")
		}
		again := p.open(t)
		wantResume(t, again, resumePoint(
			&eventsv1.ResumePosition{NextOffset: 6, Unacknowledged: []*eventsv1.OffsetRange{{First: 5, Last: 5}}},
		))
		p.send(t, frame(oneDelivery(0, 6, first), oneDelivery(0, 6, again.GetSubscription())))
		to.want(t, "0:5")
		to.want(t, "0:6")
		if len(lost) > 0 {
			t.Error("a session error")
		}
	})
	t.Run("not attached because Kafka is away", func(t *testing.T) {
		t.Parallel()
		s, p, result, to, _, _ := begin(t)
		p.open(t, 5)
		wantOpened(t, result)
		p.breakOff()
		p = s.accept(t)
		p.attach(t, eventsv1.AttachStatus_ATTACH_STATUS_UNAVAILABLE)
		p.attach(t, eventsv1.AttachStatus_ATTACH_STATUS_UNAVAILABLE)
		p.attachOK(t)
		again := p.open(t).GetSubscription()
		p.send(t, frame(oneDelivery(0, 5, again)))
		to.want(t, "0:5")
	})
}

func TestRunSendsAcknowledgementsAtItsEnd(t *testing.T) {
	t.Parallel()
	s := listen(t)
	client, stop := start(t, config(s))
	session := client.Session(sessionInfo("c1"), nil)
	to := newSink()
	result := open(t.Context(), session, "app", to)
	p := s.accept(t)
	p.attachOK(t)
	handle := p.open(t, 0).GetSubscription()
	sub := wantOpened(t, result)
	p.send(t, frame(oneDelivery(0, 0, handle), oneDelivery(0, 1, handle)))
	to.want(t, "0:0 0:1")
	sub.Acknowledge(0, 0)
	p.acks(t)
	sub.Acknowledge(0, 1)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	rest := p.closed(t)
	if len(rest) != 1 || acknowledged(rest[0]) != fmt.Sprintf("%d/0:1-1", handle) {
		t.Errorf("at the end came %v, want the acknowledgement of 1", rest)
	}
	p.end <- nil
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Error("Run() does not end")
	}
}

func TestWillIsLeftToOthers(t *testing.T) {
	t.Parallel()
	_, p, _, _, _, _ := one(t)
	p.send(t, &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_WillDue{WillDue: &eventsv1.WillDue{Will: 3}}})
	settled := p.next(t).GetWillSettled()
	if settled.GetWill() != 3 || settled.GetDone() {
		t.Errorf("WillSettled = %v, want will 3, not done", settled)
	}
}
