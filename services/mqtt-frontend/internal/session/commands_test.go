package session_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"
	"google.golang.org/protobuf/testing/protocmp"

	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
	"mqtt-integration/services/mqtt-frontend/internal/session"
)

const topic = "command/a/dev/reboot"

func publish(p packets.Properties, payload string) func(level, qos byte) []byte {
	return func(level, qos byte) []byte {
		return mqtttest.Encode(level, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, PacketID: 9, TopicName: topic,
			Payload: []byte(payload), Properties: p,
		})
	}
}

func plain(topic string) func(level, qos byte) []byte {
	return func(level, qos byte) []byte { return mqtttest.Publish(level, qos, 9, topic, "{}") }
}

func TestOutcomesOfPublish(t *testing.T) {
	t.Parallel()
	status := func(s commandsv1.ResultStatus, message string) func(*frontend) {
		return func(f *frontend) { f.commands.set(s, message) }
	}
	many := packets.Properties{User: make([]packets.UserProperty, 33)}
	for i := range many.User {
		many.User[i] = packets.UserProperty{Key: "k", Val: "v"}
	}
	const closed = 0xff
	for _, tt := range []struct {
		name    string
		prepare func(*frontend)
		packet  func(level, qos byte) []byte
		code5   byte
		code4   byte // closed, or 0 for PUBACK
		reason  string
		written bool
	}{
		{name: "in Kafka", packet: plain(topic), written: true},
		{name: "other topic", packet: plain("a/b"), code5: 0x90, code4: closed, reason: "not command/<application>/<device>/<command>"},
		{name: "empty level", packet: plain("command/a//x"), code5: 0x90, code4: closed, reason: "not command/<application>/<device>/<command>"},
		{name: "a level too many", packet: plain("command/a/b/c/d"), code5: 0x90, code4: closed, reason: "not command/<application>/<device>/<command>"},
		{name: "a level too few", packet: plain("command/a/b"), code5: 0x90, code4: closed, reason: "not command/<application>/<device>/<command>"},
		{name: "$SYS", packet: plain("$SYS/x"), code5: 0x90, code4: closed, reason: "not command/<application>/<device>/<command>"},
		{name: "not authorized", packet: plain("command/forbidden/dev/x"), code5: 0x87, code4: closed, reason: "not authorized to send commands to forbidden"},
		{name: "authorization down", prepare: func(f *frontend) { f.access.err = access.ErrUnavailable }, packet: plain(topic), code5: 0x83, code4: closed, reason: "authorization cannot be reached"},
		{name: "Kafka down", prepare: status(commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE, "Kafka cannot be reached"), packet: plain(topic), code5: 0x83, code4: closed, reason: "Kafka cannot be reached", written: true},
		{name: "outcome unknown", prepare: status(commandsv1.ResultStatus_RESULT_STATUS_UNKNOWN_OUTCOME, ""), packet: plain(topic), code5: 0x83, code4: closed, reason: "the command could not be written in time", written: true},
		{name: "too large for Kafka", prepare: status(commandsv1.ResultStatus_RESULT_STATUS_TOO_LARGE, ""), packet: plain(topic), code5: 0x97, code4: closed, reason: "larger than Kafka takes", written: true},
		{name: "invalid", prepare: status(commandsv1.ResultStatus_RESULT_STATUS_INVALID, "no"), packet: plain(topic), code5: 0x83, code4: closed, reason: "no", written: true},
		{name: "quota", prepare: status(commandsv1.ResultStatus_RESULT_STATUS_QUOTA_EXCEEDED, "enough"), packet: plain(topic), code5: 0x97, code4: closed, reason: "enough", written: true},
		{name: "33 user properties", packet: publish(many, ""), code5: 0x97, reason: "more than 32 user properties or 8 KiB of them"},
		{name: "8 KiB of user properties", packet: publish(packets.Properties{User: []packets.UserProperty{{Key: "k", Val: strings.Repeat("x", 8<<10)}}}, ""), code5: 0x97, reason: "more than 32 user properties or 8 KiB of them"},
		{name: "not UTF-8", packet: publish(packets.Properties{PayloadFormat: 1, PayloadFormatFlag: true}, "\xff"), code5: 0x99, reason: "payload is not UTF-8"},
		{name: "UTF-8", packet: publish(packets.Properties{PayloadFormat: 1, PayloadFormatFlag: true}, "ü"), written: true},
	} {
		for _, version := range []struct{ level, qos byte }{{4, 1}, {4, 2}, {5, 1}, {5, 2}} {
			level, qos := version.level, version.qos
			t.Run(fmt.Sprintf("%s, level %d, QoS %d", tt.name, level, qos), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					f := newFrontend(t)
					c := f.connect(level, "c")
					if tt.prepare != nil {
						f.access.mu.Lock()
						tt.prepare(f)
						f.access.mu.Unlock()
					}
					c.Send(tt.packet(level, qos))
					if level == 4 && tt.code4 == closed {
						c.WantClosed()
						return
					}
					a := c.Want(map[byte]byte{1: packets.Puback, 2: packets.Pubrec}[qos])
					want := tt.code5
					if level == 4 {
						want = tt.code4
					}
					if a.PacketID != 9 || a.ReasonCode != want || level == 5 && a.Properties.ReasonString != tt.reason {
						t.Errorf("PUBACK %d %#x %q, want %#x %q", a.PacketID, a.ReasonCode, a.Properties.ReasonString, want, tt.reason)
					}
					if level == 5 && len(f.commands.sent()) > 0 != tt.written {
						t.Errorf("sent to command-ingress: %v", f.commands.sent())
					}
					if qos == 2 { // what was refused is over
						c.Send(mqtttest.Pubrel(9))
						if a := c.Want(packets.Pubcomp); a.PacketID != 9 || level == 5 && a.ReasonCode == 0x92 != (want >= 0x80) {
							t.Errorf("PUBCOMP %d %#x", a.PacketID, a.ReasonCode)
						}
					}
					c.Ping() // the connection goes on
				})
			})
		}
	}
}

