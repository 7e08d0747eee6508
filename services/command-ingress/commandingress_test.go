package commandingress_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcclient"
	"mqtt-integration/libs/testkit"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	commandingress "mqtt-integration/services/command-ingress"
)

func TestMain(m *testing.M) {
	// sarama's circuit breakers leave a goroutine that sleeps for 10 s.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/eapache/go-resiliency/breaker.(*Breaker).timer"))
}

// service is command-ingress on loopback, until the test ends.
type service struct {
	env     daemon.Env
	address string
	stop    func() error
}

func start(t *testing.T, cfg commandingress.Config) *service {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &service{env: daemon.NewEnv(slog.New(slog.NewTextHandler(t.Output(), nil))), address: listener.Addr().String()}
	started := s.env.Health.Register("started") // by then the service's own checks are there
	s.env.Listen = func(context.Context, string, string) (net.Listener, error) {
		started.Set(nil)
		return listener, nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- commandingress.Run(ctx, cfg, s.env) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return s
}

func testConfig(brokers []string, topic string) commandingress.Config {
	cfg := commandingress.DefaultConfig()
	cfg.Kafka.Brokers, cfg.Commands.Topic = brokers, topic
	cfg.Delivery.Timeout, cfg.Delivery.CheckInterval = 2*time.Second, 200*time.Millisecond
	cfg.DrainTimeout = 10 * time.Second
	return cfg
}

func (s *service) ready(t *testing.T, want bool) {
	t.Helper()
	waitFor(t, fmt.Sprintf("ready to be %t", want), func() bool { return (s.env.Health.Ready() == nil) == want })
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

type stream struct {
	commandsv1.CommandsService_PublishClient
	t     testing.TB
	hello *commandsv1.ServerHello
}

func (s *service) open(tb testing.TB) *stream {
	tb.Helper()
	conn, err := grpcclient.New(grpcclient.Config{Addresses: []string{s.address}}, s.env)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	tb.Cleanup(func() {
		cancel()
		if err := conn.Close(); err != nil {
			tb.Error(err)
		}
	})
	rpc, err := commandsv1.NewCommandsServiceClient(conn).Publish(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	st := &stream{rpc, tb, nil}
	if err := rpc.Send(&commandsv1.PublishRequest{Frame: &commandsv1.PublishRequest_Hello{Hello: &commandsv1.ClientHello{FrontendId: "f"}}}); err != nil {
		tb.Fatal(err)
	}
	st.hello = st.receive().GetHello()
	return st
}

func (s *stream) receive() *commandsv1.PublishResponse {
	s.t.Helper()
	f, err := s.Recv()
	if err != nil {
		s.t.Fatalf("Recv() = %v", err)
	}
	return f
}

func (s *stream) send(commands ...*commandsv1.Command) {
	s.t.Helper()
	if err := s.Send(&commandsv1.PublishRequest{Frame: &commandsv1.PublishRequest_Commands{
		Commands: &commandsv1.CommandBatch{Commands: commands},
	}}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stream) results(n int) map[uint64]*commandsv1.Result {
	s.t.Helper()
	all := map[uint64]*commandsv1.Result{}
	for len(all) < n {
		f := s.receive()
		if hello := f.GetHello(); hello != nil {
			s.hello = hello
		}
		for _, r := range f.GetResults().GetResults() {
			if all[r.GetCorrelation()] != nil {
				s.t.Errorf("second result: %v", r)
			}
			all[r.GetCorrelation()] = r
		}
	}
	return all
}

var commandTime = time.Date(2026, 11, 22, 10, 11, 12, 123456789, time.UTC)

func command(correlation uint64, device string) *commandsv1.Command {
	return &commandsv1.Command{
		Correlation: correlation, Id: fmt.Sprintf("019e0a3c-0000-7000-8000-%012d", correlation),
		Application: "example-app", Device: device, Command: "set-temp", Time: timestamppb.New(commandTime),
		Payload: fmt.Append(nil, `{"n": `, correlation, `}`),
	}
}

func TestCommandsArriveToTheLetter(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 7)
	s := start(t, testConfig(brokers, topic))
	s.ready(t, true)
	st := s.open(t)
	c := command(1, "sensor/1 ü")
	c.ContentType, c.Payload = new("text/plain"), []byte("on\x00\xff")
	c.AuthType, c.AuthId = "user", "dev/3f1c"
	c.ResponseTopic, c.CorrelationData = new("reply"), []byte{0, 0xff}
	c.UserProperties = []*commandsv1.UserProperty{{Name: "ce_id", Value: "forged"}}
	c.Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	st.send(c)
	if got := st.results(1)[1]; got.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_OK || got.GetMessage() != "" {
		t.Fatalf("result = %v, want OK", got)
	}
	// OK means that Kafka has it: no waiting here.
	records := testkit.ReadAll(t, brokers, topic)
	if len(records) != 1 {
		t.Fatalf("%d records, want 1", len(records))
	}
	const key = "example%2Dapp/sensor%2F1%20%C3%BC"
	want := testkit.Record{
		Key: []byte(key), Value: []byte("on\x00\xff"),
		Headers: testkit.Headers(
			"ce_specversion", "1.0",
			"ce_id", "019e0a3c-0000-7000-8000-000000000001",
			"ce_source", "drogue://"+key,
			"ce_type", "io.drogue.event.v1",
			"ce_subject", "set-temp",
			"ce_time", "2026-11-22T10:11:12.123456Z",
			"content-type", "text/plain",
			"ce_application", "example-app",
			"ce_device", "sensor/1 ü",
			"ce_sender", "sensor/1 ü",
			"ce_partitionkey", key,
			"ce_instance", "drogue",
			"ce_authtype", "user",
			"ce_authid", "dev/3f1c",
			"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
			"mqtt_response_topic", "reply",
			"mqtt_correlation_data", "\x00\xff",
			"mqtt_user_ce_id", "forged",
		),
		Topic: topic, Partition: int32(crc32.ChecksumIEEE([]byte(key)) % 7),
	}
	got := records[0]
	got.Time = time.Time{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}

func TestCommandsOfADeviceKeepTheirOrder(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 4)
	s := start(t, testConfig(brokers, topic))
	s.ready(t, true)
	st := s.open(t)
	const devices, each = 20, 200
	go func() {
		for i := range uint64(each) {
			var batch []*commandsv1.Command
			for d := range uint64(devices) {
				batch = append(batch, command(i*devices+d, fmt.Sprint("device", d)))
			}
			st.send(batch...)
		}
	}()
	for _, r := range st.results(devices * each) {
		if r.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_OK {
			t.Fatalf("result = %v", r)
		}
	}
	last := map[string]string{}
	records := testkit.ReadAll(t, brokers, topic)
	for _, r := range records {
		id, _ := r.Header("ce_id")
		if before := last[string(r.Key)]; id <= before {
			t.Errorf("%s: %s comes after %s", r.Key, id, before)
		}
		last[string(r.Key)] = id
	}
	if len(records) != devices*each {
		t.Errorf("%d records, want %d", len(records), devices*each)
	}
}

func TestLimitOfKafkaIsToldAndKept(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 1)
	cfg := testConfig(brokers, topic)
	s := start(t, cfg)
	s.ready(t, true)
	st := s.open(t)
	limit := st.hello.GetMaxRecordBytes()
	if limit < 900_000 || limit > int64(cfg.Commands.MaxRecordBytes) {
		t.Errorf("max_record_bytes = %d", limit)
	}
	large := command(1, "d")
	large.Payload = make([]byte, limit-600) // 600 for key and headers
	tooLarge := command(2, "d")
	tooLarge.Payload = make([]byte, limit)
	st.send(large)
	st.send(tooLarge)
	results := st.results(2)
	if got := results[1]; got.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_OK {
		t.Errorf("result of the large one = %v, want OK", got)
	}
	if got := results[2]; got.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_TOO_LARGE {
		t.Errorf("result of the larger one = %v, want TOO_LARGE", got)
	}
}

func TestConfiguredLimitGoesBeforeKafkas(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 1)
	cfg := testConfig(brokers, topic)
	cfg.Commands.MaxRecordBytes = 10 * config.KiB
	s := start(t, cfg)
	s.ready(t, true)
	if got := s.open(t).hello.GetMaxRecordBytes(); got != 10*1024 {
		t.Errorf("max_record_bytes = %d, want 10 KiB", got)
	}
}

func TestKafkaCutOffAndBack(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 2)
	proxy := testkit.NewProxy(t, brokers)
	cfg := testConfig(proxy.Brokers(), topic)
	s := start(t, cfg)
	s.ready(t, true)
	st := s.open(t)
	st.send(command(1, "d"))
	st.results(1)

	proxy.Cut()
	sent := time.Now()
	st.send(command(2, "d"), command(3, "e"))
	for n, r := range st.results(2) {
		if r.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_UNKNOWN_OUTCOME && r.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE {
			t.Errorf("result of %d = %v, want a refusal", n, r)
		}
		if r.GetMessage() == "" || strings.Contains(r.GetMessage(), "127.0.0.1") {
			t.Errorf("message of %d = %q", n, r.GetMessage())
		}
	}
	if took := time.Since(sent); took > cfg.Delivery.Timeout*5/4 {
		t.Errorf("refusal took %v, want at most %v", took, cfg.Delivery.Timeout)
	}
	s.ready(t, false)
	proxy.Restore()
	s.ready(t, true)
	st.send(command(4, "d"))
	if got := st.results(1)[4]; got.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_OK {
		t.Errorf("result after the outage = %v, want OK", got)
	}
}

