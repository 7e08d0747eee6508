package rawmqtt

import (
	"encoding/binary"
	"fmt"
)

// PropertyID identifies a property of MQTT 5.
type PropertyID byte

// Properties of MQTT 5.
const (
	PayloadFormatIndicator   PropertyID = 0x01
	MessageExpiryInterval    PropertyID = 0x02
	ContentType              PropertyID = 0x03
	ResponseTopic            PropertyID = 0x08
	CorrelationData          PropertyID = 0x09
	SubscriptionIdentifier   PropertyID = 0x0B
	SessionExpiryInterval    PropertyID = 0x11
	AssignedClientIdentifier PropertyID = 0x12
	ServerKeepAlive          PropertyID = 0x13
	AuthenticationMethod     PropertyID = 0x15
	AuthenticationData       PropertyID = 0x16
	RequestProblemInfo       PropertyID = 0x17
	WillDelayInterval        PropertyID = 0x18
	RequestResponseInfo      PropertyID = 0x19
	ResponseInfo             PropertyID = 0x1A
	ServerReference          PropertyID = 0x1C
	ReasonString             PropertyID = 0x1F
	ReceiveMaximum           PropertyID = 0x21
	TopicAliasMaximum        PropertyID = 0x22
	TopicAlias               PropertyID = 0x23
	MaximumQoS               PropertyID = 0x24
	RetainAvailable          PropertyID = 0x25
	UserProperty             PropertyID = 0x26
	MaximumPacketSize        PropertyID = 0x27
	WildcardSubAvailable     PropertyID = 0x28
	SubIDAvailable           PropertyID = 0x29
	SharedSubAvailable       PropertyID = 0x2A
)

type propertyKind byte

const (
	kindByte propertyKind = iota + 1
	kindUint16
	kindUint32
	kindVarint
	kindString
	kindPair
)

var propertyKinds = map[PropertyID]propertyKind{
	PayloadFormatIndicator: kindByte, MessageExpiryInterval: kindUint32, ContentType: kindString,
	ResponseTopic: kindString, CorrelationData: kindString, SubscriptionIdentifier: kindVarint,
	SessionExpiryInterval: kindUint32, AssignedClientIdentifier: kindString, ServerKeepAlive: kindUint16,
	AuthenticationMethod: kindString, AuthenticationData: kindString, RequestProblemInfo: kindByte,
	WillDelayInterval: kindUint32, RequestResponseInfo: kindByte, ResponseInfo: kindString,
	ServerReference: kindString, ReasonString: kindString, ReceiveMaximum: kindUint16,
	TopicAliasMaximum: kindUint16, TopicAlias: kindUint16, MaximumQoS: kindByte, RetainAvailable: kindByte,
	UserProperty: kindPair, MaximumPacketSize: kindUint32, WildcardSubAvailable: kindByte,
	SubIDAvailable: kindByte, SharedSubAvailable: kindByte,
}

// Property is one property. Which of its values counts depends on its ID.
type Property struct {
	ID PropertyID
	// Number is the value of numeric properties.
	Number uint32
	// Text is the value of strings and binary data, and of a user property.
	Text string
	// Name is the name of a user property.
	Name string
}

// Properties are properties in their order.
type Properties []Property

// Number is a numeric property.
func Number(id PropertyID, n uint32) Property { return Property{ID: id, Number: n} }

// Text is a property with a string or binary data.
func Text(id PropertyID, s string) Property { return Property{ID: id, Text: s} }

// User is a user property.
func User(name, value string) Property { return Property{ID: UserProperty, Name: name, Text: value} }

// Number returns a numeric property, and whether it is there.
func (p Properties) Number(id PropertyID) (uint32, bool) {
	for _, q := range p {
		if q.ID == id {
			return q.Number, true
		}
	}
	return 0, false
}

// Text returns a string or binary data, and whether it is there.
func (p Properties) Text(id PropertyID) (string, bool) {
	for _, q := range p {
		if q.ID == id {
			return q.Text, true
		}
	}
	return "", false
}

// User returns the first user property of that name, and whether there is one.
func (p Properties) User(name string) (string, bool) {
	for _, q := range p {
		if q.ID == UserProperty && q.Name == name {
			return q.Text, true
		}
	}
	return "", false
}

func (p Properties) append(b []byte, v Version) []byte {
	if v < V5 {
		return b
	}
	var body []byte
	for _, q := range p {
		body = append(body, byte(q.ID))
		switch propertyKinds[q.ID] {
		case kindByte:
			body = append(body, byte(q.Number)) //nolint:gosec // Tests know what they send.
		case kindUint16:
			body = binary.BigEndian.AppendUint16(body, uint16(q.Number)) //nolint:gosec // as above
		case kindUint32:
			body = binary.BigEndian.AppendUint32(body, q.Number)
		case kindVarint:
			body = appendVarint(body, int(q.Number))
		case kindPair:
			body = appendString(appendString(body, q.Name), q.Text)
		default:
			body = appendString(body, q.Text)
		}
	}
	return append(appendVarint(b, len(body)), body...)
}

func (r *reader) properties() Properties {
	body := reader{b: r.bytes(r.varint()), err: r.err}
	var properties Properties
	for len(body.b) > 0 && body.err == nil {
		q := Property{ID: PropertyID(body.byte())}
		switch propertyKinds[q.ID] {
		case kindByte:
			q.Number = uint32(body.byte())
		case kindUint16:
			q.Number = uint32(body.uint16())
		case kindUint32:
			q.Number = body.uint32()
		case kindVarint:
			q.Number = uint32(body.varint()) //nolint:gosec // At most 28 bits.
		case kindString:
			q.Text = body.string()
		case kindPair:
			q.Name, q.Text = body.string(), body.string()
		default:
			body.fail(fmt.Errorf("unknown property 0x%02x", byte(q.ID)))
		}
		properties = append(properties, q)
	}
	r.fail(body.err)
	return properties
}
