package wire

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/mochi-mqtt/server/v2/packets"

	"mqtt-integration/services/mqtt-frontend/internal/outbound"
)

// End is why a connection ends. The first one counts.
type End struct {
	// Label names the cause in metrics and logs: few values, lower case.
	Label string
	// Code is what DISCONNECT tells an MQTT 5 client. Success: there is none, the
	// connection is closed.
	Code Code
	// Reason is the reason string of that DISCONNECT, or of the refusal.
	Reason string
	// Refusal is the code of the CONNACK that refused the client; else Success.
	Refusal Code
	// Client is the client's DISCONNECT, nil when there was none.
	Client *Disconnect
	// Err is what happened to the connection, for logs.
	Err error
}

// Conn is one client's connection. For the library it is a [net.Conn] that
// delivers one checked packet after the other, and never blocks a write.
//
// The exported methods that are not those of net.Conn are safe for concurrent
// use once Connect of the handler was called.
type Conn struct {
	server  *Server
	nc      net.Conn
	engine  *outbound.Engine
	handler Handler
	id      string
	ctx     context.Context //nolint:containedctx // the library's callbacks have none: ends with the connection
	cancel  context.CancelCauseFunc

	// Of the reading goroutine.
	in           buffer
	pass         []byte // of the packet that the library is reading
	acked        bool   // there were PUBACKs since the engine was kicked
	connectCheck connectCheck
	connect      *Connect // set once, before the handler sees it
	connack      *Connack
	checked      checked
	peer         peer // set once, with connect

	keepAlive time.Duration // 0: none
	waiting   atomic.Int64  // since when the next packet is waited for, in Unix nanoseconds; 0: it is not

	forget func() bool // stops waiting for the server's context

	mu      sync.Mutex  // held too when connect and peer are set
	timer   *time.Timer // for CONNECT, then for keep-alive
	end     *End
	greeted bool // CONNACK is on its way
}

func newConn(ctx context.Context, s *Server, nc net.Conn) *Conn {
	c := &Conn{server: s, nc: nc, id: uuid.Must(uuid.NewV7()).String()}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.engine = outbound.New(outbound.Config{
		Conn: nc, WriteTimeout: s.cfg.WriteTimeout, Passed: s.cfg.Passed,
		Failed: func(err error) { c.End(End{Label: "write_failed", Err: err}) },
	})
	c.mu.Lock()
	c.timer = time.AfterFunc(s.cfg.ConnectTimeout, func() { c.End(End{Label: "connect_timeout"}) })
	c.mu.Unlock()
	c.forget = context.AfterFunc(ctx, func() { c.End(End{Label: "stopped"}) })
	c.handler = s.cfg.NewHandler(c)
	return c
}

// ID is unique for ever.
func (c *Conn) ID() string { return c.id }

// Engine sends what goes to the client.
func (c *Conn) Engine() *outbound.Engine { return c.engine }

// Context ends when the connection is to end.
func (c *Conn) Context() context.Context { return c.ctx }

// Host is the network address of the client without its port.
func (c *Conn) Host() string {
	host, _, err := net.SplitHostPort(c.nc.RemoteAddr().String())
	if err != nil {
		return c.nc.RemoteAddr().String()
	}
	return host
}

// End ends the connection, with a DISCONNECT where the client can have one. It
// does not block. The handler's Close follows.
func (c *Conn) End(end End) {
	c.mu.Lock()
	if c.end != nil {
		c.mu.Unlock()
		return
	}
	c.end = &end
	c.timer.Stop()
	c.engine.End(c.lastPacket(&end))
	c.mu.Unlock()
	c.cancel(nil)
	_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
}

// lastPacket is DISCONNECT, or CONNACK when it ends before there was one. The
// caller holds mu.
func (c *Conn) lastPacket(end *End) []byte {
	switch {
	case end.Code == Success:
		return nil
	case c.greeted:
		return c.peer.encode(reply{packet: typeDisconnect, code: end.Code, reason: end.Reason})
	case c.connect != nil:
		return c.peer.refusal(end)
	default:
		return nil
	}
}

// Ended returns why the connection ends, and nil while it does not.
func (c *Conn) Ended() *End {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}

// Puback acknowledges a PUBLISH of QoS 1. MQTT 3.1.1 knows success only.
func (c *Conn) Puback(id uint16, code Code, reason string) {
	if code == Success {
		b := puback(id)
		c.engine.Control(b[:])
		return
	}
	c.reply(reply{packet: typePuback, id: id, code: code, reason: reason})
}

// Pubrec acknowledges a PUBLISH of QoS 2. MQTT 3.1.1 knows success only.
func (c *Conn) Pubrec(id uint16, code Code, reason string) {
	c.reply(reply{packet: typePubrec, id: id, code: code, reason: reason})
}

// Pubcomp answers PUBREL.
func (c *Conn) Pubcomp(id uint16, code Code) {
	c.reply(reply{packet: typePubcomp, id: id, code: code})
}

// Suback answers SUBSCRIBE with a code for each filter.
func (c *Conn) Suback(id uint16, codes []Code, reason string) {
	c.reply(reply{packet: typeSuback, id: id, codes: codes, reason: reason})
}

