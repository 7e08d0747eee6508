package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/contrib/instrumentation/runtime"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Service says who the telemetry is from.
type Service struct {
	// Name is the service.name unless OTEL_SERVICE_NAME or
	// OTEL_RESOURCE_ATTRIBUTES say otherwise.
	Name string
	// Version is the service.version.
	Version string
	// Instance is the service.instance.id; empty leaves it out.
	Instance string
}

// Providers are what instrumented code needs, and what has to be closed.
type Providers struct {
	Meter      metric.MeterProvider
	Tracer     trace.TracerProvider
	Propagator propagation.TextMapPropagator
	// Metrics is what /metrics shows, Go runtime and process included.
	Metrics prometheus.Gatherer

	shutdown []func(context.Context) error
}

// Propagator is W3C trace context and baggage, on every way into and out of our
// processes.
func Propagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}

// Setup starts metrics, and traces when environ, which is that of the process
// ("NAME=value"; the exporter also looks there by itself), asks for them:
// without OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_(TRACES_)ENDPOINT, or with
// OTEL_SDK_DISABLED=true, trace context passes through and no span is recorded.
// Call Shutdown in the end, also to flush.
func Setup(ctx context.Context, service Service, environ []string) (*Providers, error) {
	res, err := newResource(ctx, service)
	if err != nil {
		return nil, err
	}
	p := &Providers{Propagator: Propagator(), Tracer: noop.NewTracerProvider()}
	if err := p.setupMetrics(res); err != nil {
		return nil, errors.Join(err, p.Shutdown(ctx))
	}
	if !tracesWanted(environ) {
		return p, nil
	}
	exporter, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up traces as OTEL_* say (OTEL_TRACES_EXPORTER is %q): %w",
			os.Getenv("OTEL_TRACES_EXPORTER"), err), p.Shutdown(ctx))
	}
	if autoexport.IsNoneSpanExporter(exporter) {
		return p, nil
	}
	sampler, err := samplerOf(environ)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up traces: %w", err), exporter.Shutdown(ctx), p.Shutdown(ctx))
	}
	tracer := sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithBatcher(exporter),
		sdktrace.WithSampler(untrusting{sampler}))
	p.Tracer = tracer
	p.shutdown = append(p.shutdown, tracer.Shutdown)
	return p, nil
}

func newResource(ctx context.Context, service Service) (*resource.Resource, error) {
	// The names of semconv, which would cost a dependency per version for three
	// strings that have not changed since 2021.
	attributes := []attribute.KeyValue{
		attribute.String("service.name", service.Name),
		attribute.String("service.version", service.Version),
	}
	if service.Instance != "" {
		attributes = append(attributes, attribute.String("service.instance.id", service.Instance))
	}
	// Later ones win, so that the environment overrides.
	res, err := resource.New(ctx,
		resource.WithAttributes(attributes...), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("describe the process for telemetry: %w", err)
	}
	return res, nil
}

func (p *Providers) setupMetrics(res *resource.Resource) error {
	registry := prometheus.NewRegistry()
	if err := registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})); err != nil {
		return fmt.Errorf("set up process metrics: %w", err)
	}
	reader, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return fmt.Errorf("set up metrics: %w", err)
	}
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithResource(res), sdkmetric.WithReader(reader))
	p.Meter, p.Metrics = meter, registry
	p.shutdown = append(p.shutdown, meter.Shutdown)
	if err := runtime.Start(runtime.WithMeterProvider(meter)); err != nil {
		return fmt.Errorf("set up runtime metrics: %w", err)
	}
	return nil
}

// Shutdown flushes what is recorded and ends all goroutines of the providers.
func (p *Providers) Shutdown(ctx context.Context) error {
	var errs []error
	for _, shutdown := range p.shutdown {
		errs = append(errs, shutdown(ctx))
	}
	return errors.Join(errs...)
}

// tracesWanted is what turns traces on. autoexport alone would send them to
// localhost:4317 by default.
func tracesWanted(environ []string) bool {
	wanted := false
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		switch name {
		case "OTEL_SDK_DISABLED":
			if strings.EqualFold(strings.TrimSpace(value), "true") {
				return false
			}
		case "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT":
			wanted = wanted || value != ""
		}
	}
	return wanted
}

// LogErrors sends what OpenTelemetry has to say about itself (an exporter that
// cannot reach its collector, mostly) to logger instead of to standard error.
// This is global to the process: only its main part may call it.
func LogErrors(logger *slog.Logger) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.Warn("telemetry has a problem", slog.Any("error", err))
	}))
	otel.SetLogger(logr.FromSlogHandler(warnings{logger.Handler()}))
}

// otelWarning is the level at which OpenTelemetry's warnings come out of logr.
const otelWarning = slog.Level(-1)

// warnings passes what OpenTelemetry has to say about itself from its level
// Warn on; below that it describes every instrument that is made.
type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= otelWarning && w.Handler.Enabled(ctx, max(level, slog.LevelWarn))
}

func (w warnings) Handle(ctx context.Context, record slog.Record) error {
	record.Level = max(record.Level, slog.LevelWarn)
	return w.Handler.Handle(ctx, record)
}

func (w warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return warnings{w.Handler.WithAttrs(attrs)}
}

func (w warnings) WithGroup(name string) slog.Handler { return warnings{w.Handler.WithGroup(name)} }
