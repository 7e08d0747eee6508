package eventfanout_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"mqtt-integration/libs/testkit"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	eventfanout "mqtt-integration/services/event-fanout"
)

var (
	modelSeed  = flag.Uint64("model.seed", 0, "seed of the model test; 0: a random one")
	modelSteps = flag.Int("model.steps", 400, "steps of the model test")
)

// partitionModel is what a client knows of a partition.
type partitionModel struct {
	next    int64          // offset of the next event that must come
	unacked map[int64]bool // delivered, not acknowledged
}

// position is what may be committed at most.
func (p *partitionModel) position() int64 {
	at := p.next
	for offset := range p.unacked {
		at = min(at, offset)
	}
	return at
}

// clientModel is a client with one subscription.
type clientModel struct {
	name       string
	id         identity
	f          *frontend
	session    uint64
	sub        uint64
	window     int
	largest    int // of its windows
	partitions map[int32]*partitionModel
}

func (c *clientModel) outstanding() (n int) {
	for _, p := range c.partitions {
		n += len(p.unacked)
	}
	return n
}

// TestRandomInterleavings has clients do what clients do, in random order, and
// compares what they get with what they have to get: each event once and in
// order, never more than the window, nothing committed that was not acknowledged.
func TestRandomInterleavings(t *testing.T) {
	t.Parallel()
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("to repeat it: -model.seed=%d", seed)
	random := rand.New(rand.NewPCG(seed, 3))
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 3)
	adapt := func(c *eventfanout.Config) {
		c.Ring.Memory = 1 << 20 // events are large, so that it is overtaken
		c.Ring.Linger = 0
		c.CatchUp.ChunkBytes = 64 << 10
		c.CatchUp.Memory = 128 << 10
		c.Commit.Interval = 10 * time.Millisecond
	}
	i := startInstance(t, brokers, adapt)
	ends := map[int32]int64{}
	produced := 0
	produce := func() {
		p := int32(random.IntN(3))
		records := events(strconv.Itoa(produced), 1+random.IntN(60))
		for n := range records {
			records[n].Value = make([]byte, random.IntN(8000))
		}
		produced++
		testkit.ProduceTo(t, brokers, topic, p, records...)
		ends[p] += int64(len(records))
	}
	clients := make([]*clientModel, 4)
	frontends := []*frontend{connect(t, i), connect(t, i)}
	for n := range clients {
		c := &clientModel{name: strconv.Itoa(n), id: newIdentity(t), f: frontends[n%2], window: 1 + random.IntN(50)}
		c.start(t, app, ends, nil)
		clients[n] = c
	}
	for step := range *modelSteps {
		c := clients[random.IntN(len(clients))]
		op := random.IntN(12)
		t.Logf("step %d: client %s: op %d: %v", step, c.name, op, c.state())
		switch op {
		case 0, 1, 2:
			produce()
		case 3, 4, 5, 6:
			c.receive(t, step)
			c.acknowledge(random)
		case 7:
			c.window = 1 + random.IntN(100)
			c.largest = max(c.largest, c.window)
			c.f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Credit{Credit: &eventsv1.Credit{
				Subscription: c.sub, Window: window(uint32(c.window)),
			}}})
		case 8: // the subscription is closed and opened again, without a word on positions
			c.receive(t, step)
			c.f.closeSubscription(c.sub, false)
			c.receive(t, step)
			c.f.early[c.sub] = nil
			for _, p := range c.partitions {
				p.next = p.position()
				clear(p.unacked)
			}
			c.open(t, app, nil)
		case 9: // UNSUBSCRIBE, SUBSCRIBE
			c.f.closeSubscription(c.sub, true)
			c.f.early[c.sub] = nil
			c.start(t, app, ends, &c.session)
		case 10: // a stream breaks
			n := random.IntN(2)
			broken := frontends[n]
			for _, other := range clients {
				if other.f == broken {
					other.receive(t, step)
				}
			}
			broken.close()
			frontends[n] = connect(t, i)
			for _, other := range clients {
				if other.f == broken {
					other.f = frontends[n]
					other.session = other.f.reattach(other.id)
					other.open(t, app, other.resumePoint())
				}
			}
		case 11: // the instance ends, now and then
			if random.IntN(4) > 0 {
				continue
			}
			for _, f := range frontends {
				f.close()
			}
			i.stop()
			i = startInstance(t, brokers, adapt)
			frontends = []*frontend{connect(t, i), connect(t, i)}
			for n, other := range clients {
				other.f = frontends[n%2]
				other.session = other.f.reattach(other.id)
				other.open(t, app, other.resumePoint())
			}
		}
		c.checkCommitted(t, brokers, topic, step)
	}
	// Everything comes in the end.
	for _, c := range clients {
		deadline := time.Now().Add(patience)
		for c.behind(ends) {
			c.receive(t, *modelSteps)
			c.acknowledge(nil)
			if time.Now().After(deadline) {
				t.Fatalf("client %s: has not got everything: %v of %v", c.name, c.partitions, ends)
			}
		}
		eventually(t, "everything is committed", func() bool {
			for p, offset := range testkit.CommittedOffsets(t, brokers, c.id.group(), topic) {
				if offset != ends[p] {
					return false
				}
			}
			return true
		})
	}
}