func TestRejectedCommandsOf311CanBeAcknowledged(t *testing.T) {
	t.Parallel()
	f := newFrontend(t, func(s *session.Settings) { s.AcknowledgeRejected = true })
	c := f.connect(4, "c")
	c.Send(plain("nonsense")(4, 1))
	c.Want(packets.Puback)
	c.Send(plain("command/forbidden/dev/x")(4, 1))
	c.Want(packets.Puback)
	f.commands.set(commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE, "")
	c.Send(plain(topic)(4, 1)) // this one is to come again
	c.WantClosed()
}

func TestQoS0IsNotAnswered(t *testing.T) {
	t.Parallel()
	for _, level := range []byte{4, 5} {
		f := newFrontend(t)
		f.commands.set(commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE, "")
		c := f.connect(level, "c")
		for _, topic := range []string{topic, "nonsense", "command/forbidden/dev/x"} {
			c.Send(mqtttest.Publish(level, 0, 0, topic, "x"))
		}
		c.Ping()
		if n := len(f.commands.sent()); n != 1 {
			t.Errorf("level %d: %d commands, want 1", level, n)
		}
	}
}

func TestWhatEndsTheConnection(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		packet packets.Packet
		code   byte
		goesOn bool // in 3.1.1
	}{
		{name: "RETAIN", packet: packets.Packet{FixedHeader: packets.FixedHeader{Retain: true}, TopicName: topic}, code: 0x9a, goesOn: true},
		{name: "larger than our maximum packet size", packet: packets.Packet{TopicName: topic, Payload: make([]byte, 1<<20)}, code: 0x95},
	} {
		for _, level := range []byte{4, 5} {
			t.Run(fmt.Sprintf("%s, level %d", tt.name, level), func(t *testing.T) {
				t.Parallel()
				f := newFrontend(t)
				c := f.connect(level, "c")
				packet := tt.packet // the other level's test has its own
				packet.FixedHeader.Type = packets.Publish
				go func() { _ = c.TrySend(mqtttest.Encode(level, packet)) }()
				if level == 4 && tt.goesOn {
					eventually(t, "the command is sent", func() bool { return len(f.commands.sent()) == 1 })
					return
				}
				d := c.WantClosed()
				if level == 5 && (d == nil || d.ReasonCode != tt.code) {
					t.Errorf("got %v, want DISCONNECT %#x", d, tt.code)
				}
			})
		}
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFrontend(t)
		c := f.connect(5, "c")
		c.Send(mqtttest.Encode(5, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 9, TopicName: "command/Grüße/dév/c md",
			Payload: []byte("\x00\xff"), Properties: packets.Properties{
				ContentType: "text/x", ResponseTopic: "r/t", CorrelationData: []byte{1, 0}, MessageExpiryInterval: 60,
				User: []packets.UserProperty{{Key: "a", Val: "1"}, {Key: "traceparent", Val: "00-1"}, {Key: "a", Val: "2"}},
			},
		}))
		c.Want(packets.Puback)
		got := f.commands.sent()[0]
		if got.GetId()[14] != '7' || !got.GetTime().AsTime().Equal(time.Now()) || !got.GetExpireTime().AsTime().Equal(time.Now().Add(time.Minute)) {
			t.Errorf("id %s, time %v, expires %v", got.GetId(), got.GetTime().AsTime(), got.GetExpireTime().AsTime())
		}
		got.Id, got.Time, got.ExpireTime = "", nil, nil
		want := &commandsv1.Command{
			Application: "Grüße", Device: "dév", Command: "c md", Payload: []byte("\x00\xff"), ContentType: new("text/x"),
			ResponseTopic: new("r/t"), CorrelationData: []byte{1, 0}, AuthType: "api_key", AuthId: "local/anna",
			UserProperties:  []*commandsv1.UserProperty{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}},
			PrincipalIssuer: "local", PrincipalSubject: "anna",
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("command (-want +got):\n%s", diff)
		}
	})
}

