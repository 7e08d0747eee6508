package eventfanout_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/testkit"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	eventfanout "mqtt-integration/services/event-fanout"
)

func TestEventProducedAfterOpenedIsDelivered(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 4)
	i := startInstance(t, brokers, nil)
	f := connect(t, i)
	// Before it: must not come.
	testkit.Produce(t, brokers, topic, event("before"))
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	for round := range rounds {
		id := newIdentity(t)
		session := f.attach(id)
		sub := f.subscribe(session, app, 10)
		want := fmt.Sprintf("round-%d", round)
		testkit.ProduceTo(t, brokers, topic, int32(round%4), event(want))
		got := f.take(sub, 1)[0]
		if idOf(got.event) != want {
			t.Fatalf("got %q, want %q", idOf(got.event), want)
		}
		f.ack(sub, got)
		if round%2 == 0 {
			f.closeSubscription(sub, true)
		}
		f.detach(session)
	}
}

func TestStartPositionIsCommittedBeforeOpened(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 2)
	testkit.ProduceTo(t, brokers, topic, 0, events("old", 5)...)
	f := connect(t, startInstance(t, brokers, nil))
	id := newIdentity(t)
	_, opened := f.open(&eventsv1.Open{Session: f.attach(id), Application: app})
	got := testkit.CommittedOffsets(t, brokers, id.group(), topic)
	if diff := cmp.Diff(map[int32]int64{0: 5, 1: 0}, got); diff != "" {
		t.Errorf("committed offsets (-want +got):\n%s", diff)
	}
	positions := map[int32]int64{}
	for _, p := range opened.GetPositions() {
		positions[p.GetPartition()] = p.GetOffset()
	}
	if diff := cmp.Diff(got, positions); diff != "" {
		t.Errorf("Opened (-committed +opened):\n%s", diff)
	}
}

func TestWindowIsExactAndOnlyThePrefixIsCommitted(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	f := connect(t, startInstance(t, brokers, nil))
	id := newIdentity(t)
	session := f.attach(id)
	sub := f.subscribe(session, app, 7)
	testkit.ProduceTo(t, brokers, topic, 0, events("e", 30)...)
	got := f.take(sub, 7)
	f.quiet(sub, 300*time.Millisecond)
	committed := func() int64 { return testkit.CommittedOffsets(t, brokers, id.group(), topic)[0] }
	if c := committed(); c != 0 {
		t.Errorf("committed %d before anything was acknowledged", c)
	}
	// Out of order: the window opens, the position stays.
	f.ack(sub, got[3], got[1], got[2])
	more := f.take(sub, 3)
	f.quiet(sub, 300*time.Millisecond)
	if c := committed(); c != 0 {
		t.Errorf("committed %d while offset 0 is not acknowledged", c)
	}
	f.ack(sub, got[0])
	eventually(t, "the prefix is committed", func() bool { return committed() == 4 })
	f.take(sub, 1)
	// A smaller window takes effect, a larger one at once.
	f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Credit{Credit: &eventsv1.Credit{Subscription: sub, Window: window(2)}}})
	f.ack(sub, got[4], got[5])
	f.quiet(sub, 200*time.Millisecond)
	f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Credit{Credit: &eventsv1.Credit{Subscription: sub, Window: window(9)}}})
	f.take(sub, 4)
	f.quiet(sub, 200*time.Millisecond)
	if more[0].offset != 7 {
		t.Errorf("got offset %d after the window, want 7", more[0].offset)
	}
	eventually(t, "the prefix is committed", func() bool { return committed() == 6 })
	f.detach(session)
	eventually(t, "the group is deleted", func() bool { return len(testkit.ListGroups(t, brokers, id.group())) == 0 })
}

func TestBytesOfTheWindowAreExact(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	f := connect(t, startInstance(t, brokers, nil))
	session := f.attach(newIdentity(t))
	large := make([]testkit.Record, 6)
	for i := range large {
		large[i] = event(strconv.Itoa(i))
		large[i].Value = make([]byte, 10_000)
	}
	sub, _ := f.open(&eventsv1.Open{Session: session, Application: app, Window: &eventsv1.Window{Events: 100, Bytes: 25_000}})
	testkit.ProduceTo(t, brokers, topic, 0, large...)
	got := f.take(sub, 2)
	f.quiet(sub, 200*time.Millisecond)
	// One event is always allowed.
	f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Credit{Credit: &eventsv1.Credit{
		Subscription: sub, Window: &eventsv1.Window{Events: 100, Bytes: 1},
	}}})
	f.ack(sub, got...)
	f.take(sub, 1)
	f.quiet(sub, 200*time.Millisecond)
}

