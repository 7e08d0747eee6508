package session

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"mqtt-integration/services/mqtt-frontend/internal/outbound"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// metrics of all sessions. None has an attribute that a client can choose.
type metrics struct {
	connections    metric.Int64UpDownCounter
	connects       metric.Int64Counter
	disconnects    metric.Int64Counter
	publishes      metric.Int64Counter
	subscriptions  metric.Int64UpDownCounter
	subscribes     metric.Int64Counter
	acknowledged   metric.Int64Counter
	undeliverable  metric.Int64Counter
	offsetsSkipped metric.Int64Counter

	accepted, refused []metric.AddOption // slices, so that using them allocates nothing
}

func newMetrics(provider metric.MeterProvider) (*metrics, error) {
	meter := provider.Meter("mqtt-integration/services/mqtt-frontend")
	m := &metrics{
		accepted: []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", "accepted")))},
		refused:  []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", "refused")))},
	}
	var errs []error
	counter := func(name, unit, description string) metric.Int64Counter {
		c, err := meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
		return c
	}
	gauge := func(name, unit, description string) metric.Int64UpDownCounter {
		c, err := meter.Int64UpDownCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
		return c
	}
	m.connections = gauge("mqtt_integration.connections", "{connection}", "Connections that have sent CONNECT.")
	m.connects = counter("mqtt_integration.connects", "{connection}", "CONNECT packets by reason code of CONNACK.")
	m.disconnects = counter("mqtt_integration.disconnects", "{connection}", "Connections that ended, by reason.")
	m.publishes = counter("mqtt_integration.publishes", "{message}", "PUBLISH packets of clients by outcome.")
	m.subscriptions = gauge("mqtt_integration.subscriptions", "{subscription}", "Open subscriptions.")
	m.subscribes = counter("mqtt_integration.subscribes", "{subscription}", "Topic filters of SUBSCRIBE by reason code.")
	m.acknowledged = counter("mqtt_integration.deliveries.acknowledged", "{message}",
		"Events that clients acknowledged, or refused with a reason code.")
	m.undeliverable = counter("mqtt_integration.deliveries.undeliverable", "{message}",
		"Events that were passed because a client cannot have them.")
	m.offsetsSkipped = counter("mqtt_integration.deliveries.skipped_offsets", "{offset}",
		"Offsets that retention removed before they were delivered.")
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("make instruments: %w", err)
	}
	return m, nil
}

// Passed counts an event that was not delivered. It is for [wire.Config].
func (m *Manager) Passed(_ string, err error) {
	reason := "not_representable"
	if errors.Is(err, outbound.ErrTooLarge) {
		reason = "too_large"
	}
	m.metrics.undeliverable.Add(context.Background(), 1, metric.WithAttributes(attribute.String("reason", reason)))
}

func (m *metrics) published(ctx context.Context, qos byte, outcome wire.Code) {
	m.publishes.Add(ctx, 1, metric.WithAttributes(attribute.Int("mqtt.qos", int(qos)), attribute.String("outcome", outcome.String())))
}

func (m *metrics) connect(ctx context.Context, code wire.Code) {
	m.connects.Add(ctx, 1, metric.WithAttributes(attribute.String("mqtt.reason_code", code.String())))
}

func (m *metrics) subscribed(ctx context.Context, code wire.Code) {
	m.subscribes.Add(ctx, 1, metric.WithAttributes(attribute.String("mqtt.reason_code", code.String())))
}

func (m *metrics) disconnect(ctx context.Context, label string) {
	m.disconnects.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", label)))
}
