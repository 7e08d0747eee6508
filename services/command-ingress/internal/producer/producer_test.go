package producer_test

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"go.uber.org/goleak"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/kafkaclient"
	"mqtt-integration/libs/testkit"
	"mqtt-integration/services/command-ingress/internal/producer"
	"mqtt-integration/services/command-ingress/internal/record"
)

func TestMain(m *testing.M) {
	// sarama's circuit breakers leave a goroutine that sleeps for 10 s.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/eapache/go-resiliency/breaker.(*Breaker).timer"))
}

// testConfig has short deadlines; the outages of the tests are measured in them.
func testConfig(brokers []string, topic string) producer.Config {
	return producer.Config{
		Kafka: kafkaclient.Config{Brokers: brokers}, Topic: topic, Partitioner: producer.ConsistentRandom,
		DeliveryTimeout: 2 * time.Second, MaxRecords: 10_000, MaxBytes: 64 << 20, Window: 1000,
		MaxRecordBytes: 2 << 20, CheckInterval: 200 * time.Millisecond,
	}
}

// running is a producer that runs until the test ends.
type running struct {
	*producer.Producer
	env  daemon.Env
	stop func() error
}

func run(t *testing.T, cfg producer.Config) *running {
	t.Helper()
	env := daemon.NewEnv(slog.New(slog.NewTextHandler(t.Output(), nil)))
	p, err := producer.New(cfg, env)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return &running{Producer: p, env: env, stop: stop}
}

// ready waits until the producer is ready, or not.
func (r *running) ready(t *testing.T, want bool) {
	t.Helper()
	waitFor(t, fmt.Sprintf("ready to be %t", want), func() bool { return (r.env.Health.Ready() == nil) == want })
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

// outcomes collects what became of records.
type outcomes struct {
	mu   sync.Mutex
	got  map[uint64]producer.Outcome
	took map[uint64]time.Duration
	sent map[uint64]time.Time
}

func newOutcomes() *outcomes {
	return &outcomes{got: map[uint64]producer.Outcome{}, took: map[uint64]time.Duration{}, sent: map[uint64]time.Time{}}
}

func (o *outcomes) Done(correlation uint64, outcome producer.Outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if before, twice := o.got[correlation]; twice {
		outcome.Message = fmt.Sprintf("second outcome, after %v", before)
	}
	o.got[correlation] = outcome
	o.took[correlation] = time.Since(o.sent[correlation])
}

func (o *outcomes) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.got)
}

// submit sends records that must be accepted.
func (o *outcomes) submit(t *testing.T, p *running, first, n uint64, key string) {
	t.Helper()
	for i := first; i < first+n; i++ {
		o.mu.Lock()
		o.sent[i] = time.Now()
		o.mu.Unlock()
		if outcome, accepted := p.Submit(newRecord(key, strconv.FormatUint(i, 10)), i, o); !accepted {
			t.Fatalf("Submit(%d) = %+v, want it accepted", i, outcome)
		}
	}
}

func (o *outcomes) wait(t *testing.T, n int) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%d outcomes", n), func() bool { return o.len() >= n })
}

// count returns how many records have each status.
func (o *outcomes) count() map[producer.Status]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := map[producer.Status]int{}
	for _, outcome := range o.got {
		m[outcome.Status]++
	}
	return m
}

func newRecord(key, value string) record.Record {
	return record.Record{
		Key: []byte(key), Value: []byte(value),
		Headers: []sarama.RecordHeader{{Key: []byte("ce_id"), Value: []byte(value)}},
	}
}

func newTopic(t *testing.T, brokers []string, partitions int32) string {
	t.Helper()
	topic := testkit.UniqueName(t)
	testkit.CreateTopic(t, brokers, topic, partitions)
	return topic
}

func TestRecordsAreWrittenOnceInOrder(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := newTopic(t, brokers, 4)
	p := run(t, testConfig(brokers, topic))
	o := newOutcomes()
	const n = 5000
	for i := range uint64(n / 10) {
		o.submit(t, p, i*10, 10, fmt.Sprint("device-", i%7))
	}
	o.wait(t, n)
	if got := o.count(); got[producer.Written] != n {
		t.Errorf("outcomes = %v, want %d written", got, n)
	}
	checkOrder(t, testkit.ReadAll(t, brokers, topic), n, n)
	p.ready(t, true)
}

