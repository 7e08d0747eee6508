package eventfanout_test

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/testkit"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	eventfanout "mqtt-integration/services/event-fanout"
)

// openShare opens a share subscription for a session that is owned elsewhere.
func (f *frontend) openShare(application, share string, events uint32) uint64 {
	f.t.Helper()
	id := newIdentity(f.t)
	handle, opened := f.open(&eventsv1.Open{
		Key: id.key, Epoch: &eventsv1.Epoch{TimeMicros: id.epoch, FrontendId: "frontend-1"},
		Application: application, ShareName: share, Window: window(events),
	})
	if len(opened.GetPositions()) > 0 {
		f.t.Errorf("positions of a share subscription: %v", opened)
	}
	return handle
}

// takeSome is what has come for a subscription within d, at least one event.
func (f *frontend) takeSome(subscription uint64, d time.Duration) []delivery {
	f.t.Helper()
	deadline := time.After(d)
	for len(f.early[subscription]) == 0 {
		select {
		case frame := <-f.frames:
			if batch := frame.GetDeliveries(); batch != nil {
				f.keep(batch)
				continue
			}
			f.t.Fatalf("came: %v", frame)
		case <-deadline:
			return nil
		}
	}
	return f.take(subscription, len(f.early[subscription]))
}

// keyed are events of some devices, in turn.
func keyed(prefix string, n, devices int) []testkit.Record {
	records := events(prefix, n)
	for i := range records {
		records[i].Key = fmt.Appendf(nil, "app/device-%d", i%devices)
	}
	return records
}

func shareGroup(application, share string) string {
	return "mqtt/" + escaped(application) + "/" + escaped(share)
}

// escaped is for names with dashes.
func escaped(name string) string {
	var b []byte
	for _, c := range []byte(name) {
		if c == '-' {
			b = append(b, "%2D"...)
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

// partitionsOf is how many partitions the members of a group have, most first.
func partitionsOf(tb testing.TB, brokers []string, group string) [2]int {
	tb.Helper()
	admin, err := sarama.NewClusterAdmin(brokers, testkit.Sarama())
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	described, err := admin.DescribeConsumerGroups([]string{group})
	if err != nil {
		tb.Fatal(err)
	}
	var counts []int
	for _, member := range described[0].Members {
		n := 0
		if assignment, err := member.GetMemberAssignment(); err == nil && assignment != nil {
			for _, partitions := range assignment.Topics {
				n += len(partitions)
			}
		}
		counts = append(counts, n)
	}
	slices.SortFunc(counts, func(a, b int) int { return b - a })
	var most [2]int
	copy(most[:], counts)
	return most
}

func createTopic(tb testing.TB, brokers []string, topic string) error {
	tb.Helper()
	admin, err := sarama.NewClusterAdmin(brokers, testkit.Sarama())
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	return admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: -1}, false)
}

func addPartitions(tb testing.TB, brokers []string, topic string, count int32) {
	tb.Helper()
	admin, err := sarama.NewClusterAdmin(brokers, testkit.Sarama())
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	if err := admin.CreatePartitions(topic, count, nil, false); err != nil {
		tb.Fatal(err)
	}
}

func TestShareGroupOverTwoInstances(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 2)
	one, two := startInstance(t, brokers, nil), startInstance(t, brokers, nil)
	first, second, third := connect(t, one), connect(t, one), connect(t, two)
	subscribers := []*frontend{first, second, third}
	handles := make([]uint64, len(subscribers))
	for i, f := range subscribers {
		handles[i] = f.openShare(app, "g", 20)
	}
	group := shareGroup(app, "g")
	eventually(t, "each instance has a partition", func() bool { return partitionsOf(t, brokers, group) == [2]int{1, 1} })

	const n = 600
	for p := range int32(2) {
		testkit.ProduceTo(t, brokers, topic, p, keyed(strconv.Itoa(int(p)), n/2, 30)...)
	}
	// The third keeps what it gets; the others acknowledge.
	seen := map[string]int{}
	got := make([]int, 3)
	order := map[string]int64{}
	var kept []delivery
	collect := func(i int, acknowledge bool) {
		for _, d := range subscribers[i].takeSome(handles[i], 20*time.Millisecond) {
			seen[d.String()]++
			got[i]++
			key := fmt.Sprint(i, "/", d.partition, "/", d.offset%30)
			if last, ok := order[key]; ok && d.offset <= last {
				t.Errorf("subscriber %d got %v after offset %d of the same device", i, d, last)
			}
			order[key] = d.offset
			if acknowledge {
				subscribers[i].ack(handles[i], d)
			} else {
				kept = append(kept, d)
			}
		}
	}
	eventually(t, "the acknowledging subscribers have everything of their partition", func() bool {
		collect(0, true)
		collect(1, true)
		collect(2, false)
		return got[0]+got[1] >= n/2 && got[2] == 20
	})
	for spot, times := range seen {
		if times != 1 {
			t.Errorf("%s was delivered %d times", spot, times)
		}
	}
	if got[0] == 0 || got[1] == 0 || got[0]+got[1] != n/2 {
		t.Errorf("deliveries per subscriber: %v", got)
	}
	// It leaves: everything that it did not acknowledge goes to the others.
	subscribers[2].closeSubscription(handles[2], true)
	eventually(t, "the others have everything", func() bool {
		collect(0, true)
		collect(1, true)
		return got[0]+got[1] >= n
	})
	for _, d := range kept {
		seen[d.String()]--
	}
	if len(seen) != n {
		t.Errorf("%d different events, want %d", len(seen), n)
	}
	for spot, times := range seen {
		if times != 1 {
			t.Errorf("%s was delivered %d times besides to the leaver", spot, times)
		}
	}
	eventually(t, "everything is committed", func() bool {
		return cmp.Equal(map[int32]int64{0: n / 2, 1: n / 2}, testkit.CommittedOffsets(t, brokers, group, topic))
	})
}

