package wire_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
)

// packet is a fixed header for a body.
func packet(header byte, body ...string) string {
	b := strings.Join(body, "")
	return string([]byte{header}) + length(len(b)) + b
}

func length(n int) string {
	var b []byte
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return string(append(b, byte(n)))
}

// text is an MQTT string.
func text(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }

// properties have their length in front.
func properties(p ...string) string {
	b := strings.Join(p, "")
	return length(len(b)) + b
}

func connectBody(level, flags byte, rest ...string) string {
	return text("MQTT") + string([]byte{level, flags, 0, 0}) + strings.Join(rest, "")
}

// The answers that a packet after CONNECT can have.
const (
	goesOn = 0
	closed = 1 // without a word
)

type corpusPacket struct {
	name   string
	packet string
	want   int // goesOn, or the reason code of DISCONNECT
}

// corpus5 is for MQTT 5, after CONNECT.
func corpus5() []corpusPacket {
	header := func(b byte) string { return string([]byte{b}) }
	list := []corpusPacket{
		{"type 0", packet(0x00), 0x81},
		{"CONNECT twice", packet(0x10, connectBody(5, 2, "\x00", text("c"))), 0x82},
		{"CONNACK", packet(0x20, "\x00\x00\x00"), 0x82},
		{"SUBACK", packet(0x90, "\x00\x01\x00\x00"), 0x82},
		{"UNSUBACK", packet(0xb0, "\x00\x01\x00\x00"), 0x82},
		{"PINGRESP", packet(0xd0), 0x82},
		{"AUTH without method", packet(0xf0), 0x82},
		{"AUTH re-authenticate", packet(0xf0, "\x19\x00"), 0x82},
		{"PINGREQ", packet(0xc0), goesOn},
		{"PINGREQ with a body", packet(0xc0, "x"), 0x81},
		{"PINGREQ with flags", packet(0xc1), 0x81},
		{"remaining length of five bytes", "\xc0\x80\x80\x80\x80\x01", 0x81},
		{"remaining length not the shortest", "\xc0\x80\x00", 0x81},
		{"larger than the maximum packet size", "\x30\xff\xff\xff\x7f", 0x95},

		{"PUBLISH", packet(0x30, text("t"), "\x00", "x"), goesOn},
		{"PUBLISH QoS 1", packet(0x32, text("t"), "\x00\x01\x00"), goesOn},
		{"PUBLISH QoS 1 DUP", packet(0x3a, text("t"), "\x00\x01\x00"), goesOn},
		{"PUBLISH QoS 3", packet(0x36, text("t"), "\x00\x01\x00"), 0x81},
		{"PUBLISH QoS 0 DUP", packet(0x38, text("t"), "\x00"), 0x81},
		{"PUBLISH packet identifier 0", packet(0x32, text("t"), "\x00\x00\x00"), 0x82},
		{"PUBLISH empty", packet(0x30), 0x81},
		{"PUBLISH topic cut off", packet(0x30, "\x00\x05ab"), 0x81},
		{"PUBLISH no packet identifier", packet(0x32, text("t"), "\x00"), 0x81},
		{"PUBLISH no properties", packet(0x30, text("t")), 0x81},
		{"PUBLISH properties longer than the packet", packet(0x30, text("t"), "\x05\x01\x00"), 0x81},
		{"PUBLISH topic with +", packet(0x30, text("a/+"), "\x00"), 0x90},
		{"PUBLISH topic with #", packet(0x30, text("#"), "\x00"), 0x90},
		{"PUBLISH topic with U+0000", packet(0x30, text("a\x00b"), "\x00"), 0x81},
		{"PUBLISH topic not UTF-8", packet(0x30, text("a\xff"), "\x00"), 0x81},
		{"PUBLISH topic with a surrogate", packet(0x30, text("\xed\xa0\x80"), "\x00"), 0x81},
		{"PUBLISH no topic", packet(0x30, text(""), "\x00"), 0x82},
		{"PUBLISH payload format 1", packet(0x30, text("t"), properties("\x01\x01")), goesOn},
		{"PUBLISH payload format 2", packet(0x30, text("t"), properties("\x01\x02")), 0x82},
		{"PUBLISH payload format twice", packet(0x30, text("t"), properties("\x01\x01", "\x01\x01")), 0x82},
		{"PUBLISH payload format cut off", packet(0x30, text("t"), properties("\x01")), 0x81},
		{"PUBLISH message expiry", packet(0x30, text("t"), properties("\x02\x00\x00\x00\x01")), goesOn},
		{"PUBLISH message expiry twice", packet(0x30, text("t"), properties("\x02\x00\x00\x00\x01\x02\x00\x00\x00\x01")), 0x82},
		{"PUBLISH message expiry cut off", packet(0x30, text("t"), properties("\x02\x00\x00\x00")), 0x81},
		{"PUBLISH content type", packet(0x30, text("t"), properties("\x03", text("a"))), goesOn},
		{"PUBLISH content type not UTF-8", packet(0x30, text("t"), properties("\x03", text("\xff"))), 0x81},
		{"PUBLISH content type twice", packet(0x30, text("t"), properties("\x03", text("a"), "\x03", text("a"))), 0x82},
		{"PUBLISH response topic", packet(0x30, text("t"), properties("\x08", text("a/b"))), goesOn},
		{"PUBLISH response topic with a wildcard", packet(0x30, text("t"), properties("\x08", text("a/+"))), 0x82},
		{"PUBLISH empty response topic", packet(0x30, text("t"), properties("\x08", text(""))), 0x82},
		{"PUBLISH correlation data", packet(0x30, text("t"), properties("\x09", text("\xff\x00"))), goesOn},
		{"PUBLISH correlation data twice", packet(0x30, text("t"), properties("\x09", text(""), "\x09", text(""))), 0x82},
		{"PUBLISH subscription identifier", packet(0x30, text("t"), properties("\x0b\x01")), 0x82},
		{"PUBLISH topic alias", packet(0x30, text("t"), properties("\x23\x00\x20")), goesOn},
		{"PUBLISH topic alias 0", packet(0x30, text("t"), properties("\x23\x00\x00")), 0x94},
		{"PUBLISH topic alias above the maximum", packet(0x30, text("t"), properties("\x23\x00\x21")), 0x94},
		{"PUBLISH topic alias twice", packet(0x30, text("t"), properties("\x23\x00\x01\x23\x00\x01")), 0x82},
		{"PUBLISH user properties", packet(0x30, text("t"), properties("\x26", text("a"), text("b"), "\x26", text("a"), text("b"))), goesOn},
		{"PUBLISH user property cut off", packet(0x30, text("t"), properties("\x26", text("a"))), 0x81},
		{"PUBLISH user property not UTF-8", packet(0x30, text("t"), properties("\x26", text("a"), text("\xc3"))), 0x81},
		{"PUBLISH property that belongs elsewhere", packet(0x30, text("t"), properties("\x21\x00\x01")), 0x82},
		{"PUBLISH unknown property", packet(0x30, text("t"), properties("\x04\x00")), 0x81},
		{"PUBLISH property 0", packet(0x30, text("t"), properties("\x00")), 0x81},
		{"PUBLISH property with a long identifier", packet(0x30, text("t"), properties("\x81\x00\x01")), 0x81},

		{"SUBSCRIBE", packet(0x82, "\x00\x01\x00", text("a"), "\x01"), goesOn},
		{"SUBSCRIBE with all options", packet(0x82, "\x00\x01\x00", text("a"), "\x2e"), goesOn},
		{"SUBSCRIBE flags", packet(0x80, "\x00\x01\x00", text("a"), "\x01"), 0x81},
		{"SUBSCRIBE packet identifier 0", packet(0x82, "\x00\x00\x00", text("a"), "\x01"), 0x82},
		{"SUBSCRIBE without filters", packet(0x82, "\x00\x01\x00"), 0x82},
		{"SUBSCRIBE empty", packet(0x82), 0x81},
		{"SUBSCRIBE empty filter", packet(0x82, "\x00\x01\x00", text(""), "\x01"), 0x82},
		{"SUBSCRIBE filter cut off", packet(0x82, "\x00\x01\x00", "\x00\x05a"), 0x81},
		{"trap: SUBSCRIBE without options makes the library panic", packet(0x82, "\x00\x01\x00", text("a")), 0x81},
		{"SUBSCRIBE filter not UTF-8", packet(0x82, "\x00\x01\x00", text("\xff"), "\x01"), 0x81},
		{"SUBSCRIBE QoS 3", packet(0x82, "\x00\x01\x00", text("a"), "\x03"), 0x81},
		{"SUBSCRIBE reserved option bits", packet(0x82, "\x00\x01\x00", text("a"), "\x40"), 0x81},
		{"SUBSCRIBE retain handling 3", packet(0x82, "\x00\x01\x00", text("a"), "\x30"), 0x82},
		{"SUBSCRIBE no local and shared", packet(0x82, "\x00\x01\x00", text("$share/g/a"), "\x05"), 0x82},
		{"SUBSCRIBE subscription identifier", packet(0x82, "\x00\x01", properties("\x0b\xff\xff\xff\x7f"), text("a"), "\x01"), goesOn},
		{"SUBSCRIBE subscription identifier 0", packet(0x82, "\x00\x01", properties("\x0b\x00"), text("a"), "\x01"), 0x82},
		{"SUBSCRIBE subscription identifier twice", packet(0x82, "\x00\x01", properties("\x0b\x01\x0b\x02"), text("a"), "\x01"), 0x82},
		{"SUBSCRIBE subscription identifier too large", packet(0x82, "\x00\x01", properties("\x0b\xff\xff\xff\xff\x01"), text("a"), "\x01"), 0x81},
		{"SUBSCRIBE property that belongs elsewhere", packet(0x82, "\x00\x01", properties("\x01\x01"), text("a"), "\x01"), 0x82},

		{"SUBSCRIBE 1024 filters", packet(0x82, "\x00\x01\x00", strings.Repeat(text("a")+"\x01", 1024)), goesOn},
		{"SUBSCRIBE 1025 filters", packet(0x82, "\x00\x01\x00", strings.Repeat(text("a")+"\x01", 1025)), 0x97},

		{"UNSUBSCRIBE", packet(0xa2, "\x00\x01\x00", text("a")), goesOn},
		{"UNSUBSCRIBE flags", packet(0xa0, "\x00\x01\x00", text("a")), 0x81},
		{"UNSUBSCRIBE packet identifier 0", packet(0xa2, "\x00\x00\x00", text("a")), 0x82},
		{"UNSUBSCRIBE without filters", packet(0xa2, "\x00\x01\x00"), 0x82},
		{"UNSUBSCRIBE empty filter", packet(0xa2, "\x00\x01\x00", text("")), 0x82},
		{"UNSUBSCRIBE filter cut off", packet(0xa2, "\x00\x01\x00", "\x00"), 0x81},
		{"UNSUBSCRIBE property that belongs elsewhere", packet(0xa2, "\x00\x01", properties("\x0b\x01"), text("a")), 0x82},
		{"UNSUBSCRIBE no properties", packet(0xa2, "\x00\x01"), 0x81},

		{"DISCONNECT session taken over", packet(0xe0, "\x8e\x00"), 0x82},
		{"DISCONNECT flags", packet(0xe1), 0x81},
		{"DISCONNECT server reference", packet(0xe0, "\x00", properties("\x1c", text("a"))), 0x82},
		{"DISCONNECT trailing bytes", packet(0xe0, "\x00\x00x"), 0x81},
	}
	for _, t := range []struct {
		name   string
		header byte
	}{{"PUBACK", 0x40}, {"PUBREC", 0x50}, {"PUBREL", 0x62}, {"PUBCOMP", 0x70}} {
		bad := "\x01"
		list = append(list,
			corpusPacket{t.name, packet(t.header, "\x00\x09"), goesOn},
			corpusPacket{t.name + " with a reason code", packet(t.header, "\x00\x09\x00"), goesOn},
			corpusPacket{t.name + " with properties", packet(t.header, "\x00\x09\x00", properties("\x1f", text("r"))), goesOn},
			corpusPacket{t.name + " flags", header(t.header|8) + "\x02\x00\x09", 0x81},
			corpusPacket{t.name + " empty", packet(t.header), 0x81},
			corpusPacket{t.name + " one byte", packet(t.header, "\x00"), 0x81},
			corpusPacket{t.name + " packet identifier 0", packet(t.header, "\x00\x00"), 0x82},
			corpusPacket{t.name + " bad reason code", packet(t.header, "\x00\x09", bad), 0x82},
			corpusPacket{t.name + " reason string twice", packet(t.header, "\x00\x09\x00", properties("\x1f", text("r"), "\x1f", text("r"))), 0x82},
			corpusPacket{t.name + " trailing bytes", packet(t.header, "\x00\x09\x00\x00x"), 0x81},
			corpusPacket{t.name + " property that belongs elsewhere", packet(t.header, "\x00\x09\x00", properties("\x01\x00")), 0x82},
		)
	}
	return list
}

