package mqtttest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// Patience is how long a client waits for a packet before its test fails.
const Patience = 20 * time.Second

// Client is one connection. Its methods are for one goroutine.
type Client struct {
	t       testing.TB
	Conn    net.Conn
	Level   byte
	packets chan *packets.Packet // small: a packet is nearly a kilobyte
	done    chan struct{}

	mu  sync.Mutex
	err error
}

// New reads from conn until it is closed, by the server or at the end of the test.
func New(tb testing.TB, conn net.Conn, level byte) *Client {
	tb.Helper()
	c := &Client{t: tb, Conn: conn, Level: level, packets: make(chan *packets.Packet, 4096), done: make(chan struct{})}
	go c.read()
	tb.Cleanup(func() {
		_ = conn.Close()
		<-c.done
	})
	return c
}

func (c *Client) read() {
	defer close(c.done)
	defer close(c.packets)
	in := bufio.NewReader(c.Conn)
	for {
		pk, err := c.readOne(in)
		if err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			return
		}
		c.packets <- &pk
	}
}

func (c *Client) readOne(in *bufio.Reader) (packets.Packet, error) {
	header, err := in.ReadByte()
	if err != nil {
		return packets.Packet{}, err
	}
	size, _, err := packets.DecodeLength(in)
	if err != nil {
		return packets.Packet{}, err
	}
	frame := binary.AppendUvarint([]byte{header}, uint64(size)) //nolint:gosec // never negative
	start := len(frame)
	frame = append(frame, make([]byte, size)...)
	if _, err := io.ReadFull(in, frame[start:]); err != nil {
		return packets.Packet{}, err
	}
	if err := c.legal(frame); err != nil {
		c.t.Errorf("the server sent %x: %v", frame, err)
	}
	if c.Level == AnyLevel {
		return packets.Packet{FixedHeader: packets.FixedHeader{Type: header >> 4}}, nil
	}
	return Decode(c.Level, header, frame[start:])
}

// AnyLevel is for a client that says anything: what it gets has to be legal in
// one protocol level, and is not decoded.
const AnyLevel byte = 0

func (c *Client) legal(frame []byte) error {
	if c.Level != AnyLevel {
		return wire.Legal(c.Level, frame)
	}
	if wire.Legal(wire.Level311, frame) == nil {
		return nil
	}
	return wire.Legal(wire.Level5, frame)
}

// Decode reads a packet of a server.
func Decode(level, header byte, body []byte) (packets.Packet, error) {
	pk := packets.Packet{ProtocolVersion: level}
	if err := pk.FixedHeader.Decode(header); err != nil {
		return pk, err
	}
	pk.FixedHeader.Remaining = len(body)
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		err = pk.PubackDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
		if len(body) == 1 { // the library's codec does not look then
			pk.ReasonCode = body[0]
		}
	case packets.Pingresp:
	default:
		err = fmt.Errorf("packet type %d from a server", pk.FixedHeader.Type)
	}
	return pk, err
}

// Send writes bytes as they are. It fails the test when the server is gone.
func (c *Client) Send(b []byte) {
	c.t.Helper()
	if err := c.TrySend(b); err != nil {
		c.t.Fatalf("send %x: %v", b[:min(len(b), 64)], err)
	}
}

// TrySend writes bytes as they are.
func (c *Client) TrySend(b []byte) error {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	_, err := c.Conn.Write(b)
	return err
}

// Next returns the next packet.
func (c *Client) Next() packets.Packet {
	c.t.Helper()
	pk, err := c.TryNext(Patience)
	if err != nil {
		c.t.Fatalf("next packet: %v", err)
	}
	return pk
}

// ErrTimeout is that of TryNext.
var ErrTimeout = errors.New("no packet in time")

