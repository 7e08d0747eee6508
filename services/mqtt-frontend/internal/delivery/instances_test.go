package delivery_test

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
)

// names is a resolver whose one name has the addresses that the test sets.
type names struct {
	mu        sync.Mutex
	addresses []netip.Addr
}

func (n *names) set(servers ...*server) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addresses = nil
	for _, s := range servers {
		n.addresses = append(n.addresses, netip.MustParseAddrPort(s.address).Addr())
	}
}

func (n *names) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if network != "ip4" || host != "event-fanout" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return append([]netip.Addr(nil), n.addresses...), nil
}

// named is servers at the same port of several addresses, and the name for them.
func named(t *testing.T, n int) ([]*server, *names, delivery.Config) {
	t.Helper()
	servers := []*server{listen(t)}
	port := strconv.Itoa(int(netip.MustParseAddrPort(servers[0].address).Port()))
	for i := 1; i < n; i++ {
		servers = append(servers, listenOn(t, "127.0.0."+strconv.Itoa(i+1)+":"+port))
	}
	dns := &names{}
	cfg := config()
	cfg.Insecure = true // a name may be anywhere
	cfg.Addresses = []string{"event-fanout:" + port}
	cfg.PollInterval = 20 * time.Millisecond
	cfg.Resolver = dns
	return servers, dns, cfg
}

// serve accepts all sessions and subscriptions that come to any of the streams
// until the wanted one, and says where that is.
func serve(t *testing.T, what string, want func(*eventsv1.Open) bool, peers ...*peer) (*peer, *eventsv1.Open) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		for _, p := range peers {
			select {
			case request := <-p.requests:
				if attach := request.GetAttach(); attach != nil {
					p.attached(t, attach, eventsv1.AttachStatus_ATTACH_STATUS_OK)
				} else if one := request.GetOpen(); one != nil {
					p.opened(t, one.GetSubscription(), 5)
					if want(one) {
						return p, one
					}
				}
			default:
			}
		}
		time.Sleep(100 * time.Microsecond)
	}
	t.Fatalf("there comes no %s", what)
	return nil, nil
}

// reopened serves until a subscription resumes at the offset of partition 0.
func reopened(t *testing.T, next int64, peers ...*peer) (*peer, *eventsv1.Open) {
	t.Helper()
	return serve(t, "subscription that resumes at "+strconv.FormatInt(next, 10), func(one *eventsv1.Open) bool {
		positions := one.GetResume().GetPositions()
		return len(positions) > 0 && positions[0].GetNextOffset() == next
	}, peers...)
}

// opened opens a subscription of a session that has none, and says where.
func opened(t *testing.T, client *delivery.Client, id string, to *sink, peers ...*peer) (*delivery.Subscription, *peer, uint64) {
	t.Helper()
	result := open(t.Context(), client.Session(sessionInfo(id), nil), "app", to)
	p, one := serve(t, "new subscription", func(one *eventsv1.Open) bool { return one.GetResume() == nil }, peers...)
	return wantOpened(t, result), p, one.GetSubscription()
}

// openedOn does so with a session whose place is that stream.
func openedOn(t *testing.T, client *delivery.Client, prefix string, to *sink, want *peer, peers ...*peer) (*delivery.Subscription, uint64) {
	t.Helper()
	for i := range 100 {
		if sub, p, handle := opened(t, client, prefix+strconv.Itoa(i), to, peers...); p == want {
			return sub, handle
		}
	}
	t.Fatal("no session of 100 goes to that instance")
	return nil, 0
}

