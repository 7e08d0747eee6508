package eventfanout_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/naming"
	"mqtt-integration/libs/testkit"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	eventfanout "mqtt-integration/services/event-fanout"
)

func TestKafkaCutOff(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 2)
	other, _ := newApplication(t, brokers, 1)
	proxy := testkit.NewProxy(t, brokers)
	i := startInstance(t, proxy.Brokers(), func(c *eventfanout.Config) { c.Sessions.OpenTimeout = time.Second })
	f := connect(t, i)
	id := newIdentity(t)
	session := f.attach(id)
	sub := f.subscribe(session, app, 100)
	testkit.ProduceTo(t, brokers, topic, 0, events("a", 3)...)
	got := f.take(sub, 3)

	proxy.Cut()
	f.ack(sub, got...)
	testkit.ProduceTo(t, brokers, topic, 1, events("b", 3)...)
	answer := f.tryOpen(&eventsv1.Open{Session: session, Application: other}).GetSubscriptionError()
	if got, want := answer.GetReason(), eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNAVAILABLE; got != want {
		t.Errorf("open without Kafka: %v, want %v", got, want)
	}
	eventually(t, "not ready", func() bool { return i.health.Ready() != nil })

	proxy.Restore()
	if more := f.take(sub, 3); more[0].partition != 1 || more[0].offset != 0 {
		t.Errorf("got %v, want those of the outage", more)
	}
	eventually(t, "acknowledgements are committed", func() bool {
		return testkit.CommittedOffsets(t, brokers, id.group(), topic)[0] == 3
	})
	eventually(t, "ready", func() bool { return i.health.Ready() == nil })
	f.subscribe(session, other, 1)
}

func TestStartsWithoutKafka(t *testing.T) {
	t.Parallel()
	i := startInstance(t, []string{"127.0.0.1:1"}, func(c *eventfanout.Config) { c.Sessions.OpenTimeout = 300 * time.Millisecond })
	f := connect(t, i)
	answer := f.tryOpen(&eventsv1.Open{Session: f.attach(newIdentity(t)), Application: "foo"}).GetSubscriptionError()
	if got, want := answer.GetReason(), eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNAVAILABLE; got != want {
		t.Errorf("open without Kafka: %v, want %v", got, want)
	}
	if i.health.Ready() == nil {
		t.Error("ready without Kafka")
	}
}

func TestRefusedOpens(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, _ := newApplication(t, brokers, 1)
	f := connect(t, startInstance(t, brokers, nil))
	session := f.attach(newIdentity(t))
	f.subscribe(session, app, 1)
	const prefix = "SUBSCRIPTION_ERROR_REASON_"
	for _, tt := range []struct {
		name, reason, message string
		open                  *eventsv1.Open
	}{
		{
			"no topic", "NO_TOPIC", "no events topic",
			&eventsv1.Open{Session: session, Application: testkit.UniqueName(t)},
		},
		{
			"filter", "UNIMPLEMENTED", "the user property filter is not there yet",
			&eventsv1.Open{Session: session, Application: app, Filter: "device = 'pump'"},
		},
		{"twice", "INVALID", "the session has a subscription of this application", &eventsv1.Open{Session: session, Application: app}},
		{"no session", "INVALID", "the session is not attached", &eventsv1.Open{Session: 99, Application: app}},
		{"name", "INVALID", `application "a/b" has one of the characters / + #`, &eventsv1.Open{Session: session, Application: "a/b"}},
	} {
		answer := f.tryOpen(tt.open).GetSubscriptionError()
		if got := answer.GetReason().String(); got != prefix+tt.reason || answer.GetMessage() != tt.message {
			t.Errorf("%s: %s, %q, want %s, %q", tt.name, got, answer.GetMessage(), prefix+tt.reason, tt.message)
		}
	}
}

func TestTopicIsCreatedWhereConfigured(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	f := connect(t, startInstance(t, brokers, func(c *eventfanout.Config) { c.Topics.Create.Partitions = 3 }))
	app := testkit.UniqueName(t)
	_, opened := f.open(&eventsv1.Open{Session: f.attach(newIdentity(t)), Application: app})
	if got := len(opened.GetPositions()); got != 3 {
		t.Errorf("topic has %d partitions, want 3", got)
	}
	testkit.Produce(t, brokers, naming.EventsTopic(app), event("x"))
}

