//go:build integration

package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"go.uber.org/goleak"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

const (
	// patience is how long anything may take that should not take long, on a
	// machine that is busy with other tests.
	patience = 30 * time.Second
	// quiet is how long nothing has to happen until a test believes that nothing
	// will: several times the interval of commits.
	quiet = 300 * time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client is a connected MQTT client of a test. Everything that should not happen
// fails the test.
type client struct {
	*rawmqtt.Client

	t       *testing.T
	id      string
	user    system.User
	connack rawmqtt.Packet
	packet  uint16
}

// dial says how to connect. The zero value is MQTT 5 with a clean start and an
// identifier of its own.
type dial struct {
	version    rawmqtt.Version
	id         string
	keep       bool // Clean Start 0
	properties rawmqtt.Properties
	// user may have a key, or a token as its name and no key. The zero value is
	// anonymous.
	user system.User
}

func connect(t *testing.T, s *system.System, d dial) *client {
	t.Helper()
	if d.version == 0 {
		d.version = rawmqtt.V5
	}
	if d.id == "" {
		d.id = testkit.UniqueName(t)
	}
	raw, err := rawmqtt.Dial(t.Context(), s.MQTT(), d.version)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(raw.Close)
	c := &client{Client: raw, t: t, id: d.id, user: d.user}
	packet := rawmqtt.Connect{ClientID: d.id, CleanStart: !d.keep, Properties: d.properties}
	if d.user.Name != "" {
		packet.Username = &d.user.Name
	}
	if d.user.Key != "" {
		packet.Password = &d.user.Key
	}
	c.connack = c.exchange(packet, rawmqtt.CONNACK)
	if c.connack.Code != 0 {
		t.Fatalf("connect: %v", c.connack)
	}
	return c
}

func (c *client) send(packets ...rawmqtt.Outgoing) {
	c.t.Helper()
	if err := c.Send(packets...); err != nil {
		c.t.Fatalf("client %s: send: %v", c.id, err)
	}
}

func (c *client) exchange(p rawmqtt.Outgoing, want rawmqtt.Type) rawmqtt.Packet {
	c.t.Helper()
	answer, err := c.Exchange(p, want, patience)
	if err != nil {
		c.t.Fatalf("client %s: %v", c.id, err)
	}
	return answer
}

func (c *client) nextID() uint16 {
	c.packet++
	return c.packet
}

// subscribe subscribes with QoS 1 unless options say something else.
func (c *client) subscribe(filter string, properties ...rawmqtt.Property) {
	c.t.Helper()
	c.subscribeWith(filter, 1, properties...)
}

func (c *client) subscribeWith(filter string, options byte, properties ...rawmqtt.Property) {
	c.t.Helper()
	p := rawmqtt.Subscribe{PacketID: c.nextID(), Filters: []rawmqtt.Filter{{Filter: filter, Options: options}}, Properties: properties}
	suback := c.exchange(p, rawmqtt.SUBACK)
	if suback.PacketID != p.PacketID || len(suback.Codes) != 1 || suback.Codes[0] != options&3 {
		c.t.Fatalf("client %s: subscribe to %q: %v", c.id, filter, suback)
	}
}

// next returns the next packet, which has to be an event.
func (c *client) next() rawmqtt.Packet {
	c.t.Helper()
	p, err := c.Expect(rawmqtt.PUBLISH, patience)
	if err != nil {
		c.t.Fatalf("client %s: %v", c.id, err)
	}
	return p
}

// take returns the next n events.
func (c *client) take(n int) []rawmqtt.Packet {
	c.t.Helper()
	packets := make([]rawmqtt.Packet, n)
	for i := range packets {
		p, err := c.Expect(rawmqtt.PUBLISH, patience)
		if err != nil {
			c.t.Fatalf("client %s: event %d of %d: %v", c.id, i+1, n, err)
		}
		packets[i] = p
	}
	return packets
}

// acknowledge sends the PUBACKs of events, in their order, in one piece.
func (c *client) acknowledge(packets ...rawmqtt.Packet) {
	c.t.Helper()
	acks := make([]rawmqtt.Outgoing, len(packets))
	for i, p := range packets {
		acks[i] = rawmqtt.Ack{PacketID: p.PacketID}
	}
	c.send(acks...)
}

// silent checks that the server sends nothing, though it is there.
func (c *client) silent() {
	c.t.Helper()
	c.exchange(rawmqtt.Ping{}, rawmqtt.PINGRESP)
	if p, err := c.Read(quiet); !errors.Is(err, rawmqtt.ErrTimeout) {
		c.t.Fatalf("client %s: got %v, %v, want nothing", c.id, p, err)
	}
	c.exchange(rawmqtt.Ping{}, rawmqtt.PINGRESP)
}

// isClosed says whether an error of Read means that the server has closed the
// connection.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET)
}

