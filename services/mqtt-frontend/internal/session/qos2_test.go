package session_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
	"mqtt-integration/services/mqtt-frontend/internal/session"
)

// exactlyOnce runs a test for both versions, over a frontend whose commands wait.
func exactlyOnce(t *testing.T, test func(t *testing.T, f *frontend, c *mqtttest.Client, level byte)) {
	t.Helper()
	for _, level := range []byte{4, 5} {
		t.Run(fmt.Sprintf("level %d", level), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFrontend(t, func(s *session.Settings) { s.ReceiveMaximum = 3 })
				f.commands.hold()
				test(t, f, f.connect(level, "c"), level)
			})
		})
	}
}

func second(level byte, id uint16) []byte { return mqtttest.Publish(level, 2, id, topic, "x") }

// again is the same packet with DUP.
func again(level byte, id uint16) []byte {
	b := second(level, id)
	b[0] |= 8
	return b
}

func wantAck(t *testing.T, c *mqtttest.Client, packetType byte, id uint16, code byte) {
	t.Helper()
	a := c.Want(packetType)
	if c.Level < 5 {
		code = 0
	}
	if a.PacketID != id || a.ReasonCode != code {
		t.Fatalf("%s %d %#x, want %d %#x", packets.PacketNames[packetType], a.PacketID, a.ReasonCode, id, code)
	}
}

func TestPubrecMeansThatKafkaHasIt(t *testing.T) {
	t.Parallel()
	exactlyOnce(t, func(t *testing.T, f *frontend, c *mqtttest.Client, level byte) {
		t.Helper()
		c.Send(second(level, 7))
		c.WantNothing(5 * time.Second)
		c.Send(mqtttest.Pubrel(7)) // too early, and no end of anything
		wantAck(t, c, packets.Pubcomp, 7, 0x92)
		f.commands.release()
		wantAck(t, c, packets.Pubrec, 7, 0)
		c.Send(mqtttest.Pubrel(7))
		wantAck(t, c, packets.Pubcomp, 7, 0)
		c.Send(mqtttest.Pubrel(7))
		wantAck(t, c, packets.Pubcomp, 7, 0x92)
		if n := len(f.commands.sent()); n != 1 {
			t.Errorf("%d commands, want 1", n)
		}
		c.Send(second(level, 7)) // the identifier is free again
		wantAck(t, c, packets.Pubrec, 7, 0)
		if n := len(f.commands.sent()); n != 2 {
			t.Errorf("%d commands, want 2", n)
		}
	})
}

func TestRepeatedPublishIsWrittenOnce(t *testing.T) {
	t.Parallel()
	exactlyOnce(t, func(t *testing.T, f *frontend, c *mqtttest.Client, level byte) {
		t.Helper()
		c.Send(second(level, 7))
		for range 10 { // PUBREC is on its way
			c.Send(again(level, 7))
			c.Send(second(level, 7)) // DUP or not
		}
		c.Ping()
		f.commands.release()
		wantAck(t, c, packets.Pubrec, 7, 0)
		c.WantNothing(time.Second)
		for range 10 { // PUBREC may be lost
			c.Send(again(level, 7))
			wantAck(t, c, packets.Pubrec, 7, 0)
		}
		c.Send(mqtttest.Pubrel(7))
		wantAck(t, c, packets.Pubcomp, 7, 0)
		if n := len(f.commands.sent()); n != 1 {
			t.Errorf("%d commands, want 1", n)
		}
	})
}

// A repeated packet has its place in the order, and gives it up with PUBREL.
func TestReleasedIdentifierIsANewCommand(t *testing.T) {
	t.Parallel()
	exactlyOnce(t, func(t *testing.T, f *frontend, c *mqtttest.Client, level byte) {
		t.Helper()
		c.Send(second(level, 1))
		c.Ping()
		f.commands.release()
		wantAck(t, c, packets.Pubrec, 1, 0)
		f.commands.hold()
		c.Send(mqtttest.Publish(level, 1, 2, topic, "x"))
		c.Send(again(level, 1)) // is answered after the one before
		c.WantNothing(time.Second)
		c.Send(mqtttest.Pubrel(1))
		wantAck(t, c, packets.Pubcomp, 1, 0)
		c.Send(second(level, 1))
		c.Ping()
		if n := len(f.commands.sent()); n != 3 {
			t.Fatalf("%d commands, want 3", n)
		}
		f.commands.release()
		wantAck(t, c, packets.Puback, 2, 0)
		wantAck(t, c, packets.Pubrec, 1, 0)
		c.WantNothing(time.Second)
	})
}

