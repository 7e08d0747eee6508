package grpcclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/discovery"
	"mqtt-integration/libs/internal/grpcpolicy"
)

// MaxMessageSize is the size in bytes of the largest message by default.
const MaxMessageSize = grpcpolicy.MaxMessageSize

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 2 * time.Second
	// connectTimeout is how long one attempt may take, so that a server whose
	// packets are dropped does not hold up the attempts at the others.
	connectTimeout = 5 * time.Second
)

// roundRobin is the service config: use all servers, not the first that answers.
const roundRobin = `{"loadBalancingConfig": [{"round_robin": {}}]}`

// Config says where a service is.
type Config struct {
	// Addresses are host:port of all instances; a DNS name stands for all addresses
	// that it has.
	Addresses []string `yaml:"addresses"`
	// PollInterval lies between two lookups of DNS names. Zero: 10 s.
	PollInterval time.Duration `yaml:"poll_interval"`
	// Insecure allows plaintext to an address that is not loopback.
	Insecure bool `yaml:"insecure"`
	// TLS is mutual TLS 1.3; its zero value is plaintext.
	TLS TLS `yaml:"tls"`
	// Timeout ends a unary call whose context has no deadline. Zero means that
	// there is no such limit. Streams have none either way.
	Timeout time.Duration `yaml:"timeout"`
	// Resolver looks names up. Nil: the system's. Not part of the file.
	Resolver discovery.Resolver `yaml:"-"`
}

// TLS is files in PEM, which are read again when they change.
type TLS struct {
	// CertFile is our certificate, followed by those that lead to its authority.
	CertFile string `yaml:"cert_file"`
	// KeyFile is its key.
	KeyFile string `yaml:"key_file"`
	// CAFile has the authorities of the servers' certificates.
	CAFile string `yaml:"ca_file"`
	// ServerName is what the servers' certificates must be for. Empty: the host of
	// each address, as it is configured.
	ServerName string `yaml:"server_name"`
}

// Enabled says whether there is anything.
func (t TLS) Enabled() bool { return t != TLS{} }

// Validate reports every problem under its YAML path. Plaintext is allowed to
// the loopback interface, elsewhere only with insecure.
func (c Config) Validate() error {
	var errs []error
	if len(c.Addresses) == 0 {
		errs = append(errs, errors.New("addresses: at least one is required"))
	}
	for i, address := range c.Addresses {
		if err := grpcpolicy.CheckAddress(address, c.TLS.Enabled(), c.Insecure); err != nil {
			errs = append(errs, fmt.Errorf("addresses[%d]: %w", i, err))
		} else if host, _, _ := net.SplitHostPort(address); host == "" {
			errs = append(errs, fmt.Errorf("addresses[%d]: %q has no host", i, address))
		}
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout: %v is negative", c.Timeout))
	}
	if c.PollInterval < 0 {
		errs = append(errs, fmt.Errorf("poll_interval: %v is negative", c.PollInterval))
	}
	if c.TLS.Enabled() {
		if c.Insecure {
			errs = append(errs, errors.New("insecure: is true, and there is tls"))
		}
		errs = append(errs, grpcpolicy.CheckFiles(c.TLS.CertFile, c.TLS.KeyFile, c.TLS.CAFile, "ca_file"))
	}
	return errors.Join(errs...)
}

// Instance is the configuration of a connection to one instance of a view of
// these addresses.
func (c Config) Instance(instance discovery.Instance) Config {
	c.Addresses = []string{instance.Address}
	if c.TLS.Enabled() && c.TLS.ServerName == "" {
		c.TLS.ServerName = instance.Name
	}
	return c
}

// Discovery makes a poller of the addresses, for callers that choose the
// instance themselves. The caller runs it.
func (c Config) Discovery(env daemon.Env) (*discovery.Poller, error) {
	return discovery.New(discovery.Config{
		Addresses: c.Addresses, Interval: c.PollInterval, Resolver: c.Resolver, Logger: env.Complete().Logger,
	})
}

// New makes a connection to all instances at once, over which calls take turns.
// Options come after ours. The caller closes it.
func New(cfg Config, env daemon.Env, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("grpc client: %w", err)
	}
	env = env.Complete()
	transport := insecure.NewCredentials()
	if cfg.TLS.Enabled() {
		var err error
		if transport, err = mutual(cfg.TLS, env.Logger); err != nil {
			return nil, fmt.Errorf("grpc client: tls: %w", err)
		}
	}
	poller, err := cfg.Discovery(env)
	if err != nil {
		return nil, fmt.Errorf("grpc client: addresses: %w", err)
	}
	all := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithResolvers(builder{poller, cfg.TLS.ServerName}),
		grpc.WithKeepaliveParams(grpcpolicy.ClientKeepalive()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithDefaultServiceConfig(roundRobin),
		grpc.WithDisableServiceConfig(), // not from DNS TXT records
		// A server that was gone is looked for again; the default is to sleep
		// after half an hour without calls.
		grpc.WithIdleTimeout(0),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageSize)),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(
			otelgrpc.WithTracerProvider(env.Tracer), otelgrpc.WithMeterProvider(env.Meter),
			otelgrpc.WithPropagators(env.Propagator))),
	}
	if cfg.Timeout > 0 {
		all = append(all, grpc.WithChainUnaryInterceptor(withTimeout(cfg.Timeout)))
	}
	conn, err := grpc.NewClient(scheme+":///services", append(all, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("grpc client for %v: %w", cfg.Addresses, err)
	}
	return conn, nil
}

// withTimeout gives a deadline to calls that have none.
func withTimeout(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		return invoker(ctx, method, req, reply, cc, opts...)
	}
}
