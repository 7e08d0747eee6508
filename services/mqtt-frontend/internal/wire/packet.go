package wire

import (
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"
)

// The protocol levels of MQTT that we speak.
const (
	Level311 byte = 4
	Level5   byte = 5
)

// UserProperty is a user property of MQTT 5.
type UserProperty struct{ Name, Value string }

// Connect is what a client says first.
type Connect struct {
	// Level is Level311 or Level5.
	Level      byte
	ClientID   string
	CleanStart bool
	// KeepAlive in seconds; 0 means none.
	KeepAlive uint16
	// UserName and Password are empty when absent.
	UserName string
	Password string
	// AuthMethod is empty when absent, which it may be.
	AuthMethod string
	AuthData   []byte
	// SessionExpiry in seconds, 0 when absent.
	SessionExpiry uint32
	// ReceiveMaximum of the client, 65535 when absent and in MQTT 3.1.1.
	ReceiveMaximum uint16
	// MaxPacketSize of the client in bytes; 0: none.
	MaxPacketSize uint32
	// NoProblemInfo is Request Problem Information 0.
	NoProblemInfo bool
	// Will says that there is a will.
	Will bool
}

// Publish is a PUBLISH packet of a client. Its strings and bytes may be kept.
type Publish struct {
	Topic     string
	Payload   []byte
	QoS       byte
	Retain    bool
	Duplicate bool
	// PacketID is 0 with QoS 0.
	PacketID uint16
	// TopicAlias is 0 when absent.
	TopicAlias uint16
	// UTF8 is Payload Format Indicator 1.
	UTF8 bool
	// Expiry is the Message Expiry Interval in seconds, if HasExpiry.
	Expiry    uint32
	HasExpiry bool
	// ContentType, ResponseTopic and CorrelationData are nil when absent.
	ContentType     *string
	ResponseTopic   *string
	CorrelationData []byte
	UserProperties  []UserProperty
}

// Subscribe is a SUBSCRIBE packet.
type Subscribe struct {
	PacketID uint16
	// SubscriptionID is 0 when absent.
	SubscriptionID uint32
	UserProperties []UserProperty
	Filters        []Filter
}

// Filter is one topic filter of SUBSCRIBE.
type Filter struct {
	Filter string
	QoS    byte
}

// Unsubscribe is an UNSUBSCRIBE packet.
type Unsubscribe struct {
	PacketID uint16
	Filters  []string
}

// Disconnect is a DISCONNECT packet of a client.
type Disconnect struct {
	Code Code
	// SessionExpiry in seconds, if HasSessionExpiry.
	SessionExpiry    uint32
	HasSessionExpiry bool
}

// Connack answers CONNECT.
type Connack struct {
	// Code is a reason code of MQTT 5 in both versions; 3.1.1 gets the return code
	// that says the same.
	Code Code
	// Reason is the reason string for a refusal.
	Reason string
	// What follows is for success, and for MQTT 5.

	SessionPresent   bool
	AssignedClientID string
	// SessionExpiry is sent if HasSessionExpiry.
	SessionExpiry    uint32
	HasSessionExpiry bool
	// ReceiveMaximum, MaxPacketSize and TopicAliasMaximum are ours.
	ReceiveMaximum    uint16
	MaxPacketSize     uint32
	TopicAliasMaximum uint16
	// MaximumQoS is 0, 1 or 2.
	MaximumQoS byte
	// SharedAvailable says that there are shared subscriptions. There are never
	// wildcard subscriptions and retained messages, and always subscription
	// identifiers.
	SharedAvailable bool
	// ServerKeepAlive is sent if it is not 0.
	ServerKeepAlive uint16
	UserProperties  []UserProperty
}

// connect takes over what the library decoded. The library must not touch the
// packet's memory after that, and does not: each packet has its own.
func connect(pk *packets.Packet, check connectCheck) *Connect {
	c := &Connect{
		Level: pk.ProtocolVersion, ClientID: strings.Clone(pk.Connect.ClientIdentifier), CleanStart: pk.Connect.Clean,
		KeepAlive: pk.Connect.Keepalive, UserName: string(pk.Connect.Username), Password: string(pk.Connect.Password),
		AuthMethod: pk.Properties.AuthenticationMethod, AuthData: pk.Properties.AuthenticationData,
		SessionExpiry: pk.Properties.SessionExpiryInterval, ReceiveMaximum: pk.Properties.ReceiveMaximum,
		MaxPacketSize: pk.Properties.MaximumPacketSize, Will: pk.Connect.WillFlag,
	}
	if !check.seen.has(propReceiveMaximum) {
		c.ReceiveMaximum = 65535
	}
	c.NoProblemInfo = check.seen.has(propRequestProblemInfo) && pk.Properties.RequestProblemInfo == 0
	return c
}

func publish(pk *packets.Packet, check checked) *Publish {
	p := &Publish{
		// Not a view: parts of it are kept, and would keep the payload.
		Topic: strings.Clone(pk.TopicName), Payload: pk.Payload, QoS: pk.FixedHeader.Qos, Retain: pk.FixedHeader.Retain,
		Duplicate: pk.FixedHeader.Dup, PacketID: pk.PacketID, TopicAlias: pk.Properties.TopicAlias,
		UTF8:   pk.Properties.PayloadFormatFlag && pk.Properties.PayloadFormat == 1,
		Expiry: pk.Properties.MessageExpiryInterval, HasExpiry: check.seen.has(propMessageExpiry),
		UserProperties: userProperties(pk),
	}
	if check.seen.has(propContentType) {
		p.ContentType = new(pk.Properties.ContentType)
	}
	if check.seen.has(propResponseTopic) {
		p.ResponseTopic = new(pk.Properties.ResponseTopic)
	}
	if check.seen.has(propCorrelationData) {
		p.CorrelationData = pk.Properties.CorrelationData
	}
	return p
}

func subscribe(pk *packets.Packet) *Subscribe {
	s := &Subscribe{PacketID: pk.PacketID, UserProperties: userProperties(pk), Filters: make([]Filter, len(pk.Filters))}
	if len(pk.Properties.SubscriptionIdentifier) > 0 {
		s.SubscriptionID = uint32(pk.Properties.SubscriptionIdentifier[0]) //nolint:gosec // 28 bits
	}
	for i := range pk.Filters {
		s.Filters[i] = Filter{Filter: strings.Clone(pk.Filters[i].Filter), QoS: pk.Filters[i].Qos}
	}
	return s
}

func unsubscribe(pk *packets.Packet) *Unsubscribe {
	u := &Unsubscribe{PacketID: pk.PacketID, Filters: make([]string, len(pk.Filters))}
	for i := range pk.Filters {
		u.Filters[i] = pk.Filters[i].Filter
	}
	return u
}

func userProperties(pk *packets.Packet) []UserProperty {
	if len(pk.Properties.User) == 0 {
		return nil
	}
	list := make([]UserProperty, len(pk.Properties.User))
	for i, u := range pk.Properties.User {
		list[i] = UserProperty{Name: u.Key, Value: u.Val}
	}
	return list
}
