//go:build integration

package integration_test

import (
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"mqtt-integration/libs/naming"
	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/standalone"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

// Three subscribers of a share group, on two systems that have nothing in common
// but Kafka: every event goes to one of them, each gets some, and what a leaver has
// not acknowledged goes to the others.
func TestShareGroup(t *testing.T) {
	t.Parallel()
	const (
		partitions = 2
		devices    = 40
		n          = 400
		window     = 10
	)
	brokers := testkit.Kafka(t)
	systems := []*system.System{system.Start(t, system.Options{Brokers: brokers}), system.Start(t, system.Options{Brokers: brokers})}
	app := systems[0].CreateApplication(t, partitions)
	other := systems[1].CreateNamedApplication(t, systems[1].CreateUser(t), app.Name, 0)
	limited := rawmqtt.Properties{rawmqtt.Number(rawmqtt.ReceiveMaximum, window)}
	clients := []*client{
		connect(t, systems[0], dial{user: app.Owner, properties: limited}),
		connect(t, systems[0], dial{version: rawmqtt.V311, user: app.Owner}),
		connect(t, systems[1], dial{user: other.Owner, properties: limited}),
	}
	for _, c := range clients {
		c.subscribe("$share/workers/app/" + app.Name)
	}
	group := "mqtt/" + naming.Escape(app.Name) + "/workers"
	// The partitions settle when both instances have one; until then an event may
	// come to both.
	kafka := newProducer(t, brokers)
	settled := map[*system.System]bool{}
	eventually(t, func() error {
		for p := range int32(partitions) {
			r := event("settle")
			r.Partition = p
			kafka.send(t, app.Topic, r)
		}
		for i, c := range clients {
			for {
				p, err := c.Read(50 * time.Millisecond)
				if err != nil {
					break
				}
				settled[systems[i/2]] = true
				c.acknowledge(p)
			}
		}
		if len(settled) < len(systems) {
			return errors.New("one of the instances has no partition")
		}
		return nil
	})
	for _, c := range clients {
		c.silent()
	}

	records := make([]testkit.Record, n)
	for i := range records {
		records[i] = event(strconv.Itoa(i))
		records[i].Key = fmt.Appendf(nil, "%s/device-%d", app.Name, i%devices)
		records[i].Partition = int32(i % devices % partitions)
	}
	kafka.send(t, app.Topic, records...)
	received := make([]map[string]bool, len(clients))
	last := map[int]int{} // of each device
	owner := map[int]int{}
	read := func(i int, acknowledge bool, ordered bool) error {
		p, err := clients[i].Read(50 * time.Millisecond)
		if err != nil {
			return err
		}
		id := idOf(t, p)
		number, err := strconv.Atoi(id)
		if err != nil {
			t.Fatalf("event %q", id)
		}
		if received[i] == nil {
			received[i] = map[string]bool{}
		}
		for j := range clients {
			if j != len(clients)-1 && received[j][id] {
				t.Errorf("event %s came to client %d, and had come to client %d", id, i, j)
			}
		}
		received[i][id] = true
		if device := number % devices; ordered {
			if before, ok := last[device]; ok && (before >= number || owner[device] != i) {
				t.Errorf("event %d of device %d came to client %d after %d to client %d", number, device, i, before, owner[device])
			}
			last[device], owner[device] = number, i
		}
		if acknowledge {
			clients[i].acknowledge(p)
		}
		return nil
	}
	// The third acknowledges nothing.
	eventually(t, func() error {
		for i := range clients {
			for read(i, i < 2, true) == nil {
			}
		}
		if got := len(received[0]) + len(received[1]); got < n/partitions || len(received[2]) < window {
			return fmt.Errorf("%d, %d and %d events", len(received[0]), len(received[1]), len(received[2]))
		}
		return nil
	})
	if len(received[0]) == 0 || len(received[1]) == 0 || len(received[2]) != window {
		t.Errorf("received %d, %d and %d events", len(received[0]), len(received[1]), len(received[2]))
	}
	for id := range received[2] {
		if received[0][id] || received[1][id] {
			t.Errorf("event %s came to two clients", id)
		}
	}
	clients[2].Close() // without DISCONNECT
	eventually(t, func() error {
		for i := range clients[:2] {
			for read(i, true, false) == nil {
			}
		}
		if got := len(received[0]) + len(received[1]); got < n {
			return fmt.Errorf("the others have %d of %d events", got, n)
		}
		return nil
	})
	ends := testkit.EndOffsets(t, brokers, app.Topic)
	eventually(t, func() error {
		if got := testkit.CommittedOffsets(t, brokers, group, app.Topic); fmt.Sprint(got) != fmt.Sprint(ends) {
			return fmt.Errorf("committed %v, want %v", got, ends)
		}
		return nil
	})
}

// SUBACK means positioned, for share groups as well: 100 rounds of a new group,
// SUBACK, one event.
func TestEventsAfterSubackOfANewShareGroupAreDelivered(t *testing.T) {
	t.Parallel()
	const (
		rounds     = 100
		partitions = 4
		clients    = 4
	)
	s := system.Start(t, system.Options{})
	app := s.CreateApplication(t, partitions)
	kafka := newProducer(t, s.Brokers)
	kafka.send(t, app.Topic, events(-1, 1)...)
	for n := range clients {
		version := []rawmqtt.Version{rawmqtt.V311, rawmqtt.V5}[n%2]
		t.Run(fmt.Sprintf("client %d with %s", n, version), func(t *testing.T) {
			t.Parallel()
			c := connect(t, s, dial{version: version, user: app.Owner})
			for round := range rounds / clients {
				filter := fmt.Sprintf("$share/client %d round %d/app/%s", n, round, app.Name)
				c.subscribe(filter)
				r := event(filter)
				r.Partition = int32(round % partitions)
				kafka.send(t, app.Topic, r)
				for got := ""; got != filter; {
					p := c.next() // also those of the other clients
					got = idOf(t, p)
					if got == "-1" {
						t.Fatal("an event of before came")
					}
					c.acknowledge(p)
				}
				unsubscribe(c, filter)
			}
		})
	}
}

// A subscription of the session and one of a group get an event each.
func TestShareSubscriptionBesidesTheOwnOne(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{})
	app := s.CreateApplication(t, 1)
	c := connect(t, s, dial{user: app.Owner})
	c.subscribe("app/"+app.Name, rawmqtt.Number(rawmqtt.SubscriptionIdentifier, 1))
	c.subscribe("$share/g/app/"+app.Name, rawmqtt.Number(rawmqtt.SubscriptionIdentifier, 2))
	testkit.Produce(t, s.Brokers, app.Topic, events(0, 10)...)
	counts := map[uint32]int{}
	for _, p := range c.take(20) {
		id, _ := p.Properties.Number(rawmqtt.SubscriptionIdentifier)
		counts[id]++
		c.acknowledge(p)
	}
	if counts[1] != 10 || counts[2] != 10 {
		t.Errorf("events by subscription identifier: %v", counts)
	}
	unsubscribe(c, "$share/g/app/"+app.Name)
	testkit.Produce(t, s.Brokers, app.Topic, events(10, 1)...)
	if id, _ := c.next().Properties.Number(rawmqtt.SubscriptionIdentifier); id != 1 {
		t.Errorf("got an event for subscription identifier %d after UNSUBACK", id)
	}
	c.silent()
}

