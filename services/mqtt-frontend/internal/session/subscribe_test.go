package session_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
	"mqtt-integration/services/mqtt-frontend/internal/session"
)

// subscribe is a SUBSCRIBE packet with user properties, name and value in turn.
func subscribe(id uint16, filters packets.Subscriptions, properties ...string) []byte {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: id, Filters: filters}
	for pair := range slices.Chunk(properties, 2) {
		pk.Properties.User = append(pk.Properties.User, packets.UserProperty{Key: pair[0], Val: pair[1]})
	}
	return mqtttest.Encode(5, pk)
}

func TestReasonCodesOfSubscribe(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		filter string
		code   byte // 3.1.1: 0x80 for each that is refused
	}{
		{"app/a", 1},
		{"app/Grüße aus.Köln", 1},
		{"app/forbidden", 0x87},
		{"#", 0xa2},
		{"app/+", 0xa2},
		{"app/#", 0xa2},
		{"app/a/#", 0xa2},
		{"+/a", 0xa2},
		{"app/a#", 0x8f},
		{"app/#/a", 0x8f},
		{"app/a+/b", 0x8f},
		{"app", 0x8f},
		{"app/", 0x8f},
		{"app/a/b", 0x8f},
		{"/app/a", 0x8f},
		{"command/a/b/c", 0x8f},
		{"$SYS/broker/uptime", 0x8f},
		{"app/" + strings.Repeat("x", 129), 0x8f},
		{"$share/g/app/a", 1},
		{"$share/g/app/forbidden", 0x87},
		{"$share/g/app/a/b", 0x8f},
		{"$share/g\x01/app/a", 0x8f},
		{"$share/g/app/+", 0xa2},
		{"$share//app/a", 0x8f},
		{"$share/g", 0x8f},
		{"$share/g/", 0x8f},
		{"$share/g+/app/a", 0x8f},
		{"$share/g/app", 0x8f},
	} {
		for _, level := range []byte{4, 5} {
			t.Run(fmt.Sprintf("%s, level %d", tt.filter[:min(len(tt.filter), 40)], level), func(t *testing.T) {
				t.Parallel()
				c := newFrontend(t).connect(level, "c")
				c.Send(mqtttest.Subscribe(level, 7, tt.filter))
				s := c.Want(packets.Suback)
				want := tt.code
				if level == 4 && want >= 0x80 {
					want = 0x80
				}
				if s.PacketID != 7 || len(s.ReasonCodes) != 1 || s.ReasonCodes[0] != want {
					t.Errorf("SUBACK %d %#x, want %#x", s.PacketID, s.ReasonCodes, want)
				}
				if refused := want >= 0x80; level == 5 && refused != (s.Properties.ReasonString != "") {
					t.Errorf("reason string %q", s.Properties.ReasonString)
				}
			})
		}
	}
}

func TestSubscribeThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func(*frontend)
		code    byte
		reason  string
	}{
		{name: "no topic", prepare: func(f *frontend) {
			f.events.fail = unavailable(eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_NO_TOPIC, "")
		}, code: 0x83, reason: "app/a: no events topic"},
		{name: "Kafka down", prepare: func(f *frontend) {
			f.events.fail = unavailable(eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNAVAILABLE, "Kafka cannot be reached")
		}, code: 0x83, reason: "app/a: Kafka cannot be reached"},
		{name: "too many", prepare: func(f *frontend) {
			f.events.fail = unavailable(eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_QUOTA_EXCEEDED, "enough")
		}, code: 0x97, reason: "app/a: enough"},
		{name: "no answer in time", prepare: func(f *frontend) {
			f.events.fail = func(delivery.OpenRequest) error { return errNever }
		}, code: 0x83, reason: "app/a: event delivery could not be started in time"},
		{name: "authorization down", prepare: func(f *frontend) { f.access.err = access.ErrUnavailable }, code: 0x83, reason: "app/a: authorization cannot be reached"},
	} {
		for _, level := range []byte{4, 5} {
			t.Run(fmt.Sprintf("%s, level %d", tt.name, level), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					f := newFrontend(t)
					c := f.connect(level, "c")
					tt.prepare(f)
					begin := time.Now()
					c.Send(mqtttest.Subscribe(level, 7, "app/a"))
					if tt.name == "no answer in time" {
						c.Ping() // SUBSCRIBE does not hold up anything else
					}
					s := c.Want(packets.Suback)
					if took := time.Since(begin); took > 15*time.Second {
						t.Errorf("took %v", took)
					}
					want := map[byte]byte{4: 0x80, 5: tt.code}[level]
					if s.ReasonCodes[0] != want || (level == 5 && s.Properties.ReasonString != tt.reason) {
						t.Errorf("SUBACK %#x %q, want %#x %q", s.ReasonCodes, s.Properties.ReasonString, want, tt.reason)
					}
				})
			})
		}
	}
}

