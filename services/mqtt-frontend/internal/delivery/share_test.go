package delivery_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
)

func openShare(t *testing.T, session *delivery.Session, share string, to delivery.Sink) <-chan opening {
	t.Helper()
	result := make(chan opening, 1)
	go func() {
		r := request("app")
		r.ShareName = share
		sub, err := session.Open(t.Context(), r, to)
		result <- opening{sub, err}
	}()
	return result
}

func TestShareSubscriptionNeedsNoAttach(t *testing.T) {
	t.Parallel()
	s := listen(t)
	client, _ := start(t, config(s))
	session := client.Session(sessionInfo("c1"), nil)
	to := newSink()
	result := openShare(t, session, "g", to)
	p := s.accept(t)
	got := p.open(t)
	want := &eventsv1.Open{
		Subscription: got.GetSubscription(), Application: "app", ShareName: "g",
		Key:     &eventsv1.SessionKey{Issuer: "idp", Subject: "alice", ClientId: "c1"},
		Epoch:   &eventsv1.Epoch{TimeMicros: 42, FrontendId: "frontend"},
		Options: &eventsv1.SubscriptionOptions{Qos: 1},
		Window:  &eventsv1.Window{Events: 10, Bytes: 1000},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("Open (-want +got):\n%s", diff)
	}
	sub := wantOpened(t, result)
	handle := got.GetSubscription()
	// Not in the order of offsets: 3 was another one's before.
	p.send(t, frame(oneDelivery(0, 7, handle), oneDelivery(0, 9, handle), oneDelivery(0, 3, handle), oneDelivery(0, 4, handle)))
	to.want(t, "0:7 0:9 0:3 0:4")
	sub.Acknowledge(0, 8) // never delivered: it is another one's
	p.quiet(t)
	for _, offset := range []int64{7, 9, 3} {
		sub.Acknowledge(0, offset)
		if got, want := p.acks(t), fmt.Sprintf("%d/0:%d-%d", handle, offset, offset); got != want {
			t.Errorf("acknowledged %s, want %s", got, want)
		}
	}
	// The stream breaks: what is outstanding comes again, perhaps to somebody else.
	p.breakOff()
	p = s.accept(t)
	got = p.open(t)
	want.Subscription = got.GetSubscription()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("Open on the next stream (-want +got):\n%s", diff)
	}
	handle = got.GetSubscription()
	sub.Acknowledge(0, 4)
	p.quiet(t)
	p.send(t, frame(oneDelivery(0, 4, handle)))
	to.want(t, "0:4")
	sub.Acknowledge(0, 4)
	if got, want := p.acks(t), fmt.Sprintf("%d/0:4-4", handle); got != want {
		t.Errorf("acknowledged %s, want %s", got, want)
	}
	// The session ends.
	detached := make(chan error, 1)
	go func() { detached <- session.Detach(t.Context(), delivery.DetachOptions{}) }()
	if closing := p.close(t); closing.GetSubscription() != handle || closing.GetUnsubscribe() {
		t.Errorf("got %v, want that subscription %d is closed", closing, handle)
	}
	if err := <-detached; err != nil {
		t.Errorf("Detach() = %v", err)
	}
	p.quiet(t)
}

func TestShareSubscriptionsOfAGroupMeet(t *testing.T) {
	t.Parallel()
	servers := []*server{listen(t), listen(t), listen(t)}
	client, _ := start(t, config(servers...))
	var peers []*peer
	for _, s := range servers {
		peers = append(peers, s.accept(t))
	}
	used := map[*peer]bool{}
	for group := range 10 {
		at := map[*peer]bool{}
		for n := range 4 {
			session := client.Session(sessionInfo(fmt.Sprint("c", group, n)), nil)
			result := openShare(t, session, fmt.Sprint("g", group), newSink())
			p, _ := serve(t, "share subscription", func(o *eventsv1.Open) bool { return o.GetShareName() != "" }, peers...)
			wantOpened(t, result)
			at[p], used[p] = true, true
		}
		if len(at) != 1 {
			t.Errorf("group %d is on %d instances", group, len(at))
		}
	}
	if len(used) == 1 {
		t.Error("all groups are on one instance")
	}
}

