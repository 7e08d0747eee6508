package commandingress_test

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/testkit"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	commandingress "mqtt-integration/services/command-ingress"
)

// BenchmarkPublish is a command's way over gRPC into Kafka and its result's way
// back, with batches of 50 and 2000 commands without a result.
func BenchmarkPublish(b *testing.B) {
	brokers := testkit.Kafka(b)
	topic := testkit.UniqueName(b)
	testkit.CreateTopic(b, brokers, topic, 4)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	env := daemon.NewEnv(slog.New(slog.DiscardHandler))
	env.Listen = func(context.Context, string, string) (net.Listener, error) { return listener, nil }
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := commandingress.Run(ctx, testConfig(brokers, topic), env); err != nil {
			b.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	st := (&service{env: env, address: listener.Addr().String()}).open(b)
	slots := make(chan struct{}, 2000)
	received := make(chan struct{})
	go func() {
		defer close(received)
		for {
			f, err := st.Recv()
			if err != nil {
				return
			}
			for _, r := range f.GetResults().GetResults() {
				if r.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_OK {
					b.Error(r)
				}
				<-slots
			}
		}
	}()
	b.ReportAllocs()
	n := uint64(0)
	var batch []*commandsv1.Command
	for b.Loop() {
		slots <- struct{}{}
		n++
		batch = append(batch, command(n, "device1"))
		if len(batch) == 50 {
			st.send(batch...)
			batch = nil
		}
	}
	if len(batch) > 0 {
		st.send(batch...)
	}
	if err := st.CloseSend(); err != nil {
		b.Fatal(err)
	}
	<-received
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "commands/s")
}
