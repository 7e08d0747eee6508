package wire_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
	"mqtt-integration/services/mqtt-frontend/internal/outbound"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler accepts everything and answers what it can.
type handler struct {
	conn    *wire.Conn
	server  *server
	publish func(*wire.Publish)

	mu  sync.Mutex
	end *wire.End
}

func (h *handler) Connect(_ context.Context, k *wire.Connect) wire.Connack {
	h.conn.Engine().Start(outbound.Limits{Level: k.Level, Events: 10, Bytes: 1000})
	return wire.Connack{
		Code: wire.Success, ReceiveMaximum: 100, MaxPacketSize: 64 << 10, TopicAliasMaximum: 32, MaximumQoS: 1,
		ServerKeepAlive: h.server.keepAlive,
	}
}

func (h *handler) Connected() {}

func (h *handler) Publish(p *wire.Publish) {
	if h.publish != nil {
		h.publish(p)
	}
	if p.QoS > 0 {
		h.conn.Puback(p.PacketID, wire.Success, "")
	}
}

func (h *handler) Acknowledge(uint16, wire.Code) {}

func (h *handler) Release(id uint16) {
	h.conn.Pubrec(id, wire.QuotaExceeded, "no")
	h.conn.Pubcomp(id, wire.PacketIdentifierNotFound)
}

func (h *handler) Subscribe(p *wire.Subscribe) {
	h.conn.Suback(p.PacketID, make([]wire.Code, len(p.Filters)), "")
}

func (h *handler) Unsubscribe(p *wire.Unsubscribe) {
	h.conn.Unsuback(p.PacketID, make([]wire.Code, len(p.Filters)))
}

func (h *handler) Close(end wire.End) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.end != nil {
		h.server.t.Error("closed twice")
	}
	h.end = &end
	h.server.ends <- end
}

// server runs connections with a handler each.
type server struct {
	t           testing.TB
	wire        *wire.Server
	ctx         context.Context //nolint:containedctx // of the test
	connections sync.WaitGroup
	ends        chan wire.End
	publish     func(*wire.Publish)
	keepAlive   uint16
	log         *strings.Builder
}

func newServer(tb testing.TB) *server {
	tb.Helper()
	return newLingeringServer(tb, 10*time.Millisecond)
}

func newLingeringServer(tb testing.TB, linger time.Duration) *server {
	tb.Helper()
	s := &server{t: tb, ends: make(chan wire.End, 100_000), log: new(strings.Builder)}
	var err error
	s.wire, err = wire.NewServer(wire.Config{
		MaxPacketSize: 64 << 10, MaxConnectSize: 128 << 10, TopicAliasMaximum: 32,
		ConnectTimeout: 10 * time.Second, WriteTimeout: 5 * time.Second, Linger: linger,
		Logger:     slog.New(slog.NewTextHandler(s.log, nil)),
		NewHandler: func(c *wire.Conn) wire.Handler { return &handler{conn: c, server: s, publish: s.publish} },
		Passed:     func(string, error) {},
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.ctx = ctx
	tb.Cleanup(func() {
		cancel()
		s.connections.Wait()
	})
	return s
}

func (s *server) dial(level byte) *mqtttest.Client {
	s.t.Helper()
	here, there := net.Pipe()
	s.connections.Go(func() { s.wire.Serve(s.ctx, here) })
	return mqtttest.New(s.t, there, level)
}

func (s *server) connect(level byte, change ...func(*packets.Packet)) *mqtttest.Client {
	s.t.Helper()
	c := s.dial(level)
	c.Send(mqtttest.Connect(level, "c", "name", "secret", change...))
	if k := c.Want(packets.Connack); k.ReasonCode != 0 {
		s.t.Fatalf("CONNACK %#x", k.ReasonCode)
	}
	return c
}

func keepAlive(seconds uint16) func(*packets.Packet) {
	return func(pk *packets.Packet) { pk.Connect.Keepalive = seconds }
}

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		level   byte
		asked   uint16
		ours    uint16
		timeout time.Duration
	}{
		{name: "one and a half times", level: 5, asked: 60, timeout: 90 * time.Second},
		{name: "odd", level: 4, asked: 1, timeout: 1500 * time.Millisecond},
		{name: "trap: 43691 overflows in the library", level: 5, asked: 43691, timeout: 65536500 * time.Millisecond},
		{name: "largest", level: 4, asked: 65535, timeout: 98302500 * time.Millisecond},
		{name: "ours", level: 5, asked: 0, ours: 10, timeout: 15 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t)
				s.keepAlive = tt.ours
				c := s.connect(tt.level, keepAlive(tt.asked))
				c.WantNothing(tt.timeout - 1)
				c.Ping()
				c.WantNothing(tt.timeout - 1)
				c.Send([]byte{0xc0}) // half a PINGREQ is no packet
				d := c.WantClosed()
				if tt.level == 5 && (d == nil || d.ReasonCode != 0x8d) {
					t.Errorf("got %v, want DISCONNECT 0x8d", d)
				}
				if end := <-s.ends; end.Label != "keep_alive" {
					t.Errorf("ended by %q", end.Label)
				}
			})
		})
	}
}

func TestNoKeepAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newServer(t).connect(5)
		c.WantNothing(30 * 24 * time.Hour)
		c.Ping()
	})
}

func TestKeepAliveDoesNotCountWhileWeDoNotRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.publish = func(*wire.Publish) { time.Sleep(time.Hour) }
		c := s.connect(5, keepAlive(10))
		c.Send(mqtttest.Publish(5, 1, 1, "t", "x"))
		time.Sleep(time.Hour - time.Second)
		c.Send([]byte{0xc0, 0})
		c.Want(packets.Puback)
		c.Want(packets.Pingresp)
		c.Ping()
	})
}

