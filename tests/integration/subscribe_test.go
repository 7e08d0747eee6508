//go:build integration

package integration_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/services/standalone"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

// SUBACK means positioned: what is appended to Kafka after it is delivered. Two
// clients share an application, so that readers are there already; the others
// have theirs alone, so that every round has readers that start anew.
func TestEventsAfterSubackAreDelivered(t *testing.T) {
	t.Parallel()
	const (
		rounds     = 200
		partitions = 4
		clients    = 8
		shared     = 4
	)
	for _, tt := range []struct {
		name   string
		linger time.Duration
	}{
		{"readers that stay", 10 * time.Second},
		{"readers that end at once", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := system.Start(t, system.Options{Configure: func(c *standalone.Config) {
				c.EventFanout.Ring.Linger = tt.linger
			}})
			kafka := newProducer(t, s.Brokers)
			common := s.CreateApplication(t, partitions)
			for n := range clients {
				app := common
				if n >= shared {
					app = s.CreateApplicationOf(t, common.Owner, partitions)
				}
				version := []rawmqtt.Version{rawmqtt.V311, rawmqtt.V5}[n%2]
				t.Run(fmt.Sprintf("client %d with %s", n, version), func(t *testing.T) {
					t.Parallel()
					var c *client
					for round := range rounds / clients {
						// Every other time on the connection of the round before.
						if round%2 == 0 {
							if c != nil {
								c.Close()
							}
							c = connect(t, s, dial{version: version, user: app.Owner})
						} else {
							unsubscribe(c, "app/"+app.Name)
						}
						c.subscribe("app/" + app.Name)
						missing := map[string]int32{}
						records := make([]testkit.Record, partitions)
						for p := range records {
							id := fmt.Sprintf("client %d, round %d, partition %d", n, round, p)
							records[p] = event(id)
							records[p].Partition = int32(p)
							missing[id] = int32(p)
						}
						kafka.send(t, app.Topic, records...)
						receive(t, c, missing, round)
					}
				})
			}
		})
	}
}

// receive reads events, and acknowledges them, until it has those of missing.
func receive(t *testing.T, c *client, missing map[string]int32, round int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for len(missing) > 0 {
		p, err := c.Expect(rawmqtt.PUBLISH, time.Until(deadline))
		if err != nil {
			t.Fatalf("round %d: the events %q were lost: %v", round, slices.Sorted(maps.Keys(missing)), err)
		}
		delete(missing, idOf(t, p))
		c.acknowledge(p)
	}
}

// unsubscribe skips events that come before UNSUBACK.
func unsubscribe(c *client, filter string) {
	c.t.Helper()
	c.send(rawmqtt.Unsubscribe{PacketID: c.nextID(), Filters: []string{filter}})
	for {
		p, err := c.Read(patience)
		if err != nil {
			c.t.Fatalf("client %s: unsubscribe: %v", c.id, err)
		}
		switch p.Type {
		case rawmqtt.PUBLISH:
			c.acknowledge(p)
		case rawmqtt.UNSUBACK:
			return
		default:
			c.t.Fatalf("client %s: unsubscribe: got %v", c.id, p)
		}
	}
}