// TryNext returns the next packet, [ErrTimeout], or why there is none any more.
func (c *Client) TryNext(patience time.Duration) (packets.Packet, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case pk, ok := <-c.packets:
		return c.received(pk, ok)
	case <-timer.C:
	}
	select { // both may have been ready
	case pk, ok := <-c.packets:
		return c.received(pk, ok)
	default:
		return packets.Packet{}, ErrTimeout
	}
}

func (c *Client) received(pk *packets.Packet, ok bool) (packets.Packet, error) {
	if ok {
		return *pk, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return packets.Packet{}, c.err
}

// Want returns the next packet, which has to be of this type.
func (c *Client) Want(packetType byte) packets.Packet {
	c.t.Helper()
	pk := c.Next()
	if pk.FixedHeader.Type != packetType {
		c.t.Fatalf("got %s (code %#x, reason %q), want %s", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode,
			pk.Properties.ReasonString, packets.PacketNames[packetType])
	}
	return pk
}

// WantClosed fails the test unless the server closes the connection, after at
// most a DISCONNECT, which it returns.
func (c *Client) WantClosed() (disconnect *packets.Packet) {
	c.t.Helper()
	for {
		pk, err := c.TryNext(Patience)
		switch {
		case errors.Is(err, ErrTimeout):
			c.t.Fatal("the connection is still open")
		case err != nil:
			return disconnect
		case pk.FixedHeader.Type == packets.Disconnect && disconnect == nil:
			disconnect = &pk
		default:
			c.t.Fatalf("got %s, want the connection closed", packets.PacketNames[pk.FixedHeader.Type])
		}
	}
}

// WantNothing fails the test if a packet comes within the time, or the connection
// ends.
func (c *Client) WantNothing(d time.Duration) {
	c.t.Helper()
	if pk, err := c.TryNext(d); !errors.Is(err, ErrTimeout) {
		c.t.Fatalf("got %s, %v, want nothing", packets.PacketNames[pk.FixedHeader.Type], err)
	}
}

// Ping waits until everything that was sent before has been read.
func (c *Client) Ping() {
	c.t.Helper()
	c.Send([]byte{0xc0, 0})
	c.Want(packets.Pingresp)
}

// Encode makes the bytes of a packet of a client with the library's codec.
func Encode(level byte, pk packets.Packet) []byte {
	pk.ProtocolVersion = level
	pk.Mods.AllowResponseInfo = true
	var b bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&b)
	case packets.Publish:
		err = pk.PublishEncode(&b)
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		err = pk.PubackEncode(&b)
	case packets.Subscribe:
		pk.FixedHeader.Qos = 1
		err = pk.SubscribeEncode(&b)
	case packets.Unsubscribe:
		pk.FixedHeader.Qos = 1
		err = pk.UnsubscribeEncode(&b)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&b)
	default:
		err = fmt.Errorf("packet type %d", pk.FixedHeader.Type)
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Connect is a CONNECT packet with a user name and password where they are not
// empty.
func Connect(level byte, clientID, userName, password string, change ...func(*packets.Packet)) []byte {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect},
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), ClientIdentifier: clientID, Clean: true,
			Username: []byte(userName), UsernameFlag: userName != "", Password: []byte(password), PasswordFlag: password != "",
		},
	}
	for _, f := range change {
		f(&pk)
	}
	return Encode(level, pk)
}

// Subscribe is a SUBSCRIBE packet for filters with QoS 1.
func Subscribe(level byte, id uint16, filters ...string) []byte {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: id}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: 1})
	}
	return Encode(level, pk)
}

// Publish is a PUBLISH packet.
func Publish(level, qos byte, id uint16, topic, payload string) []byte {
	return Encode(level, packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, PacketID: id, TopicName: topic, Payload: []byte(payload),
	})
}

// Puback is a PUBACK packet with success.
func Puback(id uint16) []byte { return binary.BigEndian.AppendUint16([]byte{0x40, 2}, id) }

// Pubrel is a PUBREL packet with success.
func Pubrel(id uint16) []byte { return binary.BigEndian.AppendUint16([]byte{0x62, 2}, id) }