func TestOptionsOfSubscribe(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		properties []string
		code       byte
		binary     bool
	}{
		{name: "structured by default", code: 1},
		{name: "structured", properties: []string{"content-mode", "structured"}, code: 1},
		{name: "binary", properties: []string{"content-mode", "binary"}, code: 1, binary: true},
		{name: "unknown mode", properties: []string{"content-mode", "xml"}, code: 0x83},
		{name: "from now on", properties: []string{"stream-offset", "latest"}, code: 1},
		{name: "from the beginning is not there yet", properties: []string{"stream-offset", "earliest"}, code: 0x83},
		{name: "filters are not there yet", properties: []string{"filter", "id = '1'"}, code: 0x83},
		{name: "other user properties mean nothing", properties: []string{"a", "b"}, code: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFrontend(t)
			c := f.connect(5, "c")
			c.Send(subscribe(1, packets.Subscriptions{{Filter: "app/a", Qos: 2}}, tt.properties...))
			if s := c.Want(packets.Suback); s.ReasonCodes[0] != tt.code {
				t.Fatalf("SUBACK %#x, want %#x", s.ReasonCodes, tt.code)
			}
			if tt.code >= 0x80 {
				return
			}
			sub := f.events.last()
			if sub.request.Binary != tt.binary || sub.request.QoS != 1 {
				t.Errorf("opened with %+v", sub.request)
			}
			sub.deliver(t, 1)
			pk := c.Want(packets.Publish)
			if binary := len(pk.Properties.User) > 0; binary != tt.binary || binary == strings.Contains(string(pk.Payload), "specversion") {
				t.Errorf("content type %q, payload %s", pk.Properties.ContentType, pk.Payload)
			}
		})
	}
}

func TestManyFiltersInOnePacket(t *testing.T) {
	t.Parallel()
	f := newFrontend(t, func(s *session.Settings) { s.MaxSubscriptions = 3 })
	c := f.connect(5, "c")
	c.Send(subscribe(9, packets.Subscriptions{
		{Filter: "app/a", Qos: 1},
		{Filter: "app/b", Qos: 0},
		{Filter: "app/forbidden", Qos: 1},
		{Filter: "app/a", Qos: 0},
		{Filter: "app/c", Qos: 1},
		{Filter: "app/d", Qos: 1},
		{Filter: "nonsense", Qos: 1},
	}))
	s := c.Want(packets.Suback)
	// A denied filter counts for the packet it is in.
	if diff := cmp.Diff([]byte{1, 0, 0x87, 0, 0x97, 0x97, 0x8f}, s.ReasonCodes); diff != "" {
		t.Errorf("codes (-want +got):\n%s", diff)
	}
	if got := f.events.opened(); got != 2 {
		t.Errorf("%d subscriptions were opened, want 2", got)
	}
}

