package eventfanout_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/naming"
	"mqtt-integration/libs/testkit"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	eventfanout "mqtt-integration/services/event-fanout"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second

// instance is a running event-fanout.
type instance struct {
	address string
	health  *daemon.Health
	stop    func() // ends it and waits; may be called twice
}

// startInstance runs the service until the test ends.
func startInstance(tb testing.TB, brokers []string, adapt func(*eventfanout.Config)) *instance {
	tb.Helper()
	cfg := eventfanout.DefaultConfig()
	cfg.Kafka.Brokers = brokers
	cfg.GRPC.Address = "127.0.0.1:0"
	cfg.Commit.Interval = 50 * time.Millisecond
	cfg.Ring.MaxWait = 50 * time.Millisecond
	cfg.DrainTimeout = 2 * time.Second
	if adapt != nil {
		adapt(&cfg)
	}
	listener, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	level := slog.LevelError
	if testing.Verbose() {
		level = slog.LevelWarn
	}
	env := daemon.NewEnv(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	env.Listen = func(context.Context, string, string) (net.Listener, error) { return listener, nil }
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- eventfanout.Run(ctx, cfg, env) }()
	stopped := false
	i := &instance{address: listener.Addr().String(), health: env.Health}
	i.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				tb.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			tb.Error("Run did not end")
		}
	}
	tb.Cleanup(i.stop)
	return i
}

// frontend is one stream to an instance.
type frontend struct {
	t      testing.TB
	conn   *grpc.ClientConn
	stream eventsv1.EventsService_DeliverClient
	cancel context.CancelFunc
	frames chan *eventsv1.DeliverResponse
	done   chan error
	hello  *eventsv1.ServerHello
	handle uint64
	// deliveries that came before they were asked for
	early map[uint64][]delivery
}

type delivery struct {
	partition int32
	offset    int64
	event     *eventsv1.Event
}

func (d delivery) String() string { return fmt.Sprintf("%d/%d", d.partition, d.offset) }

func connect(tb testing.TB, i *instance) *frontend {
	tb.Helper()
	return connectWith(tb, i, 0)
}

func connectWith(tb testing.TB, i *instance, maxFrame uint32) *frontend {
	tb.Helper()
	conn, err := grpc.NewClient(i.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	stream, err := eventsv1.NewEventsServiceClient(conn).Deliver(ctx, grpc.WaitForReady(true))
	if err != nil {
		tb.Fatal(err)
	}
	f := &frontend{
		t: tb, conn: conn, stream: stream, cancel: cancel,
		frames: make(chan *eventsv1.DeliverResponse), done: make(chan error, 1), early: map[uint64][]delivery{},
	}
	f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Hello{Hello: &eventsv1.ClientHello{
		FrontendId: "frontend-1", MaxFrameBytes: maxFrame,
	}}})
	go func() {
		defer close(f.frames)
		for {
			frame, err := stream.Recv()
			if err != nil {
				f.done <- err
				return
			}
			select {
			case f.frames <- frame:
			case <-ctx.Done():
				f.done <- ctx.Err()
				return
			}
		}
	}()
	tb.Cleanup(f.close)
	f.hello = f.next("hello").GetHello()
	if f.hello == nil {
		tb.Fatal("the first frame is no hello")
	}
	return f
}

// close breaks the stream.
func (f *frontend) close() {
	f.cancel()
	for range f.frames {
	}
	_ = f.conn.Close()
}

func (f *frontend) send(request *eventsv1.DeliverRequest) {
	f.t.Helper()
	if err := f.stream.Send(request); err != nil {
		f.t.Fatalf("send: %v", err)
	}
}

// next is the next frame.
func (f *frontend) next(what string) *eventsv1.DeliverResponse {
	f.t.Helper()
	select {
	case frame, ok := <-f.frames:
		if !ok {
			f.t.Fatalf("stream ended while waiting for %s: %v", what, <-f.done)
		}
		return frame
	case <-time.After(patience):
		f.t.Fatalf("nothing came while waiting for %s", what)
		return nil
	}
}

