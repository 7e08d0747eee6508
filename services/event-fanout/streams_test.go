package eventfanout_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	eventfanout "mqtt-integration/services/event-fanout"
)

func TestFrontendThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, nil)
	stuck, healthy := connect(t, i), connect(t, i)
	blocked := stuck.subscribe(stuck.attach(newIdentity(t)), app, 60_000)
	sub := healthy.subscribe(healthy.attach(newIdentity(t)), app, 100)
	const n = 20_000
	records := events("e", n)
	for i := range records {
		records[i].Value = bytes.Repeat([]byte("x"), 500)
	}
	testkit.ProduceTo(t, brokers, topic, 0, records...)
	for received := 0; received < n; {
		batch := append(healthy.take(sub, 1), healthy.take(sub, len(healthy.early[sub]))...)
		received += len(batch)
		healthy.ack(sub, batch...)
	}
	// It reads again, and has lost nothing.
	for offset, d := range stuck.take(blocked, n) {
		if d.offset != int64(offset) {
			t.Fatalf("got %v, want offset %d", d, offset)
		}
	}
}

func TestAnEventCrossesAStreamOnce(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	f := connect(t, startInstance(t, brokers, nil))
	want := map[uint64]bool{}
	for range 50 {
		want[f.subscribe(f.attach(newIdentity(t)), app, 10)] = true
	}
	testkit.ProduceTo(t, brokers, topic, 0, event("one"))
	frame := f.next("the event")
	batch := frame.GetDeliveries().GetDeliveries()
	if len(batch) != 1 {
		t.Fatalf("got %d deliveries, want 1", len(batch))
	}
	for _, handle := range batch[0].GetSubscriptions() {
		delete(want, handle)
	}
	if len(want) > 0 || len(batch[0].GetSubscriptions()) != 50 {
		t.Errorf("%d recipients, without %v", len(batch[0].GetSubscriptions()), want)
	}
}

func TestManySubscribersWithSmallWindowsGetEverything(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 3)
	i := startInstance(t, brokers, func(c *eventfanout.Config) { c.Ring.Memory = 1 << 20; c.CatchUp.ChunkBytes = 64 << 10 })
	f := connect(t, i)
	subs := make([]uint64, 40)
	for n := range subs {
		subs[n] = f.subscribe(f.attach(newIdentity(t)), app, uint32(1+n))
	}
	const n = 900
	records := events("e", n)
	for i := range records {
		records[i].Value = bytes.Repeat([]byte("x"), 3000)
	}
	for p := range int32(3) {
		testkit.ProduceTo(t, brokers, topic, p, records[p*n/3:(p+1)*n/3]...)
	}
	next := map[string]int64{}
	for received := 0; received < n*len(subs); {
		f.take(subs[0], 0)
		progress := false
		for _, sub := range subs {
			batch := f.take(sub, len(f.early[sub]))
			for _, d := range batch {
				key := fmt.Sprint(sub, d.partition)
				if d.offset != next[key] {
					t.Fatalf("subscription %d: got %v, want offset %d", sub, d, next[key])
				}
				next[key]++
			}
			if len(batch) > 0 {
				f.ack(sub, batch...)
				received += len(batch)
				progress = true
			}
		}
		if !progress {
			f.keep(f.next("deliveries").GetDeliveries())
		}
	}
}

