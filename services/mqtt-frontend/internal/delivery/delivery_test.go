package delivery_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
)

const (
	unavailable   = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNAVAILABLE
	noTopic       = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_NO_TOPIC
	invalid       = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_INVALID
	quotaExceeded = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_QUOTA_EXCEEDED
	unimplemented = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNIMPLEMENTED
	moved         = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_MOVED
)

func TestFirstFrames(t *testing.T) {
	t.Parallel()
	s := listen(t)
	client, _ := start(t, config(s))
	session := client.Session(sessionInfo("c1"), nil)
	p := s.accept(t)
	p.quiet(t) // nothing before the first Open
	result := make(chan opening, 1)
	go func() {
		sub, err := session.Open(t.Context(), delivery.OpenRequest{
			Application: "app", Window: delivery.Window{Events: 3, Bytes: 4},
			QoS: 1, Binary: true, SubscriptionID: 7,
		}, newSink())
		result <- opening{sub, err}
	}()
	attach := p.attachOK(t)
	if diff := cmp.Diff(&eventsv1.Attach{
		Session: attach.GetSession(), Key: &eventsv1.SessionKey{Issuer: "idp", Subject: "alice", ClientId: "c1"},
		Epoch: &eventsv1.Epoch{TimeMicros: 42, FrontendId: "frontend"}, ConnectionId: "connection-c1",
		ProtocolLevel: 5, ClientAddress: "192.0.2.1",
	}, attach, protocmp.Transform()); diff != "" {
		t.Errorf("Attach (-want +got):\n%s", diff)
	}
	got := p.open(t, 0)
	if diff := cmp.Diff(&eventsv1.Open{
		Subscription: got.GetSubscription(), Session: attach.GetSession(), Application: "app",
		Options: &eventsv1.SubscriptionOptions{Qos: 1, Binary: true, SubscriptionIdentifier: 7},
		Window:  &eventsv1.Window{Events: 3, Bytes: 4},
	}, got, protocmp.Transform()); diff != "" {
		t.Errorf("Open (-want +got):\n%s", diff)
	}
	wantOpened(t, result)

	// A second subscription needs no second Attach.
	second := open(t.Context(), session, "other", newSink())
	p.open(t, 0)
	wantOpened(t, second)
}

func TestDeliverAndAcknowledge(t *testing.T) {
	t.Parallel()
	_, p, session, sub, to, handle := one(t)
	otherSink := newSink()
	result := open(t.Context(), session, "other", otherSink)
	other := p.open(t, 0).GetSubscription()
	wantOpened(t, result)

	p.send(t, frame(
		oneDelivery(0, 5, handle, other), oneDelivery(1, 0, handle), oneDelivery(0, 6, other, 9999, handle),
		oneDelivery(0, 9, handle),
	))
	to.want(t, "0:5 1:0 0:6 0:9") // one call per frame and subscription
	otherSink.want(t, "0:5 0:6")

	sub.Acknowledge(0, 5)
	if got, want := p.acks(t), fmt.Sprintf("%d/0:5-5", handle); got != want {
		t.Errorf("acknowledged %s, want %s", got, want)
	}
	sub.Acknowledge(0, 5)  // again
	sub.Acknowledge(0, 7)  // never delivered
	sub.Acknowledge(3, 1)  // nor this
	sub.Acknowledge(0, 44) // nor this
	p.quiet(t)
	sub.Acknowledge(0, 9)
	sub.Acknowledge(1, 0)
	sub.Acknowledge(0, 6)
	var all []string
	for !strings.Contains(strings.Join(all, " "), "0:6-6") {
		all = append(all, p.acks(t))
	}
	for _, want := range []string{"0:9-9", "1:0-0"} {
		if !strings.Contains(strings.Join(all, " "), want) {
			t.Errorf("acknowledged %v, want %s", all, want)
		}
	}
}

func TestAcknowledgementsAreBatched(t *testing.T) {
	t.Parallel()
	_, p, _, sub, to, handle := one(t)
	const n = 5000
	for i := range n {
		p.send(t, frame(oneDelivery(0, int64(5+i), handle)))
		to.want(t, fmt.Sprintf("0:%d", 5+i))
	}
	frames, last := 0, make(chan int)
	go func() {
		for {
			frames++
			if strings.HasSuffix(acknowledged(<-p.requests), fmt.Sprintf("-%d", 4+n)) {
				last <- frames
				return
			}
		}
	}()
	began := time.Now()
	for i := range n {
		sub.Acknowledge(0, int64(5+i))
	}
	got, limit := <-last, 3+int(time.Since(began)/time.Millisecond)
	if got > limit {
		t.Errorf("%d frames for %d acknowledgements, want at most one per millisecond: %d", got, n, limit)
	}
}

