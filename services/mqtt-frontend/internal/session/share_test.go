package session_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
)

func TestShareSubscriptionIsBesidesTheOwnOne(t *testing.T) {
	t.Parallel()
	for _, level := range []byte{4, 5} {
		f := newFrontend(t)
		c := f.connect(level, "c")
		var opened []*fakeSubscription
		for i, filter := range []string{"app/a", "$share/g/app/a", "$share/h/app/a", "$share/g/app/a"} {
			c.Send(mqtttest.Subscribe(level, uint16(i+1), filter))
			if s := c.Want(packets.Suback); s.ReasonCodes[0] != 1 {
				t.Fatalf("SUBACK %#x for %s", s.ReasonCodes, filter)
			}
			if f.events.opened() > len(opened) {
				opened = append(opened, f.events.last())
			}
		}
		var shares []string
		for _, sub := range opened {
			shares = append(shares, sub.request.Application+"/"+sub.request.ShareName)
		}
		if diff := cmp.Diff([]string{"a/", "a/g", "a/h"}, shares); diff != "" {
			t.Fatalf("opened (-want +got):\n%s", diff)
		}
		opened[1].deliver(t, 1)
		pk := c.Want(packets.Publish)
		if pk.TopicName != "app/a" || pk.FixedHeader.Qos != 1 {
			t.Errorf("got %s with QoS %d", pk.TopicName, pk.FixedHeader.Qos)
		}
		c.Send(mqtttest.Puback(pk.PacketID))
		eventually(t, "the acknowledgement", func() bool { return len(opened[1].acks()) == 1 })
	}
}

func TestShareSubscriptionThatIsNotAllowedAnyMore(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.connect(5, "c")
	c.Send(mqtttest.Subscribe(5, 1, "$share/g/app/a"))
	c.Want(packets.Suback)
	f.access.change(func() {
		f.access.denied[question(authorizationv1.Permission_PERMISSION_READ, "$share/g/a")] = authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_NOT_GRANTED
	})
	if pk := c.Want(packets.Disconnect); pk.ReasonCode != 0x87 {
		t.Errorf("DISCONNECT %#x, want 0x87", pk.ReasonCode)
	}
}

func TestClientThatHoldsAShareGroupUpIsDisconnected(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.connect(5, "c")
	c.Send(mqtttest.Subscribe(5, 1, "$share/g/app/a"))
	c.Want(packets.Suback)
	f.events.sessions[0].lost(delivery.SessionError{Reason: eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ACKNOWLEDGE_TIMEOUT})
	if pk := c.Want(packets.Disconnect); pk.ReasonCode != 0x98 {
		t.Errorf("DISCONNECT %#x, want 0x98", pk.ReasonCode)
	}
}
