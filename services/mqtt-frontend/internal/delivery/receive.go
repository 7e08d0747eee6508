package delivery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/event"
)

// receive takes what comes until the stream ends.
func (l *lane) receive(ctx context.Context, s stream, on *link) error {
	g := &grouping{lane: l, on: on}
	for {
		response, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return errLeft
		}
		if err != nil {
			return fmt.Errorf("receive: %w", cause(ctx, err))
		}
		if batch := response.GetDeliveries(); batch != nil {
			g.deliver(ctx, batch.GetDeliveries())
			continue
		}
		if frame, ok := response.GetFrame().(*eventsv1.DeliverResponse_Goaway); ok && len(frame.Goaway.GetSubscriptions()) == 0 {
			l.client.logger.LogAttrs(ctx, slog.LevelInfo, "event-fanout wants its stream to end",
				slog.String("address", l.address), slog.String("reason", frame.Goaway.GetReason()))
			l.left.Store(true)
			l.leave(on)
			continue
		}
		for _, call := range l.control(on, response) {
			call()
		}
	}
}

// control handles all frames but deliveries. It returns what is to be called
// without the lock.
func (l *lane) control(on *link, response *eventsv1.DeliverResponse) []func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch frame := response.GetFrame().(type) {
	case *eventsv1.DeliverResponse_Attached:
		return l.onAttached(on, frame.Attached)
	case *eventsv1.DeliverResponse_Detached:
		settle(on.leavers, frame.Detached.GetSession())
	case *eventsv1.DeliverResponse_Opened:
		l.onOpened(on, frame.Opened)
	case *eventsv1.DeliverResponse_Closed:
		settle(on.closing, frame.Closed.GetSubscription())
	case *eventsv1.DeliverResponse_SubscriptionError:
		return l.onSubscriptionError(on, frame.SubscriptionError)
	case *eventsv1.DeliverResponse_SessionError:
		return l.onSessionError(on, frame.SessionError)
	case *eventsv1.DeliverResponse_OffsetsSkipped:
		return l.onSkipped(on, frame.OffsetsSkipped)
	case *eventsv1.DeliverResponse_Goaway:
		for _, handle := range frame.Goaway.GetSubscriptions() {
			l.move(on, handle)
		}
	case *eventsv1.DeliverResponse_WillDue:
		if l.link == on { // wills are not there yet: let another frontend have it
			l.putRequest(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_WillSettled{
				WillSettled: &eventsv1.WillSettled{Will: frame.WillDue.GetWill()},
			}})
		}
	default: // what a newer server says and we do not understand
	}
	return nil
}

func settle(answers map[uint64]answer, handle uint64) {
	if answered, ok := answers[handle]; ok {
		delete(answers, handle)
		answered <- true
	}
}

func (l *lane) onAttached(on *link, frame *eventsv1.Attached) []func() {
	a := on.sessions[frame.GetSession()]
	if a == nil || a.state != attaching {
		return nil
	}
	switch frame.GetStatus() {
	case eventsv1.AttachStatus_ATTACH_STATUS_OK:
		a.state, a.before, a.retries = attached, true, 0
		l.openAll(a)
		return nil
	case eventsv1.AttachStatus_ATTACH_STATUS_SUPERSEDED:
		return l.lose(on, a, SessionError{
			Reason:  eventsv1.SessionErrorReason_SESSION_ERROR_REASON_TAKEN_OVER,
			Message: "a newer connection owns the session",
		})
	default:
	}
	delete(on.sessions, a.handle)
	a.state, a.handle = detached, 0
	if l.link != on {
		return nil // the server goes away: whatever it says, the next one decides
	}
	reason := eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNAVAILABLE
	switch frame.GetStatus() {
	case eventsv1.AttachStatus_ATTACH_STATUS_QUOTA_EXCEEDED:
		reason = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_QUOTA_EXCEEDED
	case eventsv1.AttachStatus_ATTACH_STATUS_UNIMPLEMENTED:
		reason = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNIMPLEMENTED
	default:
	}
	return l.refused(a, &OpenError{Reason: reason, Message: frame.GetMessage()})
}

// refused ends what cannot be opened because its session could not be attached.
// What was open before waits for the next attempt.
func (l *lane) refused(a *attachment, err *OpenError) []func() {
	var calls []func()
	again := false
	for sub := range a.subs {
		if sub.isPositioned() && retries(err.Reason) {
			again = true
			continue
		}
		calls = append(calls, l.fail(sub, err)...)
	}
	if again {
		reattachLater(a)
	}
	return calls
}