func TestProtocolErrorsEndTheStream(t *testing.T) {
	t.Parallel()
	i := startInstance(t, []string{"127.0.0.1:1"}, nil)
	attach := &eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Attach{Attach: &eventsv1.Attach{
		Session: 1, Key: &eventsv1.SessionKey{Issuer: "a", Subject: "b", ClientId: "c"},
		Epoch: &eventsv1.Epoch{TimeMicros: 1, FrontendId: "f"}, ConnectionId: "x",
	}}}
	hello := &eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Hello{Hello: &eventsv1.ClientHello{FrontendId: "f"}}}
	small := &eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Hello{Hello: &eventsv1.ClientHello{MaxFrameBytes: 1000}}}
	for _, tt := range []struct {
		name   string
		frames []*eventsv1.DeliverRequest
	}{
		{"no hello", []*eventsv1.DeliverRequest{attach}},
		{"two hellos", []*eventsv1.DeliverRequest{hello, hello}},
		{"handle in use", []*eventsv1.DeliverRequest{hello, attach, attach}},
		{"frames too small", []*eventsv1.DeliverRequest{small}},
		{"nothing in a frame", []*eventsv1.DeliverRequest{hello, {}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn, err := grpc.NewClient(i.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			stream, err := eventsv1.NewEventsServiceClient(conn).Deliver(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, frame := range tt.frames {
				if err := stream.Send(frame); err != nil {
					break // it has ended already
				}
			}
			for err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("the stream ended with %v, want INVALID_ARGUMENT", err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, _ := newApplication(t, brokers, 1)
	other, _ := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, func(c *eventfanout.Config) {
		c.Sessions.Max, c.Sessions.MaxSubscriptions, c.Streams.Max = 1, 1, 1
		c.Sessions.Grace = 0
	})
	f := connect(t, i)
	session := f.attach(newIdentity(t))
	if _, attached := f.tryAttach(newIdentity(t), false); attached.GetStatus() != eventsv1.AttachStatus_ATTACH_STATUS_QUOTA_EXCEEDED {
		t.Errorf("a session too many: %v", attached.GetStatus())
	}
	sub := f.subscribe(session, app, 1)
	refused := f.tryOpen(&eventsv1.Open{Session: session, Application: other}).GetSubscriptionError()
	if refused.GetReason() != eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_QUOTA_EXCEEDED {
		t.Errorf("a subscription too many: %v", refused)
	}
	f.closeSubscription(sub, true)
	f.subscribe(session, other, 1)
	f.detach(session)
	f.attach(newIdentity(t))

	stream, err := eventsv1.NewEventsServiceClient(f.conn).Deliver(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a stream too many: %v, want RESOURCE_EXHAUSTED", err)
	}
}

func TestSessionAdministrationIsNotThereYet(t *testing.T) {
	t.Parallel()
	f := connect(t, startInstance(t, []string{"127.0.0.1:1"}, nil))
	_, err := adminv1.NewSessionAdminServiceClient(f.conn).ListSessions(t.Context(), &adminv1.ListSessionsRequest{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("ListSessions: %v, want UNIMPLEMENTED", err)
	}
}

// Kafka takes connections and does not answer.
func TestKafkaHangs(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, _ := newApplication(t, brokers, 1)
	other, _ := newApplication(t, brokers, 1)
	proxy := testkit.NewProxy(t, brokers)
	f := connect(t, startInstance(t, proxy.Brokers(), func(c *eventfanout.Config) { c.Sessions.OpenTimeout = time.Second }))
	session := f.attach(newIdentity(t))
	f.subscribe(session, app, 1)
	proxy.StallResponses()
	began := time.Now()
	refused := f.tryOpen(&eventsv1.Open{Session: session, Application: other}).GetSubscriptionError()
	if refused.GetReason() != eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNAVAILABLE {
		t.Errorf("open: %v", refused)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	proxy.Restore()
}

// Many sessions come and go at once, on two streams, while events flow.
func TestSessionsComeAndGo(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 2)
	i := startInstance(t, brokers, func(c *eventfanout.Config) { c.Ring.Linger = 0 })
	producing, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(producing)
		for {
			select {
			case <-stop:
				return
			default:
				testkit.Produce(t, brokers, topic, events("e", 50)...)
			}
		}
	}()
	var groups sync.Map
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			f := connect(t, i)
			for range 25 {
				id := newIdentity(t)
				groups.Store(id.group(), true)
				session := f.attach(id)
				sub := f.subscribe(session, app, 20)
				got := f.take(sub, 5)
				f.ack(sub, got...)
				f.detach(session)
			}
		})
	}
	workers.Wait()
	close(stop)
	<-producing
	eventually(t, "all groups are deleted", func() bool {
		for _, group := range testkit.ListGroups(t, brokers, "mqtt-transient/dev/user/testsessionscomeandgo") {
			if _, ours := groups.Load(group); ours {
				return false
			}
		}
		return true
	})
}
