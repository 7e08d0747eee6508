package delivery_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/libs/daemon"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// server is an event-fanout on loopback whose streams the test plays itself.
type server struct {
	eventsv1.UnimplementedEventsServiceServer

	address string
	peers   chan *peer
	kill    func() // cuts off all that there is
}

// peer is the server's end of a stream.
type peer struct {
	stream   grpc.BidiStreamingServer[eventsv1.DeliverRequest, eventsv1.DeliverResponse]
	requests chan *eventsv1.DeliverRequest // closed when the client half-closed or went
	end      chan error                    // ends the stream
	stay     atomic.Bool                   // when the client half-closes, do not end by yourself
}

func (s *server) Deliver(stream grpc.BidiStreamingServer[eventsv1.DeliverRequest, eventsv1.DeliverResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetHello().GetFrontendId() != "frontend" {
		return status.Error(codes.InvalidArgument, "no hello")
	}
	if err := stream.Send(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Hello{
		Hello: &eventsv1.ServerHello{InstanceId: "fake"},
	}}); err != nil {
		return err
	}
	p := &peer{stream: stream, requests: make(chan *eventsv1.DeliverRequest, 10_000), end: make(chan error, 2)}
	s.peers <- p
	go func() { // until this returns
		defer close(p.requests)
		for {
			request, err := stream.Recv()
			if err != nil {
				if !p.stay.Load() {
					p.end <- nil
				}
				return
			}
			p.requests <- request
		}
	}()
	select {
	case err := <-p.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func listen(t *testing.T) *server {
	t.Helper()
	return listenOn(t, "127.0.0.1:0")
}

func listenOn(t *testing.T, address string) *server {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{address: listener.Addr().String(), peers: make(chan *peer, 100)}
	grpcServer := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}))
	eventsv1.RegisterEventsServiceServer(grpcServer, s)
	served := make(chan error, 1)
	go func() { served <- grpcServer.Serve(listener) }()
	s.kill = sync.OnceFunc(func() {
		grpcServer.Stop()
		if err := <-served; err != nil {
			t.Errorf("Serve() = %v", err)
		}
	})
	t.Cleanup(s.kill)
	return s
}

// accept returns the next stream.
func (s *server) accept(t *testing.T) *peer {
	t.Helper()
	select {
	case p := <-s.peers:
		return p
	case <-time.After(patience):
		t.Fatal("no stream")
		return nil
	}
}

// next returns the next frame.
func (p *peer) next(t *testing.T) *eventsv1.DeliverRequest {
	t.Helper()
	select {
	case request, ok := <-p.requests:
		if !ok {
			t.Fatal("the stream has ended, want a frame")
		}
		return request
	case <-time.After(patience):
		t.Fatal("no frame")
	}
	return nil
}

// closed waits until the client sends nothing more, and returns what came before.
func (p *peer) closed(t *testing.T) []*eventsv1.DeliverRequest {
	t.Helper()
	var rest []*eventsv1.DeliverRequest
	for {
		select {
		case request, ok := <-p.requests:
			if !ok {
				return rest
			}
			rest = append(rest, request)
		case <-time.After(patience):
			t.Fatal("the client does not half-close")
		}
	}
}

func (p *peer) quiet(t *testing.T) {
	t.Helper()
	select {
	case request := <-p.requests:
		t.Fatalf("frame %v, want none", request)
	case <-time.After(30 * time.Millisecond):
	}
}

func (p *peer) send(t *testing.T, response *eventsv1.DeliverResponse) {
	t.Helper()
	if err := p.stream.Send(response); err != nil {
		t.Fatalf("send: %v", err)
	}
}

func (p *peer) breakOff() { p.end <- status.Error(codes.Unavailable, "broken by the test") }

// attach expects Attach, and answers it.
func (p *peer) attach(t *testing.T, outcome eventsv1.AttachStatus) *eventsv1.Attach {
	t.Helper()
	attach := p.next(t).GetAttach()
	if attach == nil {
		t.Fatal("want Attach")
	}
	p.attached(t, attach, outcome)
	return attach
}

