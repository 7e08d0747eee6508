package daemon

import (
	"context"
	"log/slog"
	"net"

	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"mqtt-integration/libs/telemetry"
)

// Env is what a service gets from its process. Use [NewEnv] where there is no
// [Main], in tests and in standalone; [Env.Complete] fills what is missing.
type Env struct {
	// Logger is what everything logs to.
	Logger *slog.Logger
	// Health is where components say whether they can work.
	Health *Health
	// Meter makes the instruments.
	Meter metric.MeterProvider
	// Tracer makes the tracers.
	Tracer trace.TracerProvider
	// Propagator carries trace context into and out of the process.
	Propagator propagation.TextMapPropagator
	// Listen opens every listener of the service. The default is that of
	// [net.ListenConfig]; standalone and tests pass one that returns listeners
	// which are bound already.
	Listen func(ctx context.Context, network, address string) (net.Listener, error)
}

// NewEnv returns an environment with no telemetry, a Health of its own and the
// listeners of package net.
func NewEnv(logger *slog.Logger) Env {
	return Env{Logger: logger}.Complete()
}

// Complete returns a copy in which every field that was nil has the value that
// [NewEnv] gives it; a missing logger discards.
func (e Env) Complete() Env {
	if e.Logger == nil {
		e.Logger = slog.New(slog.DiscardHandler)
	}
	if e.Health == nil {
		e.Health = &Health{}
	}
	if e.Meter == nil {
		e.Meter = metricnoop.NewMeterProvider()
	}
	if e.Tracer == nil {
		e.Tracer = tracenoop.NewTracerProvider()
	}
	if e.Propagator == nil {
		e.Propagator = telemetry.Propagator()
	}
	if e.Listen == nil {
		e.Listen = new(net.ListenConfig).Listen
	}
	return e
}