func (s *Subscription) isPositioned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.positioned
}

// retries says whether a subscription that was open is opened again after an
// error.
func retries(reason eventsv1.SubscriptionErrorReason) bool {
	switch reason {
	case eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNAVAILABLE,
		eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_QUOTA_EXCEEDED,
		eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_MOVED:
		return true
	default:
		return false
	}
}

// fail ends a subscription for good: Open gets the error, or the sink.
func (l *lane) fail(sub *Subscription, err *OpenError) []func() {
	if sub.ended {
		return nil
	}
	sub.mu.Lock()
	positioned := sub.positioned
	sub.calling = positioned
	sub.mu.Unlock()
	l.endLocked(sub, closeGone, err)
	if !positioned {
		return nil
	}
	return []func(){func() {
		sub.sink.Failed(err)
		sub.leave()
	}}
}

func (l *lane) onOpened(on *link, frame *eventsv1.Opened) {
	sub := on.subs.get(frame.GetSubscription())
	if sub == nil {
		return // closed meanwhile
	}
	sub.retries = 0
	sub.mu.Lock()
	first := !sub.positioned
	sub.positioned, sub.ready = true, true
	sub.positions.start(frame.GetPositions())
	mark := (sub.resized || sub.positions.pending()) && sub.markLocked()
	sub.mu.Unlock()
	if mark {
		l.mark(sub)
	}
	if first {
		sub.opened <- nil
	}
}

func (l *lane) onSubscriptionError(on *link, frame *eventsv1.SubscriptionError) []func() {
	sub := on.subs.get(frame.GetSubscription())
	if sub == nil {
		// It crossed with a Close, which is not answered any more.
		settle(on.closing, frame.GetSubscription())
		return nil
	}
	err := &OpenError{Reason: frame.GetReason(), Message: frame.GetMessage()}
	moved := err.Reason == eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_MOVED || l.link != on
	if again := moved || sub.isPositioned() && retries(err.Reason); !again {
		return l.fail(sub, err)
	}
	on.subs.remove(frame.GetSubscription())
	sub.mu.Lock()
	sub.disconnectLocked()
	sub.mu.Unlock()
	reopenLater(sub)
	return nil
}

// move closes a subscription on the server's wish, and opens it again.
func (l *lane) move(on *link, handle uint64) {
	sub := on.subs.get(handle)
	if sub == nil || l.link != on {
		return
	}
	on.subs.remove(handle)
	acks := &acknowledgements{}
	sub.mu.Lock()
	if sub.ready {
		acks.take(sub)
	}
	sub.disconnectLocked()
	sub.mu.Unlock()
	l.putAcknowledgements(acks)
	l.putRequest(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Close{
		Close: &eventsv1.Close{Subscription: handle},
	}})
	reopenLater(sub)
}

func (l *lane) onSessionError(on *link, frame *eventsv1.SessionError) []func() {
	if frame.GetSession() == 0 {
		// The server of a share subscription knows the session by that one only.
		sub := on.subs.get(frame.GetSubscription())
		if sub == nil {
			return nil
		}
		return []func(){func() { sub.session.lost(SessionError{Reason: frame.GetReason(), Message: frame.GetMessage()}) }}
	}
	a := on.sessions[frame.GetSession()]
	if a == nil {
		settle(on.leavers, frame.GetSession())
		return nil
	}
	if frame.GetReason() != eventsv1.SessionErrorReason_SESSION_ERROR_REASON_LOST {
		return l.lose(on, a, SessionError{Reason: frame.GetReason(), Message: frame.GetMessage()})
	}
	delete(on.sessions, a.handle)
	a.state, a.handle = detached, 0
	for sub := range a.subs {
		sub.mu.Lock()
		if sub.link != nil {
			sub.link.subs.remove(sub.handle)
		}
		sub.disconnectLocked()
		sub.mu.Unlock()
	}
	reattachLater(a)
	return nil
}

// lose ends a session that the server has ended.
func (l *lane) lose(on *link, a *attachment, err SessionError) []func() {
	delete(on.sessions, a.handle)
	a.state, a.handle = detached, 0 // nothing to detach here
	return []func(){func() { a.session.lost(err) }}
}

