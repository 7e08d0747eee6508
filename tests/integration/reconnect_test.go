//go:build integration

package integration_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/testkit"
	eventfanout "mqtt-integration/services/event-fanout"
	"mqtt-integration/services/standalone"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

// A session ends with its connection, for now. So what a client had not
// acknowledged is never counted as delivered: the position stays at the prefix
// until the group is gone. And whoever comes back is positioned by its SUBACK.
func TestReconnectAfterTheConnectionBroke(t *testing.T) {
	t.Parallel()
	s := startWindows(t)
	kafka := newProducer(t, s.Brokers)
	for _, version := range []rawmqtt.Version{rawmqtt.V311, rawmqtt.V5} {
		for _, tt := range []struct {
			name     string
			leave    func(*client)
			takeover bool
		}{
			{"reset", func(c *client) { c.Abort() }, false},
			{"closed", func(c *client) { c.Close() }, false},
			{"DISCONNECT", func(c *client) { c.send(rawmqtt.Disconnect{}); c.Close() }, false},
			{"taken over", nil, true},
		} {
			t.Run(fmt.Sprintf("MQTT %s, %s", version, tt.name), func(t *testing.T) {
				t.Parallel()
				app := s.CreateApplication(t, 1)
				want := dial{
					version: version, user: app.Owner, id: testkit.UniqueName(t), keep: true,
					properties: rawmqtt.Properties{rawmqtt.Number(rawmqtt.SessionExpiryInterval, 3600)},
				}
				first := connect(t, s, want)
				wantNoSession(t, first)
				first.subscribe("app/" + app.Name)
				kafka.send(t, app.Topic, events(0, 20)...)
				got := first.take(20)
				first.acknowledge(got[0], got[1], got[2], got[5], got[19])
				wantCommitted(t, s, first, app, map[int32]int64{0: 3})
				old := s.TransientGroup(t, first.user, first.id)

				if tt.leave != nil {
					tt.leave(first)
				}
				second := connect(t, s, want)
				wantNoSession(t, second)
				if tt.takeover {
					p, err := first.Read(patience)
					if version == rawmqtt.V5 && (err != nil || p.Type != rawmqtt.DISCONNECT || p.Code != 0x8E) {
						t.Errorf("the former connection got %v, %v, want DISCONNECT 0x8e", p, err)
					} else if version == rawmqtt.V311 && !isClosed(err) {
						t.Errorf("the former connection got %v, %v, want it closed", p, err)
					}
				}
				eventually(t, func() error {
					positions := testkit.CommittedOffsets(t, s.Brokers, old, app.Topic)
					if at, ok := positions[0]; ok && at != 3 {
						t.Fatalf("the position of the former connection moved to %d", at)
					} else if ok {
						return errors.New("the group of the former connection is still there")
					}
					return nil
				})

				kafka.send(t, app.Topic, events(20, 10)...)
				second.subscribe("app/" + app.Name)
				kafka.send(t, app.Topic, events(30, 2*maxInflight)...)
				again := second.take(maxInflight)
				wantNumbers(t, again, 30)
				wantCommitted(t, s, second, app, map[int32]int64{0: 30})
				second.acknowledge(again...)
				rest := second.take(maxInflight)
				wantNumbers(t, rest, 30+maxInflight)
				second.acknowledge(rest...)
				wantCommitted(t, s, second, app, map[int32]int64{0: 30 + 2*maxInflight})
			})
		}
	}
}

// wantNoSession checks that CONNACK tells the truth: nothing was stored, and
// nothing will be.
func wantNoSession(t *testing.T, c *client) {
	t.Helper()
	if c.connack.SessionPresent {
		t.Error("CONNACK says that there is a session")
	}
	if n, ok := c.connack.Properties.Number(rawmqtt.SessionExpiryInterval); c.Version() == rawmqtt.V5 && (!ok || n != 0) {
		t.Errorf("CONNACK has Session Expiry Interval %d (%v), want 0", n, ok)
	}
}

// outage is something behind the frontend that goes away and comes back.
type outage struct {
	name         string
	cut, restore func()
	// connections counts those that were made so far.
	connections func() int
	// breaks says that connections have to be made anew.
	breaks bool
}

// startWithOutages starts a system with something to cut off between
// mqtt-frontend and event-fanout, and between that and Kafka.
func startWithOutages(t *testing.T) (*system.System, []outage) {
	t.Helper()
	brokers := testkit.Kafka(t)
	proxy := testkit.NewProxy(t, brokers)
	fanout := system.FreeAddress(t)
	relay := system.NewRelay(t, fanout)
	s := system.Start(t, system.Options{Brokers: brokers, Configure: func(c *standalone.Config) {
		c.MQTTFrontend.MQTT.MaxInflight = maxInflight
		c.EventFanout.Kafka.Brokers = proxy.Brokers()
		c.EventFanout.GRPC.Address = fanout
		c.MQTTFrontend.EventFanout.Addresses = []string{relay.Address()}
	}})
	return s, []outage{
		{"the stream to event-fanout breaks", relay.Cut, relay.Restore, relay.Accepted, true},
		{"Kafka breaks", proxy.Cut, proxy.Restore, proxy.Accepted, true},
		{"Kafka hangs", proxy.Stall, proxy.Restore, proxy.Accepted, false},
	}
}

