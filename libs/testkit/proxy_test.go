package testkit_test

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/embeddedkafka"
)

// quick is a client configuration that gives up soon.
func quick() *sarama.Config {
	cfg := testkit.Sarama()
	cfg.Net.DialTimeout = 2 * time.Second
	cfg.Net.ReadTimeout = 500 * time.Millisecond
	cfg.Metadata.Retry.Max = 1
	cfg.Metadata.Retry.Backoff = 10 * time.Millisecond
	cfg.Metadata.Timeout = 2 * time.Second
	cfg.Producer.Timeout = 500 * time.Millisecond
	cfg.Producer.Retry.Max = 1
	cfg.Producer.Retry.Backoff = 10 * time.Millisecond
	return cfg
}

func TestProxyCarriesAllTraffic(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	if !testkit.IsRealKafka() {
		brokers = testkit.EmbeddedKafka(t, embeddedkafka.Config{Dir: t.TempDir(), Brokers: 3}).Brokers()[:1]
	}
	proxy := testkit.NewProxy(t, brokers)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, proxy.Brokers(), topic, 6)

	client, err := sarama.NewClient(proxy.Brokers(), quick())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	for _, b := range client.Brokers() {
		if slices.Contains(brokers, b.Addr()) {
			t.Errorf("client knows the broker %s behind the proxy", b.Addr())
		}
	}
	for p := range int32(6) {
		testkit.ProduceTo(t, proxy.Brokers(), topic, p, testkit.Record{Value: []byte("x")})
	}
	if got := len(testkit.ReadAll(t, brokers, topic)); got != 6 {
		t.Errorf("%d records behind the proxy, want 6", got)
	}
	coordinator, err := client.Coordinator(topic)
	if err != nil {
		t.Fatal(err)
	}
	if host, _, err := net.SplitHostPort(coordinator.Addr()); err != nil || host != "127.0.0.1" || slices.Contains(brokers, coordinator.Addr()) {
		t.Errorf("coordinator is at %s, want a proxy's address", coordinator.Addr())
	}

	proxy.Cut()
	if _, err := sarama.NewClient(proxy.Brokers(), quick()); err == nil {
		t.Error("a client connects through a cut proxy")
	}
	if err := client.RefreshMetadata(topic); err == nil {
		t.Error("a connected client still works through a cut proxy")
	}
	proxy.Restore()
	if err := client.RefreshMetadata(topic); err != nil {
		t.Errorf("after Restore: %v", err)
	}
	if proxy.Accepted() < 3 {
		t.Errorf("Accepted() = %d, want at least one connection per client", proxy.Accepted())
	}
}

// franz-go uses newer protocol versions than sarama.
func TestProxyWithCurrentProtocolVersions(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	proxy := testkit.NewProxy(t, brokers)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 2)
	client, err := kgo.NewClient(kgo.SeedBrokers(proxy.Brokers()...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.ConsumerGroup(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	fetches := client.PollFetches(t.Context())
	if err := fetches.Err(); err != nil || fetches.NumRecords() != 1 {
		t.Errorf("%d records and error %v, want 1 and none", fetches.NumRecords(), err)
	}
	if proxy.Accepted() < 2 {
		t.Errorf("Accepted() = %d, want the seed's and the broker's connection at least", proxy.Accepted())
	}
}

func TestProxyStallsAnswersOnly(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	proxy := testkit.NewProxy(t, brokers)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 1)
	cfg := quick()
	cfg.Producer.Retry.Max = 0
	producer, err := sarama.NewSyncProducer(proxy.Brokers(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = producer.Close() }()
	if _, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder("one")}); err != nil {
		t.Fatal(err)
	}

	proxy.StallResponses()
	if _, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder("two")}); err == nil {
		t.Error("no error though the answer was held back")
	}
	if got := len(testkit.ReadAll(t, brokers, topic)); got != 2 {
		t.Errorf("%d records in Kafka, want 2: the request went through", got)
	}

	proxy.Restore()
	proxy.Stall()
	if _, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder("three")}); err == nil {
		t.Error("no error though the request was held back")
	}
	if got := len(testkit.ReadAll(t, brokers, topic)); got != 2 {
		t.Errorf("%d records in Kafka, want 2: the request was held back", got)
	}
}
