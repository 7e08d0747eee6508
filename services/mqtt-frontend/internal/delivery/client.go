package delivery

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/discovery"
	"mqtt-integration/libs/telemetry"
)

// Client holds the streams. All methods are safe for concurrent use.
type Client struct {
	cfg        Config
	frontendID string
	logger     *slog.Logger
	metrics    *metrics
	tracer     trace.Tracer // nil: nothing is recorded
	env        daemon.Env
	opts       []grpc.DialOption
	began      time.Time
	settle     time.Duration // settleTime
	poller     *discovery.Poller
	kicked     chan struct{} // a lane has got or lost its stream
	limbo      *lane         // has sessions while no instance is known, and never a stream
	lanes      atomic.Uint64 // made so far
	count      atomic.Int64  // subscriptions

	mu        sync.RWMutex
	view      *discovery.View
	instances map[string]*instance // of the view, by address
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
	poller, err := cfg.Discovery(env)
	if err != nil {
		return nil, fmt.Errorf("find event-fanout: %w", err)
	}
	c := newClient(cfg, instruments)
	c.frontendID, c.logger, c.env, c.opts, c.poller = frontendID, env.Logger, env, opts, poller
	if telemetry.Records(env.Tracer) {
		c.tracer = env.Tracer.Tracer("mqtt-frontend/delivery")
	}
	c.view = poller.View()
	for _, i := range c.view.Instances() {
		one, err := c.newInstance(i)
		if err != nil {
			return nil, errors.Join(err, c.closeInstances())
		}
		c.instances[i.Address] = one
	}
	return c, nil
}

func newClient(cfg Config, instruments *metrics) *Client {
	c := &Client{
		cfg: cfg, metrics: instruments, began: time.Now(), settle: settleTime, kicked: make(chan struct{}, 1),
		view: discovery.NewView(), instances: map[string]*instance{},
	}
	c.limbo = newLane(c, nil, "")
	return c
}

// now is the time since the client was made, at least 1.
func (c *Client) now() int64 { return int64(time.Since(c.began)) + 1 }

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

// Session makes the session of a connection. It costs nothing until the first
// Open attaches it. onError is called at most once, from a goroutine that must
// not be blocked: the session is lost and its subscriptions are closed, without
// Sink.Failed. Call Detach when the connection ends.
func (c *Client) Session(info SessionInfo, onError func(SessionError)) *Session {
	return &Session{client: c, info: info, onError: onError}
}
