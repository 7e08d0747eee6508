package grpcserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcclient"
	"mqtt-integration/libs/grpcserver"
	"mqtt-integration/libs/internal/grpctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is a log that several goroutines write.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func connect(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpcclient.New(grpcclient.Config{Addresses: []string{address}, Timeout: 20 * time.Second}, grpctest.Env(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestErrors(t *testing.T) {
	t.Parallel()
	internal := status.New(codes.Internal, "internal error")
	tests := []struct {
		name string
		err  func(ctx context.Context) error
		want *status.Status
		log  string // what the log has, "" if nothing
	}{
		{name: "none", err: func(context.Context) error { return nil }, want: status.New(codes.OK, "")},
		{
			name: "a status", err: func(context.Context) error { return status.Error(codes.NotFound, "unknown device") },
			want: status.New(codes.NotFound, "unknown device"),
		},
		{
			name: "any other error", err: func(context.Context) error { return errors.New("password of db is hunter2") },
			want: internal, log: "password of db is hunter2",
		},
		{
			name: "a wrapped status, as another service gave it to us",
			err: func(context.Context) error {
				return fmt.Errorf("ask the store: %w", status.Error(codes.Unauthenticated, "bad token"))
			},
			want: internal, log: "ask the store",
		},
		{
			name: "a deadline of the handler's own", err: func(context.Context) error { return context.DeadlineExceeded },
			want: internal, log: "deadline exceeded",
		},
		{name: "a panic", err: func(context.Context) error { panic("hunter2") }, want: internal, log: "panic=hunter2"},
		{
			name: "a panic of the runtime", err: func(ctx context.Context) error { return []error{}[len(fmt.Sprint(ctx))] },
			want: internal, log: "grpcserver_test.TestErrors",
		},
	}
	for _, tt := range tests {
		for _, kind := range []string{"unary", "stream"} {
			t.Run(tt.name+", "+kind, func(t *testing.T) {
				t.Parallel()
				var log buffer
				env := daemon.NewEnv(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError})))
				server := grpctest.Start(t, &grpctest.Service{
					Unary:  func(ctx context.Context) (string, error) { return "answer", tt.err(ctx) },
					Stream: func(stream grpc.ServerStream) error { return tt.err(stream.Context()) },
				}, env, time.Second)
				conn := connect(t, server.Address)

				// Twice: a panic has to leave the server alive.
				for range 2 {
					got := call(t, conn, kind)
					if got.Code() != tt.want.Code() || got.Message() != tt.want.Message() {
						t.Errorf("the client got %v, want %v", got, tt.want)
					}
				}
				if got := log.String(); tt.log == "" && got != "" || !strings.Contains(got, tt.log) {
					t.Errorf("log is %q, want %q in it", got, tt.log)
				}
				if tt.log != "" && !strings.Contains(log.String(), "rpc_method=/test.Service/") {
					t.Errorf("log is %q, want the method in it", log.String())
				}
			})
		}
	}
}

func call(t *testing.T, conn *grpc.ClientConn, kind string) *status.Status {
	t.Helper()
	if kind == "unary" {
		_, err := grpctest.CallUnary(t.Context(), conn, grpc.WaitForReady(true))
		return status.Convert(err)
	}
	stream, err := grpctest.CallStream(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	err = stream.RecvMsg(&wrapperspb.StringValue{})
	if errors.Is(err, io.EOF) {
		return status.New(codes.OK, "")
	}
	return status.Convert(err)
}

func TestCallThatTheClientGivesUpIsNoError(t *testing.T) {
	t.Parallel()
	var log buffer
	env := daemon.NewEnv(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError})))
	ended := make(chan struct{})
	server := grpctest.Start(t, &grpctest.Service{Unary: func(ctx context.Context) (string, error) {
		defer close(ended)
		<-ctx.Done()
		return "", fmt.Errorf("wait for the store: %w", ctx.Err())
	}}, env, time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := grpctest.CallUnary(ctx, connect(t, server.Address), grpc.WaitForReady(true))
	if got, want := status.Code(err), codes.DeadlineExceeded; got != want {
		t.Errorf("the client got %v, want %v", got, want)
	}
	<-ended
	server.Stop()
	if err := <-server.Done; err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
	if log.String() != "" {
		t.Errorf("log is %q, want nothing", log.String())
	}
}

