//go:build integration

package integration_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mqtt-integration/services/standalone"
	"mqtt-integration/tests/internal/rawmqtt"
)

func TestConnectClientIdentifier(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user := s.CreateUser(t)
	tooLong := connectAnswer{v5: 0x85, v311: 2, reason: "client identifier longer than 256 bytes"}
	tests := []struct {
		name       string
		id         string
		cleanStart bool
		want       connectAnswer
		assigned   bool
	}{
		{"one byte", "x", true, connectAccepted, false},
		{"unusual characters", "a/b+c#d $é\U0001f600", true, connectAccepted, false},
		{"256 bytes", strings.Repeat("x", 256), true, connectAccepted, false},
		{"256 bytes in 128 characters", strings.Repeat("é", 128), true, connectAccepted, false},
		{"257 bytes", strings.Repeat("x", 257), true, tooLong, false},
		{"257 bytes, clean start 0", strings.Repeat("x", 257), false, tooLong, false},
		{"258 bytes in 129 characters", strings.Repeat("é", 129), true, tooLong, false},
		{"65535 bytes", strings.Repeat("x", 65535), true, tooLong, false},
		{"empty", "", true, connectAccepted, true},
		{"empty, clean start 0", "", false, connectAnswer{v311: 2}, true},
		{"clean start 0", "stays", false, connectAccepted, false},
	}
	for _, tt := range tests {
		for _, v := range connectVersions {
			t.Run(fmt.Sprintf("%s/%s", tt.name, v), func(t *testing.T) {
				t.Parallel()
				// A user, so that two connections with one identifier are one session:
				// the versions have identifiers of their own here.
				id := tt.id
				if id == "stays" {
					id += v.String()
				}
				connect := rawmqtt.Connect{ClientID: id, CleanStart: tt.cleanStart, Username: &user.Name, Password: &user.Key}
				client, connack := connectTry(t, s.MQTT(), v, connect, tt.want)
				if tt.want.code(v) != 0 {
					return
				}
				assigned, ok := connack.Properties.Text(rawmqtt.AssignedClientIdentifier)
				if want := tt.assigned && v == rawmqtt.V5; ok != want || (want && assigned == "") {
					t.Errorf("assigned client identifier %q, %v, want one: %v", assigned, ok, want)
				}
				if tt.id == "" || tt.id == "stays" {
					connectPing(t, client)
				}
			})
		}
	}
}

func connectPing(t *testing.T, client *rawmqtt.Client) {
	t.Helper()
	if _, err := client.Exchange(rawmqtt.Ping{}, rawmqtt.PINGRESP, connectPatience); err != nil {
		t.Error(err)
	}
}

// Two clients without an identifier are two sessions, and the identifier that one
// was given is good for a CONNECT of its own.
func TestConnectAssignedIdentifiersAreUnique(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user := s.CreateUser(t)
	var ids []string
	var clients []*rawmqtt.Client
	for range 3 {
		connect := connectAs(t, &user.Name, &user.Key)
		connect.ClientID = ""
		client, connack := connectTry(t, s.MQTT(), rawmqtt.V5, connect, connectAccepted)
		id, _ := connack.Properties.Text(rawmqtt.AssignedClientIdentifier)
		if id == "" || slices.Contains(ids, id) {
			t.Fatalf("assigned client identifier %q after %q, want another", id, ids)
		}
		ids, clients = append(ids, id), append(clients, client)
	}
	// 3.1.1 clients are not told theirs, but must not meet either.
	for range 2 {
		connect := connectAs(t, &user.Name, &user.Key)
		connect.ClientID = ""
		client, _ := connectTry(t, s.MQTT(), rawmqtt.V311, connect, connectAccepted)
		clients = append(clients, client)
	}
	for _, client := range clients {
		connectPing(t, client)
	}
	connect := connectAs(t, &user.Name, &user.Key)
	connect.ClientID = ids[0]
	connectTry(t, s.MQTT(), rawmqtt.V5, connect, connectAccepted)
	if p, err := clients[0].Expect(rawmqtt.DISCONNECT, connectPatience); err != nil || p.Code != 0x8e {
		t.Errorf("%v, %v, want DISCONNECT 0x8e: the session was taken over", p, err)
	}
}

