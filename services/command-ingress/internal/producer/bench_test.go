package producer_test

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"time"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/testkit"
	"mqtt-integration/services/command-ingress/internal/producer"
)

// counter is a sink that lets a bounded number of records be on their way.
type counter struct{ slots chan struct{} }

func (c counter) Done(_ uint64, outcome producer.Outcome) {
	if outcome.Status != producer.Written {
		panic(outcome)
	}
	<-c.slots
}

// BenchmarkProducer is the throughput with 2000 records of 200 bytes on their way.
func BenchmarkProducer(b *testing.B) {
	brokers := testkit.Kafka(b)
	topic := testkit.UniqueName(b)
	testkit.CreateTopic(b, brokers, topic, 4)
	p, err := producer.New(testConfig(brokers, topic), daemon.NewEnv(slog.New(slog.DiscardHandler)))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	value := string(make([]byte, 200))
	c := counter{slots: make(chan struct{}, 2000)}
	b.ReportAllocs()
	start, n := time.Now(), uint64(0)
	for b.Loop() {
		n++
		c.slots <- struct{}{}
		if outcome, accepted := p.Submit(newRecord("device"+strconv.FormatUint(n%100, 10), value), n, c); !accepted {
			b.Fatal(outcome)
		}
	}
	for range cap(c.slots) {
		c.slots <- struct{}{} // all are back
	}
	b.ReportMetric(float64(n)/time.Since(start).Seconds(), "records/s")
}