func TestDrainLetsCallsFinish(t *testing.T) {
	t.Parallel()
	env := grpctest.Env(t)
	begun, release := make(chan struct{}), make(chan struct{})
	server := grpctest.Start(t, &grpctest.Service{Unary: func(context.Context) (string, error) {
		close(begun)
		<-release
		return "finished", nil
	}}, env, time.Minute)
	conn := connect(t, server.Address)
	result := make(chan error, 1)
	go func() {
		got, err := grpctest.CallUnary(t.Context(), conn, grpc.WaitForReady(true))
		if err == nil && got != "finished" {
			err = fmt.Errorf("answer is %q, want %q", got, "finished")
		}
		result <- err
	}()
	<-begun
	if err := env.Health.Ready(); err != nil {
		t.Errorf("Ready() = %v while it serves, want nil", err)
	}
	health, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{Service: "test.Service"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthv1.HealthCheckResponse_ServingStatus{healthv1.HealthCheckResponse_SERVING, healthv1.HealthCheckResponse_NOT_SERVING} {
		got, recvErr := health.Recv()
		if recvErr != nil || got.GetStatus() != want {
			t.Fatalf("health is %v, %v, want %v", got.GetStatus(), recvErr, want)
		}
		server.Stop()
	}
	if err := env.Health.Ready(); err == nil {
		t.Error("Ready() = nil while it drains, want an error")
	}
	select {
	case err := <-server.Done:
		t.Fatalf("Run() = %v with a call in progress", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-result; err != nil {
		t.Errorf("the call in progress failed: %v", err)
	}
	// A watch of health would last for ever; it is no reason to wait a minute.
	if _, err := health.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watch of health ended with %v, want Unavailable", err)
	}
	if err := <-server.Done; err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
}

func TestDrainIsBounded(t *testing.T) {
	t.Parallel()
	var ended bool // no lock: Run returns after its handlers
	server := grpctest.Start(t, &grpctest.Service{Stream: func(stream grpc.ServerStream) error {
		<-stream.Context().Done()
		time.Sleep(100 * time.Millisecond) // cleaning up after itself
		ended = true
		return stream.Context().Err()
	}}, grpctest.Env(t), 100*time.Millisecond)
	stream, err := grpctest.CallStream(t.Context(), connect(t, server.Address))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	server.Stop()
	if err := <-server.Done; err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
	if took := time.Since(start); took < 100*time.Millisecond || took > 10*time.Second {
		t.Errorf("Run took %v to end, want the drain of 100ms", took)
	}
	if !ended {
		t.Error("Run returned before its handler")
	}
	if err := stream.RecvMsg(&wrapperspb.StringValue{}); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v, want Unavailable", err)
	}
}

func TestRunThatEndsAtOnce(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	env := grpctest.Env(t)
	env.Listen = func(context.Context, string, string) (net.Listener, error) {
		return new(net.ListenConfig).Listen(context.WithoutCancel(ctx), "tcp", "127.0.0.1:0")
	}
	if err := grpcserver.New(grpcserver.Config{Address: "127.0.0.1:0"}, env).Run(ctx, time.Second); err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
}

func TestRunNamesAnAddressInUse(t *testing.T) {
	t.Parallel()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	env, address := grpctest.Env(t), listener.Addr().String()
	err = grpcserver.New(grpcserver.Config{Address: address}, env).Run(t.Context(), time.Second)
	if err == nil || !strings.Contains(err.Error(), "listen on "+address) {
		t.Errorf("Run() = %v, want an error that names %s", err, address)
	}
	if err := env.Health.Ready(); err == nil {
		t.Error("Ready() = nil, want an error")
	}
}

func TestMessageLimit(t *testing.T) {
	t.Parallel()
	server := grpctest.Start(t, &grpctest.Service{Unary: func(context.Context) (string, error) {
		return strings.Repeat("x", grpcserver.MaxMessageSize), nil
	}}, grpctest.Env(t), time.Second)
	conn := connect(t, server.Address)
	if _, err := grpctest.CallUnary(t.Context(), conn, grpc.WaitForReady(true)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("an answer that is too large gave %v, want ResourceExhausted", err)
	}
	request := wrapperspb.String(strings.Repeat("x", grpcserver.MaxMessageSize))
	if err := conn.Invoke(t.Context(), grpctest.Unary, request, &wrapperspb.StringValue{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a request that is too large gave %v, want ResourceExhausted", err)
	}
}

func TestTraceContextArrivesWithoutTracing(t *testing.T) {
	t.Parallel()
	var got trace.SpanContext
	server := grpctest.Start(t, &grpctest.Service{Unary: func(ctx context.Context) (string, error) {
		got = trace.SpanContextFromContext(ctx)
		return "", nil
	}}, grpctest.Env(t), time.Second)
	want := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	ctx := trace.ContextWithSpanContext(t.Context(), want)
	if _, err := grpctest.CallUnary(ctx, connect(t, server.Address), grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	if got.TraceID() != want.TraceID() || got.SpanID() != want.SpanID() || !got.IsSampled() {
		t.Errorf("the handler's span context is %v, want %v", got, want)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	tests := []struct {
		cfg  grpcserver.Config
		want string
	}{
		{cfg: grpcserver.Config{Address: "127.0.0.1:0"}},
		{cfg: grpcserver.Config{Address: "127.5.5.5:1"}},
		{cfg: grpcserver.Config{Address: "[::1]:9090"}},
		{cfg: grpcserver.Config{Address: "LocalHost:9090"}},
		{cfg: grpcserver.Config{Address: ":9090", Insecure: true}},
		{cfg: grpcserver.Config{}, want: "address: is required"},
		{cfg: grpcserver.Config{Address: "localhost"}, want: "address: address localhost: missing port in address"},
		{cfg: grpcserver.Config{Address: "localhost:"}, want: `address: "localhost:" has no port`},
		{cfg: grpcserver.Config{Address: ":9090"}, want: "address: :9090 is not on the loopback interface, where plaintext needs insecure: true"},
		{cfg: grpcserver.Config{Address: "10.0.0.1:9090"}, want: "address: 10.0.0.1:9090 is not on the loopback interface, where plaintext needs insecure: true"},
		{cfg: grpcserver.Config{Address: "localhost.example.com:9090"}, want: "address: localhost.example.com:9090 is not on the loopback interface, where plaintext needs insecure: true"},
	}
	for _, tt := range tests {
		if err := tt.cfg.Validate(); fmt.Sprint(err) != tt.want && (err != nil || tt.want != "") {
			t.Errorf("Validate(%+v) = %v, want %q", tt.cfg, err, tt.want)
		}
	}
}
