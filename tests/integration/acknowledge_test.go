//go:build integration

package integration_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/services/standalone"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

const maxInflight = 64

// startWindows starts a system with a max_inflight that is quickly filled.
func startWindows(t *testing.T) *system.System {
	t.Helper()
	return system.Start(t, system.Options{Configure: func(c *standalone.Config) {
		c.MQTTFrontend.MQTT.MaxInflight = maxInflight
	}})
}

func receiveMaximum(n uint32) rawmqtt.Properties {
	return rawmqtt.Properties{rawmqtt.Number(rawmqtt.ReceiveMaximum, n)}
}

// spread are n events, the numbers from 0 on, in turn over partitions.
func spread(n int, partitions int32) []testkit.Record {
	records := events(0, n)
	for i := range records {
		records[i].Partition = int32(i) % partitions
	}
	return records
}

func TestClientThatAcknowledgesNothingGetsOneWindow(t *testing.T) {
	t.Parallel()
	s := startWindows(t)
	kafka := newProducer(t, s.Brokers)
	const partitions = 4
	for _, tt := range []struct {
		name       string
		version    rawmqtt.Version
		properties rawmqtt.Properties
		window     int
	}{
		{"Receive Maximum 1", rawmqtt.V5, receiveMaximum(1), 1},
		{"Receive Maximum 10", rawmqtt.V5, receiveMaximum(10), 10},
		{"Receive Maximum of max_inflight", rawmqtt.V5, receiveMaximum(maxInflight), maxInflight},
		{"Receive Maximum above max_inflight", rawmqtt.V5, receiveMaximum(65535), maxInflight},
		{"no Receive Maximum", rawmqtt.V5, nil, maxInflight},
		{"MQTT 3.1.1", rawmqtt.V311, nil, maxInflight},
	} {
		for _, backlog := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, events at once %v", tt.name, backlog), func(t *testing.T) {
				t.Parallel()
				app := s.CreateApplication(t, partitions)
				kafka.send(t, app.Topic, spread(8, partitions)...) // The position is not 0.
				c := connect(t, s, dial{version: tt.version, properties: tt.properties, user: app.Owner})
				c.subscribe("app/" + app.Name)
				start := testkit.EndOffsets(t, s.Brokers, app.Topic)

				// The window fills from a batch as from single events.
				if records := spread(3*maxInflight, partitions); backlog {
					kafka.send(t, app.Topic, records...)
				} else {
					for i := range records {
						kafka.send(t, app.Topic, records[i])
					}
				}
				seen := map[string]bool{}
				for _, p := range c.take(tt.window) {
					if p.QoS != 1 || p.Dup || p.Retain || p.PacketID == 0 || p.Topic != "app/"+app.Name {
						t.Errorf("got %v (DUP %v, RETAIN %v)", p, p.Dup, p.Retain)
					}
					seen[idOf(t, p)] = true
				}
				if len(seen) != tt.window {
					t.Errorf("%d different events, want %d", len(seen), tt.window)
				}
				c.silent()
				wantCommitted(t, s, c, app, start)
			})
		}
	}
}