// A client that stays connected while what is behind its frontend goes away
// misses nothing and gets nothing twice, whatever it acknowledges meanwhile.
func TestOutageBehindAConnectedClientLosesNothing(t *testing.T) {
	t.Parallel()
	s, outages := startWithOutages(t)
	kafka := newProducer(t, s.Brokers)
	for _, o := range outages {
		// One after the other: they share what is cut.
		t.Run(o.name, func(t *testing.T) {
			app := s.CreateApplication(t, 1)
			c := connect(t, s, dial{user: app.Owner, properties: receiveMaximum(10)})
			c.subscribe("app/" + app.Name)
			kafka.send(t, app.Topic, events(0, 12)...)
			got := c.take(10)
			c.acknowledge(got[0], got[3])
			got = append(got, c.take(2)...) // 2, 3 and 4 … 11 without 3: ten are withheld.
			wantNumbers(t, got, 0)
			wantCommitted(t, s, c, app, map[int32]int64{0: 1})

			before := o.connections()
			o.cut()
			kafka.send(t, app.Topic, events(12, 30)...)
			// Acknowledged while nobody hears it; 1 is withheld.
			c.acknowledge(got[5], got[2], got[4])
			c.exchangeSkipping(t, &got)
			o.restore()

			for len(got) < 42 {
				p := c.next()
				got = append(got, p)
				c.acknowledge(p)
			}
			wantNumbers(t, got, 0)
			wantCommitted(t, s, c, app, map[int32]int64{0: 1})
			c.acknowledge(got[1])
			wantCommitted(t, s, c, app, map[int32]int64{0: 6})
			c.acknowledge(got[6:12]...)
			// What came while it was away, or after, was acknowledged at once.
			wantCommitted(t, s, c, app, map[int32]int64{0: 42})

			kafka.send(t, app.Topic, events(42, 5)...)
			last := c.take(5)
			wantNumbers(t, last, 42)
			c.acknowledge(last...)
			wantCommitted(t, s, c, app, map[int32]int64{0: 47})
			if o.breaks && o.connections() == before {
				t.Error("no connection was made: nothing was cut")
			}
		})
	}
}

// An event-fanout instance is lost with all that it knows, and can tell nobody:
// another one goes on for the connected clients. Nothing is missing and nothing
// comes twice, and positions move on from where they were committed.
func TestOutageOfAnEventFanoutInstanceLosesNothing(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	proxy := testkit.NewProxy(t, brokers)
	first, second := system.FreeAddress(t), system.FreeAddress(t)
	relay := system.NewRelay(t, first)
	s := system.Start(t, system.Options{Brokers: brokers, Configure: func(c *standalone.Config) {
		c.EventFanout.Kafka.Brokers = proxy.Brokers()
		c.EventFanout.GRPC.Address = first
		c.MQTTFrontend.EventFanout.Addresses = []string{relay.Address()}
	}})
	kafka := newProducer(t, s.Brokers)
	app := s.CreateApplication(t, 2)
	c := connect(t, s, dial{user: app.Owner, properties: receiveMaximum(10)})
	c.subscribe("app/" + app.Name)
	old := connect(t, s, dial{user: app.Owner, version: rawmqtt.V311})
	old.subscribe("app/" + app.Name)
	kafka.send(t, app.Topic, events(0, 10)...) // All in partition 0.
	got, gotOld := c.take(10), old.take(10)
	c.acknowledge(got[0], got[1], got[4])
	old.acknowledge(gotOld...)
	wantCommitted(t, s, c, app, map[int32]int64{0: 2, 1: 0})
	wantCommitted(t, s, old, app, map[int32]int64{0: 10, 1: 0})

	proxy.Cut()
	relay.Cut()
	cfg := eventfanout.DefaultConfig()
	cfg.GRPC.Address, cfg.Kafka.Brokers, cfg.Commit.Interval = second, brokers, 50*time.Millisecond
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	env := daemon.NewEnv(slog.New(slog.DiscardHandler))
	go func() { ended <- eventfanout.Run(ctx, cfg, env) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the second event-fanout: %v", err)
		}
	})
	eventually(t, env.Health.Ready)

	kafka.send(t, app.Topic, events(10, 20)...)
	c.acknowledge(got[3], got[5])
	relay.SetTarget(second)
	relay.Restore()

	for len(got) < 30 {
		p := c.next()
		got = append(got, p)
		c.acknowledge(p)
	}
	wantNumbers(t, got, 0)
	wantCommitted(t, s, c, app, map[int32]int64{0: 2, 1: 0})
	c.acknowledge(got[2])
	wantCommitted(t, s, c, app, map[int32]int64{0: 6, 1: 0})
	c.acknowledge(got[6:10]...)
	wantCommitted(t, s, c, app, map[int32]int64{0: 30, 1: 0})

	gotOld = old.take(20)
	wantNumbers(t, gotOld, 10)
	old.acknowledge(gotOld...)
	wantCommitted(t, s, old, app, map[int32]int64{0: 30, 1: 0})
	last := event("30")
	last.Partition = 1
	kafka.send(t, app.Topic, last)
	wantNumbers(t, []rawmqtt.Packet{c.next()}, 30)
	wantNumbers(t, []rawmqtt.Packet{old.next()}, 30)
}

// exchangeSkipping makes sure that the server has read everything, and
// acknowledges the events that come before it says so.
func (c *client) exchangeSkipping(t *testing.T, got *[]rawmqtt.Packet) {
	t.Helper()
	c.send(rawmqtt.Ping{})
	for {
		p, err := c.Read(patience)
		if err != nil {
			t.Fatal(err)
		}
		if p.Type == rawmqtt.PINGRESP {
			return
		}
		if p.Type != rawmqtt.PUBLISH {
			t.Fatalf("got %v", p)
		}
		*got = append(*got, p)
		c.acknowledge(p)
	}
}