// Who acknowledges nothing does not hold a group up for ever.
func TestClientThatHoldsAShareGroupUp(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{Configure: func(c *standalone.Config) { c.EventFanout.Share.AckTimeout = time.Second }})
	app := s.CreateApplication(t, 1)
	c := connect(t, s, dial{user: app.Owner})
	c.subscribe("$share/g/app/" + app.Name)
	testkit.Produce(t, s.Brokers, app.Topic, events(0, 3)...)
	wantNumbers(t, c.take(3), 0)
	if p, err := c.Expect(rawmqtt.DISCONNECT, patience); err != nil || p.Code != 0x98 {
		t.Fatalf("got %v, %v, want DISCONNECT 0x98", p, err)
	}
	other := connect(t, s, dial{user: app.Owner})
	other.subscribe("$share/g/app/" + app.Name)
	packets := other.take(3)
	wantNumbers(t, packets, 0)
	other.acknowledge(packets...)
}

// Anonymous connections may not use share groups unless configured, and No Local
// is a protocol error there.
func TestShareSubscriptionsThatAreNotAllowed(t *testing.T) {
	t.Parallel()
	for _, allowed := range []bool{false, true} {
		s := system.Start(t, system.Options{Configure: func(c *standalone.Config) { c.Authorization.Anonymous.Share = allowed }})
		app := s.CreateApplication(t, 1)
		s.SetMember(t, app.Name, "", adminv1.Role_ROLE_READER)
		filter := "$share/g/app/" + app.Name
		anonymous := connect(t, s, dial{})
		anonymous.subscribe("app/" + app.Name)
		p := rawmqtt.Subscribe{PacketID: anonymous.nextID(), Filters: []rawmqtt.Filter{{Filter: filter, Options: 1}}}
		want := byte(0x87)
		if allowed {
			want = 1
		}
		if suback := anonymous.exchange(p, rawmqtt.SUBACK); suback.Codes[0] != want {
			t.Errorf("anonymous.share %v: SUBACK %#x, want %#x", allowed, suback.Codes[0], want)
		}
		if allowed {
			continue
		}
		c := connect(t, s, dial{user: app.Owner})
		c.send(rawmqtt.Subscribe{PacketID: 1, Filters: []rawmqtt.Filter{{Filter: filter, Options: 1 | 4}}})
		if p, err := c.Expect(rawmqtt.DISCONNECT, patience); err != nil || p.Code != 0x82 {
			t.Errorf("got %v, %v, want DISCONNECT 0x82 for No Local", p, err)
		}
	}
}