func TestShareSubscriptionThatHoldsItsGroupUpEndsTheSession(t *testing.T) {
	t.Parallel()
	s := listen(t)
	client, _ := start(t, config(s))
	failed := make(chan delivery.SessionError, 1)
	session := client.Session(sessionInfo("c1"), func(err delivery.SessionError) { failed <- err })
	own := open(t.Context(), session, "app", newSink())
	p := s.accept(t)
	p.attachOK(t)
	p.open(t, 0)
	wantOpened(t, own)
	result := openShare(t, session, "g", newSink())
	handle := p.open(t).GetSubscription()
	wantOpened(t, result)
	p.send(t, &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_SessionError{SessionError: &eventsv1.SessionError{
		Subscription: handle, Reason: eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ACKNOWLEDGE_TIMEOUT, Message: "too long",
	}}})
	err := <-failed
	if err.Reason != eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ACKNOWLEDGE_TIMEOUT || err.Message != "too long" {
		t.Errorf("session error %v", err)
	}
	// Its own subscriptions end with it.
	if detach := p.next(t).GetDetach(); detach == nil {
		t.Error("want Detach")
	}
	if closing := p.close(t); closing.GetSubscription() != handle {
		t.Errorf("got %v, want Close of %d", closing, handle)
	}
}

// An instance dies and comes back: its groups go elsewhere, and come back with all
// their subscriptions.
func TestShareSubscriptionsOfAGroupMeetAgain(t *testing.T) {
	t.Parallel()
	a, b := listen(t), listen(t)
	client, _ := startWith(t, config(a, b), func(c *delivery.Client) { delivery.Settle(c, 100*time.Millisecond) })
	onA, onB := a.accept(t), b.accept(t)
	isShare := func(o *eventsv1.Open) bool { return o.GetShareName() != "" }
	subscribe := func(group, id string) (to *sink, sub *delivery.Subscription, at *peer, handle uint64) {
		to = newSink()
		result := openShare(t, client.Session(sessionInfo(group+id), nil), group, to)
		at, one := serve(t, "share subscription", isShare, onA, onB)
		return to, wantOpened(t, result), at, one.GetSubscription()
	}
	group := ""
	for i := range 100 {
		group = fmt.Sprint("g", i)
		if _, _, at, _ := subscribe(group, "1"); at == onA {
			break
		}
	}
	a.kill()
	serve(t, "first subscription of the group", func(o *eventsv1.Open) bool { return o.GetShareName() == group }, onB)
	to, sub, at, handle := subscribe(group, "2")
	if at != onB {
		t.Fatal("not where the instance is")
	}
	onB.send(t, frame(oneDelivery(0, 5, handle), oneDelivery(0, 6, handle)))
	to.want(t, "0:5 0:6")
	sub.Acknowledge(0, 5)

	onA = listenOn(t, a.address).accept(t)
	seen := map[uint64]bool{}
	for len(seen) < 2 {
		_, one := serve(t, "subscription of the group", func(o *eventsv1.Open) bool { return o.GetShareName() == group }, onA)
		seen[one.GetSubscription()] = true
		onA.send(t, frame(oneDelivery(1, 9, one.GetSubscription())))
	}
	to.want(t, "1:9")
	sub.Acknowledge(0, 6) // it is another one's now
	sub.Acknowledge(1, 9)
	if got := onA.acks(t); !strings.HasSuffix(got, "/1:9-9") || strings.Contains(got, "0:") {
		t.Errorf("acknowledged %s, want what came here", got)
	}
	closed := 0
	for closed < 2 {
		request := onB.next(t)
		if request.GetClose() != nil {
			closed++
		} else if got := acknowledged(request); got != "" && got != fmt.Sprintf("%d/0:5-5", handle) {
			t.Errorf("acknowledged %s there", got)
		}
	}
	// What still comes from there concerns nobody.
	onB.send(t, frame(oneDelivery(0, 7, handle)))
	to.wantNothing(t)
}
