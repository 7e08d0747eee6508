package testkit

import (
	"crypto/rand"
	"errors"
	"fmt"
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
func Kafka(tb testing.TB) []string {
	tb.Helper()
	if brokers := realBrokers(); len(brokers) > 0 {
		return brokers
	}
	return EmbeddedKafka(tb, embeddedkafka.Config{Dir: tb.TempDir()}).Brokers()
}

// EmbeddedKafka starts an emulated Kafka that ends with the test, whatever
// TEST_KAFKA_BROKERS says: for tests that restart it or need its settings.
func EmbeddedKafka(tb testing.TB, cfg embeddedkafka.Config) *embeddedkafka.Cluster {
	tb.Helper()
	cluster, err := embeddedkafka.Start(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(cluster.Close)
	return cluster
}

// UniqueName returns a name that no other test has: lower-case letters, digits
// and inner dashes, at most 40 bytes, so that it is good as an application, a
// topic, a group or a client identifier. It begins with the test's name as far
// as there is room.
func UniqueName(tb testing.TB) string {
	tb.Helper()
	var b strings.Builder
	for _, r := range strings.ToLower(tb.Name()) {
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

// CreateTopic creates a topic and waits until every partition can be used: a
// real Kafka announces leaders before they have opened their logs. A topic that
// exists already is an error: use UniqueName.
func CreateTopic(tb testing.TB, brokers []string, topic string, partitions int32) {
	tb.Helper()
	admin := newAdmin(tb, brokers)
	defer closeAdmin(tb, admin)
	if err := admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: -1}, false); err != nil {
		tb.Fatalf("create topic %q: %v", topic, err)
	}
	client := newClient(tb, brokers)
	defer closeClient(tb, client)
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := usable(client, topic, int(partitions))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("topic %q cannot be used after 15 s: %v", topic, err)
		}
		pause(tb, 20*time.Millisecond)
	}
}

func usable(client sarama.Client, topic string, partitions int) error {
	if err := client.RefreshMetadata(topic); err != nil {
		return err
	}
	all, err := client.Partitions(topic)
	if err != nil {
		return err
	}
	if len(all) != partitions {
		return fmt.Errorf("it has %d partitions, not %d", len(all), partitions)
	}
	for _, p := range all {
		if _, err := client.GetOffset(topic, p, sarama.OffsetNewest); err != nil {
			return err
		}
	}
	return nil
}

// DeleteTopic deletes a topic. One that does not exist is no error.
func DeleteTopic(tb testing.TB, brokers []string, topic string) {
	tb.Helper()
	admin := newAdmin(tb, brokers)
	defer closeAdmin(tb, admin)
	if err := admin.DeleteTopic(topic); err != nil && !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		tb.Fatalf("delete topic %q: %v", topic, err)
	}
}

// CommittedOffsets returns the committed offset of each partition of topic in a
// group, without those that have none. A group that does not exist has none.
func CommittedOffsets(tb testing.TB, brokers []string, group, topic string) map[int32]int64 {
	tb.Helper()
	admin := newAdmin(tb, brokers)
	defer closeAdmin(tb, admin)
	committed := map[int32]int64{}
	resp, err := admin.ListConsumerGroupOffsets(group, nil)
	// The emulated Kafka has an error for an unknown group, a real one has not.
	if errors.Is(err, sarama.ErrGroupIDNotFound) || (resp != nil && errors.Is(resp.Err, sarama.ErrGroupIDNotFound)) {
		return committed
	}
	if err != nil {
		tb.Fatalf("offsets of group %q: %v", group, err)
	}
	if resp.Err != sarama.ErrNoError {
		tb.Fatalf("offsets of group %q: %v", group, resp.Err)
	}
	for partition, block := range resp.Blocks[topic] {
		if block.Offset >= 0 {
			committed[partition] = block.Offset
		}
	}
	return committed
}

// ListGroups returns the names of the consumer groups that begin with prefix.
func ListGroups(tb testing.TB, brokers []string, prefix string) []string {
	tb.Helper()
	admin := newAdmin(tb, brokers)
	defer closeAdmin(tb, admin)
	all, err := admin.ListConsumerGroups()
	if err != nil {
		tb.Fatalf("list groups: %v", err)
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
func EndOffsets(tb testing.TB, brokers []string, topic string) map[int32]int64 {
	tb.Helper()
	return offsets(tb, brokers, topic, sarama.OffsetNewest)
}

// StartOffsets returns for each partition of topic where its log begins: 0, or
// more once retention has dropped something.
func StartOffsets(tb testing.TB, brokers []string, topic string) map[int32]int64 {
	tb.Helper()
	return offsets(tb, brokers, topic, sarama.OffsetOldest)
}

func offsets(tb testing.TB, brokers []string, topic string, which int64) map[int32]int64 {
	tb.Helper()
	client := newClient(tb, brokers)
	defer closeClient(tb, client)
	partitions, err := client.Partitions(topic)
	if err != nil {
		tb.Fatalf("partitions of %q: %v", topic, err)
	}
	found := make(map[int32]int64, len(partitions))
	for _, p := range partitions {
		if found[p], err = client.GetOffset(topic, p, which); err != nil {
			tb.Fatalf("offset of %q/%d: %v", topic, p, err)
		}
	}
	return found
}

func newAdmin(tb testing.TB, brokers []string) sarama.ClusterAdmin {
	tb.Helper()
	admin, err := sarama.NewClusterAdmin(brokers, Sarama())
	if err != nil {
		tb.Fatalf("Kafka admin client of %v: %v", brokers, err)
	}
	return admin
}

func closeAdmin(tb testing.TB, admin sarama.ClusterAdmin) {
	tb.Helper()
	if err := admin.Close(); err != nil {
		tb.Errorf("close Kafka admin client: %v", err)
	}
}

func newClient(tb testing.TB, brokers []string) sarama.Client {
	tb.Helper()
	client, err := sarama.NewClient(brokers, Sarama())
	if err != nil {
		tb.Fatalf("Kafka client of %v: %v", brokers, err)
	}
	return client
}

func closeClient(tb testing.TB, client sarama.Client) {
	tb.Helper()
	if err := client.Close(); err != nil && !errors.Is(err, sarama.ErrClosedClient) {
		tb.Errorf("close Kafka client: %v", err)
	}
}

func pause(tb testing.TB, d time.Duration) {
	tb.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-tb.Context().Done():
		tb.Fatal("the test has ended")
	}
}
