package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"mqtt-integration/libs/daemon"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/command-ingress/internal/producer"
	"mqtt-integration/services/command-ingress/internal/record"
	"mqtt-integration/services/command-ingress/internal/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake takes records and settles them when the test says so.
type fake struct {
	mu      sync.Mutex
	limits  producer.Limits
	changed chan struct{}
	refuse  *producer.Outcome
	hold    bool
	held    []func(producer.Outcome)
	records []record.Record
}

func newFake() *fake {
	return &fake{limits: producer.Limits{MaxRecordBytes: 1000}, changed: make(chan struct{})}
}

func (f *fake) Submit(r record.Record, correlation uint64, sink producer.Sink) (producer.Outcome, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return *f.refuse, false
	}
	f.records = append(f.records, r)
	done := func(o producer.Outcome) { sink.Done(correlation, o) }
	if f.hold {
		f.held = append(f.held, done)
	} else {
		go done(producer.Outcome{})
	}
	return producer.Outcome{}, true
}

func (f *fake) Limits() (producer.Limits, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.limits, f.changed
}

func (f *fake) setLimits(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limits.MaxRecordBytes = n
	close(f.changed)
	f.changed = make(chan struct{})
}

// release settles what is held, the last one first.
func (f *fake) release(o producer.Outcome) {
	f.mu.Lock()
	held := f.held
	f.held = nil
	f.mu.Unlock()
	for _, done := range slices.Backward(held) {
		done(o)
	}
}

func (f *fake) submitted() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.records)
}

// start serves s on loopback and returns a client of it.
func start(t *testing.T, cfg server.Config, f *fake, env daemon.Env) (*server.Server, commandsv1.CommandsServiceClient) {
	t.Helper()
	if cfg.InstanceID == "" {
		cfg.InstanceID = "ingress-1"
	}
	cfg.Instance = "drogue"
	s, err := server.New(cfg, f, env)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	transport := grpc.NewServer(grpc.WaitForHandlers(true))
	commandsv1.RegisterCommandsServiceServer(transport, s)
	served := make(chan error, 1)
	go func() { served <- transport.Serve(listener) }()
	client, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		transport.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, commandsv1.NewCommandsServiceClient(client)
}

func testEnv(t *testing.T) daemon.Env {
	t.Helper()
	return daemon.NewEnv(slog.New(slog.NewTextHandler(t.Output(), nil)))
}

type client struct {
	grpc.BidiStreamingClient[commandsv1.PublishRequest, commandsv1.PublishResponse]
	t *testing.T
}

func open(t *testing.T, service commandsv1.CommandsServiceClient) client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := service.Publish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return client{stream, t}
}

func hello() *commandsv1.PublishRequest {
	return &commandsv1.PublishRequest{Frame: &commandsv1.PublishRequest_Hello{Hello: &commandsv1.ClientHello{FrontendId: "frontend-1"}}}
}

func commands(correlations ...uint64) *commandsv1.PublishRequest {
	batch := &commandsv1.CommandBatch{}
	for _, n := range correlations {
		batch.Commands = append(batch.Commands, &commandsv1.Command{
			Correlation: n, Id: fmt.Sprint("id-", n), Application: "app", Device: "device", Command: "command",
			Time: timestamppb.New(time.Unix(1, 0)), Payload: fmt.Append(nil, n),
		})
	}
	return &commandsv1.PublishRequest{Frame: &commandsv1.PublishRequest_Commands{Commands: batch}}
}

func (c client) send(frames ...*commandsv1.PublishRequest) {
	c.t.Helper()
	for _, f := range frames {
		if err := c.Send(f); err != nil && !errors.Is(err, io.EOF) {
			c.t.Fatal(err)
		}
	}
}

func (c client) receive() *commandsv1.PublishResponse {
	c.t.Helper()
	f, err := c.Recv()
	if err != nil {
		c.t.Fatalf("Recv() = %v", err)
	}
	return f
}

// results receives n results.
func (c client) results(n int) []*commandsv1.Result {
	c.t.Helper()
	var all []*commandsv1.Result
	for len(all) < n {
		f := c.receive()
		if f.GetResults() == nil {
			c.t.Fatalf("received %v, want results", f)
		}
		if len(f.GetResults().GetResults()) > 1000 {
			c.t.Errorf("frame of %d results", len(f.GetResults().GetResults()))
		}
		all = append(all, f.GetResults().GetResults()...)
	}
	if len(all) > n {
		c.t.Errorf("%d results, want %d", len(all), n)
	}
	return all
}

// ends expects the stream to end with a status.
func (c client) ends(want codes.Code) {
	c.t.Helper()
	for {
		_, err := c.Recv()
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if got := status.Code(err); got != want {
			c.t.Errorf("stream ended with %v, want %v", err, want)
		}
		return
	}
}

