package bench_test

import (
	"fmt"
	"testing"
	"time"

	"mqtt-integration/tests/internal/system"
)

const partitions = 4

// setUp starts everything.
func setUp(b *testing.B) (*system.System, system.Application, load) {
	b.Helper()
	s := system.Start(b, system.Options{Brokers: kafka(b)})
	return s, s.CreateApplication(b, partitions), newLoad(b)
}

func connectArgs(s *system.System, app system.Application, clients int) ConnectArgs {
	return ConnectArgs{
		Address: s.MQTT(), User: app.Owner.Name, Key: app.Owner.Key, Clients: clients, Filter: "app/" + app.Name,
	}
}

// meter sums up what happens while the timer runs.
type meter struct {
	b       *testing.B
	events  int
	cpu     time.Duration
	elapsed time.Duration
}

// measure runs something with the timer, which is stopped otherwise.
func (m *meter) measure(events int, run func()) {
	m.b.Helper()
	cpu, began := system.CPU(m.b), time.Now()
	m.b.StartTimer()
	run()
	m.b.StopTimer()
	m.elapsed += time.Since(began)
	m.cpu += system.CPU(m.b) - cpu
	m.events += events
}

func (m *meter) report(unit, units string) {
	m.b.Helper()
	m.b.ReportMetric(float64(m.events)/m.elapsed.Seconds(), units+"/s")
	m.b.ReportMetric(float64(m.cpu.Nanoseconds())/1000/float64(m.events), "cpu-us/"+unit)
	m.b.ReportMetric(0, "ns/op")
}

// BenchmarkDrain drains a backlog to one client with QoS 1 and a full window.
func BenchmarkDrain(b *testing.B) {
	const backlog = 100_000
	s, app, l := setUp(b)
	m := &meter{b: b}
	for b.Loop() {
		b.StopTimer()
		// A new client each time: it withholds acknowledgements until the backlog
		// is there.
		l.call("Connect", connectArgs(s, app, 1))
		l.call("Produce", ProduceArgs{Brokers: s.Brokers, Topic: app.Topic, Partitions: partitions, Count: backlog})
		m.measure(backlog, func() { l.call("Receive", backlog) })
		b.StartTimer()
	}
	m.report("event", "events")
}

// BenchmarkFanOut delivers the same events to many subscribers with QoS 1.
func BenchmarkFanOut(b *testing.B) {
	for _, bb := range []struct {
		name                string
		subscribers, events int
		rate                float64
	}{
		{"subscribers=100/rate=max", 100, 10_000, 0},
		{"subscribers=100/rate=100", 100, 1000, 100},
		{"subscribers=1/rate=max", 1, 100_000, 0},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s, app, l := setUp(b)
			l.call("Connect", connectArgs(s, app, bb.subscribers))
			m := &meter{b: b}
			for b.Loop() {
				b.StopTimer()
				m.measure(bb.subscribers*bb.events, func() {
					produced := l.client.Go("Load.Produce", ProduceArgs{
						Brokers: s.Brokers, Topic: app.Topic, Partitions: partitions, Count: bb.events, Rate: bb.rate,
					}, new(struct{}), nil)
					l.call("Receive", bb.events)
					if call := <-produced.Done; call.Error != nil {
						b.Fatal(call.Error)
					}
				})
				b.StartTimer()
			}
			m.report("delivery", "deliveries")
		})
	}
}

// BenchmarkCommands sends commands with QoS 1 until Kafka has them.
func BenchmarkCommands(b *testing.B) {
	for _, clients := range []int{1, 100} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			const commands = 50_000
			s, app, l := setUp(b)
			args := connectArgs(s, app, clients)
			args.Filter = ""
			l.call("Connect", args)
			m := &meter{b: b}
			for b.Loop() {
				b.StopTimer()
				m.measure(commands, func() {
					l.call("Commands", CommandsArgs{Application: app.Name, Count: commands / clients, Window: 100})
				})
				b.StartTimer()
			}
			m.report("command", "commands")
		})
	}
}
