package outbound_test

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/event"
	"mqtt-integration/services/mqtt-frontend/internal/outbound"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is a connection whose other end reads everything at once.
type sink struct {
	net.Conn
	mu      sync.Mutex
	written bytes.Buffer
	writes  int
	block   chan struct{} // Write waits for it
	err     error
}

func (s *sink) SetWriteDeadline(time.Time) error { return nil }

func (s *sink) Write(b []byte) (int, error) {
	if s.block != nil {
		<-s.block
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	s.writes++
	return s.written.Write(b)
}

func (s *sink) take() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := bytes.Clone(s.written.Bytes())
	s.written.Reset()
	return b
}

// acker notes what is acknowledged.
type acker struct {
	mu      sync.Mutex
	offsets []int64
}

func (a *acker) Acknowledge(_ int32, offset int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.offsets = append(a.offsets, offset)
}

func (a *acker) take() []int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.offsets
	a.offsets = nil
	return o
}

func newEvent(tb testing.TB, size int) *event.Shared {
	tb.Helper()
	e := cloudevent.Event{
		Attributes: []cloudevent.Attribute{
			{Name: "specversion", Value: "1.0"},
			{Name: "id", Value: "1"},
			{Name: "source", Value: "s"},
			{Name: "type", Value: "t"},
		},
		Data: bytes.Repeat([]byte("x"), size), Kind: cloudevent.Text,
	}
	s, err := event.New(e.AppendWire(nil), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func deliveries(e *event.Shared, first, n int64) []delivery.Delivery {
	list := make([]delivery.Delivery, n)
	for i := range list {
		list[i] = delivery.Delivery{Event: e, Offset: first + int64(i)}
	}
	return list
}

func newEngine(tb testing.TB, conn net.Conn, limits outbound.Limits) (*outbound.Engine, chan error) {
	tb.Helper()
	failed := make(chan error, 1)
	e := outbound.New(outbound.Config{
		Conn: conn, WriteTimeout: time.Second, Failed: func(err error) { failed <- err }, Passed: func(string, error) {},
	})
	e.Start(limits)
	return e, failed
}

// ids returns the packet identifiers of PUBLISH packets of MQTT 3.1.1 with QoS 1.
func ids(tb testing.TB, b []byte) []uint16 {
	tb.Helper()
	var list []uint16
	for len(b) > 0 {
		size, shift, n := 0, 0, 1
		for ; ; n++ {
			size |= int(b[n]&0x7f) << shift
			shift += 7
			if b[n]&0x80 == 0 {
				break
			}
		}
		body := b[n+1 : n+1+size]
		topic := int(body[0])<<8 | int(body[1])
		list = append(list, uint16(body[2+topic])<<8|uint16(body[3+topic]))
		b = b[n+1+size:]
	}
	return list
}

func TestPacketIdentifiersComeRound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn, acks := &sink{}, &acker{}
		e, _ := newEngine(t, conn, outbound.Limits{Level: 4, Events: 100, Bytes: 1 << 30})
		q := e.NewQueue("a", outbound.Options{QoS: 1})
		q.Open(acks)
		shared := newEvent(t, 1)
		q.Add(deliveries(shared, 0, 140_000))
		synctest.Wait()
		inFlight := map[uint16]bool{}
		sent := ids(t, conn.take())
		stuck := sent[3] // never acknowledged: its identifier must not come again
		for total := len(sent); ; {
			for _, id := range sent {
				if id == 0 || inFlight[id] {
					t.Fatalf("packet identifier %d, in flight: %t", id, inFlight[id])
				}
				inFlight[id] = true
			}
			if len(inFlight) > 100 {
				t.Fatalf("%d in flight", len(inFlight))
			}
			for id := range inFlight {
				if id != stuck {
					e.Acknowledge(id)
					delete(inFlight, id)
				}
			}
			e.Kick()
			synctest.Wait()
			if sent = ids(t, conn.take()); len(sent) == 0 {
				if total != 140_000 {
					t.Fatalf("%d were sent", total)
				}
				break
			}
			total += len(sent)
		}
		if n := e.Unacknowledged(); n != 1 {
			t.Errorf("%d are unacknowledged, want 1", n)
		}
		if n := len(acks.take()); n != 139_999 {
			t.Errorf("%d were acknowledged", n)
		}
	})
}

func TestBytesInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn := &sink{}
		e, _ := newEngine(t, conn, outbound.Limits{Level: 4, Events: 100, Bytes: 1000})
		q := e.NewQueue("a", outbound.Options{QoS: 1})
		q.Open(&acker{})
		q.Add(deliveries(newEvent(t, 5000), 0, 3)) // each larger than the limit
		synctest.Wait()
		for range 3 {
			sent := ids(t, conn.take())
			if len(sent) != 1 {
				t.Fatalf("%d were sent, want 1", len(sent))
			}
			e.Acknowledge(sent[0])
			e.Kick()
			synctest.Wait()
		}
		q.Add(deliveries(newEvent(t, 300), 3, 10))
		synctest.Wait()
		if n := len(ids(t, conn.take())); n != 3 {
			t.Errorf("%d were sent, want as many as begin below the limit", n)
		}
	})
}

func TestControlPacketsAndEventsShareWrites(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn := &sink{block: make(chan struct{})}
		e, _ := newEngine(t, conn, outbound.Limits{Level: 4, Events: 100, Bytes: 1 << 30})
		q := e.NewQueue("a", outbound.Options{QoS: 1})
		q.Open(&acker{})
		e.Control([]byte("first"))
		synctest.Wait() // it is being written
		q.Add(deliveries(newEvent(t, 10), 0, 20))
		q.Add(deliveries(newEvent(t, 4000), 20, 1)) // too large to be copied
		e.Control([]byte("second"))
		close(conn.block)
		synctest.Wait()
		got := conn.take()
		if !bytes.HasPrefix(got, []byte("firstsecond\x32")) {
			t.Errorf("written %.40q", got)
		}
		if n := len(ids(t, got[len("firstsecond"):])); n != 21 {
			t.Errorf("%d events, want 21", n)
		}
		if conn.writes > 4 {
			t.Errorf("%d writes", conn.writes)
		}
	})
}

func TestQoS0IsAcknowledgedWhenWritten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn, acks := &sink{block: make(chan struct{})}, &acker{}
		e, _ := newEngine(t, conn, outbound.Limits{Level: 4, Events: 1, Bytes: 1})
		q := e.NewQueue("a", outbound.Options{})
		q.Open(acks)
		q.Add(deliveries(newEvent(t, 10), 0, 1))
		synctest.Wait()
		if got := acks.take(); len(got) != 0 {
			t.Errorf("acknowledged %v before it was written", got)
		}
		close(conn.block)
		synctest.Wait()
		if got := acks.take(); !slices.Equal(got, []int64{0}) {
			t.Errorf("acknowledged %v", got)
		}
	})
}

func TestFullWindowDoesNotHoldUpQoS0(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn, one, zero := &sink{}, &acker{}, &acker{}
		e, _ := newEngine(t, conn, outbound.Limits{Level: 4, Events: 1, Bytes: 1 << 20})
		a, b := e.NewQueue("a", outbound.Options{QoS: 1}), e.NewQueue("b", outbound.Options{})
		a.Open(one)
		b.Open(zero)
		a.Add(deliveries(newEvent(t, 1), 0, 5))
		b.Add(deliveries(newEvent(t, 1), 0, 5))
		synctest.Wait()
		if n := len(zero.take()); n != 5 {
			t.Errorf("%d of QoS 0 were written, want 5", n)
		}
		if n := e.Unacknowledged(); n != 1 {
			t.Errorf("%d of QoS 1 are in flight, want 1", n)
		}
	})
}

func TestClosedQueueSendsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn, acks := &sink{}, &acker{}
		e, _ := newEngine(t, conn, outbound.Limits{Level: 4, Events: 2, Bytes: 1 << 20})
		list := make([]*outbound.Queue, 4)
		for i := range list {
			list[i] = e.NewQueue("a", outbound.Options{QoS: 1})
			list[i].Open(acks)
			list[i].Add(deliveries(newEvent(t, 1), 0, 5))
		}
		synctest.Wait()
		sent := ids(t, conn.take())
		for _, i := range []int{1, 3, 0} { // in the middle, at the end and at the beginning of the rotation
			list[i].Close()
			list[i].Add(deliveries(newEvent(t, 1), 5, 5))
		}
		total := 0
		for len(sent) > 0 {
			total += len(sent)
			for _, id := range sent {
				e.Acknowledge(id)
			}
			e.Kick()
			synctest.Wait()
			sent = ids(t, conn.take())
		}
		if total != 2+5 {
			t.Errorf("%d were sent, want the 2 that were in flight and 5", total)
		}
	})
}