func TestHelloNamesInstanceAndLimits(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 77}, f, testEnv(t))
	c := open(t, service)
	c.send(hello())
	got := c.receive().GetHello()
	if got.GetInstanceId() != "ingress-1" || got.GetMaxRecordBytes() != 1000 || got.GetMaxInFlight() != 77 {
		t.Errorf("hello = %v", got)
	}
	f.setLimits(2000)
	if got := c.receive().GetHello(); got.GetMaxRecordBytes() != 2000 {
		t.Errorf("second hello = %v, want the new limit", got)
	}
}

func TestResultsComeInAnyOrderWithTheirCorrelation(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.hold = true
	_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 5000}, f, testEnv(t))
	c := open(t, service)
	c.send(hello())
	c.receive()
	const n = 2500
	for i := uint64(0); i < n; i += 500 {
		batch := make([]uint64, 0, 500)
		for j := range uint64(500) {
			batch = append(batch, i+j)
		}
		c.send(commands(batch...))
	}
	waitFor(t, func() bool { return f.submitted() == n })
	for i, r := range f.records {
		if string(r.Value) != strconv.Itoa(i) {
			t.Fatalf("record %d is of command %s", i, r.Value)
		}
	}
	go f.release(producer.Outcome{Status: producer.Unknown, Message: "outcome unknown"})
	for i, r := range c.results(n) {
		want := uint64(n - 1 - i)
		if r.GetCorrelation() != want || r.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_UNKNOWN_OUTCOME || r.GetMessage() != "outcome unknown" {
			t.Fatalf("result %d = %v, want correlation %d", i, r, want)
		}
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("waited in vain")
		}
	}
}

func TestStatusOfEachOutcome(t *testing.T) {
	t.Parallel()
	tests := map[producer.Status]commandsv1.ResultStatus{
		producer.Unavailable: commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE,
		producer.Unknown:     commandsv1.ResultStatus_RESULT_STATUS_UNKNOWN_OUTCOME,
		producer.Exhausted:   commandsv1.ResultStatus_RESULT_STATUS_RESOURCE_EXHAUSTED,
		producer.TooLarge:    commandsv1.ResultStatus_RESULT_STATUS_TOO_LARGE,
	}
	for refused, want := range tests {
		t.Run(refused.String(), func(t *testing.T) {
			t.Parallel()
			f := newFake()
			f.refuse = &producer.Outcome{Status: refused, Message: "why"}
			_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 10}, f, testEnv(t))
			c := open(t, service)
			c.send(hello(), commands(5))
			c.receive()
			got := c.results(1)[0]
			if got.GetCorrelation() != 5 || got.GetStatus() != want || got.GetMessage() != "why" {
				t.Errorf("result = %v, want %v", got, want)
			}
		})
	}
}

func TestMalformedCommandsAreInvalidAndNothingElse(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 10}, f, testEnv(t))
	c := open(t, service)
	frame := commands(1, 2)
	frame.GetCommands().GetCommands()[0].Device = "a\x01"
	c.send(hello(), frame)
	c.receive()
	got := map[uint64]commandsv1.ResultStatus{}
	for _, r := range c.results(2) {
		got[r.GetCorrelation()] = r.GetStatus()
	}
	want := map[uint64]commandsv1.ResultStatus{
		1: commandsv1.ResultStatus_RESULT_STATUS_INVALID, 2: commandsv1.ResultStatus_RESULT_STATUS_OK,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
}

func TestBreachesOfTheProtocolEndTheStream(t *testing.T) {
	t.Parallel()
	many := make([]uint64, 1001)
	for i := range many {
		many[i] = uint64(i)
	}
	tests := map[string][]*commandsv1.PublishRequest{
		"no hello":               {commands(1)},
		"second hello":           {hello(), hello()},
		"empty frame":            {hello(), {}},
		"too many commands":      {hello(), commands(many...)},
		"correlation used twice": {hello(), commands(1, 1)},
	}
	for name, frames := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake()
			f.hold = true
			_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 5000}, f, testEnv(t))
			c := open(t, service)
			c.send(frames...)
			c.ends(codes.InvalidArgument)
			f.release(producer.Outcome{}) // to nobody
			open(t, service)              // the place of the stream is free again
		})
	}
}

func TestMoreThanMaxInFlightIsRefused(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.hold = true
	_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 3}, f, testEnv(t))
	c := open(t, service)
	c.send(hello(), commands(1, 2, 3, 4, 5))
	c.receive()
	for _, r := range c.results(2) {
		if r.GetCorrelation() < 4 || r.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_RESOURCE_EXHAUSTED {
			t.Errorf("result = %v, want 4 and 5 refused", r)
		}
	}
	f.release(producer.Outcome{})
	c.results(3)
	f.hold = false
	c.send(commands(4, 5))
	c.results(2)
}