// checkOrder checks that values of one key ascend, and how many different values
// there are.
func checkOrder(t *testing.T, records []testkit.Record, atLeast, atMost int) {
	t.Helper()
	last := map[string]uint64{}
	partition := map[string]int32{}
	seen := map[string]bool{}
	for _, r := range records {
		var n uint64
		if _, err := fmt.Sscan(string(r.Value), &n); err != nil {
			t.Fatal(err)
		}
		key := string(r.Key)
		if before, ok := last[key]; ok && n <= before {
			t.Errorf("%s: %d comes after %d", key, n, before)
		}
		if p, ok := partition[key]; ok && p != r.Partition {
			t.Errorf("%s is in partitions %d and %d", key, p, r.Partition)
		}
		last[key], partition[key] = n, r.Partition
		seen[string(r.Value)] = true
	}
	if len(seen) < atLeast || len(records) > atMost {
		t.Errorf("%d records, %d different; want %d to %d", len(records), len(seen), atLeast, atMost)
	}
}

func TestOutageRefusesInTimeAndEnds(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		cut  func(*testkit.Proxy)
	}{
		{"connections are cut", (*testkit.Proxy).Cut},
		{"nothing is answered", (*testkit.Proxy).Stall},
		{"only answers are lost", (*testkit.Proxy).StallResponses},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			brokers := testkit.Kafka(t)
			topic := newTopic(t, brokers, 3)
			proxy := testkit.NewProxy(t, brokers)
			cfg := testConfig(proxy.Brokers(), topic)
			p := run(t, cfg)
			o := newOutcomes()
			o.submit(t, p, 0, 100, "a")
			o.wait(t, 100)

			tt.cut(proxy)
			o.submit(t, p, 100, 100, "a")
			p.ready(t, false)
			// Refused at once or at their deadline, never later.
			refused := 0
			for i := range uint64(50) {
				o.mu.Lock()
				o.sent[1000+i] = time.Now()
				o.mu.Unlock()
				outcome, accepted := p.Submit(newRecord("a", strconv.FormatUint(1000+i, 10)), 1000+i, o)
				if !accepted {
					refused++
					if outcome.Status != producer.Unavailable || outcome.Message == "" {
						t.Errorf("Submit() = %+v, want it unavailable", outcome)
					}
				}
			}
			o.wait(t, 250-refused)
			counts := o.count()
			if counts[producer.Written] != 100 {
				t.Errorf("outcomes = %v, want nothing written but the first 100", counts)
			}
			o.mu.Lock()
			for n, took := range o.took {
				// Frontends wait a quarter longer; a busy machine may need some of it.
				if took > cfg.DeliveryTimeout*5/4 {
					t.Errorf("outcome of %d %+v took %v, want at most %v", n, o.got[n], took, cfg.DeliveryTimeout)
				}
				if strings.Contains(o.got[n].Message, "127.0.0.1") {
					t.Errorf("message for clients has an address: %q", o.got[n].Message)
				}
			}
			o.mu.Unlock()

			restored := time.Now()
			proxy.Restore()
			p.ready(t, true)
			t.Logf("ready %v after the outage", time.Since(restored))
			o.submit(t, p, 2000, 1000, "a")
			o.wait(t, 1250-refused)
			if after := o.count(); after[producer.Written] != 1100 {
				t.Errorf("outcomes after the outage = %v, want 1100 written", after)
			}
			checkOrder(t, testkit.ReadAll(t, brokers, topic), 1100, 1250)
		})
	}
}