// nextAnswer is the next frame that is no batch of events.
func (f *frontend) nextAnswer(what string) *eventsv1.DeliverResponse {
	f.t.Helper()
	for {
		frame := f.next(what)
		if batch := frame.GetDeliveries(); batch != nil {
			f.keep(batch)
			continue
		}
		return frame
	}
}

func (f *frontend) keep(batch *eventsv1.DeliveryBatch) {
	f.t.Helper()
	for _, d := range batch.GetDeliveries() {
		event := new(eventsv1.Event)
		if err := proto.Unmarshal(d.GetEvent(), event); err != nil {
			f.t.Fatalf("event at %d/%d: %v", d.GetPartition(), d.GetOffset(), err)
		}
		for _, handle := range d.GetSubscriptions() {
			f.early[handle] = append(f.early[handle], delivery{d.GetPartition(), d.GetOffset(), event})
		}
	}
}

// identity of a session in tests.
type identity struct {
	key        *eventsv1.SessionKey
	epoch      uint64
	connection string
}

func newIdentity(tb testing.TB) identity {
	tb.Helper()
	return identity{
		key:        &eventsv1.SessionKey{Issuer: "dev", Subject: "user", ClientId: testkit.UniqueName(tb)},
		epoch:      uint64(time.Now().UnixMicro()),
		connection: testkit.UniqueName(tb),
	}
}

func (i identity) group() string {
	return naming.TransientGroup(i.key.GetIssuer(), i.key.GetSubject(), i.key.GetClientId(), i.connection)
}

func (f *frontend) newHandle() uint64 {
	f.handle++
	return f.handle
}

func (f *frontend) tryAttach(id identity, reattach bool) (uint64, *eventsv1.Attached) {
	f.t.Helper()
	handle := f.newHandle()
	f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Attach{Attach: &eventsv1.Attach{
		Session: handle, Key: id.key, Epoch: &eventsv1.Epoch{TimeMicros: id.epoch, FrontendId: "frontend-1"},
		ConnectionId: id.connection, Reattach: reattach, ProtocolLevel: 5,
	}}})
	attached := f.nextAnswer("Attached").GetAttached()
	if attached.GetSession() != handle {
		f.t.Fatalf("Attached is for %d, want %d", attached.GetSession(), handle)
	}
	return handle, attached
}

func (f *frontend) attach(id identity) uint64 {
	f.t.Helper()
	handle, attached := f.tryAttach(id, false)
	if got, want := attached.GetStatus(), eventsv1.AttachStatus_ATTACH_STATUS_OK; got != want {
		f.t.Fatalf("attach: %v (%s)", got, attached.GetMessage())
	}
	return handle
}

func (f *frontend) reattach(id identity) uint64 {
	f.t.Helper()
	handle, attached := f.tryAttach(id, true)
	if got, want := attached.GetStatus(), eventsv1.AttachStatus_ATTACH_STATUS_OK; got != want {
		f.t.Fatalf("attach again: %v (%s)", got, attached.GetMessage())
	}
	return handle
}

func (f *frontend) detach(session uint64) {
	f.t.Helper()
	f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Detach{Detach: &eventsv1.Detach{Session: session}}})
	if got := f.nextAnswer("Detached").GetDetached().GetSession(); got != session {
		f.t.Fatalf("Detached is for %d, want %d", got, session)
	}
}

// tryOpen opens a subscription and returns the answer.
func (f *frontend) tryOpen(open *eventsv1.Open) *eventsv1.DeliverResponse {
	f.t.Helper()
	if open.GetSubscription() == 0 {
		open.Subscription = f.newHandle()
	}
	if open.GetWindow() == nil {
		open.Window = window(1000)
	}
	f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Open{Open: open}})
	return f.nextAnswer("Opened")
}

func window(events uint32) *eventsv1.Window {
	return &eventsv1.Window{Events: events, Bytes: 64 << 20}
}

