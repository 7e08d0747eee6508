// Package grpctest has a gRPC service for the tests of grpcserver and
// grpcclient, written by hand: proto has none to spare.
package grpctest

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
)

// The methods of the service.
const (
	Unary  = "/test.Service/Unary"
	Stream = "/test.Service/Stream"
)

// Service answers Unary with a string, and Stream by ending it, after it sent
// one message.
type Service struct {
	Unary  func(ctx context.Context) (string, error)
	Stream func(stream grpc.ServerStream) error
}

// Register adds the service to a server.
func (s *Service) Register(registrar grpc.ServiceRegistrar) {
	registrar.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Service",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Unary", Handler: s.unary}},
		Streams:     []grpc.StreamDesc{{StreamName: "Stream", Handler: s.stream, ServerStreams: true}},
	}, s)
}

func (s *Service) unary(_ any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // the order of grpc.MethodHandler
	var request wrapperspb.StringValue
	if err := decode(&request); err != nil {
		return nil, err
	}
	handler := func(ctx context.Context, _ any) (any, error) {
		text, err := s.Unary(ctx)
		return wrapperspb.String(text), err
	}
	return interceptor(ctx, &request, &grpc.UnaryServerInfo{Server: s, FullMethod: Unary}, handler)
}

func (s *Service) stream(_ any, stream grpc.ServerStream) error {
	if err := stream.RecvMsg(&wrapperspb.StringValue{}); err != nil {
		return err
	}
	if err := stream.SendMsg(wrapperspb.String("begun")); err != nil {
		return err
	}
	return s.Stream(stream)
}

// CallUnary calls Unary.
func CallUnary(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (string, error) {
	var reply wrapperspb.StringValue
	err := conn.Invoke(ctx, Unary, wrapperspb.String("hello"), &reply, opts...)
	return reply.GetValue(), err
}

// CallStream opens Stream, and returns once the handler runs.
func CallStream(ctx context.Context, conn grpc.ClientConnInterface) (grpc.ClientStream, error) {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{StreamName: "Stream", ServerStreams: true}, Stream, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(wrapperspb.String("hello")); err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	return stream, stream.RecvMsg(&wrapperspb.StringValue{})
}

// Running is a server that Start has started.
type Running struct {
	// Address is where it listens.
	Address string
	// Stop ends the context of Run, and Done gives what Run returned then.
	Stop context.CancelFunc
	Done <-chan error
}

// Start runs a server with the service on a free loopback port until the test
// ends or Stop is called. env.Listen, if any, is replaced.
func Start(t *testing.T, service *Service, env daemon.Env, drain time.Duration) Running {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return StartOn(t, listener, service, env, drain)
}

// StartOn is Start on a listener of the caller's.
func StartOn(t *testing.T, listener net.Listener, service *Service, env daemon.Env, drain time.Duration) Running {
	t.Helper()
	return StartWith(t, grpcserver.Config{}, listener, service, env, drain)
}

// StartWith is StartOn with a configuration, whose address is replaced.
func StartWith(t *testing.T, cfg grpcserver.Config, listener net.Listener, service *Service, env daemon.Env, drain time.Duration) Running {
	t.Helper()
	env.Listen = func(context.Context, string, string) (net.Listener, error) { return listener, nil }
	cfg.Address = listener.Addr().String()
	server := grpcserver.New(cfg, env)
	service.Register(server.Registrar())
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		done <- server.Run(ctx, drain)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return Running{Address: listener.Addr().String(), Stop: cancel, Done: done}
}

// Env is an environment that logs to the test.
func Env(t *testing.T) daemon.Env {
	t.Helper()
	return daemon.NewEnv(slog.New(slog.NewTextHandler(t.Output(), nil)))
}
