package event

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Identifiers of the MQTT 5 properties that we send in PUBLISH.
const (
	propertyPayloadFormat  = 0x01
	propertyContentType    = 0x03
	propertySubscriptionID = 0x0b
	propertyUser           = 0x26
)

const (
	// maxPacket is the largest remaining length that MQTT can express.
	maxPacket         = 268_435_455
	maxSubscriptionID = 268_435_455
	// maxSkipped is more than the property about skipped offsets ever takes.
	maxSkipped = 128
	// skippedName is the name of the user property about skipped offsets.
	skippedName = "offsets-skipped"
)

var (
	errTooLarge = errors.New("larger than an MQTT packet can be")
	errLongText = errors.New("longer than an MQTT string can be")
	errNoText   = errors.New("not the UTF-8 that an MQTT string can be")
)

// Encoded is the part of a PUBLISH packet that all connections share.
type Encoded struct {
	head          []byte // topic and, in MQTT 5, the properties without their length
	topicSize     int
	payload       []byte
	hasProperties bool // MQTT 5
	err           error
}

func undeliverable(err error) *Encoded { return &Encoded{err: err} }

// Undeliverable returns why the event cannot be carried by an MQTT packet at all,
// and nil when it can. Nothing else may be called when it cannot.
func (e *Encoded) Undeliverable() error { return e.err }

// Options are what differs between the connections that an event goes to.
type Options struct {
	// QoS is 0 or 1.
	QoS byte
	// PacketID is not 0 with QoS 1, and ignored with QoS 0.
	PacketID uint16
	// SubscriptionID is the MQTT 5 subscription identifier; 0 means none.
	SubscriptionID uint32
	// Skipped is how many offsets of SkippedPartition retention has removed right
	// before this event; 0 means none. MQTT 5 clients are told.
	Skipped          int64
	SkippedPartition int32
}

// propertiesSize is the length of the properties without the length field.
func (e *Encoded) propertiesSize(o *Options) int {
	size := len(e.head) - e.topicSize
	if o.SubscriptionID != 0 {
		size += 1 + varintSize(int(o.SubscriptionID))
	}
	if o.Skipped != 0 {
		size += 1 + 2 + len(skippedName) + 2 + len(skippedValue(o))
	}
	return size
}

func skippedValue(o *Options) string {
	return strconv.Itoa(int(o.SkippedPartition)) + ":" + strconv.FormatInt(o.Skipped, 10)
}

// remaining is the remaining length of the packet.
func (e *Encoded) remaining(o *Options) int {
	size := e.topicSize + len(e.payload)
	if o.QoS > 0 {
		size += 2
	}
	if e.hasProperties {
		properties := e.propertiesSize(o)
		size += varintSize(properties) + properties
	}
	return size
}

// Size is the size of the whole packet in bytes, as it counts for the client's
// Maximum Packet Size.
func (e *Encoded) Size(o Options) int {
	remaining := e.remaining(&o)
	return 1 + varintSize(remaining) + remaining
}

// Payload is the end of the packet, which AppendHead leaves out. It is shared:
// nobody may change it.
func (e *Encoded) Payload() []byte { return e.payload }

// Append appends the whole packet to dst.
func (e *Encoded) Append(dst []byte, o Options) []byte {
	return append(e.AppendHead(dst, o), e.payload...)
}

// AppendHead appends the packet up to its payload.
func (e *Encoded) AppendHead(dst []byte, o Options) []byte {
	dst = append(dst, 0x30|o.QoS<<1)
	dst = appendVarint(dst, e.remaining(&o))
	dst = append(dst, e.head[:e.topicSize]...)
	if o.QoS > 0 {
		dst = binary.BigEndian.AppendUint16(dst, o.PacketID)
	}
	if !e.hasProperties {
		return dst
	}
	dst = appendVarint(dst, e.propertiesSize(&o))
	dst = append(dst, e.head[e.topicSize:]...)
	if o.SubscriptionID != 0 {
		dst = append(dst, propertySubscriptionID)
		dst = appendVarint(dst, int(o.SubscriptionID))
	}
	if o.Skipped != 0 {
		dst = append(dst, propertyUser)
		dst, _ = appendString(dst, skippedName)
		dst, _ = appendString(dst, skippedValue(&o))
	}
	return dst
}

// appendString appends an MQTT string, or says why s cannot be one.
func appendString(dst []byte, s string) ([]byte, error) {
	switch {
	case len(s) > 0xffff:
		return dst, errLongText
	case !utf8.ValidString(s), strings.IndexByte(s, 0) >= 0:
		return dst, errNoText
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(s))) //nolint:gosec // checked above
	return append(dst, s...), nil
}

func appendVarint(dst []byte, n int) []byte {
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n)) //nolint:gosec // below 128
}

func varintSize(n int) int {
	if n == 0 {
		return 1
	}
	return (bits.Len(uint(n)) + 6) / 7
}