func TestConnectHasToComeInTime(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"", "\x10", "\x10\x20\x00\x04MQ"} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(t)
			c := s.dial(5)
			begin := time.Now()
			if first != "" {
				c.Send([]byte(first))
			}
			c.WantClosed()
			if took := time.Since(begin); took != 10*time.Second {
				t.Errorf("closed after %v", took)
			}
			if end := <-s.ends; end.Label != "connect_timeout" {
				t.Errorf("ended by %q", end.Label)
			}
		})
	}
}

// A client that writes and does not read is not sent without end.
func TestClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		here, there := net.Pipe()
		s.connections.Go(func() { s.wire.Serve(s.ctx, here) })
		if _, err := there.Write(mqtttest.Connect(5, "c", "", "")); err != nil {
			t.Fatal(err)
		}
		if _, err := there.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		pings := []byte(strings.Repeat("\xc0\x00", 1000))
		written := 0
		for {
			if _, err := there.Write(pings); err != nil {
				break
			}
			if written += len(pings); written > 1<<20 {
				t.Fatal("the server reads on")
			}
		}
		if end := <-s.ends; end.Label != "write_failed" {
			t.Errorf("ended by %q", end.Label)
		}
	})
}

func TestPanicEndsOneConnection(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.publish = func(p *wire.Publish) {
		if p.Topic == "panic" {
			panic("on purpose")
		}
	}
	healthy, sick := s.connect(5), s.connect(5)
	sick.Send(mqtttest.Publish(5, 1, 1, "panic", "secret payload"))
	if d := sick.WantClosed(); d == nil || d.ReasonCode != 0x80 {
		t.Errorf("got %v, want DISCONNECT 0x80", d)
	}
	healthy.Ping()
	if end := <-s.ends; end.Label != "panic" {
		t.Errorf("ended by %q", end.Label)
	}
	if log := s.log.String(); !strings.Contains(log, "on purpose") || strings.Contains(log, "secret") {
		t.Errorf("log:\n%s", log)
	}
}

func TestDisconnectOfTheClient(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, tt := range []struct {
		level  byte
		packet string
		code   wire.Code
	}{
		{4, "\xe0\x00", 0},
		{5, "\xe0\x00", 0},
		{5, "\xe0\x01\x04", 4}, // trap: the library does not look at a reason code alone
		{5, "\xe0\x02\x04\x00", 4},
		{5, "\xe0\x07\x00\x05\x11\x00\x00\x00\x00", 0},
	} {
		c := s.connect(tt.level)
		c.Send([]byte(tt.packet))
		if d := c.WantClosed(); d != nil {
			t.Errorf("%x: answered", tt.packet)
		}
		if end := <-s.ends; end.Label != "client_disconnect" || end.Client == nil || end.Client.Code != tt.code {
			t.Errorf("%x: ended by %+v", tt.packet, end)
		}
	}
	c := s.connect(5)
	c.Send([]byte("\xe0\x07\x00\x05\x11\x00\x00\x00\x01")) // [MQTT-3.14.2-2]
	if d := c.WantClosed(); d == nil || d.ReasonCode != 0x82 {
		t.Errorf("got %v, want DISCONNECT 0x82", d)
	}
}

func TestAcknowledgementsOfQoS2(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, level := range []byte{4, 5} {
		c := s.connect(level)
		c.Send([]byte("\x62\x02\x00\x07")) // PUBREL
		if pk := c.Want(packets.Pubrec); pk.PacketID != 7 || level == 5 && (pk.ReasonCode != 0x97 || pk.Properties.ReasonString != "no") {
			t.Errorf("PUBREC %d %#x", pk.PacketID, pk.ReasonCode)
		}
		if pk := c.Want(packets.Pubcomp); pk.PacketID != 7 || level == 5 && pk.ReasonCode != 0x92 {
			t.Errorf("PUBCOMP %d %#x", pk.PacketID, pk.ReasonCode)
		}
		c.Send([]byte("\x50\x02\x00\x07")) // PUBREC
		if pk := c.Want(packets.Pubrel); pk.PacketID != 7 || level == 5 && pk.ReasonCode != 0x92 {
			t.Errorf("PUBREL %d %#x", pk.PacketID, pk.ReasonCode)
		}
		c.Send([]byte("\x70\x02\x00\x07")) // PUBCOMP
		c.Ping()
	}
}

// Over a real socket: the client writes on and reads late, and still finds out.
func TestLastPacketCanBeRead(t *testing.T) {
	t.Parallel()
	s := newLingeringServer(t, time.Second)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for range 50 {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		here, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		s.connections.Go(func() { s.wire.Serve(s.ctx, here) })
		packet := mqtttest.Connect(5, "c", "", "")
		packet = append(packet, 0xf0, 0) // AUTH
		packet = append(packet, strings.Repeat("\xc0\x00", 20_000)...)
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil || len(got) == 0 || got[0] != 0x20 {
			t.Fatalf("read %x, %v", got, err)
		}
		if last := got[2+int(got[1]):]; len(last) < 3 || last[0] != 0xe0 || last[2] != 0x82 {
			t.Fatalf("the last packet is %x, want DISCONNECT 0x82", last)
		}
		_ = conn.Close()
	}
}

// The client allows packets so small that no answer fits.
func TestTinyMaximumPacketSize(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	c := s.dial(5)
	c.Send(mqtttest.Connect(5, "c", "", "", func(pk *packets.Packet) { pk.Properties.MaximumPacketSize = 8 }))
	c.WantClosed()
}

func TestEndOfTheServer(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	ctx, cancel := context.WithCancel(s.ctx)
	s.ctx = ctx
	c := s.connect(5)
	unsaid := s.dial(5)
	cancel()
	c.WantClosed()
	unsaid.WantClosed()
}