func TestStopFinishesWhatWasSent(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 2)
	s := start(t, testConfig(brokers, topic))
	s.ready(t, true)
	st := s.open(t)
	var batch []*commandsv1.Command
	for i := range uint64(1000) {
		batch = append(batch, command(i, "d"))
	}
	st.send(batch...)
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	ok, goaway := 0, false
	for ok < 1000 || !goaway {
		f := st.receive()
		goaway = goaway || f.GetGoaway() != nil
		for _, r := range f.GetResults().GetResults() {
			if r.GetStatus() != commandsv1.ResultStatus_RESULT_STATUS_OK {
				t.Fatalf("result = %v", r)
			}
			ok++
		}
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("stream ended with %v, want OK", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Run() = %v", err)
	}
	if got := len(testkit.ReadAll(t, brokers, topic)); got != 1000 {
		t.Errorf("%d records, want 1000", got)
	}
}

func TestMurmur2ByConfiguration(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, 16)
	cfg := testConfig(brokers, topic)
	cfg.Commands.Partitioner = commandingress.Murmur2
	cfg.Commands.Compression = "zstd"
	s := start(t, cfg)
	s.ready(t, true)
	st := s.open(t)
	// Where the Java client puts "app/device1".
	c := command(1, "device1")
	c.Application = "app"
	st.send(c)
	st.results(1)
	if got := testkit.ReadAll(t, brokers, topic)[0].Partition; got != 2 {
		t.Errorf("partition = %d, want 2", got)
	}
}