func (p *peer) attached(t *testing.T, attach *eventsv1.Attach, outcome eventsv1.AttachStatus) {
	t.Helper()
	p.send(t, &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Attached{
		Attached: &eventsv1.Attached{Session: attach.GetSession(), Status: outcome, Message: "because"},
	}})
}

func (p *peer) attachOK(t *testing.T) *eventsv1.Attach {
	t.Helper()
	return p.attach(t, eventsv1.AttachStatus_ATTACH_STATUS_OK)
}

// open expects Open, and answers it with the next offsets of partitions 0 and up.
func (p *peer) open(t *testing.T, offsets ...int64) *eventsv1.Open {
	t.Helper()
	open := p.wantOpen(t)
	p.opened(t, open.GetSubscription(), offsets...)
	return open
}

func (p *peer) wantOpen(t *testing.T) *eventsv1.Open {
	t.Helper()
	open := p.next(t).GetOpen()
	if open == nil {
		t.Fatal("want Open")
	}
	return open
}

func (p *peer) opened(t *testing.T, handle uint64, offsets ...int64) {
	t.Helper()
	opened := &eventsv1.Opened{Subscription: handle}
	for i, offset := range offsets {
		opened.Positions = append(opened.Positions, &eventsv1.Position{Partition: int32(i), Offset: offset})
	}
	p.send(t, &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Opened{Opened: opened}})
}

func (p *peer) refuse(t *testing.T, handle uint64, reason eventsv1.SubscriptionErrorReason) {
	t.Helper()
	p.send(t, &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_SubscriptionError{
		SubscriptionError: &eventsv1.SubscriptionError{Subscription: handle, Reason: reason, Message: "because"},
	}})
}

// close expects Close, and answers it.
func (p *peer) close(t *testing.T) *eventsv1.Close {
	t.Helper()
	closing := p.next(t).GetClose()
	if closing == nil {
		t.Fatal("want Close")
	}
	p.send(t, &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Closed{
		Closed: &eventsv1.Closed{Subscription: closing.GetSubscription()},
	}})
	return closing
}

// acks expects Acknowledge and returns what it says as "handle/partition:first-last".
func (p *peer) acks(t *testing.T) string {
	t.Helper()
	request := p.next(t)
	if request.GetAcknowledge() == nil {
		t.Fatalf("frame %v, want Acknowledge", request)
	}
	return acknowledged(request)
}

func acknowledged(request *eventsv1.DeliverRequest) string {
	var all []string
	for _, a := range request.GetAcknowledge().GetAcknowledgements() {
		for _, r := range a.GetRanges() {
			all = append(all, fmt.Sprintf("%d/%d:%d-%d", a.GetSubscription(), a.GetPartition(), r.GetFirst(), r.GetLast()))
		}
	}
	return strings.Join(all, " ")
}

// wire is an event with an id.
func wire(id string) []byte {
	e := cloudevent.Event{
		Attributes: []cloudevent.Attribute{
			{Name: "specversion", Value: "1.0"},
			{Name: "id", Value: id},
			{Name: "source", Value: "drogue://app/device"},
			{Name: "type", Value: "io.drogue.event.v1"},
			{Name: "datacontenttype", Value: "application/json"},
			{Name: "partitionkey", Value: "app/device"},
		},
		Data: []byte(`{"temperature":21.5}`),
		Kind: cloudevent.JSON,
	}
	return e.AppendWire(nil)
}

func oneDelivery(partition int32, offset int64, handles ...uint64) *eventsv1.Delivery {
	return &eventsv1.Delivery{
		Event: wire(fmt.Sprintf("%d/%d", partition, offset)), Subscriptions: handles, Partition: partition, Offset: offset,
	}
}

func frame(deliveries ...*eventsv1.Delivery) *eventsv1.DeliverResponse {
	return &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Deliveries{
		Deliveries: &eventsv1.DeliveryBatch{Deliveries: deliveries},
	}}
}

// sink records what comes to it, as "partition:offset", "skipped …" or "failed …".
// Deliver sends one string per call.
type sink struct {
	got  chan string
	hold chan struct{} // when set, calls wait for it
}

func newSink() *sink { return &sink{got: make(chan string, 10_000)} }