// event is a CloudEvent in binary mode.
func event(id string) testkit.Record {
	return testkit.Record{
		Value: []byte(`{"temperature":21.5}`),
		Headers: testkit.Headers(
			"ce_specversion", "1.0", "ce_id", id, "ce_source", "drogue://app/device", "ce_type", "io.drogue.event.v1",
			"content-type", "application/json",
		),
	}
}

// events are n events with the numbers from first on as their identifiers.
func events(first, n int) []testkit.Record {
	records := make([]testkit.Record, n)
	for i := range records {
		records[i] = event(strconv.Itoa(first + i))
	}
	return records
}

// idOf is the identifier of a structured event.
func idOf(t *testing.T, p rawmqtt.Packet) string {
	t.Helper()
	var e struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(p.Payload, &e); err != nil {
		t.Fatalf("payload %q: %v", p.Payload, err)
	}
	return e.ID
}

// wantNumbers checks that events have the numbers from first on, in order.
func wantNumbers(t *testing.T, packets []rawmqtt.Packet, first int) {
	t.Helper()
	for i, p := range packets {
		if got, want := idOf(t, p), strconv.Itoa(first+i); got != want {
			t.Fatalf("event %d of %d is %q, want %q", i+1, len(packets), got, want)
		}
	}
}

// producer writes to Kafka without the time it takes to connect. It may be used
// from several goroutines.
type producer struct {
	sarama.SyncProducer
}

func newProducer(t *testing.T, brokers []string) producer {
	t.Helper()
	cfg := testkit.Sarama()
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	p, err := sarama.NewSyncProducer(brokers, cfg)
	if err != nil {
		t.Fatalf("Kafka producer: %v", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close Kafka producer: %v", err)
		}
	})
	return producer{p}
}

// send writes records in one go, each to its partition.
func (p producer) send(t *testing.T, topic string, records ...testkit.Record) {
	t.Helper()
	messages := make([]*sarama.ProducerMessage, len(records))
	for i, r := range records {
		m := &sarama.ProducerMessage{Topic: topic, Partition: r.Partition}
		if r.Value != nil {
			m.Value = sarama.ByteEncoder(r.Value)
		}
		if r.Key != nil {
			m.Key = sarama.ByteEncoder(r.Key)
		}
		for _, h := range r.Headers {
			m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h.Name), Value: h.Value})
		}
		messages[i] = m
	}
	if err := p.SendMessages(messages); err != nil {
		t.Fatalf("produce to %q: %v", topic, err)
	}
}

// eventually waits until check finds nothing wrong.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", patience, err)
		}
		<-tick.C
	}
}

// committed are the positions of the one connection of a client.
func committed(t *testing.T, s *system.System, c *client, app system.Application) map[int32]int64 {
	t.Helper()
	return testkit.CommittedOffsets(t, s.Brokers, s.TransientGroup(t, c.user, c.id), app.Topic)
}

// wantCommitted waits until the positions are these, and checks that they stay.
func wantCommitted(t *testing.T, s *system.System, c *client, app system.Application, want map[int32]int64) {
	t.Helper()
	compare := func() error {
		if got := committed(t, s, c, app); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("the committed positions of client %s are %v, want %v", c.id, got, want)
		}
		return nil
	}
	eventually(t, compare)
	c.silent()
	if err := compare(); err != nil {
		t.Fatal(err)
	}
}
