package embeddedkafka_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/embeddedkafka"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDataSurvivesARestart(t *testing.T) {
	t.Parallel()
	cfg := embeddedkafka.Config{
		Dir:    t.TempDir(),
		Topics: []embeddedkafka.Topic{{Name: "events-a", Partitions: 2}, {Name: "commands"}},
	}
	first := testkit.EmbeddedKafka(t, cfg)
	testkit.ProduceTo(t, first.Brokers(), "events-a", 1, testkit.Record{Key: []byte("k"), Value: []byte("v")})
	commit(t, first.Brokers(), "group", "events-a", 1, 1)
	first.Close()

	second := testkit.EmbeddedKafka(t, cfg)
	records := testkit.ReadAll(t, second.Brokers(), "events-a")
	if len(records) != 1 || records[0].Partition != 1 || string(records[0].Value) != "v" {
		t.Errorf("records after the restart: %+v, want the one in partition 1", records)
	}
	if got, want := testkit.CommittedOffsets(t, second.Brokers(), "group", "events-a"), (map[int32]int64{1: 1}); !cmp.Equal(got, want) {
		t.Errorf("offsets after the restart: %v, want %v", got, want)
	}
	if got := len(testkit.EndOffsets(t, second.Brokers(), "commands")); got != embeddedkafka.DefaultPartitions {
		t.Errorf("topic without a number has %d partitions, want %d", got, embeddedkafka.DefaultPartitions)
	}
}

func commit(t *testing.T, brokers []string, group, topic string, partition int32, offset int64) {
	t.Helper()
	client, err := sarama.NewClient(brokers, testkit.Sarama())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	coordinator, err := client.Coordinator(group)
	if err != nil {
		t.Fatal(err)
	}
	req := &sarama.OffsetCommitRequest{Version: 7, ConsumerGroup: group, ConsumerGroupGeneration: -1}
	req.AddBlock(topic, partition, offset, 0, "")
	resp, err := coordinator.CommitOffset(req)
	if err != nil {
		t.Fatal(err)
	}
	if code := resp.Errors[topic][partition]; code != sarama.ErrNoError {
		t.Fatalf("commit: %v", code)
	}
}

func TestRunAppliesRetention(t *testing.T) {
	t.Parallel()
	cluster := testkit.EmbeddedKafka(t, embeddedkafka.Config{
		Dir:               t.TempDir(),
		RetentionInterval: 20 * time.Millisecond,
		Topics: []embeddedkafka.Topic{{
			Name: "small", Partitions: 1,
			Settings: map[string]string{"retention.bytes": "100000", "segment.bytes": "50000"},
		}},
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- cluster.Run(ctx) }()
	records := make([]testkit.Record, 100)
	for i := range records {
		records[i].Value = []byte(strings.Repeat("x", 10_000))
	}
	for chunk := range 10 {
		testkit.Produce(t, cluster.Brokers(), "small", records[chunk*10:chunk*10+10]...)
	}
	start := int64(0)
	for deadline := time.Now().Add(10 * time.Second); start < 70 && time.Now().Before(deadline); {
		start = testkit.StartOffsets(t, cluster.Brokers(), "small")[0]
	}
	if start < 70 || start > 95 {
		t.Errorf("the log of 100 records begins at %d, want about 90: 100 kB of 1 MB are kept", start)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestRecordLimitIsThatOfTheConfiguration(t *testing.T) {
	t.Parallel()
	cluster := testkit.EmbeddedKafka(t, embeddedkafka.Config{
		MaxMessageBytes: 10_000,
		Topics:          []embeddedkafka.Topic{{Name: "a", Partitions: 1}},
	})
	producer, err := sarama.NewSyncProducer(cluster.Brokers(), testkit.Sarama())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = producer.Close() }()
	for size, want := range map[int]error{9_000: nil, 11_000: sarama.ErrMessageSizeTooLarge} {
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: "a", Value: sarama.ByteEncoder(make([]byte, size))})
		if !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, want %v", size, err, want)
		}
	}
	if cluster.MaxMessageBytes() != 10_000 {
		t.Errorf("MaxMessageBytes() = %d, want 10000", cluster.MaxMessageBytes())
	}
}

func TestStrangersAreSentAway(t *testing.T) {
	t.Parallel()
	cluster := testkit.EmbeddedKafka(t, embeddedkafka.Config{Topics: []embeddedkafka.Topic{{Name: "a", Partitions: 1}}})
	for name, sent := range map[string]string{
		"HTTP":             "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"unknown request":  "\x00\x00\x00\x0a\x7f\x00\x00\x00\x00\x00\x00\x01\x00\x00",
		"nothing in it":    "\x00\x00\x00\x00\x00\x00\x00\x00",
		"broken off early": "\x00\x00",
	} {
		conn, err := net.Dial("tcp", cluster.Brokers()[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(sent)); err != nil {
			t.Fatal(err)
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			t.Fatalf("connection is a %T", conn)
		}
		// Where one look is enough, it is closed by now.
		if err := tcp.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
			t.Fatal(err)
		}
		if answer, _ := io.ReadAll(conn); len(answer) > 0 {
			t.Errorf("%s: answered %q, want a closed connection", name, answer)
		}
		_ = conn.Close()
	}
	testkit.Produce(t, cluster.Brokers(), "a", testkit.Record{Value: []byte("still alive")})
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	taken := testkit.EmbeddedKafka(t, embeddedkafka.Config{}).Brokers()[0]
	if _, err := embeddedkafka.Start(embeddedkafka.Config{Address: taken}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port in use: %v, want EADDRINUSE", err)
	}
	for _, address := range []string{"0.0.0.0:0", ":9092", "192.0.2.1:0", "example.com:0", "nonsense"} {
		if c, err := embeddedkafka.Start(embeddedkafka.Config{Address: address}); err == nil {
			c.Close()
			t.Errorf("%q: no error, want one: it is not on loopback", address)
		}
	}
	if c, err := embeddedkafka.Start(embeddedkafka.Config{Address: "127.0.0.1:19", Brokers: 2}); err == nil {
		c.Close()
		t.Error("two brokers on one port: no error")
	}
}