func (s *sink) Deliver(deliveries []delivery.Delivery) {
	if s.hold != nil {
		<-s.hold
	}
	all := make([]string, len(deliveries))
	for i, d := range deliveries {
		all[i] = fmt.Sprintf("%d:%d", d.Partition, d.Offset)
	}
	s.got <- strings.Join(all, " ")
}

func (s *sink) Skipped(partition int32, count int64) {
	s.got <- fmt.Sprintf("skipped %d:%d", partition, count)
}
func (s *sink) Failed(err *delivery.OpenError) { s.got <- "failed " + err.Reason.String() }

func (s *sink) want(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-s.got:
		if got != want {
			t.Errorf("sink got %q, want %q", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("sink got nothing, want %q", want)
	}
}

func (s *sink) wantNothing(t *testing.T) {
	t.Helper()
	select {
	case got := <-s.got:
		t.Errorf("sink got %q, want nothing", got)
	case <-time.After(30 * time.Millisecond):
	}
}

func config(servers ...*server) delivery.Config {
	cfg := delivery.DefaultConfig()
	cfg.Streams = 1
	cfg.Addresses = nil
	for _, s := range servers {
		cfg.Addresses = append(cfg.Addresses, s.address)
	}
	return cfg
}

// start runs a client until the test ends, or until stop is called.
func start(t *testing.T, cfg delivery.Config) (client *delivery.Client, stop func()) {
	t.Helper()
	return startWith(t, cfg, func(*delivery.Client) {})
}

// startWith is start with something to be done before.
func startWith(t *testing.T, cfg delivery.Config, before func(*delivery.Client)) (client *delivery.Client, stop func()) {
	t.Helper()
	client, err := delivery.New(cfg, "frontend", daemon.NewEnv(nil))
	if err != nil {
		t.Fatal(err)
	}
	before(client)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v, want nil", err)
		}
	})
	t.Cleanup(stop)
	return client, stop
}

func sessionInfo(client string) delivery.SessionInfo {
	return delivery.SessionInfo{
		Issuer: "idp", Subject: "alice", ClientID: client, ConnectionID: "connection-" + client,
		Epoch: 42, ProtocolLevel: 5, ClientAddress: "192.0.2.1",
	}
}

func request(application string) delivery.OpenRequest {
	return delivery.OpenRequest{Application: application, Window: delivery.Window{Events: 10, Bytes: 1000}, QoS: 1}
}

// opening is an Open that goes on.
type opening struct {
	sub *delivery.Subscription
	err error
}

func open(ctx context.Context, session *delivery.Session, application string, to delivery.Sink) <-chan opening {
	result := make(chan opening, 1)
	go func() {
		sub, err := session.Open(ctx, request(application), to)
		result <- opening{sub, err}
	}()
	return result
}

func wantOpened(t *testing.T, result <-chan opening) *delivery.Subscription {
	t.Helper()
	select {
	case o := <-result:
		if o.err != nil {
			t.Fatalf("Open() = %v", o.err)
		}
		return o.sub
	case <-time.After(patience):
		t.Fatal("Open() does not return")
		return nil
	}
}

func wantError(t *testing.T, result <-chan opening, want eventsv1.SubscriptionErrorReason) {
	t.Helper()
	select {
	case o := <-result:
		err, ok := o.err.(*delivery.OpenError) //nolint:errorlint // it is documented to be one
		if !ok || err.Reason != want || err.Message == "" {
			t.Errorf("Open() = %v, want %v with a message", o.err, want)
		}
	case <-time.After(patience):
		t.Fatal("Open() does not return")
	}
}

// one opens one subscription of one session, at offset 5 of partition 0 and
// offset 0 of partition 1.
func one(t *testing.T) (s *server, p *peer, session *delivery.Session, sub *delivery.Subscription, to *sink, handle uint64) {
	t.Helper()
	s = listen(t)
	client, _ := start(t, config(s))
	session = client.Session(sessionInfo("c1"), func(err delivery.SessionError) { t.Errorf("session error %v", err) })
	to = newSink()
	result := open(t.Context(), session, "app", to)
	p = s.accept(t)
	p.attachOK(t)
	handle = p.open(t, 5, 0).GetSubscription()
	return s, p, session, wantOpened(t, result), to, handle
}
