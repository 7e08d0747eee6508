package wire

import (
	"io"
	"time"
)

const (
	// firstBuffer is the size of the read buffer of an idle connection.
	firstBuffer = 2 << 10
	// keptBuffer is the size up to which a larger one is kept.
	keptBuffer = 16 << 10
)

// buffer holds what was read from the socket and not yet taken.
type buffer struct {
	b    []byte
	r, w int
	need int // size of the packet that is being read, 0 when not known
}

// frame returns the next packet in the buffer, and nil when it is not complete.
// The packet is valid until the next call of frame or room.
func (b *buffer) frame(limit int) ([]byte, *Violation) {
	b.need = 0
	in := b.b[b.r:b.w]
	size := 0
	for i := 1; ; i++ {
		if i >= len(in) {
			return nil, nil
		}
		size |= int(in[i]&0x7f) << (7 * (i - 1))
		if in[i]&0x80 == 0 {
			if in[i] == 0 && i > 1 {
				return nil, malformed("remaining length") // not the shortest form
			}
			size += 1 + i
			break
		}
		if i == 4 {
			return nil, malformed("remaining length")
		}
	}
	if size > limit {
		return nil, &Violation{Code: PacketTooLarge, Reason: "packet larger than the maximum packet size"}
	}
	if size > len(in) {
		b.need = size
		return nil, nil
	}
	b.r += size
	return in[:size:size], nil
}

// room makes room to read into. The buffer grows with what came, not with what a
// client says will come.
func (b *buffer) room() []byte {
	if b.r == b.w {
		b.r, b.w = 0, 0
		if len(b.b) > keptBuffer && b.need == 0 {
			b.b = nil
		}
	}
	if b.r > 0 && (b.w == len(b.b) || b.need > len(b.b)-b.r) {
		copy(b.b, b.b[b.r:b.w])
		b.r, b.w = 0, b.w-b.r
	}
	if b.w == len(b.b) {
		grown := make([]byte, max(firstBuffer, min(2*len(b.b), b.need)))
		copy(grown, b.b[:b.w])
		b.b = grown
	}
	return b.b[b.w:]
}

// body is a packet without its fixed header.
func body(frame []byte) []byte {
	for i := 1; ; i++ {
		if frame[i]&0x80 == 0 {
			return frame[i+1:]
		}
	}
}

// next reads on until there is a packet for the library, which it checks.
func (c *Conn) next() error {
	for {
		if c.ctx.Err() != nil {
			return io.EOF
		}
		frame, v := c.in.frame(c.maxPacketSize())
		switch {
		case v != nil:
			c.violate(v)
			return io.EOF
		case frame == nil:
			if err := c.fill(); err != nil {
				return err
			}
			continue
		}
		c.waiting.Store(0)
		pass, v := c.judge(frame)
		if v != nil {
			c.violate(v)
			return io.EOF
		}
		if pass {
			c.kick()
			c.pass = frame
			return nil
		}
	}
}

// maxPacketSize of the next packet: that of CONNECT, then what CONNACK announced.
func (c *Conn) maxPacketSize() int {
	switch {
	case c.connect == nil:
		return c.server.cfg.MaxConnectSize
	case c.connack != nil && c.connack.MaxPacketSize != 0:
		return min(int(c.connack.MaxPacketSize), c.server.cfg.MaxPacketSize)
	default:
		return c.server.cfg.MaxPacketSize
	}
}

// judge checks a packet and reports whether it goes on to the library.
func (c *Conn) judge(frame []byte) (bool, *Violation) {
	if c.connect == nil {
		return c.judgeConnect(frame)
	}
	k, v := check(c.peer.level, frame[0], body(frame), c.server.cfg.TopicAliasMaximum)
	if v != nil {
		return false, v
	}
	if packetType(frame[0]>>4) == typePuback {
		c.handler.Acknowledge(k.id, k.code)
		c.acked = true
		return false, nil
	}
	c.checked = k
	return true, nil
}

func (c *Conn) judgeConnect(frame []byte) (bool, *Violation) {
	k, v := checkConnect(frame[0], body(frame))
	if v != nil {
		return false, v
	}
	if k.refusal != nil {
		c.engine.Control(k.refusal)
		c.End(End{Label: "refused", Refusal: UnsupportedProtocolVersion, Reason: "protocol level"})
		return false, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timer.Stop() // it is the handler's time now
	c.connectCheck = k
	return true, nil
}

// connecting notes what the library has decoded.
func (c *Conn) connecting(k *Connect) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connect = k
	c.peer = peer{level: k.Level, noProblemInfo: k.NoProblemInfo, maxPacketSize: k.MaxPacketSize}
}

// kick lets the engine send what acknowledgements made room for: once for all
// those that came together.
func (c *Conn) kick() {
	if c.acked {
		c.acked = false
		c.engine.Kick()
	}
}

// fill reads from the socket.
func (c *Conn) fill() error {
	c.kick()
	if c.engine.Throttle() != nil {
		return io.EOF
	}
	if c.waiting.Load() == 0 {
		// Not with each piece of a packet: one that never gets complete must not
		// keep the connection alive.
		c.waiting.Store(time.Now().UnixNano())
	}
	n, err := c.nc.Read(c.in.room())
	c.in.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	c.End(End{Label: "connection_lost", Err: err})
	return err
}
