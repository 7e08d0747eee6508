package command_test

import (
	"testing"

	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/mqtt-frontend/internal/command"
)

func benchmarkCommand() *commandsv1.Command {
	return &commandsv1.Command{
		Id: "019a0000-0000-7000-8000-000000000000", Application: "app", Device: "pump-7", Command: "set",
		Payload: make([]byte, 256), AuthType: "user", AuthId: "idp/subject",
	}
}

// BenchmarkRoundTrip is one command at a time, over loopback and back.
func BenchmarkRoundTrip(b *testing.B) {
	client := start(b, config(listen(b, &server{serve: echo})))
	results := make(chan command.Result, 1)
	cmd := benchmarkCommand()
	done := func(r command.Result) { results <- r }
	b.ReportAllocs()
	for b.Loop() {
		client.Publish(cmd, done)
		<-results
	}
}

// BenchmarkPipelined is 1000 commands at a time; client and server share the CPU.
func BenchmarkPipelined(b *testing.B) {
	client := start(b, config(listen(b, &server{serve: echo, maxInFlight: 10_000})))
	window := make(chan struct{}, 1000)
	cmd := benchmarkCommand()
	done := func(command.Result) { <-window }
	b.ReportAllocs()
	for b.Loop() {
		window <- struct{}{}
		client.Publish(cmd, done)
	}
	for range cap(window) {
		window <- struct{}{}
	}
}