func TestPositionIsTheContiguousAcknowledgedPrefix(t *testing.T) {
	t.Parallel()
	s := startWindows(t)
	kafka := newProducer(t, s.Brokers)
	for _, version := range []rawmqtt.Version{rawmqtt.V311, rawmqtt.V5} {
		t.Run("MQTT "+version.String(), func(t *testing.T) {
			t.Parallel()
			app := s.CreateApplication(t, 1)
			c := connect(t, s, dial{version: version, user: app.Owner})
			c.subscribe("app/" + app.Name)
			const total = 4 * maxInflight
			kafka.send(t, app.Topic, events(0, total)...)
			got := c.take(maxInflight)
			acknowledged := make([]bool, total)
			// acknowledge acknowledges events, and takes as many new ones.
			acknowledge := func(numbers ...int) {
				t.Helper()
				packets := make([]rawmqtt.Packet, len(numbers))
				for i, n := range numbers {
					packets[i], acknowledged[n] = got[n], true
				}
				c.acknowledge(packets...)
				got = append(got, c.take(min(len(numbers), total-len(got)))...)
			}
			prefix := func() int64 {
				if i := slices.Index(acknowledged, false); i >= 0 {
					return int64(i)
				}
				return total
			}
			for _, step := range []struct {
				acknowledge []int
				want        int64
			}{
				{nil, 0},
				{[]int{4, 2, 3}, 0},
				{[]int{0}, 1},
				{[]int{maxInflight + 2, 1}, 5},
				{[]int{6, 8, 10}, 5},
				{[]int{9, 7, 5}, 11},
			} {
				acknowledge(step.acknowledge...)
				if prefix() != step.want {
					t.Fatalf("the test is wrong: %d, want %d", prefix(), step.want)
				}
				wantCommitted(t, s, c, app, map[int32]int64{0: step.want})
			}
			// A second acknowledgement of the same packet changes nothing.
			c.send(rawmqtt.Ack{PacketID: got[0].PacketID}, rawmqtt.Ack{PacketID: got[4].PacketID})
			wantCommitted(t, s, c, app, map[int32]int64{0: 11})

			// Now in any order, the first one withheld, which stays the position.
			random := rand.New(rand.NewPCG(1, uint64(version)))
			for len(got) < total {
				var open []int
				for i := range got {
					if !acknowledged[i] && i != 11 {
						open = append(open, i)
					}
				}
				random.Shuffle(len(open), func(i, j int) { open[i], open[j] = open[j], open[i] })
				acknowledge(open[:1+random.IntN(len(open))]...)
			}
			wantNumbers(t, got, 0)
			wantCommitted(t, s, c, app, map[int32]int64{0: 11})
			acknowledge(11)
			wantCommitted(t, s, c, app, map[int32]int64{0: prefix()})
			for i := range acknowledged {
				if !acknowledged[i] {
					acknowledge(i)
				}
			}
			wantCommitted(t, s, c, app, map[int32]int64{0: total})
		})
	}
}

func TestPartitionsHavePositionsOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := startWindows(t)
	kafka := newProducer(t, s.Brokers)
	app := s.CreateApplication(t, 3)
	c := connect(t, s, dial{user: app.Owner})
	c.subscribe("app/" + app.Name)
	kafka.send(t, app.Topic, spread(30, 3)...)
	withheld := map[int32][]rawmqtt.Packet{}
	for _, p := range c.take(30) {
		n, err := strconv.Atoi(idOf(t, p))
		if err != nil {
			t.Fatal(err)
		}
		withheld[int32(n%3)] = append(withheld[int32(n%3)], p)
	}
	c.acknowledge(withheld[1]...)
	wantCommitted(t, s, c, app, map[int32]int64{0: 0, 1: 10, 2: 0})
	c.acknowledge(withheld[2][:4]...)
	wantCommitted(t, s, c, app, map[int32]int64{0: 0, 1: 10, 2: 4})
	c.acknowledge(withheld[0]...)
	c.acknowledge(withheld[2][4:]...)
	wantCommitted(t, s, c, app, map[int32]int64{0: 10, 1: 10, 2: 10})
}

// A PUBACK with an error ends the delivery of that event, and counts as an
// acknowledgement.
func TestNegativeAcknowledgementCounts(t *testing.T) {
	t.Parallel()
	s := startWindows(t)
	kafka := newProducer(t, s.Brokers)
	app := s.CreateApplication(t, 1)
	c := connect(t, s, dial{user: app.Owner, properties: receiveMaximum(2)})
	c.subscribe("app/" + app.Name)
	kafka.send(t, app.Topic, events(0, 3)...)
	got := c.take(2)
	c.send(rawmqtt.Ack{PacketID: got[0].PacketID, Code: 0x80})
	got = append(got, c.take(1)...)
	wantNumbers(t, got, 0)
	wantCommitted(t, s, c, app, map[int32]int64{0: 1})
	c.send(rawmqtt.Ack{PacketID: got[1].PacketID, Code: 0x97, Properties: rawmqtt.Properties{rawmqtt.Text(rawmqtt.ReasonString, "full")}})
	wantCommitted(t, s, c, app, map[int32]int64{0: 2})
}