func TestSubscribingAgainReplacesOptions(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c, sub := f.subscribe(5, "c")
	sub.deliver(t, 1)
	if pk := c.Want(packets.Publish); pk.FixedHeader.Qos != 1 || len(pk.Properties.SubscriptionIdentifier) != 0 {
		t.Errorf("%+v", pk)
	}
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: 2, Filters: packets.Subscriptions{{Filter: "app/a", Qos: 0}},
		Properties: packets.Properties{
			SubscriptionIdentifier: []int{42}, User: []packets.UserProperty{{Key: "content-mode", Val: "binary"}},
		},
	}
	c.Send(mqtttest.Encode(5, pk))
	if s := c.Want(packets.Suback); s.ReasonCodes[0] != 0 {
		t.Errorf("SUBACK %#x", s.ReasonCodes)
	}
	sub.deliver(t, 1)
	got := c.Want(packets.Publish)
	if got.FixedHeader.Qos != 0 || !slices.Equal(got.Properties.SubscriptionIdentifier, []int{42}) || got.Properties.ContentType != "application/json" {
		t.Errorf("%+v", got)
	}
	eventually(t, "QoS 0 is acknowledged when written", func() bool { return slices.Equal(sub.acks(), []int64{1}) })
	if f.events.opened() != 1 {
		t.Errorf("%d subscriptions were opened, want 1", f.events.opened())
	}
}

func TestUnsubscribe(t *testing.T) {
	t.Parallel()
	for _, level := range []byte{4, 5} {
		f := newFrontend(t)
		c, sub := f.subscribe(level, "c")
		sub.deliver(t, 1)
		id := c.Want(packets.Publish).PacketID
		c.Send(mqtttest.Encode(level, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe}, PacketID: 5,
			Filters: packets.Subscriptions{{Filter: "app/a"}, {Filter: "app/b"}, {Filter: "#"}, {Filter: "app/a"}},
		}))
		u := c.Want(packets.Unsuback)
		if level == 5 && !slices.Equal(u.ReasonCodes, []byte{0, 0x11, 0x11, 0x11}) {
			t.Errorf("UNSUBACK %#x", u.ReasonCodes)
		}
		sub.deliver(t, 1) // a late one
		c.Send(mqtttest.Puback(id))
		c.Ping()
		sub.mu.Lock()
		if !sub.closed {
			t.Error("not closed at event-fanout")
		}
		sub.mu.Unlock()
		c.Send(mqtttest.Subscribe(level, 6, "app/a"))
		c.Want(packets.Suback)
		f.events.last().deliver(t, 1)
		c.Want(packets.Publish)
	}
}

func TestSubscribeAndUnsubscribeKeepTheirOrder(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.connect(5, "c")
	const rounds = 30
	go func() {
		for i := range uint16(rounds) {
			_ = c.TrySend(mqtttest.Subscribe(5, 2*i+1, "app/a"))
			_ = c.TrySend(mqtttest.Encode(5, packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe}, PacketID: 2*i + 2,
				Filters: packets.Subscriptions{{Filter: "app/a"}},
			}))
		}
	}()
	for i := range uint16(rounds) {
		if s := c.Want(packets.Suback); s.PacketID != 2*i+1 || s.ReasonCodes[0] != 1 {
			t.Fatalf("round %d: SUBACK %d %#x", i, s.PacketID, s.ReasonCodes)
		}
		if u := c.Want(packets.Unsuback); u.PacketID != 2*i+2 || u.ReasonCodes[0] != 0 {
			t.Fatalf("round %d: UNSUBACK %d %#x", i, u.PacketID, u.ReasonCodes)
		}
	}
}

func TestEndOfASubscriptionEndsTheConnection(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c, sub := f.subscribe(5, "c")
	sub.sink.Failed(&delivery.OpenError{Message: "the topic is gone"})
	if d := c.WantClosed(); d == nil || d.ReasonCode != 0x83 || d.Properties.ReasonString != "subscription app/a ended: the topic is gone" {
		t.Errorf("got %v", d)
	}
	eventually(t, "detached", func() bool {
		f.events.mu.Lock()
		defer f.events.mu.Unlock()
		return len(f.events.sessions[0].detached) == 1
	})
}

func TestSessionErrors(t *testing.T) {
	t.Parallel()
	for reason, want := range map[eventsv1.SessionErrorReason]byte{
		eventsv1.SessionErrorReason_SESSION_ERROR_REASON_TAKEN_OVER:          0x8e,
		eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ADMINISTRATIVE:      0x98,
		eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ACKNOWLEDGE_TIMEOUT: 0x98,
		eventsv1.SessionErrorReason_SESSION_ERROR_REASON_LOST:                0x83,
	} {
		f := newFrontend(t)
		c, _ := f.subscribe(5, "c")
		f.events.sessions[0].lost(delivery.SessionError{Reason: reason})
		if d := c.WantClosed(); d == nil || d.ReasonCode != want {
			t.Errorf("%v: got %v, want %#x", reason, d, want)
		}
	}
}