func TestValidateNamesEveryProblemByItsPath(t *testing.T) {
	t.Parallel()
	if err := commandingress.DefaultConfig().Validate(); err != nil {
		t.Errorf("Validate() of the defaults = %v", err)
	}
	cfg := commandingress.DefaultConfig()
	cfg.GRPC.Address = "0.0.0.0:7003"
	cfg.Kafka.Brokers = nil
	cfg.Commands = commandingress.CommandsConfig{Topic: "a b", Instance: "\x01", Partitioner: "x", Compression: "y"}
	cfg.Delivery = commandingress.DeliveryConfig{}
	cfg.Streams = commandingress.StreamsConfig{}
	cfg.CreateTopics = commandingress.CreateTopicsConfig{Partitions: -1, ReplicationFactor: -1}
	err := cfg.Validate()
	for _, path := range []string{
		"grpc.address", "kafka.brokers", "commands.topic", "commands.instance", "commands.partitioner", "commands.compression",
		"commands.max_record_bytes", "delivery.timeout", "delivery.max_records", "delivery.max_bytes", "delivery.window",
		"delivery.check_interval", "streams.max", "streams.max_in_flight", "create_topics.partitions", "create_topics.replication_factor",
	} {
		if err == nil || !strings.Contains(err.Error(), path+": ") {
			t.Errorf("Validate() does not name %s:\n%v", path, err)
		}
	}
}
