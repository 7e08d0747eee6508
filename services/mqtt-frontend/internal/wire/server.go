package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"runtime/debug"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Config bounds what a connection may do. All fields are required.
type Config struct {
	// MaxPacketSize is that of packets after CONNECT, as CONNACK announces it.
	MaxPacketSize int
	// MaxConnectSize is that of CONNECT.
	MaxConnectSize int
	// TopicAliasMaximum as CONNACK announces it.
	TopicAliasMaximum uint16
	// ConnectTimeout is how long a client may take to send CONNECT.
	ConnectTimeout time.Duration
	// WriteTimeout ends a connection whose client does not read.
	WriteTimeout time.Duration
	// Linger is how long the connection stays readable after its last packet, so
	// that the client can read it.
	Linger time.Duration
	Logger *slog.Logger
	// NewHandler makes the handler of a connection.
	NewHandler func(*Conn) Handler
	// Passed is called when an event was passed instead of delivered.
	Passed func(application string, err error)
}

// Handler is what happens on a connection. Its methods are called one at a time,
// by the goroutine that reads from the client: while one of them blocks, nothing
// is read. Close is the last one, and is called once on every connection.
type Handler interface {
	// Connect decides about CONNECT. The context ends with the connection.
	Connect(ctx context.Context, connect *Connect) Connack
	// Connected follows when CONNACK with success is on its way.
	Connected()
	// Publish takes a PUBLISH packet.
	Publish(publish *Publish)
	// Acknowledge takes a PUBACK.
	Acknowledge(id uint16, code Code)
	// Release takes a PUBREL.
	Release(id uint16)
	// Subscribe takes a SUBSCRIBE packet.
	Subscribe(subscribe *Subscribe)
	// Unsubscribe takes an UNSUBSCRIBE packet.
	Unsubscribe(unsubscribe *Unsubscribe)
	// Close frees what the handler holds.
	Close(end End)
}

// Server runs MQTT connections. Make it with [NewServer].
type Server struct {
	cfg  Config
	mqtt *mqtt.Server
}

// NewServer returns a server. It holds no resources but those of its
// connections.
func NewServer(cfg Config) (*Server, error) {
	capabilities := mqtt.NewDefaultServerCapabilities()
	capabilities.MaximumClientWritesPending = 1 // a channel that is never used
	capabilities.MaximumSessionExpiryInterval = 0
	capabilities.TopicAliasMaximum = math.MaxUint16 // the guard knows the real one
	capabilities.Compatibilities.NoInheritedPropertiesOnAck = true
	s := &Server{cfg: cfg, mqtt: mqtt.New(&mqtt.Options{
		Capabilities: capabilities,
		// The library logs whole packets, passwords included. What there is to say
		// about a connection, its handler says.
		Logger:                   slog.New(slog.DiscardHandler),
		SysTopicResendInterval:   math.MaxInt32,
		ClientNetReadBufferSize:  64, // the guard has a buffer
		ClientNetWriteBufferSize: 64,
	})}
	// Serve of the library's server is not called: it would start listeners and
	// housekeeping for sessions, retained messages and wills that it never has.
	if err := s.mqtt.AddHook(&hook{}, nil); err != nil {
		return nil, fmt.Errorf("set up MQTT library: %w", err)
	}
	return s, nil
}

// Serve runs a connection until nothing is left of it, and closes it. The context
// ends the connection without a word: an orderly end is [Conn.End].
func (s *Server) Serve(ctx context.Context, nc net.Conn) {
	c := newConn(ctx, s, nc)
	defer c.finish()
	s.establish(c)
}

// establish lets the library run the connection. A packet that makes it panic
// ends this connection only.
func (s *Server) establish(c *Conn) {
	defer s.recovered(c)
	defer s.mqtt.Clients.Delete(c.id) // it forgets to when CONNACK cannot be written
	err := s.mqtt.EstablishConnection("", c)
	c.End(End{Label: "connection_lost", Err: err})
}

// recovered ends a connection that panicked. It is to be deferred.
func (s *Server) recovered(c *Conn) {
	p := recover()
	if p == nil {
		return
	}
	s.cfg.Logger.LogAttrs(c.ctx, slog.LevelError, "connection panicked", slog.String("connection_id", c.id),
		slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
	c.End(End{Label: "panic", Code: UnspecifiedError, Reason: "internal error"})
}

var errRefused = errors.New("CONNECT refused")

// hook is what the library calls.
type hook struct{ mqtt.HookBase }

// ID implements mqtt.Hook.
func (*hook) ID() string { return "mqtt-frontend" }

// Provides implements mqtt.Hook. There is no OnACLCheck on purpose: without one
// the library's router lets nothing through.
func (*hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablished, mqtt.OnPacketRead, mqtt.OnPacketEncode:
		return true
	}
	return false
}

func connOf(cl *mqtt.Client) *Conn {
	return cl.Net.Conn.(*Conn) //nolint:forcetypeassert,errcheck // Serve makes every client
}

// OnConnect implements mqtt.Hook.
func (*hook) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	c := connOf(cl)
	k := c.handler.Connect(c.ctx, c.connect)
	c.connack = &k
	// Nobody needs them any more, and they would be here as long as the connection.
	c.connect.UserName, c.connect.Password, c.connect.AuthMethod, c.connect.AuthData = "", "", "", nil
	if !k.Code.Refused() {
		return nil
	}
	_ = cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}})
	c.End(End{Label: "refused", Refusal: k.Code, Reason: k.Reason})
	return errRefused // and the library sends nothing
}

// OnConnectAuthenticate implements mqtt.Hook: OnConnect has decided.
func (*hook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnSessionEstablished implements mqtt.Hook.
func (*hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) { connOf(cl).established() }

// OnPacketEncode implements mqtt.Hook.
func (*hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if c := connOf(cl); packetType(pk.FixedHeader.Type) == typeConnack && c.connack != nil {
		return connackPacket(pk, c.connack, c.peer)
	}
	return pk
}

// OnPacketRead implements mqtt.Hook: the seam. It always returns without an error:
// the library ignores errors, or ends the connection in its own way.
func (*hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
	switch packetType(pk.FixedHeader.Type) {
	case typeConnect:
		c.connecting(connect(&pk, c.connectCheck))
		return anonymous(pk, c.id), nil
	case typePublish:
		c.handler.Publish(publish(&pk, c.checked))
	case typeSubscribe:
		c.handler.Subscribe(subscribe(&pk))
	case typeUnsubscribe:
		c.handler.Unsubscribe(unsubscribe(&pk))
	case typePubrec: // we never publish with QoS 2
		c.reply(reply{packet: typePubrel, id: pk.PacketID, code: PacketIdentifierNotFound})
	case typePubrel:
		c.handler.Release(c.checked.id)
	case typePubcomp:
	case typeDisconnect:
		return c.disconnected(pk), nil
	default: // PINGREQ is the library's business
		return pk, nil
	}
	return ignored, nil
}

// ignored is a packet with which the library does nothing: it finds no such
// packet identifier in its in-flight store, which is always empty.
var ignored = packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}}

// anonymous leaves in CONNECT only what the library needs to run a connection: it
// keeps no session, will or credentials, and knows clients by the connection's
// identifier, so that it never takes a session over.
func anonymous(pk packets.Packet, id string) packets.Packet {
	return packets.Packet{
		FixedHeader: pk.FixedHeader, ProtocolVersion: pk.ProtocolVersion,
		Connect: packets.ConnectParams{
			ProtocolName: pk.Connect.ProtocolName, ClientIdentifier: id, Clean: true,
			Keepalive: 60, // not its business: the connection has no deadlines for the library
		},
	}
}
