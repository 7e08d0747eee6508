package session_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
)

func receiveMaximum(n uint16) func(*packets.Packet) {
	return func(pk *packets.Packet) { pk.Properties.ReceiveMaximum = n }
}

func TestWindowIsFilledAndNotExceeded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFrontend(t)
		c, sub := f.subscribe(5, "c", receiveMaximum(7))
		sub.deliver(t, 100)
		ids := map[uint16]bool{}
		for range 7 {
			pk := c.Want(packets.Publish)
			if pk.PacketID == 0 || ids[pk.PacketID] {
				t.Fatalf("packet id %d again", pk.PacketID)
			}
			ids[pk.PacketID] = true
		}
		c.WantNothing(time.Hour)
		if acks := sub.acks(); len(acks) != 0 {
			t.Fatalf("acknowledged %v, and the client has not", acks)
		}
		c.Send(mqtttest.Puback(3))
		c.Want(packets.Publish)
		c.Send(mqtttest.Puback(3)) // twice: means nothing
		c.Send(mqtttest.Puback(77))
		c.WantNothing(time.Hour)
		if diff := cmp.Diff([]int64{2}, sub.acks()); diff != "" {
			t.Errorf("acknowledged (-want +got):\n%s", diff)
		}
		if got := sub.request.Window.Events; got < 7 {
			t.Errorf("event-fanout was asked for a window of %d", got)
		}
	})
}

func TestEveryEventArrivesInOrder(t *testing.T) {
	t.Parallel()
	for _, level := range []byte{4, 5} {
		f := newFrontend(t)
		c, sub := f.subscribe(level, "c", receiveMaximum(20))
		const n = 2000
		go sub.deliver(t, n)
		for range n {
			c.Send(mqtttest.Puback(c.Want(packets.Publish).PacketID))
		}
		eventually(t, "acknowledgements", func() bool { return len(sub.acks()) == n })
		for i, offset := range sub.acks() {
			if offset != int64(i) {
				t.Fatalf("acknowledgement %d is of offset %d", i, offset)
			}
		}
	}
}
