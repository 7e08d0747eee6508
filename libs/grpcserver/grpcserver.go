package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/internal/grpcpolicy"
)

// MaxMessageSize is the size in bytes of the largest message by default.
const MaxMessageSize = grpcpolicy.MaxMessageSize

// connectionTimeout bounds the handshake of a new connection.
const connectionTimeout = 10 * time.Second

var errStopped = errors.New("stopped")

// Config says where a server listens.
type Config struct {
	// Address is host:port. Port 0 is any free one.
	Address string `yaml:"address"`
	// Insecure allows plaintext on an address that is not loopback.
	Insecure bool `yaml:"insecure"`
}

// Validate reports every problem under its YAML path. Plaintext is allowed on
// the loopback interface, elsewhere only with insecure.
func (c Config) Validate() error {
	if c.Address == "" {
		return errors.New("address: is required")
	}
	if err := grpcpolicy.CheckAddress(c.Address, c.Insecure); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	return nil
}

// Server is a gRPC server that has not been run, is running, or has ended.
type Server struct {
	cfg    Config
	env    daemon.Env
	server *grpc.Server
	health *healthService
	ready  *daemon.Check
}

// New makes a server. Register the services, then call Run, once.
//
// Options come after ours: interceptors run inside ours, so that what they
// return is still subject to the rules for errors, and single values replace
// ours. A handler's error that is a gRPC status goes to the client as it is, so
// do cancellation and the deadline of the call; any other error is logged and
// leaves as Internal "internal error", without its text. A status that is wrapped
// in another error counts as any other error: it was not meant for our client.
func New(cfg Config, env daemon.Env, opts ...grpc.ServerOption) *Server {
	env = env.Complete()
	guard := guard{logger: env.Logger}
	all := append([]grpc.ServerOption{
		grpc.KeepaliveParams(grpcpolicy.ServerKeepalive()),
		grpc.KeepaliveEnforcementPolicy(grpcpolicy.ServerEnforcement()),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.MaxRecvMsgSize(MaxMessageSize),
		grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(env.Tracer), otelgrpc.WithMeterProvider(env.Meter),
			otelgrpc.WithPropagators(env.Propagator), otelgrpc.WithFilter(notHealth))),
		grpc.ChainUnaryInterceptor(guard.unary),
		grpc.ChainStreamInterceptor(guard.stream),
		// Wait for handlers also when Stop cuts them off: nothing that a handler
		// uses may be closed while it runs.
		grpc.WaitForHandlers(true),
	}, opts...)
	s := &Server{
		cfg: cfg, env: env, server: grpc.NewServer(all...), health: newHealthService(),
		ready: env.Health.Register("grpc server " + cfg.Address),
	}
	healthv1.RegisterHealthServer(s.server, s.health)
	return s
}

// notHealth leaves health checks out of traces and metrics.
func notHealth(info *stats.RPCTagInfo) bool {
	return info.FullMethodName != healthv1.Health_Check_FullMethodName &&
		info.FullMethodName != healthv1.Health_Watch_FullMethodName
}

// Registrar is where services are registered, before Run.
func (s *Server) Registrar() grpc.ServiceRegistrar { return s.server }

// Run serves until ctx ends. Then health says NOT_SERVING, no new call is
// accepted, and calls in progress have until drain to end before they are cut
// off. It returns nil after that, and an error when it cannot listen or serve.
func (s *Server) Run(ctx context.Context, drain time.Duration) error {
	listener, err := s.env.Listen(ctx, "tcp", s.cfg.Address)
	if err != nil {
		s.server.Stop()
		s.ready.Set(err)
		return fmt.Errorf("listen on %s: %w", s.cfg.Address, err)
	}
	s.env.Logger.InfoContext(ctx, "grpc server is listening", slog.String("address", listener.Addr().String()))
	for name := range s.server.GetServiceInfo() {
		s.health.SetServingStatus(name, healthv1.HealthCheckResponse_SERVING)
	}

	done := make(chan error, 1)
	go func() { done <- s.server.Serve(listener) }()
	s.ready.Set(nil)
	defer s.ready.Set(errStopped)

	select {
	case err := <-done:
		s.server.Stop()
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	s.ready.Set(errStopped)
	s.health.Shutdown()
	cut := time.AfterFunc(max(drain, 0), func() {
		s.env.Logger.WarnContext(ctx, "grpc calls cut off at the end of the drain", slog.String("address", listener.Addr().String()))
		s.server.Stop()
	})
	s.server.GracefulStop()
	cut.Stop()
	// ErrServerStopped is what Serve says when ctx ended before it began.
	if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	}
	return nil
}
