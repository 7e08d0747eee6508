package rawmqtt

import "encoding/binary"

// Version is a protocol level as it is in CONNECT.
type Version byte

// The protocol levels that the server knows.
const (
	V311 Version = 4
	V5   Version = 5
)

func (v Version) String() string {
	switch v {
	case V311:
		return "3.1.1"
	case V5:
		return "5"
	default:
		return "unknown level"
	}
}

// Type is the type of a packet.
type Type byte

// Types of packets.
const (
	CONNECT Type = iota + 1
	CONNACK
	PUBLISH
	PUBACK
	PUBREC
	PUBREL
	PUBCOMP
	SUBSCRIBE
	SUBACK
	UNSUBSCRIBE
	UNSUBACK
	PINGREQ
	PINGRESP
	DISCONNECT
	AUTH
)

var typeNames = [...]string{
	"reserved", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK",
	"UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
}

func (t Type) String() string { return typeNames[t&15] }

// Outgoing is a packet that a client can send.
type Outgoing interface {
	// Append appends the bytes of the packet in a protocol version.
	Append(b []byte, v Version) []byte
}

// Raw is any bytes: they are sent as they are.
type Raw []byte

// Append appends the bytes.
func (r Raw) Append(b []byte, _ Version) []byte { return append(b, r...) }

// Connect is a CONNECT packet. Nil is an absent user name, password or will; an
// empty string is a present one.
type Connect struct {
	ClientID   string
	Username   *string
	Password   *string
	CleanStart bool
	// KeepAlive is in seconds.
	KeepAlive  uint16
	Properties Properties
	Will       *Will
	// Level replaces the protocol level, when it is not 0.
	Level byte
}

// Will is the will in a CONNECT packet.
type Will struct {
	Topic      string
	Payload    []byte
	QoS        byte
	Retain     bool
	Properties Properties
}

// Append appends the packet.
func (p Connect) Append(b []byte, v Version) []byte {
	level := byte(v)
	if p.Level != 0 {
		level = p.Level
	}
	var flags byte
	if p.CleanStart {
		flags |= 0x02
	}
	if p.Will != nil {
		flags |= 0x04 | p.Will.QoS<<3
		if p.Will.Retain {
			flags |= 0x20
		}
	}
	if p.Password != nil {
		flags |= 0x40
	}
	if p.Username != nil {
		flags |= 0x80
	}
	body := appendString(nil, "MQTT")
	body = append(body, level, flags)
	body = binary.BigEndian.AppendUint16(body, p.KeepAlive)
	body = p.Properties.append(body, v)
	body = appendString(body, p.ClientID)
	if p.Will != nil {
		body = p.Will.Properties.append(body, v)
		body = appendString(body, p.Will.Topic)
		body = appendString(body, string(p.Will.Payload))
	}
	if p.Username != nil {
		body = appendString(body, *p.Username)
	}
	if p.Password != nil {
		body = appendString(body, *p.Password)
	}
	return appendPacket(b, CONNECT, 0, body)
}

// Publish is a PUBLISH packet. PacketID is sent unless QoS is 0.
type Publish struct {
	Topic      string
	Payload    []byte
	QoS        byte
	Dup        bool
	Retain     bool
	PacketID   uint16
	Properties Properties
}

// Append appends the packet.
func (p Publish) Append(b []byte, v Version) []byte {
	flags := p.QoS << 1
	if p.Dup {
		flags |= 8
	}
	if p.Retain {
		flags |= 1
	}
	body := appendString(make([]byte, 0, len(p.Topic)+len(p.Payload)+64), p.Topic)
	if p.QoS > 0 {
		body = binary.BigEndian.AppendUint16(body, p.PacketID)
	}
	body = p.Properties.append(body, v)
	return appendPacket(b, PUBLISH, flags, append(body, p.Payload...))
}

// Filter is one subscription in a SUBSCRIBE packet.
type Filter struct {
	Filter string
	// Options are the whole byte: the QoS in 3.1.1.
	Options byte
}

// Subscribe is a SUBSCRIBE packet.
type Subscribe struct {
	PacketID   uint16
	Filters    []Filter
	Properties Properties
}

// Append appends the packet.
func (p Subscribe) Append(b []byte, v Version) []byte {
	body := binary.BigEndian.AppendUint16(nil, p.PacketID)
	body = p.Properties.append(body, v)
	for _, f := range p.Filters {
		body = append(appendString(body, f.Filter), f.Options)
	}
	return appendPacket(b, SUBSCRIBE, 2, body)
}

// Unsubscribe is an UNSUBSCRIBE packet.
type Unsubscribe struct {
	PacketID   uint16
	Filters    []string
	Properties Properties
}

// Append appends the packet.
func (p Unsubscribe) Append(b []byte, v Version) []byte {
	body := binary.BigEndian.AppendUint16(nil, p.PacketID)
	body = p.Properties.append(body, v)
	for _, f := range p.Filters {
		body = appendString(body, f)
	}
	return appendPacket(b, UNSUBSCRIBE, 2, body)
}

// Ack is a PUBACK, PUBREC, PUBREL or PUBCOMP packet. Code and Properties are
// left out where they are 0 and empty, and in 3.1.1.
type Ack struct {
	// Type is PUBACK when it is 0.
	Type       Type
	PacketID   uint16
	Code       byte
	Properties Properties
}

// Append appends the packet.
func (p Ack) Append(b []byte, v Version) []byte {
	t, flags := p.Type, byte(0)
	if t == 0 {
		t = PUBACK
	}
	if t == PUBREL {
		flags = 2
	}
	if v < V5 || (p.Code == 0 && len(p.Properties) == 0) {
		return binary.BigEndian.AppendUint16(append(b, byte(t)<<4|flags, 2), p.PacketID)
	}
	body := append(binary.BigEndian.AppendUint16(nil, p.PacketID), p.Code)
	return appendPacket(b, t, flags, p.Properties.append(body, v))
}

// Ping is a PINGREQ packet.
type Ping struct{}

// Append appends the packet.
func (Ping) Append(b []byte, _ Version) []byte { return append(b, byte(PINGREQ)<<4, 0) }

// Disconnect is a DISCONNECT packet.
type Disconnect struct {
	Code       byte
	Properties Properties
}

// Append appends the packet.
func (p Disconnect) Append(b []byte, v Version) []byte {
	if v < V5 || (p.Code == 0 && len(p.Properties) == 0) {
		return append(b, byte(DISCONNECT)<<4, 0)
	}
	return appendPacket(b, DISCONNECT, 0, p.Properties.append([]byte{p.Code}, v))
}

// Auth is an AUTH packet.
type Auth struct {
	Code       byte
	Properties Properties
}

// Append appends the packet.
func (p Auth) Append(b []byte, v Version) []byte {
	return appendPacket(b, AUTH, 0, p.Properties.append([]byte{p.Code}, v))
}

func appendPacket(b []byte, t Type, flags byte, body []byte) []byte {
	b = append(b, byte(t)<<4|flags)
	return append(appendVarint(b, len(body)), body...)
}

func appendVarint(b []byte, n int) []byte {
	for n > 127 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n)) //nolint:gosec // At most 127.
}

// appendString appends a string or binary data with its length.
func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...) //nolint:gosec // Tests know what they send.
}