func TestFrontendThatDoesNotReadIsNotReadEither(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.refuse = &producer.Outcome{Status: producer.Unavailable, Message: string(make([]byte, 1000))}
	_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 100}, f, testEnv(t))
	c := open(t, service)
	c.send(hello())
	blocked := make(chan struct{})
	sent := make(chan int, 1)
	go func() {
		n := 0
		for ; n < 1000; n++ {
			frame := commands()
			for i := range uint64(1000) {
				frame.GetCommands().Commands = append(frame.GetCommands().Commands, &commandsv1.Command{Correlation: i})
			}
			if c.Send(frame) != nil {
				break
			}
			if n == 0 {
				close(blocked)
			}
		}
		sent <- n
	}()
	<-blocked
	select {
	case n := <-sent:
		t.Errorf("%d frames of 1000 commands were read though no result was", n)
	case <-time.After(500 * time.Millisecond):
	}
	for range 100 {
		c.receive() // and now it goes on
	}
}

func TestTooManyStreamsAreRefused(t *testing.T) {
	t.Parallel()
	_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 1}, newFake(), testEnv(t))
	first := open(t, service)
	first.send(hello())
	first.receive()
	open(t, service).ends(codes.ResourceExhausted)
	first.send(commands(1))
	first.results(1)
}

func TestDrainSaysGoawayAndFinishes(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.hold = true
	s, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 10}, f, testEnv(t))
	c := open(t, service)
	c.send(hello(), commands(1))
	c.receive()
	s.Drain()
	if got := c.receive(); got.GetGoaway() == nil {
		t.Fatalf("received %v, want goaway", got)
	}
	c.send(commands(2)) // was on its way
	if err := c.CloseSend(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return f.submitted() == 2 })
	f.release(producer.Outcome{})
	c.results(2)
	c.ends(codes.OK)
	later := open(t, service) // before the listener closes
	later.send(hello())
	later.receive()
	if got := later.receive(); got.GetGoaway() == nil {
		t.Errorf("received %v, want goaway", got)
	}
}

func TestHalfCloseWaitsForResults(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 1000}, f, testEnv(t))
	for range 50 {
		c := open(t, service)
		c.send(hello(), commands(1, 2, 3))
		if err := c.CloseSend(); err != nil {
			t.Fatal(err)
		}
		c.receive()
		c.results(3)
		c.ends(codes.OK)
	}
}

func TestRecordsCarryTheContextOfOurSpan(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	headers := func(f *fake) map[string]string {
		m := map[string]string{}
		for _, h := range f.records[0].Headers {
			m[string(h.Key)] = string(h.Value)
		}
		return m
	}
	publish := func(t *testing.T, env daemon.Env) *fake {
		t.Helper()
		f := newFake()
		_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 10, Topic: "iot-commands"}, f, env)
		c := open(t, service)
		frame := commands(1)
		frame.GetCommands().GetCommands()[0].Traceparent = parent
		frame.GetCommands().GetCommands()[0].Tracestate = "a=b"
		c.send(hello(), frame)
		c.receive()
		c.results(1)
		return f
	}
	t.Run("not traced", func(t *testing.T) {
		t.Parallel()
		got := headers(publish(t, testEnv(t)))
		if got["traceparent"] != parent || got["tracestate"] != "a=b" {
			t.Errorf("headers = %v, want the frontend's", got)
		}
	})
	t.Run("traced", func(t *testing.T) {
		t.Parallel()
		spans := tracetest.NewInMemoryExporter()
		env := testEnv(t)
		env.Tracer = trace.NewTracerProvider(trace.WithSyncer(spans))
		got := headers(publish(t, env))
		exported := spans.GetSpans()
		if len(exported) != 1 {
			t.Fatalf("%d spans, want 1", len(exported))
		}
		span := exported[0]
		if want := "00-0af7651916cd43dd8448eb211c80319c-" + span.SpanContext.SpanID().String() + "-01"; got["traceparent"] != want || got["tracestate"] != "a=b" {
			t.Errorf("headers = %v, want %s", got, want)
		}
		if span.Name != "send iot-commands" || span.SpanKind != oteltrace.SpanKindProducer {
			t.Errorf("span %q of kind %v", span.Name, span.SpanKind)
		}
		if span.Parent.SpanID().String() != "b7ad6b7169203331" {
			t.Errorf("parent = %v, want the frontend's span", span.Parent)
		}
	})
}

func TestCommandsAreCountedByOutcome(t *testing.T) {
	t.Parallel()
	reader := metric.NewManualReader()
	env := testEnv(t)
	env.Meter = metric.NewMeterProvider(metric.WithReader(reader))
	f := newFake()
	_, service := start(t, server.Config{MaxStreams: 1, MaxInFlight: 10}, f, env)
	c := open(t, service)
	frame := commands(1, 2, 3)
	frame.GetCommands().GetCommands()[2].Id = ""
	c.send(hello(), frame)
	c.receive()
	c.results(3)
	var data metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, m := range data.ScopeMetrics[0].Metrics {
		if sum, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "mqtt_integration.commands" {
			for _, p := range sum.DataPoints {
				outcome, _ := p.Attributes.Value("outcome")
				got[outcome.AsString()] = p.Value
			}
		}
	}
	if diff := cmp.Diff(map[string]int64{"ok": 2, "invalid": 1}, got); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}