func TestSkippedOffsetsAreTold(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c, sub := f.subscribe(5, "c", receiveMaximum(1))
	sub.deliver(t, 2)
	sub.sink.Skipped(0, 10)
	sub.sink.Skipped(0, 5)
	sub.sink.Skipped(3, 1)
	sub.deliver(t, 2)
	for i, want := range []string{"", "", "0:15", ""} {
		pk := c.Want(packets.Publish)
		got := ""
		if len(pk.Properties.User) == 1 {
			got = pk.Properties.User[0].Val
		}
		if got != want {
			t.Errorf("event %d: offsets-skipped %q, want %q", i, got, want)
		}
		c.Send(mqtttest.Puback(pk.PacketID))
	}
}

// Trap: the library strips user properties when Request Problem Information is 0.
func TestRequestProblemInformation(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.connect(5, "c", func(pk *packets.Packet) { pk.Properties.RequestProblemInfoFlag = true })
	c.Send(subscribe(1, packets.Subscriptions{{Filter: "nonsense"}, {Filter: "app/a", Qos: 1}}, "content-mode", "binary"))
	if s := c.Want(packets.Suback); s.Properties.ReasonString != "" {
		t.Errorf("SUBACK has the reason %q", s.Properties.ReasonString)
	}
	f.events.last().deliver(t, 1)
	if pk := c.Want(packets.Publish); len(pk.Properties.User) != 4 {
		t.Errorf("PUBLISH has the user properties %v", pk.Properties.User)
	}
}

// Trap: the library strips user properties of packets that are too large.
func TestMaximumPacketSizeOfTheClient(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.connect(5, "c", func(pk *packets.Packet) { pk.Properties.MaximumPacketSize = 250 })
	c.Send(mqtttest.Subscribe(5, 1, "app/a"))
	c.Want(packets.Suback)
	sub := f.events.last()
	large := newEvent(t, `"`+strings.Repeat("x", 300)+`"`)
	sub.sink.Deliver([]delivery.Delivery{{Event: large, Offset: 100}, {Event: large, Offset: 101}})
	sub.deliver(t, 1)
	c.Want(packets.Publish)
	eventually(t, "large ones are passed", func() bool { return slices.Equal(sub.acks(), []int64{100, 101}) })
	c.Send(mqtttest.Subscribe(5, 2, strings.Repeat("nonsense/", 40))) // its reason would not fit
	if s := c.Want(packets.Suback); s.Properties.ReasonString != "" {
		t.Errorf("SUBACK has the reason %q", s.Properties.ReasonString)
	}
}

func TestNegativePubackEndsTheDelivery(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c, sub := f.subscribe(5, "c", receiveMaximum(1))
	sub.deliver(t, 2)
	id := c.Want(packets.Publish).PacketID
	c.Send([]byte{0x40, 4, byte(id >> 8), byte(id), 0x99, 0})
	c.Want(packets.Publish)
	if diff := cmp.Diff([]int64{0}, sub.acks()); diff != "" {
		t.Errorf("acknowledged (-want +got):\n%s", diff)
	}
}

func TestSubscriptionsShareTheWindowInTurn(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.connect(4, "c")
	c.Send(mqtttest.Subscribe(4, 1, "app/a", "app/b", "app/c"))
	c.Want(packets.Suback)
	f.events.mu.Lock()
	subs := slices.Clone(f.events.subscriptions)
	f.events.mu.Unlock()
	subs[0].deliver(t, 600)
	seen := map[string]int{}
	for range 256 {
		c.Want(packets.Publish)
	}
	subs[1].deliver(t, 600)
	subs[2].deliver(t, 600)
	for id := range uint16(90) {
		c.Send(mqtttest.Puback(id + 1))
		seen[c.Want(packets.Publish).TopicName]++
	}
	for _, topic := range []string{"app/a", "app/b", "app/c"} {
		if n := seen[topic]; n != 30 {
			t.Errorf("%d of 90 events are of %s, want 30", n, topic)
		}
	}
}
