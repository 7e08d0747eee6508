package telemetry

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Records says whether spans of a provider can go anywhere: not so with the
// no-op provider that there is without OTEL_*. Whoever has much to do per event
// asks once and saves the effort.
func Records(provider trace.TracerProvider) bool {
	switch provider.(type) {
	case nil, noop.TracerProvider, *noop.TracerProvider:
		return false
	default:
		return true
	}
}

type untrustedKey struct{}

// ContextWithUntrustedParent returns ctx with a remote parent whose word does not
// count when it is decided whether to sample: a span that is started with it is a
// child of parent, and sampled as if it had none. Otherwise anybody could have
// everything recorded. With a provider that [Setup] did not make such a span is
// not sampled at all, except where the sampler disregards parents.
func ContextWithUntrustedParent(ctx context.Context, parent trace.SpanContext) context.Context {
	parent = parent.WithTraceFlags(parent.TraceFlags().WithSampled(false))
	return context.WithValue(trace.ContextWithRemoteSpanContext(ctx, parent), untrustedKey{}, true)
}

// untrusting is a sampler that does not see parents which are not trusted.
type untrusting struct{ sdktrace.Sampler }

// ShouldSample implements sdktrace.Sampler.
func (s untrusting) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	parent := trace.SpanContextFromContext(p.ParentContext)
	untrusted, _ := p.ParentContext.Value(untrustedKey{}).(bool)
	if !untrusted || !parent.IsRemote() {
		return s.Sampler.ShouldSample(p)
	}
	p.ParentContext = trace.ContextWithSpanContext(p.ParentContext, trace.SpanContext{})
	result := s.Sampler.ShouldSample(p)
	result.Tracestate = parent.TraceState()
	return result
}

// samplerOf is the sampler that OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG
// ask for. The SDK reads them too, and does not tell.
func samplerOf(environ []string) (sdktrace.Sampler, error) {
	name, arg := "", ""
	for _, variable := range environ {
		switch key, value, _ := strings.Cut(variable, "="); key {
		case "OTEL_TRACES_SAMPLER":
			name = strings.ToLower(strings.TrimSpace(value))
		case "OTEL_TRACES_SAMPLER_ARG":
			arg = strings.TrimSpace(value)
		}
	}
	kind, parentBased := strings.CutPrefix(name, "parentbased_")
	var sampler sdktrace.Sampler
	if name == "" {
		kind, parentBased = "always_on", true
	}
	switch kind {
	case "always_on":
		sampler = sdktrace.AlwaysSample()
	case "always_off":
		sampler = sdktrace.NeverSample()
	case "traceidratio":
		ratio := 1.0
		if arg != "" {
			var err error
			if ratio, err = strconv.ParseFloat(arg, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
				return nil, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG: %q is no number from 0 to 1", arg)
			}
		}
		sampler = sdktrace.TraceIDRatioBased(ratio)
	default:
		return nil, fmt.Errorf("OTEL_TRACES_SAMPLER: %q is not known", name)
	}
	if parentBased {
		sampler = sdktrace.ParentBased(sampler)
	}
	return sampler, nil
}
