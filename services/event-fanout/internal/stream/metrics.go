package stream

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are the instruments of the package. None has an attribute that a client
// could choose.
type metrics struct {
	deliveries    metric.Int64Counter
	events        metric.Int64Counter
	reads         metric.Int64Counter
	offsetsLost   metric.Int64Counter
	restarts      metric.Int64Counter
	passed        metric.Int64Counter
	ring, chunk   metric.AddOption
	share         metric.AddOption
	registrations []metric.Registration
}

// instruments collects the errors of making some.
type instruments struct {
	meter metric.Meter
	errs  []error
}

func (i *instruments) counter(name, unit, description string) metric.Int64Counter {
	c, err := i.meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(description))
	i.errs = append(i.errs, err)
	return c
}

func (i *instruments) gauge(name, unit, description string) metric.Int64ObservableGauge {
	g, err := i.meter.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description))
	i.errs = append(i.errs, err)
	return g
}

func newMetrics(meter metric.Meter, s *Server) (*metrics, error) {
	i := instruments{meter: meter}
	m := &metrics{
		deliveries: i.counter("mqtt_integration.fanout.deliveries", "{delivery}", "Events handed to frontends, once per subscription."),
		events: i.counter("mqtt_integration.fanout.events", "{event}",
			"Events handed to frontends, once per stream, by where they were read: ring, chunk or share."),
		reads:       i.counter("mqtt_integration.fanout.chunk.reads", "{read}", "Chunks asked for by subscriptions behind the ring."),
		offsetsLost: i.counter("mqtt_integration.fanout.offsets_skipped", "{offset}", "Offsets that retention removed before they were delivered."),
		restarts:    i.counter("mqtt_integration.fanout.restarts", "{cursor}", "Positions that were void because the log is another one."),
		passed:      i.counter("mqtt_integration.fanout.undeliverable", "{delivery}", "Deliveries of events that are too large for the frontend."),
		ring:        metric.WithAttributeSet(attribute.NewSet(attribute.String("source", "ring"))),
		chunk:       metric.WithAttributeSet(attribute.NewSet(attribute.String("source", "chunk"))),
		share:       metric.WithAttributeSet(attribute.NewSet(attribute.String("source", "share"))),
	}
	streams := i.gauge("mqtt_integration.fanout.streams", "{stream}", "Streams of frontends.")
	sessions := i.gauge("mqtt_integration.fanout.sessions", "{session}", "Sessions that are attached.")
	subscriptions := i.gauge("mqtt_integration.fanout.subscriptions", "{subscription}", "Subscriptions that are open.")
	partitions := i.gauge("mqtt_integration.fanout.partitions", "{partition}", "Partitions that are read.")
	if err := errors.Join(i.errs...); err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	registration, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(streams, int64(len(s.allStreams())))
		o.ObserveInt64(sessions, int64(s.owners.count()))
		o.ObserveInt64(subscriptions, s.subscriptions.Load())
		o.ObserveInt64(partitions, int64(s.cfg.Tails.Partitions()))
		return nil
	}, streams, sessions, subscriptions, partitions)
	if err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	m.registrations = append(m.registrations, registration)
	return m, nil
}

func (m *metrics) close() {
	for _, r := range m.registrations {
		_ = r.Unregister() // it fails only when it is not registered
	}
}

func (m *metrics) frame(f *frame) { m.deliveries.Add(context.Background(), int64(f.sent)) }

func (m *metrics) fromRing(events int) {
	if events > 0 {
		m.events.Add(context.Background(), int64(events), m.ring)
	}
}

func (m *metrics) fromChunk(events int) {
	if events > 0 {
		m.events.Add(context.Background(), int64(events), m.chunk)
	}
}

func (m *metrics) fromShare(events int) {
	if events > 0 {
		m.events.Add(context.Background(), int64(events), m.share)
	}
}

func (m *metrics) chunkRead()          { m.reads.Add(context.Background(), 1) }
func (m *metrics) skipped(n int64)     { m.offsetsLost.Add(context.Background(), n) }
func (m *metrics) restarted(n int64)   { m.restarts.Add(context.Background(), n) }
func (m *metrics) undeliverable(n int) { m.passed.Add(context.Background(), int64(n)) }
