package wire

import (
	"bytes"
	"strings"
)

// Violation is why a packet of a client ends its connection.
//
//nolint:errname // it is the packet's, and only sometimes an error
type Violation struct {
	// Code is legal in DISCONNECT.
	Code   Code
	Reason string
}

// Error implements error.
func (v *Violation) Error() string { return v.Reason }

func malformed(what string) *Violation {
	return &Violation{Code: MalformedPacket, Reason: "malformed packet: " + what}
}

func protocolError(what string) *Violation {
	return &Violation{Code: ProtocolError, Reason: "protocol error: " + what}
}

// checked is what the guard has found out about a packet.
type checked struct {
	id   uint16 // packet identifier of an acknowledgement
	code Code   // reason code of an acknowledgement or DISCONNECT
	seen set    // properties
}

// check judges a packet that is not CONNECT by the specification of the protocol
// level. What it lets through, the library's codec reads without trouble.
func check(level byte, header byte, body []byte, maxAlias uint16) (checked, *Violation) {
	t := packetType(header >> 4)
	flags := header & 0x0f
	want := byte(0)
	if t == typePubrel || t == typeSubscribe || t == typeUnsubscribe {
		want = 2
	}
	if t != typePublish && flags != want {
		return checked{}, malformed("flags of " + t.String())
	}
	c := cursor{rest: body}
	switch t {
	case typePublish:
		return checkPublish(&c, level, flags, maxAlias)
	case typePuback, typePubrec, typePubrel, typePubcomp:
		return checkAck(&c, level, t)
	case typeSubscribe:
		return checkSubscribe(&c, level)
	case typeUnsubscribe:
		return checkUnsubscribe(&c, level)
	case typePingreq:
		if len(body) > 0 {
			return checked{}, malformed("PINGREQ")
		}
		return checked{}, nil
	case typeDisconnect:
		return checkDisconnect(&c, level)
	case typeConnect:
		return checked{}, protocolError("CONNECT twice")
	case typeAuth:
		// Legal only on a connection whose CONNECT had an authentication method.
		return checked{}, protocolError("AUTH without an authentication method")
	case typeConnack, typeSuback, typeUnsuback, typePingresp:
		return checked{}, protocolError(t.String() + " from a client")
	default:
		return checked{}, malformed("type " + t.String())
	}
}

func checkPublish(c *cursor, level byte, flags byte, maxAlias uint16) (checked, *Violation) {
	qos, dup := flags>>1&3, flags&8 != 0
	switch {
	case qos == 3:
		return checked{}, malformed("QoS 3")
	case qos == 0 && dup:
		return checked{}, malformed("DUP with QoS 0")
	}
	topic := c.text()
	if qos > 0 && c.uint16() == 0 && !c.failed {
		return checked{}, protocolError("packet identifier 0")
	}
	var k checked
	if level >= Level5 {
		var v *Violation
		if k.seen, v = c.properties(typePublish, maxAlias); v != nil {
			return checked{}, v
		}
	}
	switch {
	case c.failed:
		return checked{}, malformed("PUBLISH")
	case bytes.ContainsAny(topic, "+#"):
		return checked{}, &Violation{Code: TopicNameInvalid, Reason: "wildcard in the topic of PUBLISH"}
	case len(topic) == 0 && !k.seen.has(propTopicAlias):
		return checked{}, protocolError("PUBLISH without a topic")
	}
	return k, nil
}

func checkAck(c *cursor, level byte, t packetType) (checked, *Violation) {
	k := checked{id: c.uint16()}
	if level >= Level5 && len(c.rest) > 0 {
		k.code = Code(c.byte())
		if len(c.rest) > 0 {
			var v *Violation
			if k.seen, v = c.properties(t, 0); v != nil {
				return checked{}, v
			}
		}
		if strings.IndexByte(fromClient[t], byte(k.code)) < 0 {
			return checked{}, protocolError("reason code " + k.code.String() + " in " + t.String())
		}
	}
	switch {
	case c.failed, len(c.rest) > 0:
		return checked{}, malformed(t.String())
	case k.id == 0:
		return checked{}, protocolError("packet identifier 0")
	}
	return k, nil
}

func checkSubscribe(c *cursor, level byte) (checked, *Violation) {
	var k checked
	k.id = c.uint16()
	if level >= Level5 {
		var v *Violation
		if k.seen, v = c.properties(typeSubscribe, 0); v != nil {
			return checked{}, v
		}
	}
	filters := 0
	for len(c.rest) > 0 {
		filters++
		filter, options := c.text(), c.byte()
		switch {
		case c.failed:
		case len(filter) == 0:
			return checked{}, protocolError("empty topic filter")
		case options&3 == 3:
			return checked{}, malformed("QoS 3")
		case level < Level5 && options&^3 != 0, options&0xc0 != 0:
			return checked{}, malformed("reserved bits of subscription options")
		case options&0x30 == 0x30:
			return checked{}, protocolError("retain handling 3")
		case options&4 != 0 && bytes.HasPrefix(filter, []byte("$share/")):
			return checked{}, protocolError("no local with a shared subscription")
		}
	}
	return k, checkFilters(c, k.id, filters, typeSubscribe)
}

