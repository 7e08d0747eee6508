package delivery

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcclient"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

// Client holds the streams. All methods are safe for concurrent use.
type Client struct {
	cfg        Config
	frontendID string
	logger     *slog.Logger
	metrics    *metrics
	conns      []*grpc.ClientConn
	lanes      [][]*lane    // by address and stream
	count      atomic.Int64 // subscriptions
}

// metrics are the instruments of a client.
type metrics struct {
	events, deliveries, undeliverable metric.Int64Counter
	streams                           metric.Int64UpDownCounter
}

// New makes a client. frontendID names this process and breaks ties between
// epochs. Run has to be called once; it closes the connections.
func New(cfg Config, frontendID string, env daemon.Env, opts ...grpc.DialOption) (*Client, error) {
	env = env.Complete()
	instruments, err := newMetrics(env.Meter)
	if err != nil {
		return nil, fmt.Errorf("make instruments: %w", err)
	}
	c := &Client{cfg: cfg, frontendID: frontendID, logger: env.Logger, metrics: instruments}
	for _, address := range cfg.Addresses {
		one := cfg.Config
		one.Addresses = []string{address}
		conn, err := grpcclient.New(one, env, opts...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connect to event-fanout: %w", err), c.closeConns())
		}
		c.conns = append(c.conns, conn)
		lanes := make([]*lane, cfg.Streams)
		for i := range lanes {
			lanes[i] = newLane(c, eventsv1.NewEventsServiceClient(conn), address)
		}
		c.lanes = append(c.lanes, lanes)
	}
	return c, nil
}

func newMetrics(provider metric.MeterProvider) (*metrics, error) {
	meter := provider.Meter("mqtt-frontend/delivery")
	var m metrics
	var errs [4]error
	m.events, errs[0] = meter.Int64Counter("mqtt_integration.delivery.events",
		metric.WithUnit("{event}"), metric.WithDescription("Events received from event-fanout."))
	m.deliveries, errs[1] = meter.Int64Counter("mqtt_integration.delivery.deliveries",
		metric.WithUnit("{delivery}"), metric.WithDescription("Events given to subscriptions."))
	m.undeliverable, errs[2] = meter.Int64Counter("mqtt_integration.delivery.malformed",
		metric.WithUnit("{event}"), metric.WithDescription("Events received that are malformed, and were passed."))
	m.streams, errs[3] = meter.Int64UpDownCounter("mqtt_integration.delivery.streams",
		metric.WithUnit("{stream}"), metric.WithDescription("Streams to event-fanout."))
	return &m, errors.Join(errs[:]...)
}

// Run keeps the streams until ctx ends, and returns nil then. Acknowledgements
// given before are sent; what waits to be opened fails.
func (c *Client) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, lanes := range c.lanes {
		for _, l := range lanes {
			running.Go(func() { l.run(ctx) })
		}
	}
	running.Wait()
	return c.closeConns()
}

func (c *Client) closeConns() error {
	var errs []error
	for _, conn := range c.conns {
		if err := conn.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the connection to event-fanout: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Session makes the session of a connection. It costs nothing until the first
// Open attaches it. onError is called at most once, from a goroutine that must
// not be blocked: the session is lost and its subscriptions are closed, without
// Sink.Failed. Call Detach when the connection ends.
func (c *Client) Session(info SessionInfo, onError func(SessionError)) *Session {
	return &Session{client: c, info: info, onError: onError}
}

// lane chooses the stream for a session: of the instance that owns it, which every
// frontend finds in the same way, the one that its first application is on, so
// that an event comes once for nearly all sessions. It stays there: to the owner,
// a session that attaches on another stream has moved.
func (c *Client) lane(info *SessionInfo, application string) *lane {
	lanes := c.lanes[0]
	if len(c.lanes) > 1 {
		var highest uint64
		for i, address := range c.cfg.Addresses {
			if h := hash(address, info.Issuer, info.Subject, info.ClientID); i == 0 || h > highest {
				highest, lanes = h, c.lanes[i]
			}
		}
	}
	return lanes[hash(application)%uint64(len(lanes))]
}

// hash is the same in every process.
func hash(parts ...string) uint64 {
	h := fnv.New64a()
	for _, part := range parts {
		_, _ = h.Write([]byte(part)) // never fails
		_, _ = h.Write([]byte{0})
	}
	// FNV leaves the high bits of similar inputs alike: mix them.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}