func TestWindow(t *testing.T) {
	t.Parallel()
	_, p, _, sub, _, handle := one(t)
	sub.SetWindow(20, 2000)
	credit := p.next(t).GetCredit()
	if credit.GetSubscription() != handle || credit.GetWindow().GetEvents() != 20 || credit.GetWindow().GetBytes() != 2000 {
		t.Errorf("Credit = %v, want 20 events and 2000 bytes", credit)
	}
	sub.SetWindow(1, 2)
	p.next(t)
	p.breakOff()
}

func TestSkipped(t *testing.T) {
	t.Parallel()
	_, p, _, _, to, handle := one(t)
	p.send(t, &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_OffsetsSkipped{
		OffsetsSkipped: &eventsv1.OffsetsSkipped{Subscription: handle, Partition: 1, Count: 17},
	}})
	p.send(t, frame(oneDelivery(1, 17, handle)))
	to.want(t, "skipped 1:17")
	to.want(t, "1:17")
}

func TestMalformedEventIsPassed(t *testing.T) {
	t.Parallel()
	_, p, _, _, to, handle := one(t)
	p.send(t, frame(
		&eventsv1.Delivery{Event: []byte{0xff}, Subscriptions: []uint64{handle}, Offset: 5}, oneDelivery(0, 6, handle),
	))
	to.want(t, "0:6")
	if got, want := p.acks(t), fmt.Sprintf("%d/0:5-5", handle); got != want {
		t.Errorf("acknowledged %s, want %s", got, want)
	}
}

func TestOpenIsRefused(t *testing.T) {
	t.Parallel()
	s := listen(t)
	client, _ := start(t, config(s))
	session := client.Session(sessionInfo("c1"), func(err delivery.SessionError) { t.Errorf("session error %v", err) })
	p := s.accept(t)

	for outcome, want := range map[eventsv1.AttachStatus]eventsv1.SubscriptionErrorReason{
		eventsv1.AttachStatus_ATTACH_STATUS_UNAVAILABLE:    unavailable,
		eventsv1.AttachStatus_ATTACH_STATUS_QUOTA_EXCEEDED: quotaExceeded,
		eventsv1.AttachStatus_ATTACH_STATUS_UNIMPLEMENTED:  unimplemented,
	} {
		result := open(t.Context(), session, "app", newSink())
		p.attach(t, outcome)
		wantError(t, result, want)
	}
	result := open(t.Context(), session, "app", newSink())
	p.attachOK(t)
	for _, reason := range []eventsv1.SubscriptionErrorReason{noTopic, unavailable, invalid, quotaExceeded, unimplemented} {
		p.refuse(t, p.wantOpen(t).GetSubscription(), reason)
		wantError(t, result, reason)
		result = open(t.Context(), session, "app", newSink())
	}
	p.refuse(t, p.wantOpen(t).GetSubscription(), moved) // is tried again
	p.open(t, 0)
	wantOpened(t, result)
}

func TestOpenThatIsCanceledIsClosed(t *testing.T) {
	t.Parallel()
	s := listen(t)
	client, _ := start(t, config(s))
	session := client.Session(sessionInfo("c1"), nil)
	p := s.accept(t)
	ctx, cancel := context.WithCancel(t.Context())
	to := newSink()
	result := open(ctx, session, "app", to)
	p.attachOK(t)
	handle := p.wantOpen(t).GetSubscription()
	cancel()
	wantError(t, result, unavailable)
	// The answer crosses with Close.
	p.opened(t, handle, 0)
	p.send(t, frame(oneDelivery(0, 0, handle)))
	if closing := p.close(t); closing.GetSubscription() != handle || closing.GetUnsubscribe() {
		t.Errorf("Close = %v, want handle %d, not unsubscribed", closing, handle)
	}
	to.wantNothing(t)

	// Without a stream, there is nothing to close.
	p.breakOff()
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	wantError(t, open(short, session, "app", to), unavailable)
	p = s.accept(t)
	p.attachOK(t)
	p.quiet(t)
}

