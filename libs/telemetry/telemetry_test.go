package telemetry_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.uber.org/goleak"

	"mqtt-integration/libs/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func setup(t *testing.T, environ ...string) *telemetry.Providers {
	t.Helper()
	p, err := telemetry.Setup(t.Context(), telemetry.Service{Name: "test-service", Version: "v1", Instance: "i"}, environ)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func shutdown(t *testing.T, p *telemetry.Providers) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	if err := p.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown() = %v", err)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	p := setup(t)
	defer shutdown(t, p)
	counter, err := p.Meter.Meter("test").Int64Counter("mqtt_integration.publishes", metric.WithUnit("{message}"))
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3, metric.WithAttributes(attribute.String("outcome", "ok")))
	families, err := p.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, family := range families {
		got[family.GetName()] = family.String()
	}
	for name, want := range map[string]string{
		"mqtt_integration_publishes_total": `value:3`,
		"go_goroutine_count":               "", "process_open_fds": "",
		"target_info": `value:"test-service"`,
	} {
		if text, ok := got[name]; !ok || !strings.Contains(text, want) {
			t.Errorf("metric %s is %q, want %q in it", name, text, want)
		}
	}
}

func TestTracesAreOffUnlessAskedFor(t *testing.T) {
	t.Parallel()
	for _, environ := range [][]string{
		nil,
		{"OTEL_TRACES_EXPORTER=", "OTEL_EXPORTER_OTLP_HEADERS=x=y", "OTEL_SERVICE_NAME=x"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318", "OTEL_SDK_DISABLED=true"},
	} {
		p := setup(t, environ...)
		_, span := p.Tracer.Tracer("test").Start(t.Context(), "span")
		if span.IsRecording() {
			t.Errorf("a span is recorded with %v", environ)
		}
		span.End()
		shutdown(t, p)
	}
}

// The exporter reads the environment of the process itself: not parallel.
func TestTracesGoWhereTheEnvironmentSays(t *testing.T) {
	var got atomic.Value
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		got.Store(r.URL.Path + " " + body.String())
		w.WriteHeader(http.StatusOK)
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
	t.Setenv("OTEL_SERVICE_NAME", "another-name")

	p := setup(t, os.Environ()...)
	_, span := p.Tracer.Tracer("test").Start(t.Context(), "the-span")
	span.End()
	shutdown(t, p)

	request, _ := got.Load().(string)
	for _, want := range []string{"/v1/traces ", "the-span", "another-name", "service.instance.id"} {
		if !strings.Contains(request, want) {
			t.Errorf("the collector got %q, want %q in it", request, want)
		}
	}
}

func TestTracesCanBeTurnedOffByName(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	p := setup(t, os.Environ()...)
	defer shutdown(t, p)
	_, span := p.Tracer.Tracer("test").Start(t.Context(), "span")
	defer span.End()
	if span.IsRecording() {
		t.Error("a span is recorded")
	}
}

func TestUnknownExporterIsAnError(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
	_, err := telemetry.Setup(t.Context(), telemetry.Service{Name: "x"}, os.Environ())
	if err == nil || !strings.Contains(err.Error(), "set up traces") || !strings.Contains(err.Error(), "carrier-pigeon") {
		t.Errorf("Setup() = %v, want an error that names the exporter", err)
	}
}

func TestLogErrors(t *testing.T) {
	var out bytes.Buffer
	telemetry.LogErrors(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	otel.Handle(errors.New("collector is away"))
	if got := out.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, `error="collector is away"`) {
		t.Errorf("log is %q", got)
	}
	out.Reset()
	p := setup(t)
	defer shutdown(t, p)
	if out.Len() > 0 {
		t.Errorf("making a provider logs %q, want nothing", &out)
	}
}