func TestTheNewestConnectOwnsASession(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, func(c *eventfanout.Config) { c.Sessions.Grace = time.Second })
	old := newIdentity(t)
	young := old
	young.epoch, young.connection = old.epoch+1, old.connection+"-2"
	a, b := connect(t, i), connect(t, i)
	sub := a.subscribe(a.attach(old), app, 10)
	session := b.attach(young)
	lost := a.nextAnswer("SessionError").GetSessionError()
	if lost.GetReason() != eventsv1.SessionErrorReason_SESSION_ERROR_REASON_TAKEN_OVER {
		t.Errorf("the former owner got %v", lost)
	}
	testkit.Produce(t, brokers, topic, event("x"))
	a.quiet(sub, 200*time.Millisecond)
	eventually(t, "the former group is deleted", func() bool { return len(testkit.ListGroups(t, brokers, old.group())) == 0 })
	_, attached := a.tryAttach(old, true)
	if attached.GetStatus() != eventsv1.AttachStatus_ATTACH_STATUS_SUPERSEDED || attached.GetCurrentEpoch().GetTimeMicros() != young.epoch {
		t.Errorf("a late attach of the former owner: %v", attached)
	}
	// A session that left is remembered for a while.
	b.detach(session)
	if _, attached = a.tryAttach(old, false); attached.GetStatus() != eventsv1.AttachStatus_ATTACH_STATUS_SUPERSEDED {
		t.Errorf("an older attach after the newer one left: %v", attached.GetStatus())
	}
}

func TestGroupOfABrokenStreamIsKeptForTheGrace(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, func(c *eventfanout.Config) { c.Sessions.Grace = 2 * time.Second })
	kept, left := newIdentity(t), newIdentity(t)
	f := connect(t, i)
	sub := f.subscribe(f.attach(kept), app, 10)
	f.subscribe(f.attach(left), app, 10)
	testkit.Produce(t, brokers, topic, event("x"))
	f.ack(sub, f.take(sub, 1)...)
	eventually(t, "committed", func() bool { return testkit.CommittedOffsets(t, brokers, kept.group(), topic)[0] == 1 })
	f.close()
	f = connect(t, i)
	f.reattach(kept)
	eventually(t, "the group that was left is deleted", func() bool { return len(testkit.ListGroups(t, brokers, left.group())) == 0 })
	if got := testkit.CommittedOffsets(t, brokers, kept.group(), topic)[0]; got != 1 {
		t.Errorf("the group that was kept is at %d, want 1", got)
	}
}

func TestNewPartitionsBeginAtTheirStart(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	f := connect(t, startInstance(t, brokers, func(c *eventfanout.Config) { c.Topics.RefreshInterval = 300 * time.Millisecond }))
	id := newIdentity(t)
	sub := f.subscribe(f.attach(id), app, 10)
	admin, err := sarama.NewClusterAdmin(brokers, testkit.Sarama())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if err := admin.CreatePartitions(topic, 3, nil, false); err != nil {
		t.Fatal(err)
	}
	testkit.ProduceTo(t, brokers, topic, 2, events("new", 3)...)
	got := f.take(sub, 3)
	if got[0].String() != "2/0" {
		t.Errorf("the first event of the new partition is %v, want 2/0", got[0])
	}
	f.ack(sub, got...)
	eventually(t, "committed", func() bool {
		return cmp.Equal(map[int32]int64{0: 0, 1: 0, 2: 3}, testkit.CommittedOffsets(t, brokers, id.group(), topic))
	})
}

