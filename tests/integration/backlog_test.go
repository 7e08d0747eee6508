//go:build integration

package integration_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/testkit"
	"mqtt-integration/services/standalone"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

// A client acknowledges nothing while 100,000 events are appended, most of which
// leave the rings, and then drains them with a full window.
func TestBacklogDrains(t *testing.T) {
	const (
		backlog    = 100_000
		partitions = 4
		window     = 256
	)
	s := system.Start(t, system.Options{Configure: func(c *standalone.Config) {
		c.EventFanout.Ring.Memory = 4 * config.MiB
	}})
	kafka := newProducer(t, s.Brokers)
	app := s.CreateApplication(t, partitions)
	c := connect(t, s, dial{user: app.Owner, properties: receiveMaximum(window)})
	c.subscribe("app/" + app.Name)
	const chunk = 10_000
	records := make([]testkit.Record, chunk)
	for first := 0; first < backlog; first += chunk {
		for i := range records {
			n := first + i
			records[i] = event(number(n))
			records[i].Partition = int32(n % partitions)
		}
		kafka.send(t, app.Topic, records...)
	}
	held := c.take(window)
	c.silent()

	began, cpu := time.Now(), system.CPU(t)
	var next [partitions]int
	for p := range next {
		next[p] = p
	}
	open := held
	for got := 0; ; {
		for _, p := range open {
			n := numberOf(t, p)
			if want := next[n%partitions]; n != want {
				t.Fatalf("got event %d of partition %d, want %d", n, n%partitions, want)
			}
			next[n%partitions] += partitions
		}
		got += len(open)
		c.acknowledge(open...)
		if got == backlog {
			break
		}
		// All that is there, so that the window is never empty and seldom not full.
		open = append(open[:0], c.next())
		for c.Buffered() > 0 && got+len(open) < backlog {
			open = append(open, c.next())
		}
	}
	took, used := time.Since(began), system.CPU(t)-cpu
	t.Logf("%d events in %v: %.0f events/s; %.1f µs of processor time for each, client and embedded Kafka included",
		backlog, took.Round(time.Millisecond), backlog/took.Seconds(), float64(used.Microseconds())/backlog)
	wantCommitted(t, s, c, app, map[int32]int64{0: backlog / 4, 1: backlog / 4, 2: backlog / 4, 3: backlog / 4})
}

// number makes identifiers that numberOf reads without parsing JSON.
func number(n int) string {
	const digits = "0123456789"
	b := []byte("event-000000")
	for i := len(b) - 1; n > 0; i-- {
		b[i] = digits[n%10]
		n /= 10
	}
	return string(b)
}

func numberOf(t *testing.T, p rawmqtt.Packet) int {
	t.Helper()
	_, rest, ok := strings.Cut(string(p.Payload), `"id":"event-`)
	if !ok || len(rest) < 6 {
		t.Fatalf("payload %q has no number", p.Payload)
	}
	n := 0
	for _, c := range rest[:6] {
		n = n*10 + int(c-'0')
	}
	return n
}

// One client acknowledges nothing, and another one, with QoS 0, does not even
// read more than the sockets' buffers hold. Others get everything meanwhile. The write timeout is so long
// that whoever waited for them would wait for ever.
func TestStalledClientsSlowNobody(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{Configure: func(c *standalone.Config) {
		c.MQTTFrontend.MQTT.WriteTimeout = time.Hour
		c.EventFanout.Ring.Memory = 4 * config.MiB
	}})
	const (
		total   = 4000 // 16 MiB, more than the buffers of two sockets.
		payload = 4096
		window  = 256
	)
	kafka := newProducer(t, s.Brokers)
	app := s.CreateApplication(t, 2)
	filter := "app/" + app.Name

	withholds := connect(t, s, dial{user: app.Owner})
	withholds.subscribe(filter)
	deaf := connect(t, s, dial{user: app.Owner})
	deaf.subscribeWith(filter, 0)
	brisk := map[string]*client{}
	for name, version := range map[string]rawmqtt.Version{"3.1.1": rawmqtt.V311, "5": rawmqtt.V5} {
		c := connect(t, s, dial{version: version, user: app.Owner})
		c.subscribe(filter)
		brisk[name] = c
	}

	const rounds = 8
	for round := range rounds {
		records := make([]testkit.Record, total/rounds)
		for i := range records {
			n := round*len(records) + i
			records[i] = event(number(n))
			records[i].Value = []byte(`"` + strings.Repeat("x", payload) + `"`)
			records[i].Partition = int32(n % 2)
		}
		kafka.send(t, app.Topic, records...)
		for name, c := range brisk {
			for range records {
				p, err := c.Expect(rawmqtt.PUBLISH, patience)
				if err != nil {
					t.Fatalf("round %d: the client with MQTT %s was held up: %v", round, name, err)
				}
				c.acknowledge(p)
			}
		}
	}
	for _, c := range brisk {
		wantCommitted(t, s, c, app, map[int32]int64{0: total / 2, 1: total / 2})
	}

	// A new client finds everything as usual, too.
	late := connect(t, s, dial{user: app.Owner})
	late.subscribe(filter)
	kafka.send(t, app.Topic, event("late"))
	if id := idOf(t, late.next()); id != "late" {
		t.Errorf("got event %q", id)
	}

	// The stalled ones were not given up, and nothing was dropped for them.
	held := withholds.take(window)
	withholds.silent()
	wantCommitted(t, s, withholds, app, map[int32]int64{0: 0, 1: 0})
	var next [2]int
	next[1] = 1
	check := func(p rawmqtt.Packet) {
		t.Helper()
		if idOf(t, p) == "late" {
			return
		}
		n := numberOf(t, p)
		if next[n%2] != n {
			t.Fatalf("got event %d, want %d", n, next[n%2])
		}
		next[n%2] += 2
	}
	for _, p := range held {
		check(p)
		withholds.acknowledge(p)
	}
	for range total + 1 - window {
		p := withholds.next()
		check(p)
		withholds.acknowledge(p)
	}
	wantCommitted(t, s, withholds, app, map[int32]int64{0: total/2 + 1, 1: total / 2})
	next[0], next[1] = 0, 1
	for range total + 1 {
		check(deaf.next())
	}
	wantCommitted(t, s, deaf, app, map[int32]int64{0: total/2 + 1, 1: total / 2})
}

// Who does not read is disconnected after the write timeout, and only that.
func TestClientThatDoesNotReadIsDisconnected(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{Configure: func(c *standalone.Config) {
		c.MQTTFrontend.MQTT.WriteTimeout = 2 * time.Second
	}})
	app := s.CreateApplication(t, 1)
	deaf := connect(t, s, dial{user: app.Owner})
	deaf.subscribeWith("app/"+app.Name, 0)
	reader := connect(t, s, dial{user: app.Owner})
	reader.subscribe("app/" + app.Name)
	records := events(0, 200)
	for i := range records {
		records[i].Value = []byte(`"` + strings.Repeat("x", 100_000) + `"`)
	}
	testkit.ProduceTo(t, s.Brokers, app.Topic, 0, records...)
	for i := range records {
		p := reader.next()
		wantNumbers(t, []rawmqtt.Packet{p}, i)
		reader.acknowledge(p)
	}
	eventually(t, func() error {
		if groups := s.TransientGroups(t, deaf.user, deaf.id); len(groups) > 0 {
			return errors.New("the client is still there")
		}
		return nil
	})
	reader.exchange(rawmqtt.Ping{}, rawmqtt.PINGRESP)
}
