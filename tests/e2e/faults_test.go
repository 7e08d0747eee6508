//go:build e2e

package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"mqtt-integration/libs/naming"
	"mqtt-integration/libs/testkit"
)

// shareGroups is how many share groups a test has: they are spread over the
// event-fanouts.
const shareGroups = 4

func newShareGroups() []*collection {
	groups := make([]*collection, shareGroups)
	for i := range groups {
		groups[i] = newCollection(fmt.Sprint("group-", i))
	}
	return groups
}

// joinGroups connects a client for each of some share groups.
func joinGroups(t *testing.T, address string, acc account, groups []*collection) []*paho.Client {
	t.Helper()
	clients := make([]*paho.Client, len(groups))
	for i, group := range groups {
		clients[i] = subscribeInto(t, address, acc, "$share/"+group.name+"/app/"+acc.application, group)
	}
	return clients
}

// wantCommitted waits until a share group has acknowledged the log to its end.
func wantCommitted(t *testing.T, c *cluster, acc account, group *collection) {
	t.Helper()
	ends := testkit.EndOffsets(t, c.brokers, acc.topic)
	name := "mqtt/" + naming.Escape(acc.application) + "/" + naming.Escape(group.name)
	eventually(t, group.name+" is committed", func() error {
		if got := testkit.CommittedOffsets(t, c.brokers, name, acc.topic); fmt.Sprint(got) != fmt.Sprint(ends) {
			return fmt.Errorf("%v, want %v", got, ends)
		}
		return nil
	})
}

// startReady starts an instance and waits until it is ready.
func (c *cluster) startReady(t *testing.T, instance string) {
	t.Helper()
	c.startInstance(t, instance)
	eventually(t, instance+" is ready", func() error { return c.ready(instance) })
}

// When an event-fanout is killed under load, its share groups go on at the other
// one, where everything arrives that it had not yet committed. Own subscriptions on
// the same connections miss nothing and see nothing twice.
func TestShareGroupsGoToAnotherEventFanout(t *testing.T) {
	t.Parallel()
	c, acc := deployCluster(t)
	own := newCollection("own subscription")
	subscribeInto(t, c.addresses["mqtt"], acc, "app/"+acc.application, own)
	groups := newShareGroups()
	joinGroups(t, c.addresses["mqtt"], acc, groups)
	joinGroups(t, c.addresses["mqtt"], acc, groups)
	load := startLoad(t, c.brokers, acc.topic)
	load.goesOn(t, 100)
	for _, victim := range []string{"event-fanout", "event-fanout-2"} {
		for _, group := range groups {
			group.hasAll(t, 0, load.sent()) // whoever has it now
		}
		c.kill(t, victim)
		began := time.Now()
		load.goesOn(t, 100)
		sent := load.sent()
		own.hasAll(t, 0, sent)
		t.Logf("without %s: own subscriptions have everything after %v", victim, time.Since(began).Round(time.Millisecond))
		for _, group := range groups {
			group.hasAll(t, 0, sent)
		}
		t.Logf("without %s: share groups have everything after %v", victim, time.Since(began).Round(time.Millisecond))
		c.startReady(t, victim)
	}
	load.goesOn(t, 100)
	load.stop()
	own.wantLog(t, testkit.ReadAll(t, c.brokers, acc.topic), nil)
	for _, group := range groups {
		group.hasAll(t, 0, load.sent())
		wantCommitted(t, c, acc, group)
		group.wantNoDisconnect(t)
		t.Logf("%s: %d events, %d of them again", group.name, load.sent(), group.copies())
	}
	own.wantNoDisconnect(t)
}

// When one of two frontends is killed under load, its clients go on at the other
// one. Share groups miss nothing; an own subscription has every event since its new
// SUBACK; commands that were not acknowledged are sent again by their clients. Who
// is connected to the other one notices nothing.
func TestClientsGoToAnotherFrontend(t *testing.T) {
	t.Parallel()
	c, acc := deployCluster(t)
	c.files["mqtt-frontend-2"] = c.frontendFile(t, "mqtt-frontend-2", "mqtt-frontend")
	c.startReady(t, "mqtt-frontend-2")
	killed, other := c.addresses["mqtt-frontend/mqtt"], c.addresses["mqtt-frontend-2/mqtt"]

	stays := newCollection("the client that stays")
	subscribeInto(t, other, acc, "app/"+acc.application, stays)
	lost := []*paho.Client{subscribeInto(t, killed, acc, "app/"+acc.application, newCollection("the client that is lost"))}
	groups := newShareGroups()
	joinGroups(t, other, acc, groups)
	lost = append(lost, joinGroups(t, killed, acc, groups)...)
	load := startLoad(t, c.brokers, acc.topic)
	commands := startCommanders(t, acc, 4, killed, other) // two devices at each
	load.goesOn(t, 100)
	commands.goOn(t, 100)

	c.kill(t, "mqtt-frontend")
	began := time.Now()
	for _, client := range lost {
		receive(t, client.Done())
	}
	moved := newCollection("the client that moved")
	subscribeInto(t, other, acc, "app/"+acc.application, moved)
	positioned := testkit.EndOffsets(t, c.brokers, acc.topic) // or before
	joinGroups(t, other, acc, groups)
	load.goesOn(t, 200)
	commands.goOn(t, 200)
	sent := load.sent()
	for _, group := range groups {
		group.hasAll(t, 0, sent)
	}
	t.Logf("everything goes on after %v", time.Since(began).Round(time.Millisecond))

	load.stop()
	commands.stop()
	log := testkit.ReadAll(t, c.brokers, acc.topic)
	stays.wantLog(t, log, nil)
	moved.wantLog(t, log, positioned)
	for _, group := range groups {
		group.hasAll(t, 0, load.sent())
		wantCommitted(t, c, acc, group)
		t.Logf("%s: %d events, %d of them again", group.name, load.sent(), group.copies())
	}
	copies := commands.wantInKafka(t, acc, testkit.ReadAll(t, c.brokers, c.commands))
	t.Logf("%d commands acknowledged, and %d copies", commands.total(), copies)
	stays.wantNoDisconnect(t)
	moved.wantNoDisconnect(t)
}