func TestRecordsThatAreNoEvents(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	large, huge := event("large"), event("huge")
	large.Value, huge.Value = bytes.Repeat([]byte("x"), 90_000), bytes.Repeat([]byte("x"), 110_000)
	records := []testkit.Record{
		event("a"),
		{Value: []byte("plain"), Headers: testkit.Headers("content-type", "text/plain")},
		{Key: []byte("k")}, // a tombstone
		large, huge, event("z"),
	}
	for _, tt := range []struct {
		name string
		mode string
		want []string
	}{
		{"wrap", eventfanout.Wrap, []string{"a", topic + "/0/1", "large", "z"}},
		{"skip", eventfanout.Skip, []string{"a", "large", "z"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := startInstance(t, brokers, func(c *eventfanout.Config) {
				c.Events.MaxBytes = 100 * 1000
				c.Events.NonCloudEvents = tt.mode
			})
			f := connect(t, i)
			id := newIdentity(t)
			sub := f.subscribe(f.attach(id), app, 10)
			end := testkit.EndOffsets(t, brokers, topic)[0]
			testkit.ProduceTo(t, brokers, topic, 0, records...)
			got := f.take(sub, len(tt.want))
			var ids []string
			for _, d := range got {
				ids = append(ids, idOf(d.event))
			}
			if tt.mode == eventfanout.Wrap {
				tt.want[1] = fmt.Sprintf("%s/0/%d", topic, end+1)
			}
			if diff := cmp.Diff(tt.want, ids); diff != "" {
				t.Errorf("ids (-want +got):\n%s", diff)
			}
			f.quiet(sub, 100*time.Millisecond)
			f.ack(sub, got...)
			eventually(t, "the position passes all", func() bool {
				return testkit.CommittedOffsets(t, brokers, id.group(), topic)[0] == end+int64(len(records))
			})
		})
	}
}

func TestEventLargerThanTheFrontendTakesIsPassed(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	f := connectWith(t, startInstance(t, brokers, nil), 1<<20)
	sub := f.subscribe(f.attach(newIdentity(t)), app, 10)
	large := event("large")
	large.Value = bytes.Repeat([]byte("x"), int(f.hello.GetMaxEventBytes()))
	testkit.ProduceTo(t, brokers, topic, 0, event("a"), large, event("b"))
	got := f.take(sub, 2)
	if got[0].offset != 0 || got[1].offset != 2 {
		t.Errorf("got %v, want 0/0 and 0/2", got)
	}
}

