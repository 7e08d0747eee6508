package producer

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"
)

const scope = "mqtt-integration/services/command-ingress"

type instruments struct {
	duration messagingconv.ClientOperationDuration
	tooLate  metric.Int64Counter
	topic    string
}

func newInstruments(provider metric.MeterProvider, p *Producer) (*instruments, error) {
	meter := provider.Meter(scope)
	duration, err := messagingconv.NewClientOperationDuration(meter)
	if err != nil {
		return nil, err
	}
	tooLate, err := meter.Int64Counter("mqtt_integration.commands.late",
		metric.WithUnit("{command}"), metric.WithDescription("Commands that Kafka settled after their deadline, by what became of them."))
	if err != nil {
		return nil, err
	}
	_, err = meter.Int64ObservableUpDownCounter("mqtt_integration.commands.in_flight",
		metric.WithUnit("{command}"), metric.WithDescription("Commands accepted and not let go of."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			records, _ := p.load()
			o.Observe(int64(records))
			return nil
		}))
	if err != nil {
		return nil, err
	}
	_, err = meter.Int64ObservableUpDownCounter("mqtt_integration.commands.memory",
		metric.WithUnit("By"), metric.WithDescription("Memory of the commands accepted and not let go of."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			_, bytes := p.load()
			o.Observe(bytes)
			return nil
		}))
	if err != nil {
		return nil, err
	}
	return &instruments{duration: duration, tooLate: tooLate, topic: p.cfg.Topic}, nil
}

// sent records what became of an accepted record, and how long that took.
func (m *instruments) sent(ctx context.Context, status Status, took time.Duration) {
	attributes := []attribute.KeyValue{semconv.MessagingDestinationName(m.topic)}
	if status != Written {
		attributes = append(attributes, semconv.ErrorTypeKey.String(status.String()))
	}
	m.duration.Record(ctx, took.Seconds(), "send", messagingconv.SystemKafka, attributes...)
}

// late records what became of a record after its deadline.
func (m *instruments) late(ctx context.Context, status Status) {
	m.tooLate.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", status.String())))
}