func TestOpenWithoutAServer(t *testing.T) {
	t.Parallel()
	cfg := delivery.DefaultConfig()
	cfg.Addresses = []string{"127.0.0.1:1"}
	client, stop := start(t, cfg)
	session := client.Session(sessionInfo("c1"), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	wantError(t, open(ctx, session, "app", newSink()), unavailable)
	result := open(t.Context(), session, "app", newSink())
	time.Sleep(5 * time.Millisecond)
	stop()
	wantError(t, result, unavailable)
	wantError(t, open(t.Context(), session, "app", newSink()), unavailable)
	if err := session.Detach(t.Context(), delivery.DetachOptions{}); err != nil {
		t.Errorf("Detach() = %v, want nil", err)
	}
	wantError(t, open(t.Context(), session, "app", newSink()), unavailable)
}

func TestSubscriptionsAreBounded(t *testing.T) {
	t.Parallel()
	s := listen(t)
	cfg := config(s)
	cfg.MaxSubscriptions = 1
	client, _ := start(t, cfg)
	session := client.Session(sessionInfo("c1"), nil)
	p := s.accept(t)
	for i := range 3 {
		result := open(t.Context(), session, "app", newSink())
		if i == 0 {
			p.attachOK(t)
		}
		p.open(t, 0)
		sub := wantOpened(t, result)
		wantError(t, open(t.Context(), session, "other", newSink()), quotaExceeded)
		done := make(chan error, 1)
		go func() { done <- sub.Close(t.Context(), true) }()
		p.close(t)
		if err := <-done; err != nil {
			t.Errorf("Close() = %v, want nil", err)
		}
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	_, p, _, sub, to, handle := one(t)
	to.hold = make(chan struct{})
	p.send(t, frame(oneDelivery(0, 5, handle), oneDelivery(0, 6, handle)))
	time.Sleep(20 * time.Millisecond) // the sink is being called
	var returned atomic.Bool
	done := make(chan error, 1)
	sub.Acknowledge(0, 5)
	p.acks(t)
	sub.Acknowledge(0, 6) // not sent yet, perhaps
	go func() {
		err := sub.Close(t.Context(), true)
		returned.Store(true)
		done <- err
	}()
	// Acknowledgements go before.
	if got, want := p.acks(t), fmt.Sprintf("%d/0:6-6", handle); got != want {
		t.Errorf("acknowledged %s before Close, want %s", got, want)
	}
	if closing := p.close(t); closing.GetSubscription() != handle || !closing.GetUnsubscribe() {
		t.Errorf("Close = %v, want handle %d, unsubscribed", closing, handle)
	}
	p.send(t, frame(oneDelivery(0, 7, handle)))
	time.Sleep(20 * time.Millisecond)
	if returned.Load() {
		t.Error("Close() returned while the sink is being called")
	}
	close(to.hold)
	if err := <-done; err != nil {
		t.Errorf("Close() = %v, want nil", err)
	}
	to.want(t, "0:5 0:6")
	to.wantNothing(t)
	sub.Acknowledge(0, 7)
	sub.SetWindow(1, 1)
	if err := sub.Close(t.Context(), true); err != nil {
		t.Errorf("second Close() = %v, want nil", err)
	}
	p.quiet(t)
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	_, p, session, sub, _, _ := one(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := sub.Close(ctx, false); err == nil {
		t.Error("Close() without an answer = nil, want an error")
	}
	p.next(t)
	result := open(t.Context(), session, "other", newSink())
	p.open(t, 0)
	sub = wantOpened(t, result)
	done := make(chan error, 1)
	go func() { done <- sub.Close(t.Context(), true) }()
	p.next(t)
	p.breakOff()
	if err := <-done; err == nil {
		t.Error("Close() on a stream that broke = nil, want an error: the position may not be forgotten")
	}
}

func TestDetach(t *testing.T) {
	t.Parallel()
	s, p, session, sub, to, handle := one(t)
	p.send(t, frame(oneDelivery(0, 5, handle)))
	to.want(t, "0:5")
	sub.Acknowledge(0, 5)
	p.acks(t)
	p.send(t, frame(oneDelivery(0, 6, handle)))
	to.want(t, "0:6")
	sub.Acknowledge(0, 6)
	done := make(chan error, 1)
	go func() { done <- session.Detach(t.Context(), delivery.DetachOptions{DropWill: true}) }()
	if got, want := p.acks(t), fmt.Sprintf("%d/0:6-6", handle); got != want {
		t.Errorf("acknowledged %s before Detach, want %s", got, want)
	}
	detach := p.next(t).GetDetach()
	if detach == nil || !detach.GetDropWill() || detach.GetDiscard() {
		t.Fatalf("frame %v, want Detach that drops the will", detach)
	}
	p.send(t, frame(oneDelivery(0, 7, handle))) // was on its way
	select {
	case err := <-done:
		t.Errorf("Detach() = %v before Detached", err)
	case <-time.After(10 * time.Millisecond):
	}
	p.send(t, &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Detached{
		Detached: &eventsv1.Detached{Session: detach.GetSession()},
	}})
	if err := <-done; err != nil {
		t.Errorf("Detach() = %v, want nil", err)
	}
	to.wantNothing(t)
	if err := session.Detach(t.Context(), delivery.DetachOptions{}); err != nil {
		t.Errorf("second Detach() = %v, want nil", err)
	}
	if err := sub.Close(t.Context(), true); err != nil {
		t.Errorf("Close() after Detach = %v, want nil", err)
	}
	wantError(t, open(t.Context(), session, "app", to), unavailable)
	p.breakOff()
	s.accept(t).quiet(t) // it is not attached again
}

func TestDetachFailsAnOpenThatWaits(t *testing.T) {
	t.Parallel()
	s := listen(t)
	client, _ := start(t, config(s))
	session := client.Session(sessionInfo("c1"), nil)
	p := s.accept(t)
	result := open(t.Context(), session, "app", newSink())
	p.attachOK(t)
	p.wantOpen(t)
	done := make(chan error, 1)
	go func() { done <- session.Detach(t.Context(), delivery.DetachOptions{Discard: true}) }()
	wantError(t, result, unavailable)
	detach := p.next(t).GetDetach()
	p.send(t, &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Detached{
		Detached: &eventsv1.Detached{Session: detach.GetSession()},
	}})
	if err := <-done; err != nil {
		t.Errorf("Detach() = %v, want nil", err)
	}
}

func TestApplicationsAreSpreadOverStreams(t *testing.T) {
	t.Parallel()
	s := listen(t)
	cfg := config(s)
	cfg.Streams = 2
	client, _ := start(t, cfg)
	a, b := s.accept(t), s.accept(t)
	next := func() (*peer, *eventsv1.DeliverRequest) {
		select {
		case request := <-a.requests:
			return a, request
		case request := <-b.requests:
			return b, request
		}
	}
	applications, used := map[string]*peer{}, map[*peer]bool{}
	for i := range 20 {
		session := client.Session(sessionInfo(strconv.Itoa(i)), nil)
		application := fmt.Sprintf("app-%d", i%10)
		result := open(t.Context(), session, application, newSink())
		p, request := next()
		p.attached(t, request.GetAttach(), eventsv1.AttachStatus_ATTACH_STATUS_OK)
		p.open(t, 0)
		wantOpened(t, result)
		if before := applications[application]; before != nil && before != p {
			t.Errorf("%s is on two streams", application)
		}
		applications[application] = p
		used[p] = true

		// A session is on one stream, whatever its other subscriptions are.
		result = open(t.Context(), session, fmt.Sprintf("app-%d", (i+1)%10), newSink())
		p.open(t, 0)
		wantOpened(t, result)
	}
	if len(used) != 2 {
		t.Errorf("%d streams are used, want both", len(used))
	}
}

func TestSessionsOfAnInstanceStayThere(t *testing.T) {
	t.Parallel()
	servers := []*server{listen(t), listen(t), listen(t)}
	client, _ := start(t, config(servers...))
	turned, _ := start(t, config(servers[2], servers[0], servers[1]))
	var peers []*peer
	for _, s := range servers {
		peers = append(peers, s.accept(t), s.accept(t))
	}
	next := func() (instance int, p *peer, attach *eventsv1.Attach) {
		for {
			for i, p := range peers {
				select {
				case request := <-p.requests:
					return i / 2, p, request.GetAttach()
				default:
				}
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	count := [3]int{}
	for i := range 60 {
		var instances []int
		for _, c := range []*delivery.Client{client, turned} {
			result := open(t.Context(), c.Session(sessionInfo(strconv.Itoa(i)), nil), "app", newSink())
			instance, p, attach := next()
			p.attached(t, attach, eventsv1.AttachStatus_ATTACH_STATUS_OK)
			p.open(t, 0)
			wantOpened(t, result)
			instances = append(instances, instance)
		}
		if instances[0] != instances[1] {
			t.Errorf("session %d: two frontends chose instances %v, want the same", i, instances)
		}
		count[instances[0]]++
	}
	if min(count[0], count[1], count[2]) < 5 {
		t.Errorf("sessions per instance %v, want them spread", count)
	}
}

func TestTextThatIsNotUTF8DoesNotBreakTheStream(t *testing.T) {
	t.Parallel()
	_, p, session, _, to, handle := one(t)
	wantError(t, open(t.Context(), session, "\xff", newSink()), invalid)
	p.send(t, frame(oneDelivery(0, 5, handle)))
	to.want(t, "0:5")
}