func checkUnsubscribe(c *cursor, level byte) (checked, *Violation) {
	var k checked
	k.id = c.uint16()
	if level >= Level5 {
		var v *Violation
		if k.seen, v = c.properties(typeUnsubscribe, 0); v != nil {
			return checked{}, v
		}
	}
	filters := 0
	for len(c.rest) > 0 {
		filters++
		if filter := c.text(); len(filter) == 0 && !c.failed {
			return checked{}, protocolError("empty topic filter")
		}
	}
	return k, checkFilters(c, k.id, filters, typeUnsubscribe)
}

// maxFilters bounds what a packet makes of its bytes in memory.
const maxFilters = 1024

func checkFilters(c *cursor, id uint16, filters int, t packetType) *Violation {
	switch {
	case c.failed:
		return malformed(t.String())
	case id == 0:
		return protocolError("packet identifier 0")
	case filters == 0:
		return protocolError(t.String() + " without a topic filter")
	case filters > maxFilters:
		return &Violation{Code: QuotaExceeded, Reason: "too many topic filters in one packet"}
	}
	return nil
}

func checkDisconnect(c *cursor, level byte) (checked, *Violation) {
	var k checked
	if level >= Level5 && len(c.rest) > 0 {
		k.code = Code(c.byte())
		if len(c.rest) > 0 {
			var v *Violation
			if k.seen, v = c.properties(typeDisconnect, 0); v != nil {
				return checked{}, v
			}
		}
		if strings.IndexByte(fromClient[typeDisconnect], byte(k.code)) < 0 {
			return checked{}, protocolError("reason code " + k.code.String() + " in DISCONNECT")
		}
	}
	if c.failed || len(c.rest) > 0 {
		return checked{}, malformed("DISCONNECT")
	}
	return k, nil
}

// connectCheck is what the guard has found out about CONNECT.
type connectCheck struct {
	level byte
	seen  set
	will  set
	// refusal is the CONNACK for a protocol level that we do not speak.
	refusal []byte
}

// checkConnect judges the first packet of a connection. A violation is answered
// by closing it, a refusal is sent before.
func checkConnect(header byte, body []byte) (connectCheck, *Violation) {
	if header != byte(typeConnect)<<4 {
		return connectCheck{}, protocolError("the first packet is not CONNECT")
	}
	c := cursor{rest: body}
	name := string(c.text())
	k := connectCheck{level: c.byte()}
	switch {
	case c.failed, name != "MQTT" && name != "MQIsdp":
		return connectCheck{}, malformed("protocol name")
	case k.level < Level311, name == "MQIsdp":
		k.refusal = []byte{byte(typeConnack) << 4, 2, 0, byte(returnUnacceptableVersion)}
		return k, nil
	case k.level > Level5:
		k.refusal = []byte{byte(typeConnack) << 4, 3, 0, byte(UnsupportedProtocolVersion), 0}
		return k, nil
	}
	flags := c.byte()
	c.uint16() // keep alive
	will, willQoS, willRetain := flags&4 != 0, flags>>3&3, flags&0x20 != 0
	userName, password := flags&0x80 != 0, flags&0x40 != 0
	switch {
	case flags&1 != 0:
		return connectCheck{}, malformed("reserved connect flag")
	case willQoS == 3, !will && (willQoS != 0 || willRetain):
		return connectCheck{}, malformed("will flags")
	case k.level < Level5 && password && !userName:
		return connectCheck{}, malformed("password without user name") // [MQTT-3.1.2-22]
	}
	var v *Violation
	if k.level >= Level5 {
		if k.seen, v = c.properties(typeConnect, 0); v != nil {
			return connectCheck{}, v
		}
		if k.seen.has(propAuthData) && !k.seen.has(propAuthMethod) {
			return connectCheck{}, protocolError("authentication data without a method")
		}
	}
	c.text() // client identifier
	if will {
		if k.level >= Level5 {
			if k.will, v = c.properties(typeWill, 0); v != nil {
				return connectCheck{}, v
			}
		}
		if topic := c.text(); !c.failed && (len(topic) == 0 || bytes.ContainsAny(topic, "+#")) {
			return connectCheck{}, malformed("will topic")
		}
		c.binary()
	}
	if userName {
		c.text()
	}
	if password {
		c.binary()
	}
	if c.failed || len(c.rest) > 0 {
		return connectCheck{}, malformed("CONNECT")
	}
	return k, nil
}