func TestShortOutageGoesUnnoticed(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := newTopic(t, brokers, 3)
	proxy := testkit.NewProxy(t, brokers)
	cfg := testConfig(proxy.Brokers(), topic)
	cfg.DeliveryTimeout = 8 * time.Second
	p := run(t, cfg)
	o := newOutcomes()
	var sent uint64
	for round := range 5 {
		o.submit(t, p, sent, 200, "a")
		sent += 200
		proxy.Cut()
		o.submit(t, p, sent, 200, "b")
		sent += 200
		wait := time.NewTimer(time.Duration(round) * 500 * time.Millisecond)
		<-wait.C
		proxy.Restore()
		o.wait(t, int(sent))
	}
	if got := o.count(); got[producer.Written] != int(sent) {
		t.Errorf("outcomes = %v, want all %d written", got, sent)
	}
	checkOrder(t, testkit.ReadAll(t, brokers, topic), int(sent), int(sent))
}

func TestStartWithoutKafka(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := newTopic(t, brokers, 1)
	proxy := testkit.NewProxy(t, brokers)
	proxy.Cut()
	p := run(t, testConfig(proxy.Brokers(), topic))
	if limits, _ := p.Limits(); limits.MaxRecordBytes != 0 {
		t.Errorf("Limits() = %+v before Kafka was reached", limits)
	}
	_, changed := p.Limits()
	o := newOutcomes()
	o.submit(t, p, 0, 1, "a")
	p.ready(t, false)
	proxy.Restore()
	o.wait(t, 1)
	if got := o.got[0]; got.Status != producer.Written {
		t.Errorf("outcome = %+v, want it written: Kafka came before the deadline", got)
	}
	<-changed
	if limits, _ := p.Limits(); limits.MaxRecordBytes < 900_000 || limits.MaxRecordBytes > 2<<20 {
		t.Errorf("Limits() = %+v, want about 1 MiB", limits)
	}
}

func TestStopWithoutKafkaIsQuick(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*testkit.Proxy){"cut": (*testkit.Proxy).Cut, "stalled": (*testkit.Proxy).Stall}
	for name, cut := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			brokers := testkit.Kafka(t)
			topic := newTopic(t, brokers, 1)
			proxy := testkit.NewProxy(t, brokers)
			cut(proxy)
			cfg := testConfig(proxy.Brokers(), topic)
			cfg.DeliveryTimeout = 30 * time.Second
			p := run(t, cfg)
			o := newOutcomes()
			o.submit(t, p, 0, 10, "a")
			start := time.Now()
			if err := p.stop(); err != nil {
				t.Errorf("Run() = %v", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("stopping took %v", took)
			}
			if got := o.count(); got[producer.Unavailable] != 10 {
				t.Errorf("outcomes = %v, want 10 unavailable", got)
			}
		})
	}
}

func TestStopWritesWhatWasAccepted(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := newTopic(t, brokers, 2)
	p := run(t, testConfig(brokers, topic))
	p.ready(t, true)
	o := newOutcomes()
	o.submit(t, p, 0, 3000, "a")
	if err := p.stop(); err != nil {
		t.Errorf("Run() = %v", err)
	}
	if got := o.count(); got[producer.Written] != 3000 {
		t.Errorf("outcomes = %v, want 3000 written", got)
	}
	if outcome, accepted := p.Submit(newRecord("a", "x"), 1, o); accepted || outcome.Status != producer.Unavailable {
		t.Errorf("Submit() after the stop = %+v, %t", outcome, accepted)
	}
}

func TestTooMuchIsRefusedBeforeMemoryGrows(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := newTopic(t, brokers, 1)
	tests := []struct {
		name   string
		set    func(*producer.Config)
		value  string
		accept int
	}{
		{"records", func(c *producer.Config) { c.MaxRecords = 50 }, "x", 50},
		{"bytes", func(c *producer.Config) { c.MaxBytes = 10_000 }, strings.Repeat("x", 900), 3},
		{"one is always allowed", func(c *producer.Config) { c.MaxBytes = 100 }, strings.Repeat("x", 900), 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			proxy := testkit.NewProxy(t, brokers)
			cfg := testConfig(proxy.Brokers(), topic)
			tt.set(&cfg)
			p := run(t, cfg)
			p.ready(t, true)
			proxy.Stall()
			o := newOutcomes()
			accepted := 0
			for i := range uint64(100) {
				outcome, ok := p.Submit(newRecord("a", tt.value), i, o)
				if ok {
					accepted++
				} else if outcome.Status != producer.Exhausted {
					t.Fatalf("Submit() = %+v, want it exhausted", outcome)
				}
			}
			if accepted != tt.accept {
				t.Errorf("accepted %d records, want %d", accepted, tt.accept)
			}
			// A record has its outcome, and yet counts until sarama has let go of it.
			o.wait(t, accepted)
			proxy.Restore()
			p.ready(t, true)
			waitFor(t, "room", func() bool {
				_, ok := p.Submit(newRecord("a", "again"), 1000, o)
				return ok
			})
			o.wait(t, accepted+1)
		})
	}
}

