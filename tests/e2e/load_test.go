//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/eclipse/paho.golang/paho"

	"mqtt-integration/libs/testkit"
)

// loadDevices is how many devices send the events of a load, in turn.
const loadDevices = 20

// load appends events to both partitions of a topic until it is stopped. Their ids
// are numbers. What Kafka does not confirm is sent again, so that an id may be in
// Kafka twice, but none is missing below next.
type load struct {
	stop func() // once

	mu   sync.Mutex
	next int // every event below is in Kafka
}

func startLoad(t *testing.T, brokers []string, topic string) *load {
	t.Helper()
	cfg := testkit.Sarama()
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.Retry.Max, cfg.Metadata.Retry.Max = 0, 0 // It is tried again below.
	cfg.Net.DialTimeout, cfg.Net.ReadTimeout, cfg.Net.WriteTimeout = 2*time.Second, 5*time.Second, 2*time.Second
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	l := &load{stop: sync.OnceFunc(func() {
		cancel()
		<-ended
	})}
	t.Cleanup(l.stop)
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		var producer sarama.SyncProducer
		defer func() {
			if producer != nil {
				_ = producer.Close()
			}
		}()
		for n := 0; ctx.Err() == nil; {
			var err error
			if producer == nil {
				producer, err = sarama.NewSyncProducer(brokers, cfg)
			}
			if err == nil {
				err = producer.SendMessages([]*sarama.ProducerMessage{loadMessage(topic, n), loadMessage(topic, n+1)})
			}
			if err == nil {
				n += 2
				l.mu.Lock()
				l.next = n
				l.mu.Unlock()
			} else if producer != nil { // A new one does not wait before it tries.
				_ = producer.Close()
				producer = nil
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return l
}

func loadMessage(topic string, n int) *sarama.ProducerMessage {
	device := n % loadDevices
	r := binaryRecord(strconv.Itoa(n), "state", "application/json", "{}")
	m := &sarama.ProducerMessage{
		Topic: topic, Partition: int32(device % 2), Value: sarama.ByteEncoder(r.Value),
		Key: sarama.StringEncoder("device-" + strconv.Itoa(device)),
	}
	for _, h := range r.Headers {
		m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h.Name), Value: h.Value})
	}
	return m
}

// sent is the number of events that Kafka has: those with the ids below.
func (l *load) sent() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// goesOn waits until n more events are in Kafka.
func (l *load) goesOn(t *testing.T, n int) {
	t.Helper()
	want := l.sent() + n
	eventually(t, "the load goes on", func() error {
		if sent := l.sent(); sent < want {
			return fmt.Errorf("%d events, want %d", sent, want)
		}
		return nil
	})
}

// collection is what one or several clients have received, in the order of each.
type collection struct {
	name string

	mu   sync.Mutex
	ids  []string // of events
	seen map[string]bool
	said []string // DISCONNECT
}

func newCollection(name string) *collection { return &collection{name: name, seen: map[string]bool{}} }

func (c *collection) add(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ids = append(c.ids, id)
	c.seen[id] = true
}

// missing counts the ids from first to before next that have not come.
func (c *collection) missing(first, next int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	lacks, example := 0, 0
	for n := first; n < next; n++ {
		if !c.seen[strconv.Itoa(n)] {
			lacks, example = lacks+1, n
		}
	}
	if lacks > 0 {
		return fmt.Errorf("%s: %d of the events from %d to %d are missing, for example %d", c.name, lacks, first, next-1, example)
	}
	return nil
}

// hasAll waits until all events from first to before next have come.
func (c *collection) hasAll(t *testing.T, first, next int) {
	t.Helper()
	eventually(t, c.name+" has all events", func() error { return c.missing(first, next) })
}

// copies is how many events came that had come before.
func (c *collection) copies() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ids) - len(c.seen)
}

// wantNoDisconnect fails the test when the server has disconnected a client.
func (c *collection) wantNoDisconnect(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, text := range c.said {
		t.Errorf("%s: %s", c.name, text)
	}
}

// wantLog waits until the collection of one client has the log of a topic since the
// positions from, and checks each partition: in order, nothing missing and nothing
// twice. What was there before these positions does not count.
func (c *collection) wantLog(t *testing.T, log []testkit.Record, from map[int32]int64) {
	t.Helper()
	type place struct {
		partition int32
		offset    int64
	}
	want, places := map[int32][]string{}, map[string]place{}
	n := 0
	for _, r := range log {
		id, _ := r.Header("ce_id")
		places[id] = place{r.Partition, r.Offset}
		if r.Offset >= from[r.Partition] {
			want[r.Partition] = append(want[r.Partition], id)
			n++
		}
	}
	ids := func() []string {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.DeleteFunc(slices.Clone(c.ids), func(id string) bool {
			at, ok := places[id]
			return ok && at.offset < from[at.partition]
		})
	}
	eventually(t, c.name+" has the log", func() error {
		if got := len(ids()); got < n {
			return fmt.Errorf("%d events, want %d", got, n)
		}
		return nil
	})
	for i, id := range ids() {
		p := places[id].partition
		if len(want[p]) == 0 || want[p][0] != id {
			t.Fatalf("%s: event %d of %d is %s, which is not the next one of partition %d: lost, twice or out of order",
				c.name, i, n, id, p)
		}
		want[p] = want[p][1:]
	}
}

