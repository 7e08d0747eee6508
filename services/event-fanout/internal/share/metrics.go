package share

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/metric"
)

// metrics are the instruments of the package. None has an attribute.
type metrics struct {
	redelivered, passed, expired metric.Int64Counter
	registration                 metric.Registration
}

func newMetrics(meter metric.Meter, h *Hub) (*metrics, error) {
	var m metrics
	var errs [5]error
	m.redelivered, errs[0] = meter.Int64Counter("mqtt_integration.fanout.share.redelivered", metric.WithUnit("{event}"),
		metric.WithDescription("Events of shared subscriptions that were given to another subscriber because one left."))
	m.passed, errs[1] = meter.Int64Counter("mqtt_integration.fanout.share.undeliverable", metric.WithUnit("{event}"),
		metric.WithDescription("Events of shared subscriptions that were passed because no subscriber of this instance can take them."))
	m.expired, errs[2] = meter.Int64Counter("mqtt_integration.fanout.share.expired", metric.WithUnit("{session}"),
		metric.WithDescription("Sessions that were ended because they acknowledged nothing for too long."))
	groups, err := meter.Int64ObservableGauge("mqtt_integration.fanout.share.groups", metric.WithUnit("{group}"),
		metric.WithDescription("Share groups with subscribers here."))
	errs[3] = err
	members, err := meter.Int64ObservableGauge("mqtt_integration.fanout.share.subscribers", metric.WithUnit("{subscription}"),
		metric.WithDescription("Subscribers of share groups."))
	errs[4] = err
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	m.registration, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		all := h.all()
		var n int
		for _, g := range all {
			n += g.dealer.size()
		}
		o.ObserveInt64(groups, int64(len(all)))
		o.ObserveInt64(members, int64(n))
		return nil
	}, groups, members)
	if err != nil {
		return nil, fmt.Errorf("make metrics: %w", err)
	}
	return &m, nil
}

func (m *metrics) close() { _ = m.registration.Unregister() } // it fails only when it is not registered

func (m *metrics) count(redelivered, passed int64) {
	if redelivered > 0 {
		m.redelivered.Add(context.Background(), redelivered)
	}
	if passed > 0 {
		m.passed.Add(context.Background(), passed)
	}
}
