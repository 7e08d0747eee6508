package wire

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"
)

// reply is a packet of ours that answers or ends something: the one way out for
// everything but PUBLISH, so that nothing leaves that is not legal.
type reply struct {
	packet packetType
	id     uint16
	code   Code
	codes  []Code // of SUBACK and UNSUBACK
	reason string
}

// peer is what decides which form of a reply a client can take.
type peer struct {
	level         byte
	noProblemInfo bool
	maxPacketSize uint32
}

// maxReason bounds reason strings in bytes.
const maxReason = 256

// encode returns the packet, or nil when this client can take it in no form:
// MQTT 3.1.1 has no such packet from a server, or it would be larger than the
// client allows even without its reason.
func (p peer) encode(r reply) []byte {
	if p.level < Level5 {
		return encode311(r)
	}
	pk := packets.Packet{
		ProtocolVersion: p.level, PacketID: r.id, ReasonCode: byte(legal(r.packet, r.code)),
		FixedHeader: packets.FixedHeader{Type: byte(r.packet)},
	}
	for _, c := range r.codes {
		pk.ReasonCodes = append(pk.ReasonCodes, byte(legal(r.packet, c)))
	}
	if !p.noProblemInfo || r.packet == typeConnack || r.packet == typeDisconnect { // [MQTT-3.1.2-29]
		pk.Properties.ReasonString = reasonString(r.reason)
	}
	b := encodePacket(&pk)
	if p.fits(b) {
		return b
	}
	pk.Properties.ReasonString = ""
	if b = encodePacket(&pk); p.fits(b) {
		return b
	}
	return nil
}

func (p peer) fits(b []byte) bool { return p.maxPacketSize == 0 || len(b) <= int(p.maxPacketSize) }

// encode311 encodes for MQTT 3.1.1, which knows failure in SUBACK only.
func encode311(r reply) []byte {
	switch r.packet {
	case typePuback, typePubrec, typePubrel, typePubcomp, typeUnsuback:
		flags := byte(0)
		if r.packet == typePubrel {
			flags = 2
		}
		return binary.BigEndian.AppendUint16([]byte{byte(r.packet)<<4 | flags, 2}, r.id)
	case typeSuback:
		pk := packets.Packet{PacketID: r.id, ProtocolVersion: Level311, FixedHeader: packets.FixedHeader{Type: byte(r.packet)}}
		for _, c := range r.codes {
			if c.Refused() {
				c = UnspecifiedError // the only one that 3.1.1 has
			}
			pk.ReasonCodes = append(pk.ReasonCodes, byte(c))
		}
		return encodePacket(&pk)
	default:
		return nil
	}
}

// legal returns the code if a server may send it in such a packet, and else the
// one that says nothing.
func legal(t packetType, c Code) Code {
	if strings.IndexByte(fromServer[t], byte(c)) >= 0 {
		return c
	}
	return UnspecifiedError
}

// reasonString makes an MQTT string of a text.
func reasonString(s string) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "")
	}
	return s
}

func encodePacket(pk *packets.Packet) []byte {
	var b bytes.Buffer
	var err error
	switch packetType(pk.FixedHeader.Type) {
	case typePuback, typePubrec, typePubrel, typePubcomp:
		if packetType(pk.FixedHeader.Type) == typePubrel {
			pk.FixedHeader.Qos = 1
		}
		err = pk.PubackEncode(&b) // all four are encoded alike
	case typeSuback:
		err = pk.SubackEncode(&b)
	case typeUnsuback:
		err = pk.UnsubackEncode(&b)
	case typeDisconnect:
		err = pk.DisconnectEncode(&b)
	case typeConnack:
		err = pk.ConnackEncode(&b)
	default:
		return nil
	}
	if err != nil { // by its code the library never returns one here
		return nil
	}
	return b.Bytes()
}

// refusal is CONNACK for a connection that ends before it had one.
func (p peer) refusal(end *End) []byte {
	if p.level < Level5 {
		return []byte{byte(typeConnack) << 4, 2, 0, byte(return311(end.Code))}
	}
	pk := packets.Packet{ProtocolVersion: p.level, FixedHeader: packets.FixedHeader{Type: byte(typeConnack)}}
	pk = connackPacket(pk, &Connack{Code: end.Code, Reason: end.Reason}, p)
	b := encodePacket(&pk)
	if !p.fits(b) {
		return nil
	}
	return b
}

// puback is the reply that is sent most, without the library's allocations.
func puback(id uint16) (b [4]byte) {
	b[0], b[1] = byte(typePuback)<<4, 2
	binary.BigEndian.PutUint16(b[2:], id)
	return b
}

// connackPacket puts our CONNACK in the place of the library's.
func connackPacket(pk packets.Packet, k *Connack, p peer) packets.Packet {
	pk.SessionPresent = k.SessionPresent && k.Code == Success
	if p.level < Level5 {
		pk.ReasonCode = byte(return311(k.Code))
		pk.Properties = packets.Properties{}
		return pk
	}
	pk.ReasonCode = byte(legal(typeConnack, k.Code))
	// The library leaves out what would not fit, by a sum that is wrong: we do it.
	pk.Mods = packets.Mods{AllowResponseInfo: true}
	pk.Properties = packets.Properties{ReasonString: reasonString(k.Reason)}
	for _, u := range k.UserProperties {
		pk.Properties.User = append(pk.Properties.User, packets.UserProperty{Key: u.Name, Val: u.Value})
	}
	if k.Code == Success {
		pk.Properties.ReceiveMaximum = k.ReceiveMaximum
		pk.Properties.MaximumPacketSize = k.MaxPacketSize
		pk.Properties.TopicAliasMaximum = k.TopicAliasMaximum
		pk.Properties.MaximumQos, pk.Properties.MaximumQosFlag = k.MaximumQoS, k.MaximumQoS < 2
		pk.Properties.RetainAvailableFlag = true
		pk.Properties.WildcardSubAvailableFlag = true
		pk.Properties.SubIDAvailable, pk.Properties.SubIDAvailableFlag = 1, true
		pk.Properties.SharedSubAvailableFlag = true
		if k.SharedAvailable {
			pk.Properties.SharedSubAvailable = 1
		}
		pk.Properties.AssignedClientID = k.AssignedClientID
		pk.Properties.SessionExpiryInterval = k.SessionExpiry
		pk.Properties.SessionExpiryIntervalFlag = k.HasSessionExpiry
		pk.Properties.ServerKeepAlive = k.ServerKeepAlive
		pk.Properties.ServerKeepAliveFlag = k.ServerKeepAlive != 0
	}
	if !p.fits(encodePacket(&pk)) {
		pk.Properties.ReasonString, pk.Properties.User = "", nil // [MQTT-3.2.2-19], [MQTT-3.2.2-20]
	}
	return pk
}
