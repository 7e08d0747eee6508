package rawmqtt

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// writeTimeout bounds a write, so that a server that reads nothing fails a test
// and does not hang it.
const writeTimeout = 30 * time.Second

// ErrTimeout says that nothing came in time.
var ErrTimeout = errors.New("no packet in time")

// Client is a connection.
type Client struct {
	version Version
	conn    net.Conn
	in      *bufio.Reader
	out     []byte
}

// Dial connects to a server and sends nothing.
func Dial(ctx context.Context, address string, v Version) (*Client, error) {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &Client{version: v, conn: conn, in: bufio.NewReaderSize(conn, 64<<10)}, nil
}

// Version is the protocol version that packets are written and read in.
func (c *Client) Version() Version { return c.version }

// Conn is the connection, for what only it can do.
func (c *Client) Conn() net.Conn { return c.conn }

// Close closes the connection without DISCONNECT. It may be called more than
// once.
func (c *Client) Close() {
	_ = c.conn.Close()
}

// Abort closes the connection with a reset, as a machine does that has lost
// power and comes back.
func (c *Client) Abort() {
	if tcp, ok := c.conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// Send writes packets in one piece.
func (c *Client) Send(packets ...Outgoing) error {
	c.out = c.out[:0]
	for _, p := range packets {
		c.out = p.Append(c.out, c.version)
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(c.out)
	return err
}

// Buffered says how many bytes have come that were not read yet: 0 means that
// Read might wait.
func (c *Client) Buffered() int { return c.in.Buffered() }

// Read returns the next packet: ErrTimeout when none has come in time, io.EOF
// when the server has closed the connection.
func (c *Client) Read(timeout time.Duration) (Packet, error) {
	if c.in.Buffered() == 0 {
		if err := c.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			return Packet{}, err
		}
		if _, err := c.in.Peek(1); err != nil {
			if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() {
				return Packet{}, ErrTimeout
			}
			return Packet{}, err
		}
	}
	// A packet that has begun comes as a whole.
	if err := c.conn.SetReadDeadline(time.Now().Add(timeout + writeTimeout)); err != nil {
		return Packet{}, err
	}
	first, err := c.in.ReadByte()
	if err != nil {
		return Packet{}, err
	}
	length, err := c.readLength()
	if err != nil {
		return Packet{}, err
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return Packet{}, fmt.Errorf("read %s of %d bytes: %w", Type(first>>4), length, err)
	}
	return parse(first, body, c.version)
}

func (c *Client) readLength() (int, error) {
	n := 0
	for shift := 0; shift < 28; shift += 7 {
		b, err := c.in.ReadByte()
		if err != nil {
			return 0, err
		}
		n |= int(b&127) << shift
		if b < 128 {
			return n, nil
		}
	}
	return 0, errors.New("remaining length of more than 4 bytes")
}

// Expect returns the next packet, which has to be of that type.
func (c *Client) Expect(t Type, timeout time.Duration) (Packet, error) {
	p, err := c.Read(timeout)
	if err != nil {
		return p, fmt.Errorf("wait for %s: %w", t, err)
	}
	if p.Type != t {
		return p, fmt.Errorf("wait for %s: got %v", t, p)
	}
	return p, nil
}

// Exchange sends a packet and returns the next one, which has to be of that
// type.
func (c *Client) Exchange(p Outgoing, want Type, timeout time.Duration) (Packet, error) {
	if err := c.Send(p); err != nil {
		return Packet{}, fmt.Errorf("send %T: %w", p, err)
	}
	return c.Expect(want, timeout)
}

// Packet is a packet of the server. Which fields count depends on its type.
type Packet struct {
	Type Type
	// Flags are the lower half of the first byte.
	Flags byte

	// PacketID is there in acknowledgements and in PUBLISH with QoS 1 or 2.
	PacketID uint16
	// Code is the reason code, or the return code in 3.1.1.
	Code byte
	// Codes are those of SUBACK and UNSUBACK.
	Codes []byte
	// SessionPresent is in CONNACK.
	SessionPresent bool
	// Topic and the following ones are in PUBLISH.
	Topic       string
	Payload     []byte
	QoS         byte
	Dup, Retain bool

	Properties Properties
	// Size is that of the whole packet in bytes.
	Size int
}

func (p Packet) String() string {
	reason, _ := p.Properties.Text(ReasonString)
	switch p.Type {
	case PUBLISH:
		return fmt.Sprintf("PUBLISH %d on %q with QoS %d and %d bytes", p.PacketID, p.Topic, p.QoS, len(p.Payload))
	case SUBACK, UNSUBACK:
		return fmt.Sprintf("%s %d %x %q", p.Type, p.PacketID, p.Codes, reason)
	default:
		return fmt.Sprintf("%s %d 0x%02x %q", p.Type, p.PacketID, p.Code, reason)
	}
}

func parse(first byte, body []byte, v Version) (Packet, error) {
	p := Packet{Type: Type(first >> 4), Flags: first & 15}
	p.Size = 1 + len(appendVarint(nil, len(body))) + len(body)
	r := &reader{b: body}
	switch p.Type {
	case CONNACK:
		p.SessionPresent = r.byte() == 1
		p.Code = r.byte()
		if v >= V5 {
			p.Properties = r.properties()
		}
	case PUBLISH:
		p.QoS, p.Dup, p.Retain = p.Flags>>1&3, p.Flags&8 != 0, p.Flags&1 != 0
		p.Topic = r.string()
		if p.QoS > 0 {
			p.PacketID = r.uint16()
		}
		if v >= V5 {
			p.Properties = r.properties()
		}
		p.Payload = r.bytes(len(r.b))
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		p.PacketID = r.uint16()
		p.codeAndProperties(r, v)
	case SUBACK, UNSUBACK:
		p.PacketID = r.uint16()
		if v >= V5 {
			p.Properties = r.properties()
		}
		p.Codes = r.bytes(len(r.b))
	case DISCONNECT, AUTH:
		p.codeAndProperties(r, v)
	case PINGRESP:
	default:
		r.fail(errors.New("a server does not send this"))
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail(fmt.Errorf("%d bytes too many", len(r.b)))
	}
	if r.err != nil {
		return p, fmt.Errorf("malformed %s: %w", p.Type, r.err)
	}
	return p, nil
}

func (p *Packet) codeAndProperties(r *reader, v Version) {
	if v < V5 || len(r.b) == 0 {
		return
	}
	p.Code = r.byte()
	if len(r.b) > 0 {
		p.Properties = r.properties()
	}
}

// reader reads the parts of a packet. After an error everything is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *reader) bytes(n int) []byte {
	if r.err != nil || n > len(r.b) {
		r.fail(io.ErrUnexpectedEOF)
		return nil
	}
	var b []byte
	b, r.b = r.b[:n:n], r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) string() string { return string(r.bytes(int(r.uint16()))) }

func (r *reader) varint() int {
	n := 0
	for shift := 0; shift < 28; shift += 7 {
		b := r.byte()
		n |= int(b&127) << shift
		if b < 128 {
			return n
		}
	}
	r.fail(errors.New("variable byte integer of more than 4 bytes"))
	return 0
}