func TestNewShareGroupLosesNothing(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 4)
	f := connect(t, startInstance(t, brokers, nil))
	testkit.Produce(t, brokers, topic, event("before"))
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	for round := range rounds {
		share := fmt.Sprintf("group %d", round)
		sub := f.openShare(app, share, 10)
		want := fmt.Sprintf("round-%d", round)
		testkit.ProduceTo(t, brokers, topic, int32(round%4), event(want))
		got := f.take(sub, 1)[0]
		if idOf(got.event) != want {
			t.Fatalf("got %q, want %q", idOf(got.event), want)
		}
		f.ack(sub, got)
		f.closeSubscription(sub, true)
	}
}

func TestShareGroupContinuesWhereItWasCommitted(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, nil)
	f := connect(t, i)
	testkit.Produce(t, brokers, topic, events("old", 3)...)
	sub := f.openShare(app, "g", 5)
	if got := testkit.CommittedOffsets(t, brokers, shareGroup(app, "g"), topic); got[0] != 3 {
		t.Errorf("committed %v when it was opened, want 3", got)
	}
	testkit.Produce(t, brokers, topic, keyed("new", 10, 3)...)
	got := f.take(sub, 5)
	f.quiet(sub, 200*time.Millisecond) // the window
	f.ack(sub, got[0], got[1], got[3])
	f.take(sub, 3)
	f.closeSubscription(sub, true)
	eventually(t, "the prefix is committed", func() bool {
		return testkit.CommittedOffsets(t, brokers, shareGroup(app, "g"), topic)[0] == 5
	})
	eventually(t, "the group is empty", func() bool { return partitionsOf(t, brokers, shareGroup(app, "g")) == [2]int{} })
	testkit.Produce(t, brokers, topic, event("meanwhile"))
	// On whatever instance.
	f = connect(t, startInstance(t, brokers, nil))
	sub = f.openShare(app, "g", 100)
	offsets := []int64{}
	for _, d := range f.take(sub, 9) {
		offsets = append(offsets, d.offset)
	}
	if diff := cmp.Diff([]int64{5, 6, 7, 8, 9, 10, 11, 12, 13}, offsets); diff != "" {
		t.Errorf("offsets after the return (-want +got):\n%s", diff)
	}
}

func TestLeaversEventsGoToAnotherSubscriberOfTheInstance(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, nil)
	first, second := connect(t, i), connect(t, i)
	a, b := first.openShare(app, "g", 10), second.openShare(app, "g", 100)
	testkit.Produce(t, brokers, topic, keyed("e", 100, 20)...)
	kept := first.take(a, 10)
	seen := map[int64]bool{}
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline) && len(seen) < 100; {
		for _, d := range second.takeSome(b, 20*time.Millisecond) {
			seen[d.offset] = true
			second.ack(b, d)
		}
	}
	for _, d := range kept {
		if seen[d.offset] {
			t.Errorf("%v went to both", d)
		}
	}
	if len(seen) < 10 || len(seen) > 90 {
		t.Errorf("the second subscriber got %d of 100", len(seen))
	}
	first.close() // the frontend is gone
	eventually(t, "the other one has everything", func() bool {
		for _, d := range second.takeSome(b, 20*time.Millisecond) {
			if seen[d.offset] {
				t.Errorf("%v came twice", d)
			}
			seen[d.offset] = true
			second.ack(b, d)
		}
		return len(seen) == 100
	})
	eventually(t, "everything is committed", func() bool {
		return testkit.CommittedOffsets(t, brokers, shareGroup(app, "g"), topic)[0] == 100
	})
}

