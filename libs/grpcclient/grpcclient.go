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
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"mqtt-integration/libs/daemon"
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
	// Addresses are host:port of all instances, or one DNS name with port, which
	// stands for all addresses that it has.
	Addresses []string `yaml:"addresses"`
	// Insecure allows plaintext to an address that is not loopback.
	Insecure bool `yaml:"insecure"`
	// Timeout ends a unary call whose context has no deadline. Zero means that
	// there is no such limit. Streams have none either way.
	Timeout time.Duration `yaml:"timeout"`
}

// Validate reports every problem under its YAML path. Plaintext is allowed to
// the loopback interface, elsewhere only with insecure.
func (c Config) Validate() error {
	var errs []error
	if len(c.Addresses) == 0 {
		errs = append(errs, errors.New("addresses: at least one is required"))
	}
	for i, address := range c.Addresses {
		if err := grpcpolicy.CheckAddress(address, c.Insecure); err != nil {
			errs = append(errs, fmt.Errorf("addresses[%d]: %w", i, err))
		} else if host, _, _ := net.SplitHostPort(address); host == "" {
			errs = append(errs, fmt.Errorf("addresses[%d]: %q has no host", i, address))
		}
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout: %v is negative", c.Timeout))
	}
	return errors.Join(errs...)
}

// New makes a connection to all instances at once, over which calls take turns.
// Options come after ours. The caller closes it.
func New(cfg Config, env daemon.Env, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("grpc client: %w", err)
	}
	env = env.Complete()
	all := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
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
	target := "dns:///" + cfg.Addresses[0]
	if len(cfg.Addresses) > 1 {
		all = append(all, grpc.WithResolvers(static(cfg.Addresses)))
		target = "static:///services"
	}
	conn, err := grpc.NewClient(target, append(all, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("grpc client for %v: %w", cfg.Addresses, err)
	}
	return conn, nil
}

// static resolves to a fixed list. A name in it is looked up with each attempt
// to connect, and stands for one of its addresses only.
func static(addresses []string) *manual.Resolver {
	list := make([]resolver.Endpoint, len(addresses))
	for i, address := range addresses {
		list[i] = resolver.Endpoint{Addresses: []resolver.Address{{Addr: address}}}
	}
	r := manual.NewBuilderWithScheme("static")
	r.InitialState(resolver.State{Endpoints: list})
	return r
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
