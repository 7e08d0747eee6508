// Package daemon is what the processes of the MQTT integration have in common:
// command line, configuration, logs, telemetry, the administration port, signals
// and the exit code. A service is a configuration and a Run function, and its
// main is one call of [Main].
//
// Main owns the goroutines of the administration server and of telemetry, and
// waits for them. Run owns all others: when its context ends it drains for at
// most the configured drain_timeout, waits for what it started, and returns.
// A panic in a goroutine of Run ends the process, on purpose; whoever handles
// foreign input recovers per connection or stream.
package daemon