// The newest CONNECT of a session owns it; a session is that of a principal, so that
// another user's client with the same identifier is another one.
func TestConnectTakesItsSessionOver(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user, other := s.CreateUser(t), s.CreateUser(t)
	token := s.Token(t, user, nil)
	for _, v := range connectVersions {
		t.Run(v.String(), func(t *testing.T) {
			connect := connectAs(t, &user.Name, &user.Key)
			first, _ := connectTry(t, s.MQTT(), v, connect, connectAccepted)
			stranger := connect
			stranger.Username, stranger.Password = &other.Name, &other.Key
			bystander, _ := connectTry(t, s.MQTT(), v, stranger, connectAccepted)
			anonymous := connect
			anonymous.Username, anonymous.Password = nil, nil
			nobody, _ := connectTry(t, s.MQTT(), v, anonymous, connectAccepted)
			somebody, _ := connectTry(t, s.MQTT(), v, anonymous, connectAccepted)
			connectPing(t, first)

			withToken := connect
			withToken.Username, withToken.Password = &token, nil
			second, _ := connectTry(t, s.MQTT(), v, withToken, connectAccepted)
			if v == rawmqtt.V5 {
				if p, err := first.Expect(rawmqtt.DISCONNECT, connectPatience); err != nil || p.Code != 0x8e {
					t.Errorf("%v, %v, want DISCONNECT 0x8e", p, err)
				}
			}
			connectClosed(t, first)
			for _, client := range []*rawmqtt.Client{second, bystander, nobody, somebody} {
				connectPing(t, client)
			}
		})
	}
}

func TestConnectProtocolLevels(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	connack311, connack5 := []byte{0x20, 2, 0, 1}, []byte{0x20, 3, 0, 0x84, 0}
	tests := []struct {
		name    string
		version rawmqtt.Version // in which CONNACK is read
		connect rawmqtt.Outgoing
		want    []byte
	}{
		{"3.1 by its own name", rawmqtt.V311, rawmqtt.Raw("\x10\x13\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x05older"), connack311},
		{"level 3", rawmqtt.V311, rawmqtt.Connect{Level: 3, ClientID: "older", CleanStart: true}, connack311},
		{"level 0", rawmqtt.V311, rawmqtt.Raw("\x10\x0f\x00\x04MQTT\x00\x02\x00\x3c\x00\x03old"), connack311},
		{"level 6", rawmqtt.V5, rawmqtt.Connect{Level: 6, ClientID: "newer", CleanStart: true}, connack5},
		{"level 255", rawmqtt.V5, rawmqtt.Connect{Level: 255, ClientID: "newer", CleanStart: true}, connack5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client := connectDial(t, s.MQTT(), tt.version)
			connack, err := client.Exchange(tt.connect, rawmqtt.CONNACK, connectPatience)
			if err != nil {
				t.Fatal(err)
			}
			if connack.Code != tt.want[3] || connack.Size != len(tt.want) {
				t.Errorf("%v of %d bytes, want % x", connack, connack.Size, tt.want)
			}
			connectClosed(t, client)
		})
	}
}