// corpus4 is for MQTT 3.1.1, after CONNECT. Everything wrong closes.
func corpus4() []corpusPacket {
	list := []corpusPacket{
		{"AUTH", packet(0xf0), closed},
		{"type 0", packet(0x00), closed},
		{"CONNECT twice", packet(0x10, connectBody(4, 2, text("c"))), closed},
		{"CONNACK", packet(0x20, "\x00\x00"), closed},
		{"SUBACK", packet(0x90, "\x00\x01\x00"), closed},
		{"UNSUBACK", packet(0xb0, "\x00\x01"), closed},
		{"PINGRESP", packet(0xd0), closed},
		{"PINGREQ", packet(0xc0), goesOn},
		{"PINGREQ with a body", packet(0xc0, "x"), closed},
		{"larger than the maximum packet size", "\x30\xff\xff\xff\x7f", closed},
		{"remaining length of five bytes", "\xc0\x80\x80\x80\x80\x01", closed},
		{"PUBLISH", packet(0x30, text("t"), "x"), goesOn},
		{"PUBLISH without payload", packet(0x30, text("t")), goesOn},
		{"PUBLISH RETAIN", packet(0x31, text("t")), goesOn},
		{"PUBLISH QoS 1", packet(0x32, text("t"), "\x00\x01x"), goesOn},
		{"PUBLISH QoS 3", packet(0x36, text("t"), "\x00\x01"), closed},
		{"PUBLISH QoS 0 DUP", packet(0x38, text("t")), closed},
		{"PUBLISH packet identifier 0", packet(0x32, text("t"), "\x00\x00"), closed},
		{"PUBLISH no packet identifier", packet(0x32, text("t")), closed},
		{"PUBLISH no topic", packet(0x30, text("")), closed},
		{"PUBLISH topic with +", packet(0x30, text("+")), closed},
		{"PUBLISH topic with U+0000", packet(0x30, text("\x00")), closed},
		{"PUBLISH topic not UTF-8", packet(0x30, text("\xff")), closed},
		{"SUBSCRIBE", packet(0x82, "\x00\x01", text("a"), "\x02"), goesOn},
		{"SUBSCRIBE options of MQTT 5", packet(0x82, "\x00\x01", text("a"), "\x04"), closed},
		{"SUBSCRIBE QoS 3", packet(0x82, "\x00\x01", text("a"), "\x03"), closed},
		{"SUBSCRIBE without filters", packet(0x82, "\x00\x01"), closed},
		{"SUBSCRIBE empty filter", packet(0x82, "\x00\x01", text(""), "\x00"), closed},
		{"SUBSCRIBE cut off", packet(0x82, "\x00\x01", text("a")), closed},
		{"SUBSCRIBE flags", packet(0x80, "\x00\x01", text("a"), "\x00"), closed},
		{"SUBSCRIBE packet identifier 0", packet(0x82, "\x00\x00", text("a"), "\x00"), closed},
		{"UNSUBSCRIBE", packet(0xa2, "\x00\x01", text("a")), goesOn},
		{"UNSUBSCRIBE without filters", packet(0xa2, "\x00\x01"), closed},
		{"UNSUBSCRIBE flags", packet(0xa0, "\x00\x01", text("a")), closed},
		{"DISCONNECT with a body", packet(0xe0, "\x00"), closed},
		{"DISCONNECT flags", packet(0xe1), closed},
	}
	for name, header := range map[string]byte{"PUBACK": 0x40, "PUBREC": 0x50, "PUBREL": 0x62, "PUBCOMP": 0x70} {
		list = append(list,
			corpusPacket{name, packet(header, "\x00\x09"), goesOn},
			corpusPacket{name + " with a reason code", packet(header, "\x00\x09\x00"), closed},
			corpusPacket{name + " one byte", packet(header, "\x00"), closed},
			corpusPacket{name + " packet identifier 0", packet(header, "\x00\x00"), closed},
		)
	}
	return list
}

