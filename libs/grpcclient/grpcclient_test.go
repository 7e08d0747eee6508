package grpcclient_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/grpcclient"
	"mqtt-integration/libs/internal/grpcpolicy"
	"mqtt-integration/libs/internal/grpctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func named(name string) *grpctest.Service {
	return &grpctest.Service{Unary: func(context.Context) (string, error) { return name, nil }}
}

func connect(t *testing.T, cfg grpcclient.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := grpcclient.New(cfg, grpctest.Env(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func TestCallsTakeTurns(t *testing.T) {
	t.Parallel()
	a := grpctest.Start(t, named("a"), grpctest.Env(t), time.Second)
	b := grpctest.Start(t, named("b"), grpctest.Env(t), time.Second)
	gone := listen(t, "127.0.0.1:0")
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, grpcclient.Config{Addresses: []string{a.Address, gone.Addr().String(), b.Address}})

	seen := map[string]bool{}
	for deadline := time.Now().Add(20 * time.Second); len(seen) < 2 && time.Now().Before(deadline); {
		got, err := grpctest.CallUnary(t.Context(), conn, grpc.WaitForReady(true))
		if err != nil {
			t.Fatalf("with one of three servers gone: %v", err)
		}
		seen[got] = true
	}
	if want := map[string]bool{"a": true, "b": true}; !cmp.Equal(seen, want) {
		t.Errorf("calls went to %v, want %v", seen, want)
	}

	a.Stop()
	if err := <-a.Done; err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if got, err := grpctest.CallUnary(t.Context(), conn, grpc.WaitForReady(true)); err != nil || got != "b" {
			t.Errorf("after a has stopped: %q, %v, want b", got, err)
		}
	}
}

func TestNameIsLookedUp(t *testing.T) {
	t.Parallel()
	server := grpctest.Start(t, named("a"), grpctest.Env(t), time.Second)
	_, port, err := net.SplitHostPort(server.Address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn := connect(t, grpcclient.Config{Addresses: []string{"localhost:" + port}})
	if got, err := grpctest.CallUnary(ctx, conn, grpc.WaitForReady(true)); err != nil || got != "a" {
		t.Errorf("call = %q, %v, want a", got, err)
	}
}

func TestReconnectsWithinSeconds(t *testing.T) {
	t.Parallel()
	listener := listen(t, "127.0.0.1:0")
	address := listener.Addr().String()
	first := grpctest.StartOn(t, listener, named("first"), grpctest.Env(t), time.Second)
	conn := connect(t, grpcclient.Config{Addresses: []string{address}})
	if _, err := grpctest.CallUnary(t.Context(), conn, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	first.Stop()
	if err := <-first.Done; err != nil {
		t.Fatal(err)
	}
	// Without waiting, a call fails at once while nobody is there.
	if _, err := grpctest.CallUnary(t.Context(), conn); status.Code(err) != codes.Unavailable {
		t.Errorf("call = %v with the server gone, want Unavailable", err)
	}
	grpctest.StartOn(t, listen(t, address), named("second"), grpctest.Env(t), time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if got, err := grpctest.CallUnary(ctx, conn, grpc.WaitForReady(true)); err != nil || got != "second" {
		t.Errorf("call = %q, %v after the restart, want second", got, err)
	}
}

func TestTimeoutIsForCallsWithoutDeadline(t *testing.T) {
	t.Parallel()
	deadlines := make(chan time.Duration, 1)
	server := grpctest.Start(t, &grpctest.Service{Unary: func(ctx context.Context) (string, error) {
		deadline, ok := ctx.Deadline()
		if !ok {
			deadlines <- 0
		} else {
			deadlines <- time.Until(deadline)
		}
		return "", nil
	}}, grpctest.Env(t), time.Second)

	tests := []struct {
		name      string
		timeout   time.Duration
		ctx       time.Duration
		low, high time.Duration
	}{
		{name: "none at all"},
		{name: "that of the configuration", timeout: time.Hour, low: 50 * time.Minute, high: time.Hour},
		{name: "that of the caller, longer", timeout: time.Minute, ctx: time.Hour, low: 50 * time.Minute, high: time.Hour},
		{name: "that of the caller, shorter", timeout: 24 * time.Hour, ctx: time.Hour, low: 50 * time.Minute, high: time.Hour},
	}
	for _, tt := range tests {
		ctx := t.Context()
		if tt.ctx > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, tt.ctx)
			defer cancel()
		}
		conn := connect(t, grpcclient.Config{Addresses: []string{server.Address}, Timeout: tt.timeout})
		if _, err := grpctest.CallUnary(ctx, conn, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
		if got := <-deadlines; got < tt.low || got > tt.high {
			t.Errorf("%s: the handler has %v, want %v to %v", tt.name, got, tt.low, tt.high)
		}
	}
}

func TestOneTraceAcrossTheCall(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	env := grpctest.Env(t)
	env.Tracer = tracer
	server := grpctest.Start(t, named("a"), env, time.Second)
	conn, err := grpcclient.New(grpcclient.Config{Addresses: []string{server.Address}}, env)
	if err != nil {
		t.Fatal(err)
	}
	ctx, parent := tracer.Tracer("test").Start(t.Context(), "parent")
	_, err = grpctest.CallUnary(ctx, conn, grpc.WaitForReady(true))
	parent.End()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	server.Stop()
	if err := <-server.Done; err != nil {
		t.Error(err)
	}
	kinds := map[string]int{}
	for _, span := range spans.Ended() {
		if span.SpanContext().TraceID() != parent.SpanContext().TraceID() {
			t.Errorf("span %q is of another trace", span.Name())
		}
		kinds[span.SpanKind().String()]++
	}
	if want := map[string]int{"internal": 1, "client": 1, "server": 1}; !cmp.Equal(kinds, want) {
		t.Errorf("spans are %v, want %v", kinds, want)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	tests := []struct {
		cfg  grpcclient.Config
		want string
	}{
		{cfg: grpcclient.Config{Addresses: []string{"localhost:1", "[::1]:2"}, Timeout: time.Second}},
		{cfg: grpcclient.Config{Addresses: []string{"authorization.svc:1"}, Insecure: true}},
		{cfg: grpcclient.Config{}, want: "addresses: at least one is required"},
		{
			cfg: grpcclient.Config{Addresses: []string{"localhost:1", "authorization.svc:1", "x", ":3"}, Timeout: -1},
			want: "addresses[1]: authorization.svc:1 is not on the loopback interface, where plaintext needs insecure: true\n" +
				"addresses[2]: address x: missing port in address\n" +
				"addresses[3]: :3 is not on the loopback interface, where plaintext needs insecure: true\n" +
				"timeout: -1ns is negative",
		},
		{cfg: grpcclient.Config{Addresses: []string{":3"}, Insecure: true}, want: `addresses[0]: ":3" has no host`},
	}
	for _, tt := range tests {
		err := tt.cfg.Validate()
		if fmt.Sprint(err) != tt.want && (err != nil || tt.want != "") {
			t.Errorf("Validate(%+v) = %v, want %q", tt.cfg, err, tt.want)
		}
		conn, newErr := grpcclient.New(tt.cfg, grpctest.Env(t))
		if (newErr == nil) != (err == nil) {
			t.Errorf("New(%+v) = %v, Validate() = %v, want them to agree", tt.cfg, newErr, err)
		}
		if newErr == nil {
			_ = conn.Close()
		}
	}
}

func TestKeepaliveOfBothSidesFits(t *testing.T) {
	t.Parallel()
	if client, server := grpcpolicy.ClientKeepalive(), grpcpolicy.ServerEnforcement(); client.Time < 2*server.MinTime ||
		client.PermitWithoutStream != server.PermitWithoutStream {
		t.Errorf("clients ping as %+v, but servers enforce %+v", client, server)
	}
}