func TestEndWritesWhatWasQueued(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn := &sink{block: make(chan struct{})}
		e, _ := newEngine(t, conn, outbound.Limits{Level: 4, Events: 10, Bytes: 1 << 20})
		q := e.NewQueue("a", outbound.Options{QoS: 1})
		q.Open(&acker{})
		e.Control([]byte("one"))
		synctest.Wait()
		e.Control([]byte("two"))
		q.Add(deliveries(newEvent(t, 1), 0, 5))
		e.End([]byte("last"))
		e.End([]byte("again"))
		e.Control([]byte("late"))
		q.Add(deliveries(newEvent(t, 1), 5, 5))
		select {
		case <-e.Done():
			t.Error("ended before it has written")
		default:
		}
		close(conn.block)
		<-e.Done()
		if got := string(conn.take()); got != "onetwolast" {
			t.Errorf("written %q", got)
		}
		if err := e.Throttle(); !errors.Is(err, outbound.ErrEnded) {
			t.Errorf("Throttle: %v", err)
		}
	})
}

func TestEndOfAnIdleEngine(t *testing.T) {
	t.Parallel()
	e, _ := newEngine(t, &sink{}, outbound.Limits{Level: 4, Events: 10, Bytes: 1})
	e.End(nil)
	<-e.Done()
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn := &sink{block: make(chan struct{})}
		e, _ := newEngine(t, conn, outbound.Limits{Level: 4, Events: 10, Bytes: 1})
		passed := 0
		go func() {
			for e.Throttle() == nil {
				e.Control([]byte(strings.Repeat("x", 1000)))
				passed++
				if passed == 200 {
					return
				}
			}
		}()
		synctest.Wait()
		if passed < 60 || passed > 140 {
			t.Errorf("%d passed while nothing was written", passed)
		}
		close(conn.block)
		synctest.Wait()
		if passed != 200 || conn.written.Len() != 200_000 {
			t.Errorf("%d passed, %d bytes", passed, conn.written.Len())
		}
	})
}

// A large event on a slow line takes longer than the write timeout.
func TestLargePacketOnASlowLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn, client := net.Pipe()
		e, failed := newEngine(t, conn, outbound.Limits{Level: 4, Events: 10, Bytes: 1})
		q := e.NewQueue("a", outbound.Options{QoS: 1})
		q.Open(&acker{})
		q.Add(deliveries(newEvent(t, 1<<20), 0, 1))
		read := 0
		for in := make([]byte, 32<<10); read < 1<<20; {
			time.Sleep(400 * time.Millisecond)
			n, err := client.Read(in)
			if err != nil {
				t.Fatal(err)
			}
			read += n
		}
		select {
		case err := <-failed:
			t.Errorf("failed with %v", err)
		default:
		}
		_ = client.Close()
		e.End([]byte("x"))
		<-e.Done()
	})
}

func TestFailureIsReportedOnce(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	e, failed := newEngine(t, &sink{err: broken}, outbound.Limits{Level: 4, Events: 10, Bytes: 1})
	e.Control([]byte("x"))
	if err := <-failed; !errors.Is(err, broken) {
		t.Errorf("failed with %v", err)
	}
	e.Control([]byte("y"))
	<-e.Done()
}

func TestStalledConnectionCostsTheWriteTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn, _ := net.Pipe()
		e, failed := newEngine(t, conn, outbound.Limits{Level: 4, Events: 10, Bytes: 1})
		begin := time.Now()
		e.Control([]byte("x"))
		if err := <-failed; err == nil || time.Since(begin) != time.Second {
			t.Errorf("failed with %v after %v", err, time.Since(begin))
		}
	})
}

// ackingSink acknowledges what is written to it at once.
type ackingSink struct {
	net.Conn
	engine *outbound.Engine
	id     uint16
	left   int
	done   chan struct{}
}

func (*ackingSink) SetWriteDeadline(time.Time) error { return nil }

func (s *ackingSink) Write(b []byte) (int, error) {
	for n := s.engine.Unacknowledged(); n > 0; n-- {
		if s.id++; s.id == 0 {
			s.id++
		}
		s.engine.Acknowledge(s.id)
		s.left--
	}
	if s.left == 0 {
		close(s.done)
	}
	return len(b), nil
}

// BenchmarkEngine is what the engine itself costs per event of QoS 1, with events
// of 200 bytes in batches of 50: queue, encode, write to nowhere, acknowledge.
func BenchmarkEngine(b *testing.B) {
	conn := &ackingSink{left: b.N, done: make(chan struct{})}
	e, _ := newEngine(b, conn, outbound.Limits{Level: 4, Events: 100, Bytes: 1 << 30})
	conn.engine = e
	q := e.NewQueue("a", outbound.Options{QoS: 1})
	q.Open(nobody{})
	list := deliveries(newEvent(b, 200), 0, 50)
	b.ReportAllocs()
	b.ResetTimer()
	for n := b.N; n > 0; n -= len(list) {
		q.Add(list[:min(n, len(list))])
	}
	<-conn.done
}

type nobody struct{}

func (nobody) Acknowledge(int32, int64) {}
