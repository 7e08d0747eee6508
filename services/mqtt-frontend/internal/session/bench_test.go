package session_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/event"
	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
	"mqtt-integration/services/mqtt-frontend/internal/session"
)

// fastClient reads PUBLISH packets of MQTT 3.1.1 from a socket and acknowledges
// those that came together together, as cheaply as it can be done.
func fastClient(b *testing.B, conn net.Conn, events int) {
	b.Helper()
	in := make([]byte, 64<<10)
	have := 0
	var acks []byte
	for events > 0 {
		n, err := conn.Read(in[have:])
		if err != nil {
			b.Error(err)
			return
		}
		have += n
		rest := in[:have]
		acks = acks[:0]
		for len(rest) > 5 {
			size, header := int(rest[1]), 2
			if size >= 0x80 {
				size, header = size&0x7f|int(rest[2])<<7, 3
			}
			if len(rest) < header+size {
				break
			}
			topic := header + 2 + (int(rest[header])<<8 | int(rest[header+1]))
			acks = append(acks, 0x40, 2, rest[topic], rest[topic+1])
			rest = rest[header+size:]
			events--
		}
		have = copy(in, rest)
		if _, err := conn.Write(acks); err != nil {
			b.Error(err)
			return
		}
	}
}

// BenchmarkDelivery is the whole of mqtt-frontend but its gRPC clients: events of
// 200 bytes and QoS 1 over loopback sockets, acknowledged by clients in this
// process, whose costs are in the numbers.
func BenchmarkDelivery(b *testing.B) {
	for _, bench := range []struct{ subscribers, batch int }{{1, 1}, {1, 16}, {100, 1}, {100, 16}} {
		subscribers := bench.subscribers
		b.Run(fmt.Sprintf("subscribers=%d/batch=%d", subscribers, bench.batch), func(b *testing.B) {
			f := newFrontend(b)
			var lc net.ListenConfig
			l, err := lc.Listen(b.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			rounds := b.N/subscribers + 1
			var clients sync.WaitGroup
			for i := range subscribers {
				conn, err := new(net.Dialer).DialContext(b.Context(), "tcp", l.Addr().String())
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				server, err := l.Accept()
				if err != nil {
					b.Fatal(err)
				}
				f.connections.Go(func() { f.server.Serve(f.ctx, server) })
				for _, p := range [][]byte{mqtttest.Connect(4, strconv.Itoa(i), "anna", "key"), mqtttest.Subscribe(4, 1, "app/a")} {
					if _, err := conn.Write(p); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadAtLeast(conn, make([]byte, 100), 4); err != nil {
						b.Fatal(err)
					}
				}
				clients.Go(func() { fastClient(b, conn, rounds) })
			}
			subs := f.events.subscriptions
			shared := newEvent(b, `{"data":"`+strings.Repeat("7", 180)+`"}`)
			begin := cpu(b)
			b.ReportAllocs()
			b.ResetTimer()
			feed(subs, shared, rounds, bench.batch)
			clients.Wait()
			b.StopTimer()
			events := float64(rounds * subscribers)
			b.ReportMetric(float64(cpu(b)-begin)/1e3/events, "cpu-µs/event")
		})
	}
}

// BenchmarkIdleConnections is what connections with a subscription cost that do
// nothing: memory in the Go heap and stacks (the clients' sockets are in it, the
// kernel's buffers are not), goroutines, and processor time to connect and
// subscribe.
func BenchmarkIdleConnections(b *testing.B) {
	const n = 2000
	for b.Loop() {
		f := newFrontend(b, func(s *session.Settings) { s.MaxConnections = n })
		var lc net.ListenConfig
		l, err := lc.Listen(b.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		heap, stack := memory()
		goroutines, begin := runtime.NumGoroutine(), cpu(b)
		conns := make([]net.Conn, n)
		for i := range conns {
			if conns[i], err = new(net.Dialer).DialContext(b.Context(), "tcp", l.Addr().String()); err != nil {
				b.Fatal(err)
			}
			server, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			f.connections.Go(func() { f.server.Serve(f.ctx, server) })
			for _, p := range [][]byte{mqtttest.Connect(5, strconv.Itoa(i), "anna", "key"), mqtttest.Subscribe(5, 1, "app/a")} {
				if _, err := conns[i].Write(p); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadAtLeast(conns[i], make([]byte, 100), 4); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(cpu(b)-begin)/1e3/n, "cpu-µs/connect")
		heapNow, stackNow := memory()
		b.ReportMetric(float64(heapNow-heap)/n, "heap-B/connection")
		b.ReportMetric(float64(stackNow-stack)/n, "stack-B/connection")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/n, "goroutines/connection")
		for _, c := range conns {
			_ = c.Close()
		}
		_ = l.Close()
		f.connections.Wait()
	}
}

func memory() (heap, stack uint64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, m.StackInuse
}

// feed plays event-fanout: batches of events to every subscription, never more
// unacknowledged than the window.
func feed(subs []*fakeSubscription, shared *event.Shared, rounds, batch int) {
	const window = 512
	list := make([]delivery.Delivery, batch)
	for sent := 0; sent < rounds; {
		n := min(batch, rounds-sent)
		for _, sub := range subs {
			for sub.unacknowledged(sent) > window-batch {
				time.Sleep(50 * time.Microsecond)
			}
			for i := range n {
				list[i] = delivery.Delivery{Event: shared, Offset: int64(sent + i)}
			}
			sub.sink.Deliver(list[:n])
		}
		sent += n
	}
}

func (s *fakeSubscription) unacknowledged(sent int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.acknowledged) == cap(s.acknowledged) && len(s.acknowledged) > 1<<16 {
		s.next += int64(len(s.acknowledged))
		s.acknowledged = s.acknowledged[:0]
	}
	return sent - int(s.next) - len(s.acknowledged)
}

// cpu is the processor time of this process.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