// Unsuback answers UNSUBSCRIBE with a code for each filter.
func (c *Conn) Unsuback(id uint16, codes []Code) {
	c.reply(reply{packet: typeUnsuback, id: id, codes: codes})
}

func (c *Conn) reply(r reply) {
	b := c.peer.encode(r)
	if b == nil {
		// The client allows packets so small that it cannot be answered.
		c.End(End{Label: "packet_size", Code: PacketTooLarge, Reason: "the answer is larger than your maximum packet size"})
		return
	}
	c.engine.Control(b)
}

// established begins keep-alive, and tells the handler.
func (c *Conn) established() {
	if k := c.connack.ServerKeepAlive; k != 0 {
		c.keepAlive = 3 * time.Duration(k) * time.Second / 2
	} else {
		c.keepAlive = 3 * time.Duration(c.connect.KeepAlive) * time.Second / 2
	}
	c.mu.Lock()
	if c.keepAlive > 0 && c.end == nil {
		c.timer = time.AfterFunc(c.keepAlive, c.checkKeepAlive)
	}
	c.mu.Unlock()
	c.handler.Connected()
}

// checkKeepAlive ends the connection when nothing came for one and a half times
// the keep-alive. It does not count while the handler keeps us from reading.
func (c *Conn) checkKeepAlive() {
	left := c.keepAlive
	if since := c.waiting.Load(); since != 0 {
		left -= time.Since(time.Unix(0, since))
	}
	if left <= 0 {
		c.End(End{Label: "keep_alive", Code: KeepAliveTimeout, Reason: "nothing received for 1.5 times the keep alive"})
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil {
		c.timer.Reset(left)
	}
}

// disconnected takes the client's DISCONNECT and returns what the library gets.
func (c *Conn) disconnected(pk packets.Packet) packets.Packet {
	d := &Disconnect{
		// The library does not look at a reason code without properties.
		Code: c.checked.code, SessionExpiry: pk.Properties.SessionExpiryInterval,
		HasSessionExpiry: pk.Properties.SessionExpiryIntervalFlag,
	}
	if d.SessionExpiry > 0 && c.connect.SessionExpiry == 0 { // [MQTT-3.14.2-2]
		c.violate(protocolError("session expiry interval in DISCONNECT, but none in CONNECT"))
	} else {
		c.End(End{Label: "client_disconnect", Client: d})
	}
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ProtocolVersion: pk.ProtocolVersion}
}

// violate ends the connection because of a packet.
func (c *Conn) violate(v *Violation) {
	label := "protocol_error"
	switch v.Code {
	case MalformedPacket:
		label = "malformed_packet"
	case PacketTooLarge:
		label = "packet_too_large"
	default:
	}
	end := End{Label: label, Code: v.Code, Reason: v.Reason, Err: v}
	if c.connect == nil {
		end.Code = Success // before CONNECT there is nobody to tell
	}
	c.End(end)
}

// finish frees the connection. It is the only place that does.
func (c *Conn) finish() {
	c.forget()
	end := c.Ended()
	c.closeHandler(*end)
	// The engine ends by itself: every write has a deadline, and there are few left.
	<-c.engine.Done()
	if end.Code != Success || end.Refusal != Success {
		c.linger()
	}
	if err := c.nc.Close(); err != nil {
		c.server.cfg.Logger.DebugContext(c.ctx, "closing a connection", slog.Any("error", err))
	}
}

func (c *Conn) closeHandler(end End) {
	defer c.server.recovered(c)
	c.handler.Close(end)
}

// linger lets the client read our last packet: closing a socket that has unread
// input resets the connection, and what was sent is lost.
func (c *Conn) linger() {
	type halfCloser interface{ CloseWrite() error }
	if h, ok := c.nc.(halfCloser); ok {
		if err := h.CloseWrite(); err != nil {
			return
		}
	}
	if err := c.nc.SetReadDeadline(time.Now().Add(c.server.cfg.Linger)); err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c.nc, maxLinger))
}

// maxLinger is how many bytes of a client that goes on sending are read.
const maxLinger = 1 << 20

var _ net.Conn = (*Conn)(nil)

// Read implements net.Conn for the library.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.pass) == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.pass)
	c.pass = c.pass[n:]
	return n, nil
}

// Write implements net.Conn for the library: CONNACK first, then PINGRESP.
func (c *Conn) Write(p []byte) (int, error) {
	if !c.peer.fits(p) { // CONNACK, to a client that allows hardly any packet
		c.End(End{Label: "packet_size"})
		return len(p), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.engine.Control(p)
	c.greeted = c.connack != nil && !c.connack.Code.Refused()
	return len(p), nil
}

// Close implements net.Conn for the library, which ends a connection by not
// reading any more. finish closes it.
func (*Conn) Close() error { return nil }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// SetDeadline implements net.Conn. The library's deadline for reading would be
// one for writing too, and its keep-alive overflows: we have our own.
func (*Conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (*Conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (*Conn) SetWriteDeadline(time.Time) error { return nil }
