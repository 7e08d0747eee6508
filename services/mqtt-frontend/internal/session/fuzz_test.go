package session_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
	"mqtt-integration/services/mqtt-frontend/internal/session"
)

// fuzzed is a client that a fuzzer drives.
type fuzzed struct {
	f      *frontend
	c      *mqtttest.Client
	level  byte
	gone   bool
	unread []uint16 // packet identifiers of events that it has not acknowledged
	acked  int
	// sending is closed when the packet before has been written, or cannot be.
	sending chan struct{}
	// received are the packet identifiers between PUBREC and PUBREL. Only with MQTT 5:
	// what MQTT 3.1.1 sends may be read later.
	received map[uint16]bool
}

const fuzzedWindow = 5

// take reads what has come.
func (z *fuzzed) take(t *testing.T) {
	t.Helper()
	synctest.Wait()
	for !z.gone {
		pk, err := z.c.TryNext(0)
		switch {
		case err == nil:
		case strings.Contains(err.Error(), "in time"):
			return
		default:
			z.gone = true
			return
		}
		if pk.FixedHeader.Type == packets.Pubrec && pk.ReasonCode < 0x80 && z.level == 5 {
			z.received[pk.PacketID] = true
		}
		if pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos == 1 {
			if slices.Contains(z.unread, pk.PacketID) {
				t.Fatalf("packet identifier %d twice", pk.PacketID)
			}
			if z.unread = append(z.unread, pk.PacketID); len(z.unread) > fuzzedWindow {
				t.Fatalf("%d events in flight", len(z.unread))
			}
		}
	}
}

// step does what op says.
func (z *fuzzed) step(t *testing.T, op byte, argument byte) {
	t.Helper()
	id := uint16(argument) + 1
	filter := []string{"app/a", "app/b", "app/forbidden", "#", "$share/g/app/a", "x"}[argument%6]
	var packet []byte
	switch op % 16 {
	case 0:
		packet = mqtttest.Publish(z.level, 1, id, topic, "x")
	case 1:
		id = id%4 + 1
		packet = mqtttest.Publish(z.level, 2, id, topic, "x")
		if z.received[id] {
			before := len(z.f.commands.sent())
			defer func() {
				if after := len(z.f.commands.sent()); after != before {
					t.Fatalf("packet identifier %d was not released, and written again", id)
				}
			}()
		}
	case 2:
		packet = mqtttest.Publish(z.level, argument%3, id*uint16(min(1, argument%3)), []string{topic, "x", "command/forbidden/d/c"}[argument%3], "x")
	case 3, 4:
		packet = mqtttest.Subscribe(z.level, id, filter, "app/a")
	case 5:
		packet = mqtttest.Encode(z.level, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe}, PacketID: id, Filters: packets.Subscriptions{{Filter: filter}},
		})
	case 6, 7, 8:
		if len(z.unread) > 0 {
			i := int(argument) % len(z.unread)
			packet = mqtttest.Puback(z.unread[i])
			z.unread = slices.Delete(z.unread, i, i+1)
			z.acked++
		}
	case 9:
		if !slices.Contains(z.unread, id) {
			packet = mqtttest.Puback(id)
		}
	case 10, 11:
		if z.f.events.opened() > 0 {
			z.f.events.last().deliver(t, int(argument%8))
		}
	case 12:
		if argument%2 == 0 {
			z.f.commands.hold()
		} else {
			z.f.commands.release()
		}
	case 13:
		packet = [][]byte{{0xc0, 0}, {0xe0, 0}, {0x62, 2, 0, argument}, {0x50, 2, 0, argument}, {0x70, 2, 0, argument}, {argument, 1, argument}}[argument%6]
		if argument%6 == 2 {
			id = uint16(argument%4) + 1
			packet = mqtttest.Pubrel(id)
			delete(z.received, id)
		}
	case 14:
		time.Sleep(time.Duration(argument) * time.Second)
	case 15:
		z.f.access.change(func() {})
	}
	if packet != nil {
		// It may be that nobody reads. One after the other, by a channel: a mutex, as that
		// of the pipe, does not count as waiting for synctest.
		before := z.sending
		done := make(chan struct{})
		z.sending = done
		go func() {
			defer close(done)
			if before != nil {
				<-before
			}
			_ = z.c.TrySend(packet)
		}()
	}
	z.take(t)
}

// FuzzSession drives a session with legal and illegal packets in any order. What
// leaves is always legal, the window is kept, and no event is acknowledged that
// the client has not acknowledged.
func FuzzSession(f *testing.F) {
	f.Add(byte(5), []byte{3, 0, 10, 7, 6, 0, 6, 0, 0, 1, 5, 0, 10, 3, 13, 1})
	f.Add(byte(4), []byte{3, 1, 10, 7, 12, 0, 0, 1, 0, 2, 0, 3, 0, 4, 12, 1, 9, 9, 15, 0, 13, 5})
	f.Add(byte(5), []byte{12, 0, 0, 1, 0, 2, 0, 3, 0, 4})
	f.Add(byte(5), []byte{3, 2, 3, 3, 3, 4, 4, 1, 10, 7, 5, 1, 6, 0, 14, 200})
	f.Add(byte(5), []byte{1, 0, 1, 0, 13, 2, 12, 0, 0, 9, 1, 1, 1, 1, 12, 1, 1, 1, 13, 8, 1, 1, 1, 2, 1, 3})
	f.Add(byte(4), []byte{12, 0, 1, 0, 1, 0, 1, 1, 12, 1, 1, 0, 13, 2, 0, 0, 1, 3, 0, 3})
	f.Fuzz(func(t *testing.T, level byte, ops []byte) {
		level = 4 + level&1
		synctest.Test(t, func(t *testing.T) {
			front := newFrontend(t, func(s *session.Settings) { s.ReceiveMaximum, s.MaxInflight = 3, fuzzedWindow })
			z := &fuzzed{f: front, c: front.connect(level, "c"), level: level, received: map[uint16]bool{}}
			for pair := range slices.Chunk(ops[:min(len(ops), 400)], 2) {
				if len(pair) == 2 && !z.gone {
					z.step(t, pair[0], pair[1])
				}
			}
			acknowledged := 0
			front.events.mu.Lock()
			for _, sub := range front.events.subscriptions {
				acknowledged += len(sub.acks())
			}
			front.events.mu.Unlock()
			if acknowledged > z.acked {
				t.Errorf("%d events were acknowledged, the client did so for %d", acknowledged, z.acked)
			}
			if log := front.log.String(); strings.Contains(log, "panic") {
				t.Error(log)
			}
			front.commands.release()
			_ = z.c.Conn.Close()
		})
	})
}