func (l *lane) onSkipped(on *link, frame *eventsv1.OffsetsSkipped) []func() {
	sub := on.subs.get(frame.GetSubscription())
	if sub == nil {
		return nil
	}
	return []func(){func() {
		sub.mu.Lock()
		enter := sub.enterLocked(on)
		sub.mu.Unlock()
		if enter {
			sub.sink.Skipped(frame.GetPartition(), frame.GetCount())
			sub.leave()
		}
	}}
}

// grouping turns a frame, which names the recipients of each event, into the
// events of each recipient. It is the scratch space of the goroutine that
// receives.
type grouping struct {
	lane    *lane
	on      *link
	events  []*event.Shared // of the frame; nil: malformed
	touched []*Subscription // recipients
	chains  []chained       // what each recipient gets, as lists
	batch   []Delivery      // what one recipient gets
}

// chained is an element of the list of what a recipient gets.
type chained struct {
	delivery int32 // index in the frame
	next     int32 // index in chains; -1: none
}

// deliver gives the events of a frame to the sinks.
func (g *grouping) deliver(ctx context.Context, deliveries []*eventsv1.Delivery) {
	g.parse(ctx, deliveries)
	g.group(deliveries)
	total := 0
	for _, sub := range g.touched {
		total += g.call(sub, deliveries)
	}
	g.lane.client.metrics.events.Add(ctx, int64(len(deliveries)))
	g.lane.client.metrics.deliveries.Add(ctx, int64(total))
}

// parse makes the events.
func (g *grouping) parse(ctx context.Context, deliveries []*eventsv1.Delivery) {
	clear(g.events)
	g.events = g.events[:0]
	for i, d := range deliveries {
		if i > 0 && g.events[i-1] != nil {
			// An event with very many recipients is in several deliveries.
			before := deliveries[i-1]
			if before.GetOffset() == d.GetOffset() && before.GetPartition() == d.GetPartition() && bytes.Equal(before.GetEvent(), d.GetEvent()) {
				g.events = append(g.events, g.events[i-1])
				continue
			}
		}
		e, err := event.New(d.GetEvent(), g.lane.client.tracer)
		if err != nil {
			// Nothing can be done with it, here or elsewhere: it is passed.
			g.lane.client.metrics.undeliverable.Add(ctx, 1)
			g.lane.client.logger.LogAttrs(ctx, slog.LevelError, "malformed event from event-fanout was passed",
				slog.Int("partition", int(d.GetPartition())), slog.Int64("offset", d.GetOffset()), slog.Any("error", err))
			e = nil
		}
		g.events = append(g.events, e)
	}
}

// group finds the recipients and what each of them gets.
func (g *grouping) group(deliveries []*eventsv1.Delivery) {
	l := g.lane
	clear(g.touched)
	g.touched, g.chains = g.touched[:0], g.chains[:0]
	l.frame++
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, d := range deliveries {
		for _, handle := range d.GetSubscriptions() {
			sub := g.on.subs.get(handle)
			if sub == nil {
				continue // closed meanwhile
			}
			n := int32(len(g.chains)) //nolint:gosec // bounded by the size of a frame
			g.chains = append(g.chains, chained{int32(i), -1})
			if sub.frame == l.frame {
				g.chains[sub.last].next = n
			} else {
				sub.frame, sub.first = l.frame, n
				g.touched = append(g.touched, sub)
			}
			sub.last = n
		}
	}
}

// call gives a recipient its events, and says how many.
func (g *grouping) call(sub *Subscription, deliveries []*eventsv1.Delivery) int {
	g.batch = g.batch[:0]
	mark := false
	sub.mu.Lock()
	if !sub.enterLocked(g.on) {
		sub.mu.Unlock()
		return 0
	}
	for n := sub.first; n >= 0; n = g.chains[n].next {
		i := g.chains[n].delivery
		d := deliveries[i]
		sub.positions.receive(d.GetPartition(), d.GetOffset())
		if g.events[i] == nil {
			mark = sub.positions.acknowledge(d.GetPartition(), d.GetOffset()) && sub.markLocked() || mark
			continue
		}
		g.batch = append(g.batch, Delivery{Event: g.events[i], Offset: d.GetOffset(), Partition: d.GetPartition()})
	}
	sub.mu.Unlock()
	if len(g.batch) > 0 {
		sub.sink.Deliver(g.batch)
	}
	sub.leave()
	if mark {
		g.lane.mark(sub)
	}
	return len(g.batch)
}
