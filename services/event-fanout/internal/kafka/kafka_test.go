package kafka_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/services/event-fanout/internal/kafka"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCluster(t *testing.T, brokers []string) *kafka.Cluster {
	t.Helper()
	c, err := kafka.New(kafka.Config{
		Brokers: brokers, Requests: 2, Fetches: 2,
		Sarama: func() (*sarama.Config, error) { return testkit.Sarama(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestOffsets(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 2)
	began := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	for n := range 3 {
		testkit.ProduceTo(t, brokers, topic, 1, testkit.Record{Value: []byte("x"), Time: began.Add(time.Duration(n) * time.Minute)})
	}
	c := newCluster(t, brokers)
	partitions, err := c.Partitions(t.Context(), topic)
	if err != nil || !cmp.Equal(partitions, []int32{0, 1}) {
		t.Fatalf("Partitions: %v, %v", partitions, err)
	}
	for _, tt := range []struct {
		name string
		at   int64
		want map[int32]int64
	}{
		{"earliest", kafka.Earliest, map[int32]int64{0: 0, 1: 0}},
		{"latest", kafka.Latest, map[int32]int64{0: 0, 1: 3}},
		{"a time", began.Add(30 * time.Second).UnixMilli(), map[int32]int64{0: 0, 1: 1}},
		{"a time after all", began.Add(2 * time.Hour).UnixMilli(), map[int32]int64{0: 0, 1: 3}},
	} {
		got, err := c.Offsets(t.Context(), topic, partitions, tt.at)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestErrorsAreToldApart(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	c := newCluster(t, brokers)
	if _, err := c.Partitions(t.Context(), topic); !errors.Is(err, kafka.ErrNoTopic) {
		t.Errorf("partitions of a topic that is missing: %v", err)
	}
	testkit.CreateTopic(t, brokers, topic, 1)
	if _, err := c.Fetch(t.Context(), topic, 0, 5, 1000); !errors.Is(err, sarama.ErrOffsetOutOfRange) {
		t.Errorf("fetch behind the end: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	nowhere := newCluster(t, []string{"127.0.0.1:1"})
	if _, err := nowhere.Partitions(ctx, topic); !errors.Is(err, kafka.ErrUnavailable) {
		t.Errorf("partitions without a broker: %v", err)
	}
	if err := nowhere.Group("g").Commit(ctx, map[kafka.Place]int64{{Topic: topic}: 1}, ""); !errors.Is(err, kafka.ErrUnavailable) {
		t.Errorf("commit without a broker: %v", err)
	}
	if err := nowhere.Ping(ctx); !errors.Is(err, kafka.ErrUnavailable) {
		t.Errorf("ping without a broker: %v", err)
	}
}

func TestGroupWithoutMembers(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 2)
	c := newCluster(t, brokers)
	g := c.Group("mqtt-transient/" + topic)
	ctx := t.Context()
	offsets := func() map[kafka.Place]kafka.Committed {
		t.Helper()
		got, err := g.Offsets(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := offsets(); len(got) != 0 {
		t.Errorf("a group that does not exist has %v", got)
	}
	here, there := kafka.Place{Topic: topic, Partition: 0}, kafka.Place{Topic: topic, Partition: 1}
	missing := kafka.Place{Topic: topic + "-missing", Partition: 0}
	if err := g.Commit(ctx, map[kafka.Place]int64{here: 3, there: 4}, "me"); err != nil {
		t.Fatal(err)
	}
	want := map[kafka.Place]kafka.Committed{here: {Offset: 3, Metadata: "me"}, there: {Offset: 4, Metadata: "me"}}
	if diff := cmp.Diff(want, offsets()); diff != "" {
		t.Errorf("offsets (-want +got):\n%s", diff)
	}
	// What can be committed is, and the rest is named.
	err := g.Commit(ctx, map[kafka.Place]int64{here: 7, missing: 1}, "me")
	refused, ok := errors.AsType[kafka.PartitionsError](err)
	if !ok || refused[missing] == nil || refused[here] != nil {
		t.Errorf("commit to a topic that is missing: %v", err)
	}
	if got := offsets()[here].Offset; got != 7 {
		t.Errorf("the other partition is at %d, want 7", got)
	}
	if err := g.Forget(ctx, topic, []int32{0}); err != nil {
		t.Fatal(err)
	}
	if got := offsets(); len(got) != 1 || got[there].Offset != 4 {
		t.Errorf("after Forget: %v", got)
	}
	for range 2 { // the second time it is gone
		if err := g.Delete(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := offsets(); len(got) != 0 {
		t.Errorf("after Delete: %v", got)
	}
}

func TestConnectionsAreMadeAnew(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 1)
	proxy := testkit.NewProxy(t, brokers)
	c := newCluster(t, proxy.Brokers())
	g := c.Group("mqtt-transient/" + topic)
	place := map[kafka.Place]int64{{Topic: topic}: 1}
	for range 3 {
		if err := g.Commit(t.Context(), place, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Fetch(t.Context(), topic, 0, 0, 1000); err != nil {
			if _, err := c.Partitions(t.Context(), topic); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Fetch(t.Context(), topic, 0, 0, 1000); err != nil {
				t.Fatal(err)
			}
		}
		proxy.Cut()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := g.Commit(ctx, place, ""); !errors.Is(err, kafka.ErrUnavailable) {
			t.Errorf("commit while cut off: %v", err)
		}
		cancel()
		proxy.Restore()
	}
}
