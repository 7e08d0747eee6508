package testkit

import (
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	metrics "github.com/rcrowley/go-metrics"

	"mqtt-integration/libs/testkit/embeddedkafka"
)

// BrokersVariable is the environment variable that names a real Kafka to test
// against, as host:port[,host:port…].
const BrokersVariable = "TEST_KAFKA_BROKERS"

// sarama's metrics keep a goroutine for ever, which every leak test would find.
// They are switched off before anything runs, since readers take no lock.
var _ = func() struct{} {
	metrics.UseNilMetrics = true
	return struct{}{}
}()

// IsRealKafka says whether Kafka returns the brokers of a real Kafka. Where it
// does, topics and groups are shared with other tests and outlive them.
func IsRealKafka() bool { return len(realBrokers()) > 0 }

func realBrokers() []string {
	return strings.FieldsFunc(os.Getenv(BrokersVariable), func(r rune) bool { return r == ',' || r == ' ' })
}

// Kafka returns bootstrap brokers for a test: those of TEST_KAFKA_BROKERS, else
// of an emulated Kafka of this test's own, on disk, which ends with the test.
func Kafka(t testing.TB) []string {
	t.Helper()
	if brokers := realBrokers(); len(brokers) > 0 {
		return brokers
	}
	return EmbeddedKafka(t, embeddedkafka.Config{Dir: t.TempDir()}).Brokers()
}

// EmbeddedKafka starts an emulated Kafka that ends with the test, whatever
// TEST_KAFKA_BROKERS says: for tests that restart it or need its settings.
func EmbeddedKafka(t testing.TB, cfg embeddedkafka.Config) *embeddedkafka.Cluster {
	t.Helper()
	cluster, err := embeddedkafka.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

// UniqueName returns a name that no other test has: lower-case letters, digits
// and inner dashes, at most 40 bytes, so that it is good as an application, a
// topic, a group or a client identifier. It begins with the test's name as far
// as there is room.
func UniqueName(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, r := range strings.ToLower(t.Name()) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	name := b.String()
	// rand.Text has 26 characters of base32; 13 of them are 65 bits.
	name = strings.Trim(name[:min(len(name), 26)], "-")
	return name + "-" + strings.ToLower(rand.Text()[:13])
}

// Sarama returns a sarama configuration that suits every helper here: current
// protocol, synchronous producer with acks=all, short waits.
func Sarama() *sarama.Config {
	cfg := sarama.NewConfig()
	cfg.ClientID = "testkit"
	cfg.Version = sarama.V4_1_0_0
	cfg.Metadata.AllowAutoTopicCreation = false
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Return.Successes = true
	cfg.Consumer.MaxWaitTime = 50 * time.Millisecond
	cfg.Consumer.IsolationLevel = sarama.ReadCommitted
	cfg.Consumer.Return.Errors = true
	return cfg
}

// CreateTopic creates a topic and waits until every partition has a leader. A
// topic that exists already is an error: use UniqueName.
func CreateTopic(t testing.TB, brokers []string, topic string, partitions int32) {
	t.Helper()
	admin := newAdmin(t, brokers)
	defer closeAdmin(t, admin)
	if err := admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: -1}, false); err != nil {
		t.Fatalf("create topic %q: %v", topic, err)
	}
	deadline := time.Now().Add(15 * time.Second)
	for {
		found, err := admin.DescribeTopics([]string{topic})
		if err == nil && len(found) == 1 && allLed(found[0], int(partitions)) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("topic %q has no leader for each of its %d partitions after 15 s: %v", topic, partitions, err)
		}
		pause(t, 20*time.Millisecond)
	}
}

func allLed(topic *sarama.TopicMetadata, partitions int) bool {
	if topic.Err != sarama.ErrNoError || len(topic.Partitions) != partitions {
		return false
	}
	for _, p := range topic.Partitions {
		if p.Err != sarama.ErrNoError || p.Leader < 0 {
			return false
		}
	}
	return true
}

// DeleteTopic deletes a topic. One that does not exist is no error.
func DeleteTopic(t testing.TB, brokers []string, topic string) {
	t.Helper()
	admin := newAdmin(t, brokers)
	defer closeAdmin(t, admin)
	if err := admin.DeleteTopic(topic); err != nil && !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		t.Fatalf("delete topic %q: %v", topic, err)
	}
}

// CommittedOffsets returns the committed offset of each partition of topic in a
// group, without those that have none. A group that does not exist has none.
func CommittedOffsets(t testing.TB, brokers []string, group, topic string) map[int32]int64 {
	t.Helper()
	admin := newAdmin(t, brokers)
	defer closeAdmin(t, admin)
	offsets := map[int32]int64{}
	resp, err := admin.ListConsumerGroupOffsets(group, nil)
	// The emulated Kafka has an error for an unknown group, a real one has not.
	if errors.Is(err, sarama.ErrGroupIDNotFound) || (resp != nil && errors.Is(resp.Err, sarama.ErrGroupIDNotFound)) {
		return offsets
	}
	if err != nil {
		t.Fatalf("offsets of group %q: %v", group, err)
	}
	if resp.Err != sarama.ErrNoError {
		t.Fatalf("offsets of group %q: %v", group, resp.Err)
	}
	for partition, block := range resp.Blocks[topic] {
		if block.Offset >= 0 {
			offsets[partition] = block.Offset
		}
	}
	return offsets
}

// ListGroups returns the names of the consumer groups that begin with prefix.
func ListGroups(t testing.TB, brokers []string, prefix string) []string {
	t.Helper()
	admin := newAdmin(t, brokers)
	defer closeAdmin(t, admin)
	all, err := admin.ListConsumerGroups()
	if err != nil {
		t.Fatalf("list groups: %v", err)
	}
	var groups []string
	for name := range all {
		if strings.HasPrefix(name, prefix) {
			groups = append(groups, name)
		}
	}
	return groups
}

// EndOffsets returns for each partition of topic the offset that the next
// record gets.
func EndOffsets(t testing.TB, brokers []string, topic string) map[int32]int64 {
	t.Helper()
	client := newClient(t, brokers)
	defer closeClient(t, client)
	partitions, err := client.Partitions(topic)
	if err != nil {
		t.Fatalf("partitions of %q: %v", topic, err)
	}
	ends := make(map[int32]int64, len(partitions))
	for _, p := range partitions {
		end, err := client.GetOffset(topic, p, sarama.OffsetNewest)
		if err != nil {
			t.Fatalf("end of %q/%d: %v", topic, p, err)
		}
		ends[p] = end
	}
	return ends
}

func newAdmin(t testing.TB, brokers []string) sarama.ClusterAdmin {
	t.Helper()
	admin, err := sarama.NewClusterAdmin(brokers, Sarama())
	if err != nil {
		t.Fatalf("Kafka admin client of %v: %v", brokers, err)
	}
	return admin
}

func closeAdmin(t testing.TB, admin sarama.ClusterAdmin) {
	t.Helper()
	if err := admin.Close(); err != nil {
		t.Errorf("close Kafka admin client: %v", err)
	}
}

func newClient(t testing.TB, brokers []string) sarama.Client {
	t.Helper()
	client, err := sarama.NewClient(brokers, Sarama())
	if err != nil {
		t.Fatalf("Kafka client of %v: %v", brokers, err)
	}
	return client
}

func closeClient(t testing.TB, client sarama.Client) {
	t.Helper()
	if err := client.Close(); err != nil && !errors.Is(err, sarama.ErrClosedClient) {
		t.Errorf("close Kafka client: %v", err)
	}
}

func pause(t testing.TB, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.Fatal("the test has ended")
	}
}