func TestBacklogIsCaughtUpWithAFullWindow(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 4)
	n := 100_000
	if testing.Short() {
		n = 5000
	}
	// The smallest ring there is: nearly everything has to be caught up.
	i := startInstance(t, brokers, func(c *eventfanout.Config) { c.Ring.Memory = 1 << 20; c.CatchUp.ChunkBytes = 256 << 10 })
	f := connect(t, i)
	id := newIdentity(t)
	sub := f.subscribe(f.attach(id), app, 256)
	for p := range int32(4) {
		testkit.ProduceTo(t, brokers, topic, p, events(fmt.Sprintf("p%d", p), n/4)...)
	}
	began := time.Now()
	next := map[int32]int64{}
	for received := 0; received < n; {
		batch := f.take(sub, 1)
		batch = append(batch, f.take(sub, len(f.early[sub]))...)
		for _, d := range batch {
			if d.offset != next[d.partition] {
				t.Fatalf("partition %d: got offset %d, want %d", d.partition, d.offset, next[d.partition])
			}
			next[d.partition]++
		}
		received += len(batch)
		f.ack(sub, batch...)
	}
	t.Logf("drained %d events in %v", n, time.Since(began))
	want := map[int32]int64{}
	for p := range int32(4) {
		want[p] = int64(n / 4)
	}
	eventually(t, "everything is committed", func() bool {
		return cmp.Equal(want, testkit.CommittedOffsets(t, brokers, id.group(), topic))
	})
}

func TestStalledSubscriptionHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, func(c *eventfanout.Config) { c.Ring.Memory = 1 << 20; c.CatchUp.ChunkBytes = 64 << 10 })
	f := connect(t, i)
	stalled := f.subscribe(f.attach(newIdentity(t)), app, 3)
	healthy := f.subscribe(f.attach(newIdentity(t)), app, 100)
	n := 10_000
	testkit.ProduceTo(t, brokers, topic, 0, events("e", n)...)
	for received := 0; received < n; {
		batch := append(f.take(healthy, 1), f.take(healthy, len(f.early[healthy]))...)
		received += len(batch)
		f.ack(healthy, batch...)
	}
	// It goes on where it was, though the ring has long moved on.
	got := f.take(stalled, 3)
	for offset := range int64(500) {
		if got[0].offset != offset {
			t.Fatalf("got offset %d, want %d", got[0].offset, offset)
		}
		f.ack(stalled, got[0])
		got = append(got[1:], f.take(stalled, 1)...)
	}
}

func TestResumeContinuesWithoutGapOrDuplicate(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, nil)
	id := newIdentity(t)
	f := connect(t, i)
	sub := f.subscribe(f.attach(id), app, 5)
	testkit.ProduceTo(t, brokers, topic, 0, events("e", 20)...)
	got := f.take(sub, 5)
	f.ack(sub, got[1], got[2])
	f.take(sub, 2) // 5 and 6
	f.close()

	f = connect(t, i)
	sub, _ = f.open(&eventsv1.Open{
		Session: f.reattach(id), Application: app, Window: window(5),
		Resume: &eventsv1.ResumePoint{Positions: []*eventsv1.ResumePosition{{
			Partition: 0, NextOffset: 7,
			Unacknowledged: []*eventsv1.OffsetRange{{First: 3, Last: 6}, {First: 0, Last: 0}},
		}}},
	})
	f.quiet(sub, 200*time.Millisecond) // 0, 3, 4, 5 and 6 fill the window
	committed := func() int64 { return testkit.CommittedOffsets(t, brokers, id.group(), topic)[0] }
	if c := committed(); c != 0 {
		t.Errorf("committed %d, want 0", c)
	}
	f.ack(sub, got[3], got[4])
	if more := f.take(sub, 2); more[0].offset != 7 || more[1].offset != 8 {
		t.Errorf("got %v after the re-open, want 7 and 8", more)
	}
	f.ack(sub, got[0])
	eventually(t, "the prefix is committed", func() bool { return committed() == 5 })
}

func TestInstanceRestartLosesNothing(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 2)
	id := newIdentity(t)
	first := startInstance(t, brokers, nil)
	f := connect(t, first)
	sub := f.subscribe(f.attach(id), app, 10)
	testkit.ProduceTo(t, brokers, topic, 0, events("a", 4)...)
	got := f.take(sub, 4)
	f.ack(sub, got[:2]...)
	stopped := make(chan struct{})
	go func() { first.stop(); close(stopped) }()
	if goaway := f.nextAnswer("Goaway").GetGoaway(); goaway == nil || len(goaway.GetSubscriptions()) != 0 {
		t.Errorf("got %v, want a goaway for everything", goaway)
	}
	if err := f.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	<-stopped
	if c := testkit.CommittedOffsets(t, brokers, id.group(), topic)[0]; c != 2 {
		t.Errorf("committed %d at the end of the instance, want 2", c)
	}
	// Everything comes that is not acknowledged, without a word from the frontend.
	testkit.ProduceTo(t, brokers, topic, 1, events("b", 1)...)
	f = connect(t, startInstance(t, brokers, nil))
	sub, _ = f.open(&eventsv1.Open{Session: f.reattach(id), Application: app, Resume: &eventsv1.ResumePoint{}})
	seen := map[string]bool{}
	for _, d := range f.take(sub, 3) {
		seen[d.String()] = true
	}
	if diff := cmp.Diff(map[string]bool{"0/2": true, "0/3": true, "1/0": true}, seen); diff != "" {
		t.Errorf("deliveries after the restart (-want +got):\n%s", diff)
	}
}