// TestCorpus sends each packet on a connection of its own. The process and a
// healthy client live on.
func TestCorpus(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	healthy := s.connect(5)
	for level, list := range map[byte][]corpusPacket{4: corpus4(), 5: corpus5()} {
		for _, tt := range list {
			t.Run(fmt.Sprintf("level %d: %s", level, tt.name), func(t *testing.T) {
				c := s.connect(level)
				c.Send([]byte(tt.packet))
				switch {
				case tt.want == goesOn:
					c.Send([]byte{0xc0, 0})
					for pk := c.Next(); pk.FixedHeader.Type != packets.Pingresp; pk = c.Next() {
						continue
					}
				case level == 4:
					c.WantClosed()
				default:
					if d := c.WantClosed(); d == nil || int(d.ReasonCode) != tt.want {
						t.Errorf("got %v, want DISCONNECT %#x", d, tt.want)
					}
				}
				healthy.Ping()
			})
		}
	}
}

// TestCorpusOfConnect sends what is no good CONNECT.
func TestCorpusOfConnect(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	const anyLevel = "\x00"
	for _, tt := range []struct {
		name   string
		packet string
		want   string // the server's bytes before it closes
	}{
		{"PINGREQ first", packet(0xc0), ""},
		{"PUBLISH first", packet(0x30, text("t"), "\x00"), ""},
		{"HTTP", "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", ""},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ""},
		{"larger than CONNECT may be", "\x10\xff\xff\xff\x7f", ""},
		{"CONNECT with flags", packet(0x11, connectBody(5, 2, anyLevel, text("c"))), ""},
		{"no protocol name", packet(0x10), ""},
		{"other protocol name", packet(0x10, text("HTTP"), "\x05\x02\x00\x00\x00", text("c")), ""},
		{"MQTT 3.1", packet(0x10, text("MQIsdp"), "\x03\x02\x00\x00", text("c")), "\x20\x02\x00\x01"},
		{"level 3", packet(0x10, connectBody(3, 2, text("c"))), "\x20\x02\x00\x01"},
		{"level 0", packet(0x10, connectBody(0, 2, text("c"))), "\x20\x02\x00\x01"},
		{"level 6", packet(0x10, connectBody(6, 2, "\x00", text("c"))), "\x20\x03\x00\x84\x00"},
		{"level 255", packet(0x10, connectBody(255, 2, "\x00", text("c"))), "\x20\x03\x00\x84\x00"},
		{"reserved flag", packet(0x10, connectBody(4, 3, text("c"))), ""},
		{"will QoS without will", packet(0x10, connectBody(4, 0x0a, text("c"))), ""},
		{"will retain without will", packet(0x10, connectBody(4, 0x22, text("c"))), ""},
		{"will QoS 3", packet(0x10, connectBody(4, 0x1e, text("c"), text("t"), text("x"))), ""},
		{"will without topic", packet(0x10, connectBody(4, 6, text("c"))), ""},
		{"will with empty topic", packet(0x10, connectBody(4, 6, text("c"), text(""), text("x"))), ""},
		{"will topic with a wildcard", packet(0x10, connectBody(4, 6, text("c"), text("a/#"), text("x"))), ""},
		{"3.1.1 password without user name", packet(0x10, connectBody(4, 0x42, text("c"), text("p"))), ""},
		{"user name flag without user name", packet(0x10, connectBody(4, 0x82, text("c"))), ""},
		{"password flag without password", packet(0x10, connectBody(4, 0xc2, text("c"), text("u"))), ""},
		{"user name not UTF-8", packet(0x10, connectBody(4, 0x82, text("c"), text("\xff"))), ""},
		{"client identifier not UTF-8", packet(0x10, connectBody(4, 2, text("\xff"))), ""},
		{"client identifier with U+0000", packet(0x10, connectBody(4, 2, text("a\x00"))), ""},
		{"no client identifier", packet(0x10, connectBody(4, 2)), ""},
		{"trailing bytes", packet(0x10, connectBody(4, 2, text("c"), "x")), ""},
		{"5: no properties", packet(0x10, connectBody(5, 2)), ""},
		{"5: trailing bytes", packet(0x10, connectBody(5, 2, "\x00", text("c"), "x")), ""},
		{"5: receive maximum 0", packet(0x10, connectBody(5, 2, properties("\x21\x00\x00"), text("c"))), ""},
		{"5: maximum packet size 0", packet(0x10, connectBody(5, 2, properties("\x27\x00\x00\x00\x00"), text("c"))), ""},
		{"5: session expiry twice", packet(0x10, connectBody(5, 2, properties(strings.Repeat("\x11\x00\x00\x00\x01", 2)), text("c"))), ""},
		{"5: receive maximum twice", packet(0x10, connectBody(5, 2, properties(strings.Repeat("\x21\x00\x01", 2)), text("c"))), ""},
		{"5: maximum packet size twice", packet(0x10, connectBody(5, 2, properties(strings.Repeat("\x27\x00\x00\x00\x64", 2)), text("c"))), ""},
		{"5: topic alias maximum twice", packet(0x10, connectBody(5, 2, properties(strings.Repeat("\x22\x00\x01", 2)), text("c"))), ""},
		{"5: request response information 2", packet(0x10, connectBody(5, 2, properties("\x19\x02"), text("c"))), ""},
		{"5: request problem information 2", packet(0x10, connectBody(5, 2, properties("\x17\x02"), text("c"))), ""},
		{"5: request problem information twice", packet(0x10, connectBody(5, 2, properties("\x17\x01\x17\x01"), text("c"))), ""},
		{"5: authentication data without a method", packet(0x10, connectBody(5, 2, properties("\x16", text("x")), text("c"))), ""},
		{"5: authentication method twice", packet(0x10, connectBody(5, 2, properties("\x15", text("x"), "\x15", text("x")), text("c"))), ""},
		{"5: property that belongs elsewhere", packet(0x10, connectBody(5, 2, properties("\x01\x01"), text("c"))), ""},
		{"5: will delay outside of the will", packet(0x10, connectBody(5, 2, properties("\x18\x00\x00\x00\x01"), text("c"))), ""},
		{"5: unknown property", packet(0x10, connectBody(5, 2, properties("\x7e"), text("c"))), ""},
		{"5: properties longer than the packet", packet(0x10, connectBody(5, 2, "\x7f", text("c"))), ""},
		{"5: will property twice", packet(0x10, connectBody(5, 6, "\x00", text("c"), properties("\x01\x01\x01\x01"), text("t"), text("x"))), ""},
		{"5: will payload format 2", packet(0x10, connectBody(5, 6, "\x00", text("c"), properties("\x01\x02"), text("t"), text("x"))), ""},
		{"5: will response topic with a wildcard", packet(0x10, connectBody(5, 6, "\x00", text("c"), properties("\x08", text("+")), text("t"), text("x"))), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			level := byte(4)
			if strings.Contains(tt.name, "level 6") || strings.Contains(tt.name, "level 255") {
				level = 5
			}
			c := s.dial(level)
			_ = c.TrySend([]byte(tt.packet)) // it may be closed before all is read
			if tt.want != "" {
				k := c.Want(packets.Connack)
				if want := tt.want[3]; k.ReasonCode != want {
					t.Errorf("CONNACK %#x, want %#x", k.ReasonCode, want)
				}
			}
			c.WantClosed()
		})
	}
}

