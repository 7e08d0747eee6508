package wire

import "strconv"

// Code is a reason code of MQTT 5 or, where it says so, a return code of 3.1.1.
type Code byte

// The reason codes that we use.
const (
	Success                     Code = 0x00
	GrantedQoS1                 Code = 0x01
	DisconnectWithWill          Code = 0x04
	NoMatchingSubscribers       Code = 0x10
	NoSubscriptionExisted       Code = 0x11
	UnspecifiedError            Code = 0x80
	MalformedPacket             Code = 0x81
	ProtocolError               Code = 0x82
	ImplementationSpecificError Code = 0x83
	UnsupportedProtocolVersion  Code = 0x84
	ClientIdentifierNotValid    Code = 0x85
	BadUserNameOrPassword       Code = 0x86
	NotAuthorized               Code = 0x87
	ServerUnavailable           Code = 0x88
	ServerBusy                  Code = 0x89
	ServerShuttingDown          Code = 0x8b
	BadAuthenticationMethod     Code = 0x8c
	KeepAliveTimeout            Code = 0x8d
	SessionTakenOver            Code = 0x8e
	TopicFilterInvalid          Code = 0x8f
	TopicNameInvalid            Code = 0x90
	PacketIdentifierInUse       Code = 0x91
	PacketIdentifierNotFound    Code = 0x92
	ReceiveMaximumExceeded      Code = 0x93
	TopicAliasInvalid           Code = 0x94
	PacketTooLarge              Code = 0x95
	MessageRateTooHigh          Code = 0x96
	QuotaExceeded               Code = 0x97
	AdministrativeAction        Code = 0x98
	PayloadFormatInvalid        Code = 0x99
	RetainNotSupported          Code = 0x9a
	QoSNotSupported             Code = 0x9b
	SharedNotSupported          Code = 0x9e
	ConnectionRateExceeded      Code = 0x9f
	WildcardNotSupported        Code = 0xa2
)

// The return codes of CONNACK in MQTT 3.1.1.
const (
	returnUnacceptableVersion Code = 1
	returnIdentifierRejected  Code = 2
	returnUnavailable         Code = 3
	returnBadCredentials      Code = 4
	returnNotAuthorized       Code = 5
)

// String returns the code as the specification writes it, "0x87".
func (c Code) String() string {
	return "0x" + string("0123456789abcdef"[c>>4]) + string("0123456789abcdef"[c&15])
}

// Refused reports whether the code means failure.
func (c Code) Refused() bool { return c >= 0x80 }

// packetType is the type of an MQTT packet, as in the fixed header.
type packetType byte

const (
	typeConnect     packetType = 1
	typeConnack     packetType = 2
	typePublish     packetType = 3
	typePuback      packetType = 4
	typePubrec      packetType = 5
	typePubrel      packetType = 6
	typePubcomp     packetType = 7
	typeSubscribe   packetType = 8
	typeSuback      packetType = 9
	typeUnsubscribe packetType = 10
	typeUnsuback    packetType = 11
	typePingreq     packetType = 12
	typePingresp    packetType = 13
	typeDisconnect  packetType = 14
	typeAuth        packetType = 15
	// typeWill stands for the properties of a will.
	typeWill packetType = 16
)

func (t packetType) String() string {
	names := [...]string{
		"0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK",
		"UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
	}
	if int(t) < len(names) {
		return names[t]
	}
	return strconv.Itoa(int(t))
}

// fromServer are the reason codes that MQTT 5 allows a server in each packet.
var fromServer = map[packetType]string{
	typeConnack:  "\x00\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8c\x90\x95\x97\x99\x9a\x9b\x9c\x9d\x9f",
	typePuback:   "\x00\x10\x80\x83\x87\x90\x91\x97\x99",
	typePubrec:   "\x00\x10\x80\x83\x87\x90\x91\x97\x99",
	typePubrel:   "\x00\x92",
	typePubcomp:  "\x00\x92",
	typeSuback:   "\x00\x01\x02\x80\x83\x87\x8f\x91\x97\x9e\xa1\xa2",
	typeUnsuback: "\x00\x11\x80\x83\x87\x8f\x91",
	typeDisconnect: "\x00\x80\x81\x82\x83\x87\x89\x8b\x8d\x8e\x8f\x90\x93\x94\x95\x96\x97\x98\x99\x9a\x9b\x9c\x9d\x9e\x9f" +
		"\xa0\xa1\xa2",
	typeAuth: "\x00\x18",
}

// fromClient are the reason codes that MQTT 5 allows a client in each packet.
var fromClient = map[packetType]string{
	typePuback:     fromServer[typePuback],
	typePubrec:     fromServer[typePubrec],
	typePubrel:     fromServer[typePubrel],
	typePubcomp:    fromServer[typePubcomp],
	typeDisconnect: "\x00\x04\x80\x81\x82\x83\x90\x93\x94\x95\x96\x97\x98\x99",
}

// return311 maps a reason code of CONNACK to the return code of MQTT 3.1.1.
func return311(c Code) Code {
	switch c {
	case Success:
		return Success
	case UnsupportedProtocolVersion:
		return returnUnacceptableVersion
	case ClientIdentifierNotValid:
		return returnIdentifierRejected
	case BadUserNameOrPassword:
		return returnBadCredentials
	case NotAuthorized, TopicNameInvalid, RetainNotSupported, QoSNotSupported, PayloadFormatInvalid,
		ImplementationSpecificError:
		return returnNotAuthorized
	default:
		return returnUnavailable
	}
}
