package rawmqtt_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mqtt-integration/tests/internal/rawmqtt"
)

const timeout = 5 * time.Second

// server answers one connection with these bytes and then closes it; what the
// client sends is on the channel when the connection has ended.
func server(t *testing.T, answer []byte) (address string, received <-chan []byte) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	got := make(chan []byte, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Write(answer)
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
		b, _ := io.ReadAll(conn)
		got <- b
		_ = conn.Close()
	}()
	return listener.Addr().String(), got
}

func TestSend(t *testing.T) {
	t.Parallel()
	properties := rawmqtt.Properties{
		rawmqtt.Number(rawmqtt.ReceiveMaximum, 10), rawmqtt.User("a", "b"),
		rawmqtt.Number(rawmqtt.MaximumPacketSize, 1<<20), rawmqtt.Number(rawmqtt.RequestProblemInfo, 1),
	}
	for _, tt := range []struct {
		name    string
		packet  rawmqtt.Outgoing
		version rawmqtt.Version
		want    string
	}{
		{
			"CONNECT 3.1.1",
			rawmqtt.Connect{ClientID: "c", Username: new("u"), Password: new(""), CleanStart: true, KeepAlive: 258, Properties: properties},
			rawmqtt.V311, "\x10\x12\x00\x04MQTT\x04\xc2\x01\x02\x00\x01c\x00\x01u\x00\x00",
		},
		{
			"CONNECT 5 with a will",
			rawmqtt.Connect{Properties: properties, Will: &rawmqtt.Will{Topic: "t", Payload: []byte("p"), QoS: 1, Retain: true}},
			rawmqtt.V5,
			"\x10\x25\x00\x04MQTT\x05\x2c\x00\x00" + "\x11\x21\x00\x0a\x26\x00\x01a\x00\x01b\x27\x00\x10\x00\x00\x17\x01" +
				"\x00\x00\x00\x00\x01t\x00\x01p",
		},
		{
			"PUBLISH",
			rawmqtt.Publish{Topic: "t", Payload: []byte("x"), QoS: 1, Dup: true, PacketID: 7},
			rawmqtt.V311, "\x3a\x06\x00\x01t\x00\x07x",
		},
		{
			"PUBLISH 5",
			rawmqtt.Publish{Topic: "t", Retain: true, Properties: rawmqtt.Properties{rawmqtt.Text(rawmqtt.ContentType, "a/b")}},
			rawmqtt.V5, "\x31\x0a\x00\x01t\x06\x03\x00\x03a/b",
		},
		{
			"SUBSCRIBE 5",
			rawmqtt.Subscribe{PacketID: 1, Filters: []rawmqtt.Filter{{"a", 1}}, Properties: rawmqtt.Properties{rawmqtt.Number(rawmqtt.SubscriptionIdentifier, 300)}},
			rawmqtt.V5, "\x82\x0a\x00\x01\x03\x0b\xac\x02\x00\x01a\x01",
		},
		{"UNSUBSCRIBE", rawmqtt.Unsubscribe{PacketID: 1, Filters: []string{"a"}}, rawmqtt.V311, "\xa2\x05\x00\x01\x00\x01a"},
		{"PUBACK", rawmqtt.Ack{PacketID: 258}, rawmqtt.V5, "\x40\x02\x01\x02"},
		{"PUBACK with a code", rawmqtt.Ack{PacketID: 258, Code: 0x80}, rawmqtt.V5, "\x40\x04\x01\x02\x80\x00"},
		{"PUBREL", rawmqtt.Ack{Type: rawmqtt.PUBREL, PacketID: 258, Code: 0x80}, rawmqtt.V311, "\x62\x02\x01\x02"},
		{"DISCONNECT", rawmqtt.Disconnect{Code: 4}, rawmqtt.V5, "\xe0\x02\x04\x00"},
		{"AUTH", rawmqtt.Auth{Code: 0x19}, rawmqtt.V5, "\xf0\x02\x19\x00"},
		{"PINGREQ", rawmqtt.Ping{}, rawmqtt.V5, "\xc0\x00"},
		{"bytes", rawmqtt.Raw("\xff\xff"), rawmqtt.V5, "\xff\xff"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := string(tt.packet.Append(nil, tt.version)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		version rawmqtt.Version
		bytes   string
		want    rawmqtt.Packet
	}{
		{"CONNACK", rawmqtt.V311, "\x20\x02\x01\x05", rawmqtt.Packet{Type: rawmqtt.CONNACK, SessionPresent: true, Code: 5, Size: 4}},
		{
			"CONNACK 5", rawmqtt.V5, "\x20\x06\x00\x86\x03\x21\x01\x00",
			rawmqtt.Packet{
				Type: rawmqtt.CONNACK, Code: 0x86, Size: 8,
				Properties: rawmqtt.Properties{rawmqtt.Number(rawmqtt.ReceiveMaximum, 256)},
			},
		},
		{
			"PUBLISH 5", rawmqtt.V5, "\x3b\x0e\x00\x01t\x00\x09\x07\x26\x00\x01n\x00\x01vp",
			rawmqtt.Packet{
				Type: rawmqtt.PUBLISH, Flags: 11, PacketID: 9, Topic: "t", Payload: []byte("p"), QoS: 1, Dup: true, Retain: true,
				Size: 16, Properties: rawmqtt.Properties{rawmqtt.User("n", "v")},
			},
		},
		{
			"PUBLISH with QoS 0", rawmqtt.V311, "\x30\x04\x00\x01tp",
			rawmqtt.Packet{Type: rawmqtt.PUBLISH, Topic: "t", Payload: []byte("p"), Size: 6},
		},
		{"PUBACK", rawmqtt.V5, "\x40\x02\x00\x09", rawmqtt.Packet{Type: rawmqtt.PUBACK, PacketID: 9, Size: 4}},
		{"PUBACK with a code", rawmqtt.V5, "\x40\x03\x00\x09\x83", rawmqtt.Packet{Type: rawmqtt.PUBACK, PacketID: 9, Code: 0x83, Size: 5}},
		{"SUBACK 5", rawmqtt.V5, "\x90\x05\x00\x01\x00\x01\x87", rawmqtt.Packet{Type: rawmqtt.SUBACK, PacketID: 1, Codes: []byte{1, 0x87}, Size: 7}},
		{
			"DISCONNECT", rawmqtt.V5, "\xe0\x06\x8e\x04\x1f\x00\x01r",
			rawmqtt.Packet{Type: rawmqtt.DISCONNECT, Code: 0x8e, Size: 8, Properties: rawmqtt.Properties{rawmqtt.Text(rawmqtt.ReasonString, "r")}},
		},
		{"PINGRESP", rawmqtt.V5, "\xd0\x00", rawmqtt.Packet{Type: rawmqtt.PINGRESP, Size: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client := dial(t, tt.version, []byte(tt.bytes))
			got, err := client.Read(timeout)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
			if _, err := client.Read(timeout); !errors.Is(err, io.EOF) {
				t.Errorf("Read at the end: %v, want EOF", err)
			}
		})
	}
}

func dial(t *testing.T, v rawmqtt.Version, answer []byte) *rawmqtt.Client {
	t.Helper()
	address, _ := server(t, answer)
	client, err := rawmqtt.Dial(t.Context(), address, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func TestReadRefusesWhatIsMalformed(t *testing.T) {
	t.Parallel()
	for _, bytes := range []string{
		"\x10\x00",                         // CONNECT
		"\x20\x01\x00",                     // CONNACK, too short
		"\x20\x04\x00\x00\x00\x00",         // CONNACK, too long
		"\x20\x05\x00\x00\x02\x7f\x00",     // unknown property
		"\x20\x05\x00\x00\x03\x21\x01",     // property that is cut off
		"\x40\xff\xff\xff\xff\xff\x00\x00", // length of five bytes
	} {
		if p, err := dial(t, rawmqtt.V5, []byte(bytes)).Read(timeout); err == nil {
			t.Errorf("%q: %v, want an error", bytes, p)
		}
	}
}

func TestReadTimesOut(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	client, err := rawmqtt.Dial(t.Context(), listener.Addr().String(), rawmqtt.V5)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Read(10 * time.Millisecond); !errors.Is(err, rawmqtt.ErrTimeout) {
		t.Errorf("Read: %v, want ErrTimeout", err)
	}
}

func TestExchange(t *testing.T) {
	t.Parallel()
	address, received := server(t, []byte("\xd0\x00"))
	client, err := rawmqtt.Dial(t.Context(), address, rawmqtt.V5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Exchange(rawmqtt.Ping{}, rawmqtt.PINGRESP, timeout); err != nil {
		t.Error(err)
	}
	client.Close()
	if got := string(<-received); got != "\xc0\x00" {
		t.Errorf("the server received %q, want PINGREQ", got)
	}
}