// transactionally produces records in one transaction each, and aborts those
// whose value is "abort".
func transactionally(t *testing.T, brokers []string, topic string, values ...string) {
	t.Helper()
	conf := testkit.Sarama()
	conf.Producer.Idempotent = true
	conf.Producer.Transaction.ID = testkit.UniqueName(t)
	conf.Producer.Partitioner = sarama.NewManualPartitioner
	conf.Net.MaxOpenRequests = 1
	producer, err := sarama.NewSyncProducer(brokers, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	for _, value := range values {
		if err := producer.BeginTxn(); err != nil {
			t.Fatal(err)
		}
		for n := range 3 {
			record := event(fmt.Sprintf("%s-%d", value, n))
			message := &sarama.ProducerMessage{Topic: topic, Value: sarama.ByteEncoder(record.Value)}
			for _, h := range record.Headers {
				message.Headers = append(message.Headers, sarama.RecordHeader{Key: []byte(h.Name), Value: h.Value})
			}
			if _, _, err := producer.SendMessage(message); err != nil {
				t.Fatal(err)
			}
		}
		finish := producer.CommitTxn
		if value == "abort" {
			finish = producer.AbortTxn
		}
		if err := finish(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTransactions(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, nil)
	f := connect(t, i)
	id := newIdentity(t)
	tailing := f.subscribe(f.attach(id), app, 100)
	transactionally(t, brokers, topic, "one", "abort", "two", "abort", "three")
	want := []string{"one-0", "one-1", "one-2", "two-0", "two-1", "two-2", "three-0", "three-1", "three-2"}
	check := func(name string, got []delivery) {
		t.Helper()
		var ids []string
		for _, d := range got {
			ids = append(ids, idOf(d.event))
		}
		if diff := cmp.Diff(want, ids); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	got := f.take(tailing, len(want))
	check("from the tail", got)
	f.ack(tailing, got...)
	// In another instance, whose ring begins at the end of the log.
	g := connect(t, startInstance(t, brokers, nil))
	behind, _ := g.open(&eventsv1.Open{
		Session: g.attach(newIdentity(t)), Application: app,
		Start: &eventsv1.StartPosition{Position: &eventsv1.StartPosition_Earliest{Earliest: true}},
	})
	check("caught up", g.take(behind, len(want)))
	g.quiet(behind, 100*time.Millisecond)
	testkit.ProduceTo(t, brokers, topic, 0, event("last"))
	last := f.take(tailing, 1)
	f.ack(tailing, last...)
	if more := g.take(behind, 1); more[0].offset != last[0].offset {
		t.Errorf("caught up: got offset %d, want %d", more[0].offset, last[0].offset)
	}
	eventually(t, "the position passes markers", func() bool {
		return testkit.CommittedOffsets(t, brokers, id.group(), topic)[0] == last[0].offset+1
	})
}

func TestRetentionOvertakesASubscription(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	i := startInstance(t, brokers, func(c *eventfanout.Config) { c.Ring.Memory = config.MiB; c.CatchUp.Memory = 0 })
	f := connect(t, i)
	id := newIdentity(t)
	sub := f.subscribe(f.attach(id), app, 2)
	n := 10_000
	testkit.ProduceTo(t, brokers, topic, 0, events("e", n)...)
	got := f.take(sub, 2)
	admin, err := sarama.NewClusterAdmin(brokers, testkit.Sarama())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	// The ring holds the end of this, and the start is gone everywhere.
	eventually(t, "the ring has moved on", func() bool { return len(f.early[sub]) == 0 })
	if err := admin.DeleteRecords(topic, map[int32]int64{0: 5000}); err != nil {
		t.Fatal(err)
	}
	f.ack(sub, got...)
	var skipped *eventsv1.OffsetsSkipped
	next := int64(2)
	for skipped == nil {
		frame := f.next("OffsetsSkipped")
		if batch := frame.GetDeliveries(); batch != nil {
			f.keep(batch) // a chunk that was read before
			more := f.take(sub, len(f.early[sub]))
			next = more[len(more)-1].offset + 1
			f.ack(sub, more...)
			continue
		}
		skipped = frame.GetOffsetsSkipped()
	}
	if skipped.GetSubscription() != sub || skipped.GetPartition() != 0 || skipped.GetCount() != 5000-next {
		t.Errorf("got %v, want %d offsets of subscription %d", skipped, 5000-next, sub)
	}
	if d := f.take(sub, 1)[0]; d.offset != 5000 {
		t.Errorf("went on at %d, want 5000", d.offset)
	}
	eventually(t, "the position moved", func() bool { return testkit.CommittedOffsets(t, brokers, id.group(), topic)[0] == 5000 })
}

func TestRecreatedTopicBeginsAtItsStart(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	f := connect(t, startInstance(t, brokers, nil))
	id := newIdentity(t)
	sub := f.subscribe(f.attach(id), app, 10)
	testkit.ProduceTo(t, brokers, topic, 0, events("old", 8)...)
	f.ack(sub, f.take(sub, 8)...)
	testkit.DeleteTopic(t, brokers, topic)
	// A real Kafka deletes in the background.
	eventually(t, "created again", func() bool {
		admin, err := sarama.NewClusterAdmin(brokers, testkit.Sarama())
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		return admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: -1}, false) == nil
	})
	testkit.ProduceTo(t, brokers, topic, 0, events("new", 3)...)
	got := f.take(sub, 3)
	if idOf(got[0].event) != "new-0" {
		t.Errorf("the first event of the new topic is %q, want new-0", idOf(got[0].event))
	}
	f.ack(sub, got...)
	eventually(t, "the position is that of the new topic", func() bool {
		return testkit.CommittedOffsets(t, brokers, id.group(), topic)[0] == 3
	})
}

func TestUnsubscribeForgetsThePositionCloseKeepsIt(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 1)
	f := connect(t, startInstance(t, brokers, nil))
	id := newIdentity(t)
	session := f.attach(id)
	sub := f.subscribe(session, app, 10)
	testkit.ProduceTo(t, brokers, topic, 0, events("a", 4)...)
	f.ack(sub, f.take(sub, 4)[:2]...)
	f.closeSubscription(sub, false)
	sub = f.subscribe(session, app, 10)
	if got := f.take(sub, 2); got[0].offset != 2 {
		t.Errorf("after a close: went on at %d, want 2", got[0].offset)
	}
	f.closeSubscription(sub, true)
	eventually(t, "forgotten", func() bool { return len(testkit.CommittedOffsets(t, brokers, id.group(), topic)) == 0 })
	sub = f.subscribe(session, app, 10)
	f.quiet(sub, 200*time.Millisecond)
	testkit.ProduceTo(t, brokers, topic, 0, event("b"))
	if got := f.take(sub, 1); got[0].offset != 4 {
		t.Errorf("after unsubscribe: began at %d, want 4", got[0].offset)
	}
}
