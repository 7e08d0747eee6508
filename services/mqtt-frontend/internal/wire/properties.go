package wire

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// propertyID is the identifier of an MQTT 5 property. All of them are below 64,
// so that a set of them is a uint64.
type propertyID = byte

const (
	propPayloadFormat       propertyID = 0x01
	propMessageExpiry       propertyID = 0x02
	propContentType         propertyID = 0x03
	propResponseTopic       propertyID = 0x08
	propCorrelationData     propertyID = 0x09
	propSubscriptionID      propertyID = 0x0b
	propSessionExpiry       propertyID = 0x11
	propAssignedClientID    propertyID = 0x12
	propServerKeepAlive     propertyID = 0x13
	propAuthMethod          propertyID = 0x15
	propAuthData            propertyID = 0x16
	propRequestProblemInfo  propertyID = 0x17
	propWillDelay           propertyID = 0x18
	propRequestResponseInfo propertyID = 0x19
	propResponseInfo        propertyID = 0x1a
	propServerReference     propertyID = 0x1c
	propReasonString        propertyID = 0x1f
	propReceiveMaximum      propertyID = 0x21
	propTopicAliasMaximum   propertyID = 0x22
	propTopicAlias          propertyID = 0x23
	propMaximumQoS          propertyID = 0x24
	propRetainAvailable     propertyID = 0x25
	propUser                propertyID = 0x26
	propMaximumPacketSize   propertyID = 0x27
	propWildcardAvailable   propertyID = 0x28
	propSubscriptionIDs     propertyID = 0x29
	propSharedAvailable     propertyID = 0x2a
	numProperties                      = 0x2b
)

// propertyKind is the data type of a property.
type propertyKind byte

const (
	kindNone propertyKind = iota
	kindByte
	kindUint16
	kindUint32
	kindVarint
	kindString
	kindBinary
	kindPair
)

var propertyKinds = [numProperties]propertyKind{
	propPayloadFormat: kindByte, propMessageExpiry: kindUint32, propContentType: kindString,
	propResponseTopic: kindString, propCorrelationData: kindBinary, propSubscriptionID: kindVarint,
	propSessionExpiry: kindUint32, propAssignedClientID: kindString, propServerKeepAlive: kindUint16,
	propAuthMethod: kindString, propAuthData: kindBinary, propRequestProblemInfo: kindByte,
	propWillDelay: kindUint32, propRequestResponseInfo: kindByte, propResponseInfo: kindString,
	propServerReference: kindString, propReasonString: kindString, propReceiveMaximum: kindUint16,
	propTopicAliasMaximum: kindUint16, propTopicAlias: kindUint16, propMaximumQoS: kindByte,
	propRetainAvailable: kindByte, propUser: kindPair, propMaximumPacketSize: kindUint32,
	propWildcardAvailable: kindByte, propSubscriptionIDs: kindByte, propSharedAvailable: kindByte,
}

// set is a set of properties.
type set uint64

func setOf(ids ...propertyID) set {
	var s set
	for _, id := range ids {
		s |= 1 << id
	}
	return s
}

func (s set) has(id propertyID) bool { return s&(1<<id) != 0 }

// clientProperties are the properties that a client may send in each packet.
var clientProperties = map[packetType]set{
	typeConnect: setOf(propSessionExpiry, propReceiveMaximum, propMaximumPacketSize, propTopicAliasMaximum,
		propRequestResponseInfo, propRequestProblemInfo, propUser, propAuthMethod, propAuthData),
	typeWill: setOf(propWillDelay, propPayloadFormat, propMessageExpiry, propContentType, propResponseTopic,
		propCorrelationData, propUser),
	typePublish: setOf(propPayloadFormat, propMessageExpiry, propTopicAlias, propResponseTopic, propCorrelationData,
		propUser, propContentType),
	typePuback:      setOf(propReasonString, propUser),
	typePubrec:      setOf(propReasonString, propUser),
	typePubrel:      setOf(propReasonString, propUser),
	typePubcomp:     setOf(propReasonString, propUser),
	typeSubscribe:   setOf(propSubscriptionID, propUser),
	typeUnsubscribe: setOf(propUser),
	typeDisconnect:  setOf(propSessionExpiry, propReasonString, propUser),
}