// TestPacketsInPieces sends a whole conversation byte by byte, and as one piece.
func TestPacketsInPieces(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	conversation := packet(0x10, connectBody(5, 2, "\x00", text("c"))) +
		packet(0x32, text("t"), "\x00\x01\x00", strings.Repeat("x", 60_000)) +
		packet(0x40, "\x00\x01") + packet(0x82, "\x00\x02\x00", text("a"), "\x01") + packet(0xa2, "\x00\x03\x00", text("a")) + packet(0xc0)
	for _, size := range []int{1, 7, 2048, len(conversation)} {
		c := s.dial(5)
		go func() {
			for b := []byte(conversation); len(b) > 0; b = b[min(size, len(b)):] {
				if c.TrySend(b[:min(size, len(b))]) != nil {
					return
				}
			}
		}()
		for _, want := range []byte{packets.Connack, packets.Puback, packets.Suback, packets.Unsuback, packets.Pingresp} {
			c.Want(want)
		}
	}
}

// FuzzConversation lets a client say anything, after a good CONNECT or without. No
// panic, nothing illegal from us, and the connection's resources come back.
func FuzzConversation(f *testing.F) {
	for _, level := range []byte{4, 5} {
		good := packet(0x10, connectBody(4, 2, text("c")))
		list := corpus4()
		if level == 5 {
			good, list = packet(0x10, connectBody(5, 2, "\x00", text("c"))), corpus5()
		}
		var all strings.Builder
		for _, p := range list {
			f.Add([]byte(good + p.packet))
			if p.want == goesOn {
				all.WriteString(p.packet)
			}
		}
		f.Add([]byte(good + all.String()))
	}
	s := newServer(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		s.t = t
		c := s.dial(mqtttest.AnyLevel)
		go func() {
			_ = c.TrySend(input)
			_ = c.Conn.Close()
		}()
		if end := <-s.ends; end.Label == "panic" {
			t.Fatal(s.log.String())
		}
		s.connections.Wait()
		if len(s.ends) > 0 {
			t.Fatal("a connection ended twice")
		}
	})
}
