package telemetry_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"mqtt-integration/libs/telemetry"
)

func TestRecords(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "console")
	off, on := setup(t), setup(t, os.Environ()...)
	defer shutdown(t, off)
	defer shutdown(t, on)
	for _, tt := range []struct {
		name     string
		provider trace.TracerProvider
		want     bool
	}{
		{"no-op", noop.NewTracerProvider(), false},
		{"none", nil, false},
		{"set up without traces", off.Tracer, false},
		{"set up with traces", on.Tracer, true},
	} {
		if got := telemetry.Records(tt.provider); got != tt.want {
			t.Errorf("%s: Records() = %t, want %t", tt.name, got, tt.want)
		}
	}
}

// The exporter reads the environment of the process itself: not parallel.
func TestWhoDecidesWhatIsSampled(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "console")
	state, err := trace.ParseTraceState("a=b")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		sampler, arg                                string
		root, sampled, notSampled, untrusted, child bool
	}{
		{sampler: "", root: true, sampled: true, untrusted: true, child: true},
		{sampler: "always_on", root: true, sampled: true, notSampled: true, untrusted: true, child: true},
		{sampler: "always_off"},
		{sampler: "traceidratio", root: true, sampled: true, notSampled: true, untrusted: true, child: true},
		{sampler: "traceidratio", arg: "0"},
		{sampler: "parentbased_always_on", root: true, sampled: true, untrusted: true, child: true},
		{sampler: "parentbased_always_off", sampled: true},
		{sampler: "parentbased_traceidratio", arg: "0", sampled: true},
		{sampler: " ParentBased_TraceIDRatio ", arg: "1.0", root: true, sampled: true, untrusted: true, child: true},
	} {
		t.Run(tt.sampler+"("+tt.arg+")", func(t *testing.T) {
			p := setup(t, append(os.Environ(), "OTEL_TRACES_SAMPLER="+tt.sampler, "OTEL_TRACES_SAMPLER_ARG="+tt.arg)...)
			defer shutdown(t, p)
			tracer := p.Tracer.Tracer("test")
			remote := func(flags trace.TraceFlags) trace.SpanContext {
				return trace.NewSpanContext(trace.SpanContextConfig{
					TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: flags, TraceState: state, Remote: true,
				})
			}
			start := func(ctx context.Context) (context.Context, trace.Span) {
				return tracer.Start(ctx, "span") //nolint:spancheck // ended, it would be printed
			}
			_, root := start(t.Context())
			_, sampled := start(trace.ContextWithRemoteSpanContext(t.Context(), remote(trace.FlagsSampled)))
			_, notSampled := start(trace.ContextWithRemoteSpanContext(t.Context(), remote(0)))
			ctx, untrusted := start(telemetry.ContextWithUntrustedParent(t.Context(), remote(trace.FlagsSampled)))
			_, child := start(ctx)
			got := fmt.Sprint(root.IsRecording(), sampled.IsRecording(), notSampled.IsRecording(), untrusted.IsRecording(), child.IsRecording())
			if want := fmt.Sprint(tt.root, tt.sampled, tt.notSampled, tt.untrusted, tt.child); got != want {
				t.Errorf("recorded are root, sampled, not sampled, untrusted, its child: %s, want %s", got, want)
			}
			if sc := untrusted.SpanContext(); sc.TraceID() != (trace.TraceID{1}) || sc.TraceState().String() != "a=b" {
				t.Errorf("the span is in %v, want the trace of its untrusted parent", sc)
			}
		})
	}
}

func TestSamplerThatIsNotKnownIsAnError(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "console")
	for _, environ := range [][]string{
		{"OTEL_TRACES_SAMPLER=dice"},
		{"OTEL_TRACES_SAMPLER=traceidratio", "OTEL_TRACES_SAMPLER_ARG=2"},
		{"OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=NaN"},
		{"OTEL_TRACES_SAMPLER=parentbased_"},
	} {
		environ = append(os.Environ(), environ...)
		_, err := telemetry.Setup(t.Context(), telemetry.Service{Name: "x"}, environ)
		if err == nil || !strings.Contains(err.Error(), "OTEL_TRACES_SAMPLER") {
			t.Errorf("Setup() = %v, want an error that names the variable", err)
		}
	}
}