func TestLargestRecordIsToldAndTaken(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := newTopic(t, brokers, 1)
	p := run(t, testConfig(brokers, topic))
	p.ready(t, true)
	limits, _ := p.Limits()
	o := newOutcomes()
	r := newRecord("a", "")
	for i := range 48 { // as many headers as a command has at most, and more
		r.Headers = append(r.Headers, sarama.RecordHeader{Key: fmt.Append(nil, "mqtt_user_", i), Value: []byte("v")})
	}
	r.Value = make([]byte, int(limits.MaxRecordBytes)-r.Size())
	if outcome, accepted := p.Submit(r, 1, o); !accepted {
		t.Fatalf("Submit(largest) = %+v", outcome)
	}
	o.wait(t, 1)
	if got := o.got[1]; got.Status != producer.Written {
		t.Errorf("outcome of the largest record = %+v, want it written", got)
	}
	r.Value = append(r.Value, 'x')
	if outcome, accepted := p.Submit(r, 2, o); accepted || outcome.Status != producer.TooLarge {
		t.Errorf("Submit(one byte more) = %+v, %t; want it too large", outcome, accepted)
	}
}

func TestManyLargeRecordsAreNotBatchedBeyondTheLimit(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := newTopic(t, brokers, 1)
	p := run(t, testConfig(brokers, topic))
	p.ready(t, true)
	o := newOutcomes()
	for i := range uint64(40) {
		r := newRecord("a", "")
		r.Value = make([]byte, 300_000)
		if outcome, accepted := p.Submit(r, i, o); !accepted {
			t.Fatalf("Submit(%d) = %+v", i, outcome)
		}
	}
	o.wait(t, 40)
	if got := o.count(); got[producer.Written] != 40 {
		t.Errorf("outcomes = %v, want 40 written", got)
	}
}

func TestMissingTopicIsNamed(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	p := run(t, testConfig(brokers, topic))
	waitFor(t, "the topic to be missed", func() bool {
		err := p.env.Health.Ready()
		return err != nil && strings.Contains(err.Error(), "Kafka has no topic "+topic)
	})
	o := newOutcomes()
	outcome, accepted := p.Submit(newRecord("a", "1"), 1, o)
	if accepted || outcome.Status != producer.Unavailable || outcome.Message != "Kafka has no topic "+topic {
		t.Errorf("Submit() = %+v, %t; want it unavailable, with the topic", outcome, accepted)
	}
	testkit.CreateTopic(t, brokers, topic, 1)
	p.ready(t, true)
	o.submit(t, p, 2, 1, "a")
	o.wait(t, 1)
	if got := o.got[2]; got.Status != producer.Written {
		t.Errorf("outcome = %+v once there is a topic, want it written", got)
	}
	testkit.DeleteTopic(t, brokers, topic)
	p.ready(t, false)
}

func TestTopicIsCreatedWhereConfigured(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	topic := testkit.UniqueName(t)
	cfg := testConfig(brokers, topic)
	cfg.CreatePartitions, cfg.CreateReplication = 3, 1
	p := run(t, cfg)
	p.ready(t, true)
	o := newOutcomes()
	o.submit(t, p, 0, 1, "a")
	o.wait(t, 1)
	if got := o.got[0]; got.Status != producer.Written {
		t.Errorf("outcome = %+v, want it written", got)
	}
	client, err := sarama.NewClient(brokers, testkit.Sarama())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}()
	if got, err := client.Partitions(topic); err != nil || len(got) != 3 {
		t.Errorf("partitions = %v, %v; want 3", got, err)
	}
}
