package testkit_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/testkit"
)

func TestRecordsComeBackAsProduced(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 3)

	at := time.Date(2026, 11, 22, 10, 0, 0, int(123*time.Millisecond), time.UTC)
	written := testkit.ProduceTo(t, brokers, topic, 2,
		testkit.Record{Key: []byte("k"), Value: []byte("v"), Headers: testkit.Headers("a", "1", "a", "2"), Time: at},
		testkit.Record{Key: []byte("k"), Time: at},
	)
	if written[0].Partition != 2 || written[0].Offset != 0 || written[1].Offset != 1 {
		t.Errorf("written to %d/%d and offset %d, want 2/0 and offset 1",
			written[0].Partition, written[0].Offset, written[1].Offset)
	}
	if written[1].Value != nil {
		t.Errorf("tombstone has the value %q", written[1].Value)
	}

	got := testkit.ReadAll(t, brokers, topic)
	for i := range got {
		got[i].Time = got[i].Time.UTC()
	}
	if diff := cmp.Diff(written, got); diff != "" {
		t.Errorf("ReadAll (-written +read):\n%s", diff)
	}
	if v, ok := got[0].Header("a"); v != "1" || !ok {
		t.Errorf(`Header("a") = %q, %v, want the first, "1"`, v, ok)
	}
	if want := (map[int32]int64{0: 0, 1: 0, 2: 2}); !cmp.Equal(want, testkit.EndOffsets(t, brokers, topic)) {
		t.Errorf("EndOffsets = %v, want %v", testkit.EndOffsets(t, brokers, topic), want)
	}
}

func TestReaderStartsWhereItWasMade(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 2)
	testkit.Produce(t, brokers, topic, testkit.Record{Key: []byte("a"), Value: []byte("before")})
	r := testkit.NewReader(t, brokers, topic, sarama.OffsetNewest)
	testkit.Produce(t, brokers, topic, testkit.Record{Key: []byte("a"), Value: []byte("after")})
	if got := string(r.Read(1, 10*time.Second)[0].Value); got != "after" {
		t.Errorf("first record is %q, want %q", got, "after")
	}
	if record, ok := r.Next(100 * time.Millisecond); ok {
		t.Errorf("unexpected second record %q", record.Value)
	}
	if got := testkit.Consume(t, brokers, topic, sarama.OffsetOldest, 2, 10*time.Second); string(got[0].Value) != "before" {
		t.Errorf("oldest record is %q, want %q", got[0].Value, "before")
	}
}

func TestCommittedOffsetsOfGroups(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 2)
	group := topic + "-group"
	if got := testkit.CommittedOffsets(t, brokers, group, topic); len(got) != 0 {
		t.Errorf("offsets of an unknown group = %v, want none", got)
	}

	client, err := sarama.NewClient(brokers, testkit.Sarama())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	coordinator, err := client.Coordinator(group)
	if err != nil {
		t.Fatal(err)
	}
	commit := &sarama.OffsetCommitRequest{Version: 7, ConsumerGroup: group, ConsumerGroupGeneration: -1}
	commit.AddBlock(topic, 1, 42, 0, "")
	resp, err := coordinator.CommitOffset(commit)
	if err != nil {
		t.Fatal(err)
	}
	if code := resp.Errors[topic][1]; code != sarama.ErrNoError {
		t.Fatalf("commit: %v", code)
	}

	if got, want := testkit.CommittedOffsets(t, brokers, group, topic), (map[int32]int64{1: 42}); !cmp.Equal(got, want) {
		t.Errorf("CommittedOffsets = %v, want %v", got, want)
	}
	if got, want := testkit.ListGroups(t, brokers, topic), []string{group}; !cmp.Equal(got, want) {
		t.Errorf("ListGroups = %v, want %v", got, want)
	}
}

func TestUniqueNameIsAnApplicationName(t *testing.T) {
	t.Parallel()
	legal := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	seen := map[string]bool{}
	t.Run("Ünusual name, long enough to be cut / somewhere", func(t *testing.T) {
		for range 100 {
			name := testkit.UniqueName(t)
			if !legal.MatchString(name) || len(name) > 40 || seen[name] {
				t.Fatalf("UniqueName = %q: not legal, too long or not unique", name)
			}
			if !strings.HasPrefix(name, "testuniquenameis") {
				t.Fatalf("UniqueName = %q does not begin with the test's name", name)
			}
			seen[name] = true
		}
	})
}