func TestInstanceThatDiesLosesItsSessionsToOthers(t *testing.T) {
	t.Parallel()
	a, b := listen(t), listen(t)
	client, _ := start(t, config(a, b))
	onA, onB := a.accept(t), b.accept(t)
	to := newSink()
	sub, handle := openedOn(t, client, "first-", to, onA, onA, onB)
	onA.send(t, frame(oneDelivery(0, 5, handle), oneDelivery(0, 6, handle), oneDelivery(0, 8, handle)))
	to.want(t, "0:5 0:6 0:8")
	sub.Acknowledge(0, 6)
	onA.acks(t)
	a.kill()
	sub.Acknowledge(0, 5)

	_, again := reopened(t, 9, onB)
	wantResume(t, again, resumePoint(&eventsv1.ResumePosition{
		Partition: 0, NextOffset: 9, Unacknowledged: []*eventsv1.OffsetRange{{First: 8, Last: 8}},
	}))
	onB.send(t, frame(oneDelivery(0, 9, again.GetSubscription())))
	to.want(t, "0:9")
	sub.Acknowledge(0, 9)
	onB.acks(t)

	// A session that would be there begins elsewhere at once.
	for i := range 20 {
		if _, p, _ := opened(t, client, "second-"+strconv.Itoa(i), newSink(), onB); p != onB {
			t.Fatal("a session is where nobody is")
		}
	}

	// When it is back, new sessions go there, and the others stay.
	onA = listenOn(t, a.address).accept(t)
	openedOn(t, client, "third-", newSink(), onA, onA, onB)
	onB.send(t, frame(oneDelivery(0, 10, again.GetSubscription())))
	to.want(t, "0:10")
	to.wantNothing(t)
}

func TestSessionsGoElsewhereAtGoaway(t *testing.T) {
	t.Parallel()
	a, b := listen(t), listen(t)
	client, _ := start(t, config(a, b))
	onA, onB := a.accept(t), b.accept(t)
	to := newSink()
	sub, handle := openedOn(t, client, "", to, onA, onA, onB)
	onA.send(t, frame(oneDelivery(0, 5, handle)))
	to.want(t, "0:5")
	sub.Acknowledge(0, 5)
	onA.acks(t)
	onA.send(t, &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Goaway{Goaway: &eventsv1.Goaway{Reason: "test"}}})
	began := time.Now()
	reopened(t, 6, onB)
	if took := time.Since(began); took > 400*time.Millisecond {
		t.Errorf("it took %v, want no wait", took)
	}
}

func TestInstancesComeAndLeave(t *testing.T) {
	t.Parallel()
	servers, dns, cfg := named(t, 3)
	client, _ := start(t, cfg)

	// Nobody is known yet: it waits.
	to := newSink()
	result := open(t.Context(), client.Session(sessionInfo("c"), nil), "app", to)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantError(t, open(short, client.Session(sessionInfo("impatient"), nil), "app", newSink()), unavailable)

	dns.set(servers[0])
	first := servers[0].accept(t)
	first.attachOK(t)
	handle := first.open(t, 5).GetSubscription()
	sub := wantOpened(t, result)

	// Others come: sessions stay, new ones find their places.
	dns.set(servers...)
	second, third := servers[1].accept(t), servers[2].accept(t)
	toSecond := newSink()
	subOfSecond, handleOfSecond := openedOn(t, client, "x", toSecond, second, first, second, third)
	openedOn(t, client, "y", newSink(), third, first, second, third)
	first.send(t, frame(oneDelivery(0, 5, handle)))
	to.want(t, "0:5")
	sub.Acknowledge(0, 5)
	first.acks(t)

	// One leaves: its streams end in good order, what was acknowledged is said.
	second.send(t, frame(oneDelivery(0, 5, handleOfSecond), oneDelivery(0, 6, handleOfSecond)))
	toSecond.want(t, "0:5 0:6")
	dns.set(servers[0], servers[2])
	subOfSecond.Acknowledge(0, 5)
	for _, request := range second.closed(t) {
		if request.GetAcknowledge() == nil {
			t.Errorf("frame %v, want Acknowledge", request)
		}
	}
	p, again := reopened(t, 7, first, third)
	wantResume(t, again, resumePoint(&eventsv1.ResumePosition{
		Partition: 0, NextOffset: 7, Unacknowledged: []*eventsv1.OffsetRange{{First: 6, Last: 6}},
	}))
	p.send(t, frame(oneDelivery(0, 7, again.GetSubscription())))
	toSecond.want(t, "0:7")

	// The name fails: nothing happens.
	dns.set()
	time.Sleep(100 * time.Millisecond)
	first.send(t, frame(oneDelivery(0, 6, handle)))
	to.want(t, "0:6")

	// It returns: new sessions go there again.
	dns.set(servers...)
	second = servers[1].accept(t)
	openedOn(t, client, "z", newSink(), second, first, second, third)
}