func TestRefusedIdentifierIsFree(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.connect(5, "c")
	f.commands.set(commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE, "")
	for range 300 { // more than our Receive Maximum
		c.Send(second(5, 7))
		wantAck(t, c, packets.Pubrec, 7, 0x83)
	}
	f.commands.set(commandsv1.ResultStatus_RESULT_STATUS_OK, "")
	c.Send(mqtttest.Publish(5, 1, 7, topic, "x"))
	wantAck(t, c, packets.Puback, 7, 0)
}

func TestAcknowledgedRejectionOf311IsReleased(t *testing.T) {
	t.Parallel()
	f := newFrontend(t, func(s *session.Settings) { s.AcknowledgeRejected = true })
	c := f.connect(4, "c")
	c.Send(mqtttest.Publish(4, 2, 7, "nonsense", "x"))
	c.Want(packets.Pubrec)
	c.Send(mqtttest.Pubrel(7))
	c.Want(packets.Pubcomp)
	c.Send(second(4, 7))
	c.Want(packets.Pubrec)
	if n := len(f.commands.sent()); n != 1 {
		t.Errorf("%d commands, want 1", n)
	}
}

func TestPacketIdentifierInUse(t *testing.T) {
	t.Parallel()
	exactlyOnce(t, func(t *testing.T, f *frontend, c *mqtttest.Client, level byte) {
		t.Helper()
		c.Send(mqtttest.Publish(level, 1, 1, topic, "x"))
		c.Ping()
		go func() { _ = c.TrySend(second(level, 1)) }()
		if level == 4 {
			c.WantClosed()
			return
		}
		synctest.Wait()
		f.commands.release()
		wantAck(t, c, packets.Puback, 1, 0)
		wantAck(t, c, packets.Pubrec, 1, 0x91)
		c.Send(second(level, 2))
		wantAck(t, c, packets.Pubrec, 2, 0)
		c.Send(mqtttest.Publish(level, 1, 2, topic, "x"))
		wantAck(t, c, packets.Puback, 2, 0x91)
		c.Send(mqtttest.Pubrel(2))
		wantAck(t, c, packets.Pubcomp, 2, 0)
		if n := len(f.commands.sent()); n != 2 {
			t.Errorf("%d commands, want 2", n)
		}
	})
}

func TestAcknowledgementsOfBothQoSKeepTheOrder(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.connect(5, "c")
	f.commands.hold()
	for id := range uint16(90) {
		c.Send(mqtttest.Publish(5, byte(1+id%2), id+1, []string{topic, topic, "nonsense"}[id%3], "x"))
	}
	c.Ping()
	f.commands.release() // the last one first
	for id := range uint16(90) {
		wantAck(t, c, []byte{packets.Puback, packets.Pubrec}[id%2], id+1, []byte{0, 0, 0x90}[id%3])
	}
}

func TestReceiveMaximumCountsUntilPubcomp(t *testing.T) {
	t.Parallel()
	exactlyOnce(t, func(t *testing.T, f *frontend, c *mqtttest.Client, level byte) {
		t.Helper()
		f.commands.release()
		for id := range uint16(3) {
			c.Send(second(level, id+1))
			wantAck(t, c, packets.Pubrec, id+1, 0)
		}
		c.Send(again(level, 2)) // is no more than there is
		wantAck(t, c, packets.Pubrec, 2, 0)
		c.Send(mqtttest.Pubrel(1))
		wantAck(t, c, packets.Pubcomp, 1, 0)
		c.Send(second(level, 4))
		wantAck(t, c, packets.Pubrec, 4, 0)
		if level == 5 {
			c.Send(mqtttest.Publish(level, 0, 0, topic, "x")) // does not count
			c.Send(mqtttest.Publish(level, 1, 5, topic, "x"))
			if d := c.WantClosed(); d == nil || d.ReasonCode != 0x93 {
				t.Errorf("got %v, want DISCONNECT 0x93", d)
			}
			return
		}
		// Nothing was announced, and PUBREL has to be read: all identifiers at most.
		for id := range uint16(1000) {
			c.Send(second(level, id+10))
			wantAck(t, c, packets.Pubrec, id+10, 0)
		}
		for id := range uint16(1000) {
			c.Send(mqtttest.Pubrel(id + 10))
			wantAck(t, c, packets.Pubcomp, id+10, 0)
		}
	})
}

func TestQoS2StateEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	for _, level := range []byte{4, 5} {
		f := newFrontend(t)
		c := f.connect(level, "c")
		c.Send(second(level, 1))
		c.Want(packets.Pubrec)
		c = f.connect(level, "c") // a session is transient so far, as CONNACK says
		c.Send(mqtttest.Pubrel(1))
		wantAck(t, c, packets.Pubcomp, 1, 0x92)
		c.Send(again(level, 1))
		wantAck(t, c, packets.Pubrec, 1, 0)
		if n := len(f.commands.sent()); n != 2 {
			t.Errorf("level %d: %d commands, want 2", level, n)
		}
	}
}