// serverProperties are the properties that a server may send in each packet.
var serverProperties = map[packetType]set{
	typeConnack: setOf(propSessionExpiry, propReceiveMaximum, propMaximumQoS, propRetainAvailable, propMaximumPacketSize,
		propAssignedClientID, propTopicAliasMaximum, propReasonString, propUser, propWildcardAvailable,
		propSubscriptionIDs, propSharedAvailable, propServerKeepAlive, propResponseInfo, propServerReference,
		propAuthMethod, propAuthData),
	typePublish: setOf(propPayloadFormat, propMessageExpiry, propTopicAlias, propResponseTopic, propCorrelationData,
		propUser, propSubscriptionID, propContentType),
	typePuback:     setOf(propReasonString, propUser),
	typePubrec:     setOf(propReasonString, propUser),
	typePubrel:     setOf(propReasonString, propUser),
	typePubcomp:    setOf(propReasonString, propUser),
	typeSuback:     setOf(propReasonString, propUser),
	typeUnsuback:   setOf(propReasonString, propUser),
	typeDisconnect: setOf(propReasonString, propUser, propServerReference),
	typeAuth:       setOf(propAuthMethod, propAuthData, propReasonString, propUser),
}

// cursor reads the body of a packet. After the first thing that is not there it
// has failed, and everything that it reads is empty.
type cursor struct {
	rest   []byte
	failed bool
}

func (c *cursor) take(n int) []byte {
	if c.failed || n > len(c.rest) {
		c.failed, c.rest = true, nil
		return nil
	}
	b := c.rest[:n:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if b := c.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) binary() []byte { return c.take(int(c.uint16())) }

// text reads an MQTT string: UTF-8 without U+0000.
func (c *cursor) text() []byte {
	b := c.binary()
	if !validText(b) {
		c.failed, c.rest = true, nil
		return nil
	}
	return b
}

func validText(b []byte) bool { return utf8.Valid(b) && strings.IndexByte(string(b), 0) < 0 }

// varint reads a variable byte integer in its shortest form.
func (c *cursor) varint() int {
	value := 0
	for shift := 0; shift <= 21; shift += 7 {
		b := c.byte()
		value |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			if b == 0 && shift > 0 {
				break // [MQTT-1.5.5-1]
			}
			return value
		}
	}
	c.failed, c.rest = true, nil
	return 0
}

// properties checks the properties of a packet of a client and returns which
// there are.
func (c *cursor) properties(t packetType, maxAlias uint16) (set, *Violation) {
	p := cursor{rest: c.take(c.varint()), failed: c.failed}
	allowed := clientProperties[t]
	var seen set
	for len(p.rest) > 0 {
		id := p.varint()
		if p.failed || id >= numProperties || propertyKinds[id] == kindNone {
			return 0, malformed("unknown property")
		}
		//nolint:gosec // id is small
		prop := propertyID(id)
		switch {
		case !allowed.has(prop):
			return 0, protocolError("a property that does not belong here")
		case seen.has(prop) && prop != propUser:
			return 0, protocolError("a property twice")
		}
		seen |= 1 << prop
		if v := p.property(prop, maxAlias); v != nil {
			return 0, v
		}
	}
	if p.failed {
		return 0, malformed("properties")
	}
	return seen, nil
}

// property checks the value of a property.
func (c *cursor) property(id propertyID, maxAlias uint16) *Violation {
	var v *Violation
	switch propertyKinds[id] {
	case kindByte:
		if b := c.byte(); b > 1 { // true of each that a client may send
			v = protocolError("a property is neither 0 nor 1")
		}
	case kindUint16:
		n := c.uint16()
		switch {
		case id == propReceiveMaximum && n == 0:
			v = protocolError("receive maximum 0")
		case id == propTopicAlias && (n == 0 || n > maxAlias):
			v = &Violation{Code: TopicAliasInvalid, Reason: "topic alias above the maximum, or 0"}
		}
	case kindUint32:
		if n := c.uint32(); id == propMaximumPacketSize && n == 0 {
			v = protocolError("maximum packet size 0")
		}
	case kindVarint:
		if c.varint() == 0 {
			v = protocolError("subscription identifier 0")
		}
	case kindString:
		if s := c.text(); id == propResponseTopic && (len(s) == 0 || strings.ContainsAny(string(s), "+#")) {
			v = protocolError("response topic")
		}
	case kindBinary:
		c.binary()
	case kindPair:
		c.text()
		c.text()
	case kindNone:
	}
	if c.failed {
		return malformed("a property's value")
	}
	return v
}