func (f *frontend) open(open *eventsv1.Open) (uint64, *eventsv1.Opened) {
	f.t.Helper()
	answer := f.tryOpen(open)
	if answer.GetOpened().GetSubscription() != open.GetSubscription() {
		f.t.Fatalf("open %d: %v", open.GetSubscription(), answer)
	}
	return open.GetSubscription(), answer.GetOpened()
}

func (f *frontend) subscribe(session uint64, application string, events uint32) uint64 {
	f.t.Helper()
	handle, _ := f.open(&eventsv1.Open{Session: session, Application: application, Window: window(events)})
	return handle
}

func (f *frontend) closeSubscription(handle uint64, unsubscribe bool) {
	f.t.Helper()
	f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Close{Close: &eventsv1.Close{
		Subscription: handle, Unsubscribe: unsubscribe,
	}}})
	if got := f.nextAnswer("Closed").GetClosed().GetSubscription(); got != handle {
		f.t.Fatalf("Closed is for %d, want %d", got, handle)
	}
}

// take returns the next n deliveries of a subscription.
func (f *frontend) take(subscription uint64, n int) []delivery {
	f.t.Helper()
	for len(f.early[subscription]) < n {
		frame := f.next(fmt.Sprintf("delivery %d of %d", len(f.early[subscription])+1, n))
		batch := frame.GetDeliveries()
		if batch == nil {
			f.t.Fatalf("got %v, want deliveries", frame)
		}
		f.keep(batch)
	}
	taken := f.early[subscription][:n:n]
	f.early[subscription] = f.early[subscription][n:]
	return taken
}

// quiet fails the test if anything comes for a subscription within d.
func (f *frontend) quiet(subscription uint64, d time.Duration) {
	f.t.Helper()
	deadline := time.After(d)
	for {
		if got := f.early[subscription]; len(got) > 0 {
			f.t.Fatalf("%d deliveries came: %v", len(got), got)
		}
		select {
		case frame := <-f.frames:
			if batch := frame.GetDeliveries(); batch != nil {
				f.keep(batch)
				continue
			}
			f.t.Fatalf("came: %v", frame)
		case <-deadline:
			return
		}
	}
}

func (f *frontend) ack(subscription uint64, deliveries ...delivery) {
	f.t.Helper()
	frame := &eventsv1.Acknowledge{}
	for _, d := range deliveries {
		frame.Acknowledgements = append(frame.Acknowledgements, &eventsv1.Acknowledgement{
			Subscription: subscription, Partition: d.partition,
			Ranges: []*eventsv1.OffsetRange{{First: d.offset, Last: d.offset}},
		})
	}
	f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Acknowledge{Acknowledge: frame}})
}

// newApplication is an application with a topic.
func newApplication(tb testing.TB, brokers []string, partitions int32) (application, topic string) {
	tb.Helper()
	application = testkit.UniqueName(tb)
	topic = naming.EventsTopic(application)
	testkit.CreateTopic(tb, brokers, topic, partitions)
	return application, topic
}

// event is a CloudEvent with an id.
func event(id string) testkit.Record {
	return testkit.Record{
		Value: []byte(`{"temperature":21}`),
		Headers: testkit.Headers("ce_specversion", "1.0", "ce_id", id, "ce_source", "drogue://app/device",
			"ce_type", "io.drogue.event.v1", "content-type", "application/json"),
	}
}

func events(prefix string, n int) []testkit.Record {
	records := make([]testkit.Record, n)
	for i := range records {
		records[i] = event(fmt.Sprintf("%s-%d", prefix, i))
	}
	return records
}

func idOf(e *eventsv1.Event) string {
	for _, a := range e.GetAttributes() {
		if a.GetName() == "id" {
			return a.GetValue()
		}
	}
	return ""
}

// eventually waits until a condition holds.
func eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	deadline := time.Now().Add(patience)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			tb.Fatalf("%s: not after %v", what, patience)
		}
		<-ticker.C
	}
}