func TestSubscriberThatAcknowledgesNothingIsEnded(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, func(c *eventfanout.Config) { c.Share.AckTimeout = 500 * time.Millisecond })
	first, second := connect(t, i), connect(t, i)
	// One on the stream of its session, one for a session that is owned elsewhere.
	id := newIdentity(t)
	session := first.attach(id)
	own, _ := first.open(&eventsv1.Open{Session: session, Application: app, ShareName: "g", Window: window(100)})
	foreign := second.openShare(app, "h", 100)
	testkit.Produce(t, brokers, topic, events("e", 3)...)
	first.take(own, 3)
	second.take(foreign, 3)
	for _, tt := range []struct {
		f    *frontend
		want *eventsv1.SessionError
	}{
		{first, &eventsv1.SessionError{Session: session}},
		{second, &eventsv1.SessionError{Subscription: foreign}},
	} {
		got := tt.f.nextAnswer("SessionError").GetSessionError()
		if got.GetSession() != tt.want.GetSession() || got.GetSubscription() != tt.want.GetSubscription() ||
			got.GetReason() != eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ACKNOWLEDGE_TIMEOUT {
			t.Errorf("got %v, want %v", got, tt.want)
		}
	}
	// Its events are for the next one.
	third := connect(t, i)
	sub := third.openShare(app, "g", 100)
	third.take(sub, 3)
	eventually(t, "the session's own group is deleted", func() bool { return len(testkit.ListGroups(t, brokers, id.group())) == 0 })
}

func TestShareGroupReadsNewPartitionsFromTheirStart(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, func(c *eventfanout.Config) { c.Topics.RefreshInterval = 300 * time.Millisecond })
	f := connect(t, i)
	sub := f.openShare(app, "g", 100)
	addPartitions(t, brokers, topic, 3)
	testkit.ProduceTo(t, brokers, topic, 2, events("e", 5)...)
	for n, d := range f.take(sub, 5) {
		if d.partition != 2 || d.offset != int64(n) {
			t.Errorf("got %v, want 2/%d", d, n)
		}
		f.ack(sub, d)
	}
	eventually(t, "the new partition is committed", func() bool {
		return testkit.CommittedOffsets(t, brokers, shareGroup(app, "g"), topic)[2] == 5
	})
}

func TestShareOpenIsRefused(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, _ := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, func(c *eventfanout.Config) { c.Share.MaxGroupsPerApplication = 1; c.Share.MaxGroups = 2 })
	f := connect(t, i)
	id := newIdentity(t)
	epoch := &eventsv1.Epoch{TimeMicros: 1}
	f.openShare(app, "g", 1)
	for _, tt := range []struct {
		name string
		open *eventsv1.Open
		want eventsv1.SubscriptionErrorReason
	}{
		{"no key", &eventsv1.Open{Application: app, ShareName: "g", Epoch: epoch}, eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_INVALID},
		{"no epoch", &eventsv1.Open{Application: app, ShareName: "g", Key: id.key}, eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_INVALID},
		{"unknown session", &eventsv1.Open{Session: 99, Application: app, ShareName: "g"}, eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_INVALID},
		{"share name", &eventsv1.Open{Application: app, ShareName: "g/h", Key: id.key, Epoch: epoch}, eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_INVALID},
		{"filter", &eventsv1.Open{Application: app, ShareName: "g", Filter: "id = '1'", Key: id.key, Epoch: epoch}, eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_INVALID},
		{"no topic", &eventsv1.Open{Application: "missing", ShareName: "g", Key: id.key, Epoch: epoch}, eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_NO_TOPIC},
		{"too many groups", &eventsv1.Open{Application: app, ShareName: "h", Key: id.key, Epoch: epoch}, eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_QUOTA_EXCEEDED},
	} {
		if got := f.tryOpen(tt.open).GetSubscriptionError(); got.GetSubscription() != tt.open.GetSubscription() || got.GetReason() != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	f.openShare(app, "g", 1)
}