func TestAnonymousCommandHasNoAuthID(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.dial(4)
	c.Send(mqtttest.Connect(4, "c", "", ""))
	c.Want(packets.Connack)
	c.Send(plain(topic)(4, 1))
	c.Want(packets.Puback)
	if got := f.commands.sent()[0]; got.GetAuthType() != "unauthenticated" || got.GetAuthId() != "" || got.ContentType != nil || got.GetExpireTime() != nil {
		t.Errorf("%v", got)
	}
}

func TestAcknowledgementsKeepTheOrderOfThePackets(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.connect(5, "c")
	f.commands.hold()
	for id := range uint16(50) {
		c.Send(mqtttest.Publish(5, 1, id+1, topic, "x"))
		c.Send(mqtttest.Publish(5, 1, id+51, "nonsense", "x")) // its result is there at once
	}
	c.Ping()
	if n := f.commands.release(); n != 50 {
		t.Fatalf("%d commands, want 50", n)
	}
	for id := range uint16(50) {
		if a := c.Want(packets.Puback); a.PacketID != id+1 || a.ReasonCode != 0 {
			t.Fatalf("PUBACK %d %#x, want %d", a.PacketID, a.ReasonCode, id+1)
		}
		if a := c.Want(packets.Puback); a.PacketID != id+51 || a.ReasonCode != 0x90 {
			t.Fatalf("PUBACK %d %#x, want %d", a.PacketID, a.ReasonCode, id+51)
		}
	}
}

func TestOurReceiveMaximum(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, level := range []byte{4, 5} {
			f := newFrontend(t, func(s *session.Settings) { s.ReceiveMaximum = 3 })
			f.commands.hold()
			c := f.connect(level, "c")
			for id := range uint16(3) {
				c.Send(mqtttest.Publish(level, 1, id+1, topic, "x"))
			}
			c.Ping()
			go func() { _ = c.TrySend(mqtttest.Publish(level, 1, 4, topic, "x")) }()
			if level == 5 {
				if d := c.WantClosed(); d == nil || d.ReasonCode != 0x93 {
					t.Errorf("got %v, want DISCONNECT 0x93", d)
				}
				continue
			}
			synctest.Wait()
			if n := len(f.commands.sent()); n != 3 {
				t.Fatalf("%d commands were read, want 3", n)
			}
			f.commands.release()
			for id := range uint16(4) {
				if a := c.Want(packets.Puback); a.PacketID != id+1 {
					t.Errorf("PUBACK %d, want %d", a.PacketID, id+1)
				}
			}
		}
	})
}

// Whoever sends faster than Kafka takes waits; there is room for everybody else.
func TestAFastSenderSlowsItselfDown(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		qos   byte
		bytes int
		want  int // how many commands are taken
	}{
		{"QoS 0, small", 0, 1, 255},
		{"QoS 0, large", 0, 300 << 10, 3},
		{"QoS 1, large", 1, 300 << 10, 3},
		{"one is always taken", 0, 1<<20 - 100, 1},
	} {
		for _, level := range []byte{4, 5} {
			t.Run(fmt.Sprintf("%s, level %d", tt.name, level), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					f := newFrontend(t)
					f.commands.hold()
					c := f.connect(level, "c")
					total := tt.want + 20
					sent := make(chan error, 1)
					go func() {
						for id := range total {
							if err := c.TrySend(mqtttest.Publish(level, tt.qos, uint16(id+1), topic, strings.Repeat("x", tt.bytes))); err != nil {
								sent <- err
								return
							}
						}
						sent <- nil
					}()
					synctest.Wait()
					if n := len(f.commands.sent()); n != tt.want {
						t.Errorf("%d commands were taken without a result, want %d", n, tt.want)
					}
					f.commands.release()
					for range total * int(tt.qos) {
						c.Want(packets.Puback)
					}
					synctest.Wait()
					if err, n := <-sent, len(f.commands.sent()); n != total || err != nil {
						t.Errorf("%d commands were taken in the end, want %d; %v", n, total, err)
					}
				})
			})
		}
	}
}

func TestQuotaSlowsAnOldClientDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFrontend(t)
		c := f.connect(4, "c")
		f.commands.set(commandsv1.ResultStatus_RESULT_STATUS_RESOURCE_EXHAUSTED, "full")
		c.Send(mqtttest.Publish(4, 1, 1, topic, "x"))
		synctest.Wait()
		go func() { _ = c.TrySend(mqtttest.Publish(4, 1, 2, topic, "y")) }()
		c.WantNothing(5 * time.Second)
		for _, cmd := range f.commands.sent() {
			if string(cmd.GetPayload()) != "x" || cmd.GetId() != f.commands.sent()[0].GetId() {
				t.Fatalf("sent %v, want only the first command, again", cmd)
			}
		}
		f.commands.set(commandsv1.ResultStatus_RESULT_STATUS_OK, "")
		c.Want(packets.Puback)
		c.Want(packets.Puback)
	})
}

func TestTopicAlias(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.connect(5, "c")
	send := func(topic string, alias uint16) {
		c.Send(mqtttest.Encode(5, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 1, TopicName: topic,
			Properties: packets.Properties{TopicAlias: alias, TopicAliasFlag: true},
		}))
	}
	send(topic, 32)
	send("", 32)
	send("command/a/dev/other", 32)
	send("", 32)
	for range 4 {
		if a := c.Want(packets.Puback); a.ReasonCode != 0 {
			t.Fatalf("PUBACK %#x", a.ReasonCode)
		}
	}
	for i, want := range []string{"reboot", "reboot", "other", "other"} {
		if got := f.commands.sent()[i].GetCommand(); got != want {
			t.Errorf("command %d is %q, want %q", i, got, want)
		}
	}
	send("", 31)
	if d := c.WantClosed(); d == nil || d.ReasonCode != 0x82 {
		t.Errorf("got %v, want DISCONNECT 0x82", d)
	}
}

// Trap: the library has one table for the packet identifiers of both directions.
func TestPacketIdentifiersOfBothDirectionsAreTheirOwn(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c, sub := f.subscribe(5, "c", receiveMaximum(5))
	sub.deliver(t, 6)
	for range 5 {
		c.Want(packets.Publish)
	}
	for id := range uint16(5) {
		c.Send(mqtttest.Publish(5, 1, id+1, topic, "x"))
		c.Want(packets.Puback)
		c.Send(mqtttest.Subscribe(5, id+1, "app/b"))
		if s := c.Want(packets.Suback); s.ReasonCodes[0] != 1 {
			t.Errorf("SUBACK %#x", s.ReasonCodes)
		}
	}
	c.Send(mqtttest.Puback(1))
	c.Want(packets.Publish)
}

func TestDrainFinishesCommands(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFrontend(t)
		busy, idle, old := f.connect(5, "busy"), f.connect(5, "idle"), f.connect(4, "old")
		f.commands.hold()
		busy.Send(mqtttest.Publish(5, 1, 1, topic, "x"))
		busy.Ping()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		drained := make(chan struct{})
		go func() {
			f.manager.Drain(ctx)
			close(drained)
		}()
		if d := idle.WantClosed(); d == nil || d.ReasonCode != 0x8b {
			t.Errorf("got %v, want DISCONNECT 0x8b", d)
		}
		if d := old.WantClosed(); d != nil {
			t.Error("DISCONNECT to MQTT 3.1.1")
		}
		late := f.dial(5)
		late.Send(mqtttest.Connect(5, "late", "anna", "key"))
		if k := late.Want(packets.Connack); k.ReasonCode != 0x88 {
			t.Errorf("CONNACK %#x, want 0x88", k.ReasonCode)
		}
		busy.WantNothing(5 * time.Second)
		f.commands.release()
		busy.Want(packets.Puback)
		if d := busy.WantClosed(); d == nil || d.ReasonCode != 0x8b {
			t.Errorf("got %v, want DISCONNECT 0x8b", d)
		}
		<-drained
	})
}
