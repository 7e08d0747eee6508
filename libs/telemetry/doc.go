// Package telemetry sets up OpenTelemetry for one process: metrics for
// Prometheus to fetch, and traces to where the standard OTEL_* variables say.
//
// Nothing in here is global: the providers are handed to whoever needs them.
// The exception is what OpenTelemetry itself keeps globally for its own errors
// ([LogErrors]).
package telemetry
