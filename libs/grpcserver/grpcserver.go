package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
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

// Config says where a server listens, and to whom.
type Config struct {
	// Address is host:port. Port 0 is any free one.
	Address string `yaml:"address"`
	// Insecure allows plaintext on an address that is not loopback.
	Insecure bool `yaml:"insecure"`
	// TLS is mutual TLS 1.3; its zero value is plaintext.
	TLS TLS `yaml:"tls"`
	// AllowedClients are the identities that may call, at least one with TLS: DNS
	// names or URIs of client certificates. They are compared as a whole, without
	// wildcards; one of those that a certificate has suffices.
	AllowedClients []string `yaml:"allowed_clients"`
}

// TLS is files in PEM, which are read again when they change.
type TLS struct {
	// CertFile is our certificate, followed by those that lead to its authority.
	CertFile string `yaml:"cert_file"`
	// KeyFile is its key.
	KeyFile string `yaml:"key_file"`
	// ClientCAFile has the authorities of the clients' certificates.
	ClientCAFile string `yaml:"client_ca_file"`
}

// Enabled says whether there is anything.
func (t TLS) Enabled() bool { return t != TLS{} }

// Validate reports every problem under its YAML path. Plaintext is allowed on
// the loopback interface, elsewhere only with insecure.
func (c Config) Validate() error {
	var errs []error
	if c.Address == "" {
		errs = append(errs, errors.New("address: is required"))
	} else if err := grpcpolicy.CheckAddress(c.Address, c.TLS.Enabled(), c.Insecure); err != nil {
		errs = append(errs, fmt.Errorf("address: %w", err))
	}
	if !c.TLS.Enabled() {
		if len(c.AllowedClients) > 0 {
			errs = append(errs, errors.New("allowed_clients: without tls, clients have no identity"))
		}
		return errors.Join(errs...)
	}
	if c.Insecure {
		errs = append(errs, errors.New("insecure: is true, and there is tls"))
	}
	errs = append(errs, grpcpolicy.CheckFiles(c.TLS.CertFile, c.TLS.KeyFile, c.TLS.ClientCAFile, "client_ca_file"))
	if len(c.AllowedClients) == 0 {
		errs = append(errs, errors.New("allowed_clients: at least one is required with tls"))
	}
	for i, identity := range c.AllowedClients {
		if err := checkIdentity(identity); err != nil {
			errs = append(errs, fmt.Errorf("allowed_clients[%d]: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// Server is a gRPC server that has not been run, is running, or has ended.
type Server struct {
	cfg    Config
	env    daemon.Env
	server *grpc.Server
	health *healthService
	ready  *daemon.Check
	files  error // why the files of TLS cannot be used
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
	var files error
	transport := insecure.NewCredentials()
	unary, stream := []grpc.UnaryServerInterceptor{guard.unary}, []grpc.StreamServerInterceptor{guard.stream}
	if cfg.TLS.Enabled() {
		transport, files = mutual(cfg.TLS, env.Logger)
		allowed := newAllowList(cfg.AllowedClients, env.Logger)
		unary, stream = slices.Insert(unary, 0, allowed.unary), slices.Insert(stream, 0, allowed.stream)
	}
	all := append([]grpc.ServerOption{
		grpc.Creds(transport),
		grpc.KeepaliveParams(grpcpolicy.ServerKeepalive()),
		grpc.KeepaliveEnforcementPolicy(grpcpolicy.ServerEnforcement()),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.MaxRecvMsgSize(MaxMessageSize),
		grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithTracerProvider(env.Tracer), otelgrpc.WithMeterProvider(env.Meter),
			otelgrpc.WithPropagators(env.Propagator), otelgrpc.WithFilter(notHealth))),
		grpc.ChainUnaryInterceptor(unary...),
		grpc.ChainStreamInterceptor(stream...),
		// Wait for handlers also when Stop cuts them off: nothing that a handler
		// uses may be closed while it runs.
		grpc.WaitForHandlers(true),
	}, opts...)
	s := &Server{
		cfg: cfg, env: env, server: grpc.NewServer(all...), health: newHealthService(),
		ready: env.Health.Register("grpc server " + cfg.Address), files: files,
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
// off. It returns nil after that, and an error when it cannot listen or serve, or
// the files of TLS cannot be used.
func (s *Server) Run(ctx context.Context, drain time.Duration) error {
	if s.files != nil {
		s.server.Stop()
		s.ready.Set(s.files)
		return fmt.Errorf("grpc server on %s: tls: %w", s.cfg.Address, s.files)
	}
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