// start subscribes anew: at the end of the log.
func (c *clientModel) start(t *testing.T, app string, ends map[int32]int64, session *uint64) {
	t.Helper()
	if session == nil {
		c.session = c.f.attach(c.id)
	}
	c.partitions = map[int32]*partitionModel{}
	for p := range int32(3) {
		c.partitions[p] = &partitionModel{next: ends[p], unacked: map[int64]bool{}}
	}
	c.open(t, app, nil)
}

func (c *clientModel) open(t *testing.T, app string, resume *eventsv1.ResumePoint) {
	t.Helper()
	var opened *eventsv1.Opened
	c.largest = max(c.largest, c.window)
	c.sub, opened = c.f.open(&eventsv1.Open{Session: c.session, Application: app, Window: window(uint32(c.window)), Resume: resume})
	for _, at := range opened.GetPositions() {
		if want := c.partitions[at.GetPartition()].next; at.GetOffset() != want {
			t.Fatalf("client %s: opened partition %d at %d, want %d", c.name, at.GetPartition(), at.GetOffset(), want)
		}
	}
}

func (c *clientModel) resumePoint() *eventsv1.ResumePoint {
	point := &eventsv1.ResumePoint{}
	for n, p := range c.partitions {
		position := &eventsv1.ResumePosition{Partition: n, NextOffset: p.next}
		for offset := range p.unacked {
			position.Unacknowledged = append(position.Unacknowledged, &eventsv1.OffsetRange{First: offset, Last: offset})
		}
		point.Positions = append(point.Positions, position)
	}
	return point
}

// receive takes what has come.
func (c *clientModel) receive(t *testing.T, step int) {
	t.Helper()
	timer := time.NewTimer(2 * time.Millisecond)
	defer timer.Stop()
	for waiting := true; waiting; {
		select {
		case frame, ok := <-c.f.frames:
			batch := frame.GetDeliveries()
			if !ok || batch == nil {
				t.Fatalf("step %d: client %s: came: %v", step, c.name, frame)
			}
			c.f.keep(batch)
		case <-timer.C:
			waiting = false
		}
	}
	for _, d := range c.f.early[c.sub] {
		p := c.partitions[d.partition]
		if d.offset != p.next {
			t.Fatalf("step %d: client %s: got %v, want offset %d", step, c.name, d, p.next)
		}
		p.next++
		p.unacked[d.offset] = true
	}
	c.f.early[c.sub] = nil
	if n := c.outstanding(); n > c.largest {
		t.Fatalf("step %d: client %s: %d events are outstanding, the largest window was %d", step, c.name, n, c.largest)
	}
}

// acknowledge acknowledges some events in any order, or all.
func (c *clientModel) acknowledge(random *rand.Rand) {
	var all []delivery
	for n, p := range c.partitions {
		for offset := range p.unacked {
			all = append(all, delivery{partition: n, offset: offset})
		}
	}
	slices.SortFunc(all, func(a, b delivery) int { return int(a.partition-b.partition)*1_000_000 + int(a.offset-b.offset) })
	if random != nil {
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:random.IntN(len(all)+1)]
	}
	for _, d := range all {
		delete(c.partitions[d.partition].unacked, d.offset)
	}
	if len(all) > 0 {
		c.f.ack(c.sub, all...)
	}
}

func (c *clientModel) state() string {
	var b strings.Builder
	for n, p := range c.partitions {
		fmt.Fprintf(&b, " %d: next %d, %d unacknowledged, position %d;", n, p.next, len(p.unacked), p.position())
	}
	return b.String()
}

func (c *clientModel) behind(ends map[int32]int64) bool {
	for n, p := range c.partitions {
		if p.next != ends[n] || len(p.unacked) > 0 {
			return true
		}
	}
	return false
}

func (c *clientModel) checkCommitted(t *testing.T, brokers []string, topic string, step int) {
	t.Helper()
	for n, offset := range testkit.CommittedOffsets(t, brokers, c.id.group(), topic) {
		// What was delivered and not looked at yet is not acknowledged either.
		if limit := c.partitions[n].position(); offset > limit {
			t.Fatalf("step %d: client %s: partition %d: committed %d, but %d is not acknowledged", step, c.name, n, offset, limit)
		}
	}
}
