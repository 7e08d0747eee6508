package wire

import (
	"errors"
	"fmt"
	"strings"
)

var errServerMalformed = errors.New("malformed packet")

// Legal reports what is wrong with a packet that a server sends: its form, and
// whether its reason code and properties may be in such a packet of that protocol
// level. Tests put everything to it that leaves us.
func Legal(level byte, frame []byte) error {
	if len(frame) < 2 {
		return errServerMalformed
	}
	t := packetType(frame[0] >> 4)
	c := cursor{rest: body(frame)}
	var codes []byte
	switch t {
	case typeConnack:
		if flags := c.byte(); flags > 1 || flags == 1 && len(c.rest) > 0 && c.rest[0] != 0 {
			return fmt.Errorf("CONNACK flags %#x", flags)
		}
		code := c.byte()
		if level < Level5 {
			if code > byte(returnNotAuthorized) {
				return fmt.Errorf("return code %d", code)
			}
			break
		}
		codes = append(codes, code)
	case typePublish:
		c.text()
		if frame[0]&6 != 0 {
			c.uint16()
		}
	case typePuback, typePubrec, typePubrel, typePubcomp:
		c.uint16()
		if level < Level5 || len(c.rest) == 0 {
			return c.end(t)
		}
		codes = append(codes, c.byte())
		if len(c.rest) == 0 {
			return legalCodes(t, codes)
		}
	case typeSuback, typeUnsuback:
		c.uint16()
	case typeDisconnect:
		if level < Level5 {
			return errors.New("DISCONNECT from a server of MQTT 3.1.1")
		}
		codes = append(codes, c.byte())
	case typePingresp:
	default:
		return fmt.Errorf("%v from a server", t)
	}
	if allowed, ok := serverProperties[t]; ok && level >= Level5 {
		if err := c.serverProperties(t, allowed); err != nil {
			return err
		}
	}
	switch t {
	case typePublish:
		return nil // the rest is the payload
	case typeSuback, typeUnsuback:
		codes = append(codes, c.take(len(c.rest))...)
		if level < Level5 {
			for _, code := range codes {
				if t == typeUnsuback || code > 2 && code != byte(UnspecifiedError) {
					return fmt.Errorf("code %#x in %v of MQTT 3.1.1", code, t)
				}
			}
			codes = nil
		}
	default:
	}
	if err := c.end(t); err != nil {
		return err
	}
	return legalCodes(t, codes)
}

func legalCodes(t packetType, codes []byte) error {
	for _, code := range codes {
		if strings.IndexByte(fromServer[t], code) < 0 {
			return fmt.Errorf("reason code %v in %v", Code(code), t)
		}
	}
	return nil
}

func (c *cursor) end(t packetType) error {
	if c.failed || len(c.rest) > 0 {
		return fmt.Errorf("%v: %w", t, errServerMalformed)
	}
	return nil
}

// serverProperties checks which properties there are.
func (c *cursor) serverProperties(t packetType, allowed set) error {
	p := cursor{rest: c.take(c.varint()), failed: c.failed}
	var seen set
	for len(p.rest) > 0 {
		id := p.byte()
		if id >= numProperties || !allowed.has(id) {
			return fmt.Errorf("property %#x in %v", id, t)
		}
		if seen.has(id) && id != propUser && id != propSubscriptionID {
			return fmt.Errorf("property %#x twice in %v", id, t)
		}
		seen |= 1 << id
		switch propertyKinds[id] {
		case kindByte:
			p.byte()
		case kindUint16:
			p.uint16()
		case kindUint32:
			p.uint32()
		case kindVarint:
			p.varint()
		case kindString:
			p.text()
		case kindBinary:
			p.binary()
		case kindPair:
			p.text()
			p.text()
		case kindNone:
		}
	}
	if p.failed {
		return fmt.Errorf("properties of %v: %w", t, errServerMalformed)
	}
	return nil
}