// What does not begin with a CONNECT that can be read gets no answer.
func TestConnectBeginsWithConnect(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, func(cfg *standalone.Config) { cfg.MQTTFrontend.MQTT.ConnectTimeout = 500 * time.Millisecond })
	id := "\x00\x01x"
	tests := []struct {
		name string
		send string
	}{
		{"nothing within the deadline", ""},
		{"half of a CONNECT within the deadline", "\x10\x0e\x00\x04MQTT"},
		{"PINGREQ first", "\xc0\x00"},
		{"PUBLISH first", "\x30\x04\x00\x01tx"},
		{"DISCONNECT first", "\xe0\x00"},
		{"HTTP", "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"},
		{"other protocol name", "\x10\x0d\x00\x04MQTX\x04\x02\x00\x3c" + id},
		{"reserved flag", "\x10\x0d\x00\x04MQTT\x04\x03\x00\x3c" + id},
		{"will QoS without a will", "\x10\x0d\x00\x04MQTT\x04\x0a\x00\x3c" + id},
		{"cut short", "\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x05"},
		{"something behind it", "\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c" + id + "xx"},
		{"client identifier with a NUL", "\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03a\x00b"},
		{"client identifier that is no UTF-8", "\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03a\xffb"},
		{"user name that is no UTF-8", "\x10\x12\x00\x04MQTT\x04\x82\x00\x3c" + id + "\x00\x03a\xffb"},
		{"user name with a NUL", "\x10\x12\x00\x04MQTT\x04\x82\x00\x3c" + id + "\x00\x03a\x00b"},
		{"one that says that it is larger than 256 KiB", "\x10\xff\xff\x7f\x00\x04MQTT\x04\x02\x00\x3c\x00\x05"},
		{"length of five bytes", "\x10\x8d\x80\x80\x80\x00\x00\x04MQTT\x04\x02\x00\x3c" + id},
		{"other flags of the packet", "\x12\x0d\x00\x04MQTT\x04\x02\x00\x3c" + id},
		{"5, unknown property", "\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x02\x7f\x00" + id},
		{"5, property of another packet", "\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x03\x23\x00\x01" + id},
		{"5, property that comes twice", "\x10\x14\x00\x04MQTT\x05\x02\x00\x3c\x06\x21\x00\x01\x21\x00\x01" + id},
		{"5, Receive Maximum 0", "\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x03\x21\x00\x00" + id},
		{"5, Maximum Packet Size 0", "\x10\x13\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00\x00" + id},
		{"5, properties longer than the packet", "\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x7f" + id},
		{"5, authentication data without a method", "\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x04\x16\x00\x01d" + id},
		{"password without user name", "\x10\x10\x00\x04MQTT\x04\x42\x00\x3c" + id + "\x00\x01p"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client := connectDial(t, s.MQTT(), rawmqtt.V311)
			began := time.Now()
			if err := client.Send(rawmqtt.Raw(tt.send)); err != nil {
				t.Fatal(err)
			}
			connectClosed(t, client)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("closed after %v, want the deadline of 0.5 s at most", took)
			}
		})
	}
	client, _ := connectTry(t, s.MQTT(), rawmqtt.V311, connectAs(t, nil, nil), connectAccepted)
	<-time.After(700 * time.Millisecond)
	connectPing(t, client) // the deadline is for CONNECT alone
}

func TestConnectTwiceIsAProtocolError(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	for _, v := range connectVersions {
		connect := connectAs(t, nil, nil)
		client, _ := connectTry(t, s.MQTT(), v, connect, connectAccepted)
		if err := client.Send(connect); err != nil {
			t.Fatal(err)
		}
		if v == rawmqtt.V5 {
			if p, err := client.Expect(rawmqtt.DISCONNECT, connectPatience); err != nil || p.Code != 0x82 {
				t.Errorf("%v, %v, want DISCONNECT 0x82", p, err)
			}
		}
		connectClosed(t, client)
	}
}

