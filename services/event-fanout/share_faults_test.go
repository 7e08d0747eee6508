package eventfanout_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/testkit"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	eventfanout "mqtt-integration/services/event-fanout"
)

// Whoever comes first positions the group, in however many pieces.
func TestNewShareGroupThatTwoInstancesOpenAtOnce(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 4)
	for p := range int32(4) {
		testkit.ProduceTo(t, brokers, topic, p, event("before"))
	}
	frontends := []*frontend{connect(t, startInstance(t, brokers, nil)), connect(t, startInstance(t, brokers, nil))}
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		share := fmt.Sprint("g", round)
		var handles [2]uint64
		for i, f := range frontends {
			id := newIdentity(t)
			handles[i] = f.newHandle()
			f.send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Open{Open: &eventsv1.Open{
				Subscription: handles[i], Key: id.key, Epoch: &eventsv1.Epoch{TimeMicros: id.epoch},
				Application: app, ShareName: share, Window: window(100),
			}}})
		}
		for i, f := range frontends {
			if opened := f.nextAnswer("Opened").GetOpened(); opened.GetSubscription() != handles[i] {
				t.Fatalf("round %d: open on instance %d: %v", round, i, opened)
			}
		}
		want := map[string]bool{}
		for p := range int32(4) {
			id := fmt.Sprintf("%d/%d", round, p)
			want[id] = true
			testkit.ProduceTo(t, brokers, topic, p, event(id))
		}
		// Partitions may be on their way from one to the other: twice is no loss.
		got := map[string]bool{}
		eventually(t, fmt.Sprintf("round %d has all events", round), func() bool {
			for i, f := range frontends {
				for _, d := range f.takeSome(handles[i], 10*time.Millisecond) {
					got[idOf(d.event)] = true
					f.ack(handles[i], d)
				}
			}
			return len(got) >= len(want)
		})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("round %d (-want +got):\n%s", round, diff)
		}
		for i, f := range frontends {
			f.closeSubscription(handles[i], true)
		}
	}
}

func TestShareGroupSurvivesAnOutageOfKafka(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes as long as a session timeout")
	}
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 2)
	proxy := testkit.NewProxy(t, brokers)
	i := startInstance(t, proxy.Brokers(), func(c *eventfanout.Config) { c.Share.SessionTimeout = 6 * time.Second })
	f := connect(t, i)
	sub := f.openShare(app, "g", 100)
	produce := func(prefix string) {
		for p := range int32(2) {
			testkit.ProduceTo(t, brokers, topic, p, keyed(fmt.Sprint(prefix, p), 10, 3)...)
		}
	}
	produce("a")
	held := f.take(sub, 20)
	proxy.Cut()
	produce("b")
	// Longer than Kafka keeps the member.
	f.quiet(sub, 7*time.Second)
	proxy.Restore()
	// Nothing comes twice: what was delivered is still held.
	seen := map[string]bool{}
	for _, d := range held {
		seen[d.String()] = true
	}
	after := f.take(sub, 20)
	for _, d := range after {
		if seen[d.String()] {
			t.Errorf("%v came twice", d)
		}
		seen[d.String()] = true
	}
	f.quiet(sub, 300*time.Millisecond)
	f.ack(sub, held...)
	f.ack(sub, after...)
	eventually(t, "everything is committed", func() bool {
		return cmp.Equal(map[int32]int64{0: 20, 1: 20}, testkit.CommittedOffsets(t, brokers, shareGroup(app, "g"), topic))
	})
}

func TestShareGroupOfARecreatedTopicBeginsAtItsStart(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	f := connect(t, startInstance(t, brokers, nil))
	testkit.Produce(t, brokers, topic, events("old", 50)...)
	sub := f.openShare(app, "g", 100)
	testkit.Produce(t, brokers, topic, events("new", 5)...)
	f.ack(sub, f.take(sub, 5)...)
	eventually(t, "it is committed", func() bool {
		return testkit.CommittedOffsets(t, brokers, shareGroup(app, "g"), topic)[0] == 55
	})
	testkit.DeleteTopic(t, brokers, topic)
	eventually(t, "the topic is created again", func() bool { return createTopic(t, brokers, topic) == nil })
	testkit.Produce(t, brokers, topic, events("again", 3)...)
	got := f.take(sub, 3)
	if got[0].offset != 0 || idOf(got[0].event) != "again-0" {
		t.Errorf("got %v, want the start of the new log", got)
	}
	f.ack(sub, got...)
	eventually(t, "the new position is committed", func() bool {
		return testkit.CommittedOffsets(t, brokers, shareGroup(app, "g"), topic)[0] == 3
	})
}

// An instance that is gone without a word: what it had not committed goes to the
// others once Kafka has noticed.
func TestShareGroupGoesOnWithoutAnInstance(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes as long as a session timeout")
	}
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 2)
	proxy := testkit.NewProxy(t, brokers)
	brief := func(c *eventfanout.Config) { c.Share.SessionTimeout = 6 * time.Second }
	gone, stays := connect(t, startInstance(t, proxy.Brokers(), brief)), connect(t, startInstance(t, brokers, brief))
	lost, sub := gone.openShare(app, "g", 100), stays.openShare(app, "g", 100)
	group := shareGroup(app, "g")
	eventually(t, "each instance has a partition", func() bool { return partitionsOf(t, brokers, group) == [2]int{1, 1} })
	produce := func() {
		for p := range int32(2) {
			testkit.ProduceTo(t, brokers, topic, p, keyed("e", 20, 5)...)
		}
	}
	produce()
	got := gone.take(lost, 20)
	gone.ack(lost, got[:10]...)
	eventually(t, "the prefix is committed", func() bool {
		return testkit.CommittedOffsets(t, brokers, group, topic)[got[0].partition] == 10
	})
	proxy.Cut()
	gone.close()
	produce()
	want := map[string]bool{}
	for offset := range 40 {
		for p := range int32(2) {
			if p != got[0].partition || offset >= 10 {
				want[fmt.Sprintf("%d/%d", p, offset)] = true
			}
		}
	}
	seen := map[string]bool{}
	eventually(t, "the other one has all the rest", func() bool {
		for _, d := range stays.takeSome(sub, 20*time.Millisecond) {
			if seen[d.String()] {
				t.Errorf("%v came twice", d)
			}
			seen[d.String()] = true
			stays.ack(sub, d)
		}
		return len(seen) >= len(want)
	})
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