// subscribeInto connects a client that acknowledges whatever comes. Its events go
// to a collection.
func subscribeInto(t *testing.T, address string, acc account, filter string, into *collection) *paho.Client {
	t.Helper()
	client := connectPaho5(t, address, paho.ClientConfig{
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			var event struct {
				ID string `json:"id"`
			}
			if err := json.Unmarshal(p.Packet.Payload, &event); err != nil {
				t.Errorf("%s: %q: %v", into.name, p.Packet.Payload, err)
			}
			into.add(event.ID)
			return true, nil
		}},
		OnServerDisconnect: func(m *paho.Disconnect) {
			into.mu.Lock()
			defer into.mu.Unlock()
			into.said = append(into.said, fmt.Sprintf("DISCONNECT 0x%02x %+v", m.ReasonCode, m.Properties))
		},
	}, acc.user, acc.key)
	suback, err := client.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
	if err != nil {
		t.Fatalf("subscribe to %s: %v, %+v", filter, err, suback)
	}
	return client
}

// commanders send numbered commands, one of each device at a time, to whichever
// address answers, and each again until it is acknowledged.
type commanders struct {
	stop func() // once

	mu           sync.Mutex
	acknowledged []int // by device
	refused      int
	connections  int
}

func startCommanders(t *testing.T, acc account, devices int, addresses ...string) *commanders {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	c := &commanders{acknowledged: make([]int, devices), stop: sync.OnceFunc(func() {
		cancel()
		sending.Wait()
	})}
	t.Cleanup(c.stop)
	for device := range devices {
		sending.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for attempt := device; ctx.Err() == nil; attempt++ { // a connection
				c.send(ctx, t, acc, addresses[attempt%len(addresses)], device, tick.C)
				<-tick.C
			}
		})
	}
	return c
}

// send sends the commands of a device until its connection is lost.
func (c *commanders) send(ctx context.Context, t *testing.T, acc account, address string, device int, tick <-chan time.Time) {
	t.Helper()
	client, _, err := tryPaho5(t, address, paho.ClientConfig{PacketTimeout: patience}, acc.user, acc.key)
	if err != nil {
		return
	}
	defer func() { _ = client.Disconnect(&paho.Disconnect{}) }()
	c.mu.Lock()
	c.connections++
	n := c.acknowledged[device]
	c.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // The client itself waits for an answer that cannot come any more.
		select {
		case <-client.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	for ctx.Err() == nil {
		response, err := client.Publish(ctx, &paho.Publish{
			Topic: "command/" + acc.application + "/" + strconv.Itoa(device) + "/go", QoS: 1, Payload: []byte(strconv.Itoa(n)),
		})
		// The library has an error for refusals as well.
		if response == nil {
			return
		}
		c.mu.Lock()
		if err == nil && response.ReasonCode == 0 {
			n++
			c.acknowledged[device] = n
		} else {
			c.refused++
		}
		c.mu.Unlock()
		<-tick
	}
}

func (c *commanders) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, a := range c.acknowledged {
		n += a
	}
	return n
}

// goOn waits until n more commands were acknowledged.
func (c *commanders) goOn(t *testing.T, n int) {
	t.Helper()
	want := c.total() + n
	eventually(t, "commands are acknowledged", func() error {
		if got := c.total(); got < want {
			return fmt.Errorf("%d, want %d", got, want)
		}
		return nil
	})
}

// wantInKafka checks that every acknowledged command is in Kafka, and that the first
// copies are in order. It returns the number of further copies.
func (c *commanders) wantInKafka(t *testing.T, acc account, records []testkit.Record) (copies int) {
	t.Helper()
	next := map[string]int{}
	for _, r := range records {
		n, err := strconv.Atoi(string(r.Value))
		if err != nil {
			t.Fatalf("record %+v", r)
		}
		switch key := string(r.Key); {
		case n < next[key]:
			copies++
		case n == next[key]:
			next[key]++
		default:
			t.Fatalf("device %s: command %d, want %d", key, n, next[key])
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for device, n := range c.acknowledged {
		if got := next[partitionKey(acc.application, strconv.Itoa(device))]; got < n {
			t.Errorf("device %d: %d commands are in Kafka, %d were acknowledged", device, got, n)
		}
	}
	return copies
}