// What CONNACK says is what holds.
func TestConnectAcknowledgementTellsTheTruth(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	application := s.CreateApplication(t, 1)
	owner := application.Owner
	connect := connectAs(t, &owner.Name, &owner.Key)
	connect.Properties = rawmqtt.Properties{rawmqtt.Number(rawmqtt.SessionExpiryInterval, 3600)}
	client, connack := connectTry(t, s.MQTT(), rawmqtt.V5, connect, connectAccepted)
	for id, want := range map[rawmqtt.PropertyID]uint32{
		rawmqtt.ReceiveMaximum: 100, rawmqtt.TopicAliasMaximum: 32, rawmqtt.RetainAvailable: 0, rawmqtt.WildcardSubAvailable: 0,
		rawmqtt.SubIDAvailable: 1, rawmqtt.SessionExpiryInterval: 0,
	} {
		if got, ok := connack.Properties.Number(id); !ok || got != want {
			t.Errorf("property 0x%02x is %d, %v, want %d", byte(id), got, ok, want)
		}
	}
	if qos, told := connack.Properties.Number(rawmqtt.MaximumQoS); told { // absent is 2
		t.Errorf("Maximum QoS %d, want none", qos)
	}
	if size, ok := connack.Properties.Number(rawmqtt.MaximumPacketSize); !ok || size == 0 || size > 1<<20 {
		t.Errorf("Maximum Packet Size %d, %v, want at most 1 MiB", size, ok)
	}
	available, told := connack.Properties.Number(rawmqtt.SharedSubAvailable) // absent is 1
	shared := connectSubscribe(t, client, "$share/group/app/"+application.Name)
	if want := map[bool]byte{true: 1, false: 0x9e}[!told || available == 1]; shared != want {
		t.Errorf("SUBACK 0x%02x for a shared subscription, want 0x%02x: Shared Subscription Available is %d, %v", shared, want, available, told)
	}
	if err := client.Send(rawmqtt.Publish{Topic: "command/" + application.Name + "/dev/go", QoS: 2, PacketID: 1}); err != nil {
		t.Fatal(err)
	}
	if p, err := client.Expect(rawmqtt.PUBREC, connectPatience); err != nil || p.Code != 0 {
		t.Errorf("%v, %v, want PUBREC 0x00", p, err)
	}
	if err := client.Send(rawmqtt.Ack{Type: rawmqtt.PUBREL, PacketID: 1}); err != nil {
		t.Fatal(err)
	}
	if p, err := client.Expect(rawmqtt.PUBCOMP, connectPatience); err != nil || p.Code != 0 {
		t.Errorf("%v, %v, want PUBCOMP 0x00", p, err)
	}
}

// Who is silent for one and a half times the keep-alive is gone; without keep-alive,
// silence means nothing.
func TestConnectKeepAlive(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	for _, v := range connectVersions {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			connect := connectAs(t, nil, nil)
			without, _ := connectTry(t, s.MQTT(), v, connect, connectAccepted)
			connect.KeepAlive = 1
			talking, connack := connectTry(t, s.MQTT(), v, connect, connectAccepted)
			if keepAlive, ok := connack.Properties.Number(rawmqtt.ServerKeepAlive); ok {
				t.Errorf("Server Keep Alive %d although the client's is accepted", keepAlive)
			}
			silent, _ := connectTry(t, s.MQTT(), v, connect, connectAccepted)
			began := time.Now()
			for range 4 {
				<-time.After(350 * time.Millisecond)
				connectPing(t, talking)
			}
			if v == rawmqtt.V5 {
				if p, err := silent.Expect(rawmqtt.DISCONNECT, connectPatience); err != nil || p.Code != 0x8d {
					t.Errorf("%v, %v, want DISCONNECT 0x8d", p, err)
				}
			}
			connectClosed(t, silent)
			if took := time.Since(began); took < 1400*time.Millisecond || took > 5*time.Second {
				t.Errorf("a silent client was disconnected after %v, want 1.5 s and not much more", took)
			}
			connectPing(t, without)
		})
	}
}

// A limit of the server's own is told to clients of MQTT 5, which have to heed it.
func TestConnectServerKeepAlive(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, func(cfg *standalone.Config) { cfg.MQTTFrontend.MQTT.MaxKeepAlive = 60 * time.Second })
	for keepAlive, want := range map[uint16]uint32{0: 60, 61: 60, 60: 0, 10: 0} {
		connect := connectAs(t, nil, nil)
		connect.KeepAlive = keepAlive
		_, connack := connectTry(t, s.MQTT(), rawmqtt.V5, connect, connectAccepted)
		if got, _ := connack.Properties.Number(rawmqtt.ServerKeepAlive); got != want {
			t.Errorf("Server Keep Alive %d for a client with %d, want %d", got, keepAlive, want)
		}
	}
}
