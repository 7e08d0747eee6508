package testkit

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
)

// Record is a Kafka record as a test writes or reads it.
type Record struct {
	// Key decides the partition when producing; nil means any partition.
	Key []byte
	// Value is the payload. Nil is a tombstone.
	Value []byte
	// Headers are in their order in the record; names may repeat.
	Headers []Header
	// Time is the record's timestamp. Zero means now when producing.
	Time time.Time

	// Topic, Partition and Offset say where the record is. They are results:
	// what they hold before producing does not count.
	Topic     string
	Partition int32
	Offset    int64
}

// Header is one header of a record.
type Header struct {
	Name  string
	Value []byte
}

// Header returns the value of the first header of that name, and whether there
// is one.
func (r Record) Header(name string) (string, bool) {
	for _, h := range r.Headers {
		if h.Name == name {
			return string(h.Value), true
		}
	}
	return "", false
}

// Headers makes headers from names and values in turn.
func Headers(namesAndValues ...string) []Header {
	headers := make([]Header, 0, len(namesAndValues)/2)
	for pair := range slices.Chunk(namesAndValues, 2) {
		headers = append(headers, Header{Name: pair[0], Value: []byte(pair[1])})
	}
	return headers
}

// Produce writes records to topic, partitioned by key, and returns them with
// partition and offset once Kafka has acknowledged all of them (acks=all). One
// call is one producer: for many records, make one call.
func Produce(tb testing.TB, brokers []string, topic string, records ...Record) []Record {
	tb.Helper()
	return produce(tb, brokers, topic, sarama.NewHashPartitioner, records)
}

// ProduceTo is Produce with all records in one partition.
func ProduceTo(tb testing.TB, brokers []string, topic string, partition int32, records ...Record) []Record {
	tb.Helper()
	records = slices.Clone(records)
	for i := range records {
		records[i].Partition = partition
	}
	return produce(tb, brokers, topic, sarama.NewManualPartitioner, records)
}

func produce(tb testing.TB, brokers []string, topic string, by sarama.PartitionerConstructor, records []Record) []Record {
	tb.Helper()
	cfg := Sarama()
	cfg.Producer.Partitioner = by
	producer, err := sarama.NewSyncProducer(brokers, cfg)
	if err != nil {
		tb.Fatalf("Kafka producer of %v: %v", brokers, err)
	}
	defer func() {
		if err := producer.Close(); err != nil {
			tb.Errorf("close Kafka producer: %v", err)
		}
	}()
	messages := make([]*sarama.ProducerMessage, len(records))
	for i, r := range records {
		m := &sarama.ProducerMessage{Topic: topic, Partition: r.Partition, Timestamp: r.Time}
		if r.Key != nil {
			m.Key = sarama.ByteEncoder(r.Key)
		}
		if r.Value != nil {
			m.Value = sarama.ByteEncoder(r.Value)
		}
		for _, h := range r.Headers {
			m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h.Name), Value: h.Value})
		}
		messages[i] = m
	}
	if err := producer.SendMessages(messages); err != nil {
		tb.Fatalf("produce to %q: %v", topic, err)
	}
	written := slices.Clone(records)
	for i, m := range messages {
		written[i].Topic, written[i].Partition, written[i].Offset = topic, m.Partition, m.Offset
	}
	return written
}

// ReadAll returns every record that topic holds when it is called, ordered by
// partition and offset.
func ReadAll(tb testing.TB, brokers []string, topic string) []Record {
	tb.Helper()
	client := newClient(tb, brokers)
	defer closeClient(tb, client)
	consumer, err := sarama.NewConsumerFromClient(client)
	if err != nil {
		tb.Fatalf("Kafka consumer: %v", err)
	}
	partitions, err := client.Partitions(topic)
	if err != nil {
		tb.Fatalf("partitions of %q: %v", topic, err)
	}
	slices.Sort(partitions)
	var records []Record
	for _, p := range partitions {
		records = append(records, readPartition(tb, client, consumer, topic, p)...)
	}
	return records
}

func readPartition(tb testing.TB, client sarama.Client, consumer sarama.Consumer, topic string, partition int32) []Record {
	tb.Helper()
	start, err := client.GetOffset(topic, partition, sarama.OffsetOldest)
	if err != nil {
		tb.Fatalf("start of %q/%d: %v", topic, partition, err)
	}
	end, err := client.GetOffset(topic, partition, sarama.OffsetNewest)
	if err != nil {
		tb.Fatalf("end of %q/%d: %v", topic, partition, err)
	}
	if start >= end {
		return nil
	}
	pc, err := consumer.ConsumePartition(topic, partition, start)
	if err != nil {
		tb.Fatalf("consume %q/%d: %v", topic, partition, err)
	}
	defer func() {
		if err := pc.Close(); err != nil {
			tb.Errorf("close consumer of %q/%d: %v", topic, partition, err)
		}
	}()
	var records []Record
	// The last offset of a partition need not be a record: it may be the
	// marker of a transaction or have been compacted away. Then silence ends it.
	idle := time.NewTimer(5 * time.Second)
	defer idle.Stop()
	for {
		select {
		case m := <-pc.Messages():
			if m.Offset < end {
				records = append(records, fromMessage(m))
			}
			if m.Offset >= end-1 {
				return records
			}
			idle.Reset(2 * time.Second)
		case err := <-pc.Errors():
			tb.Fatalf("consume: %v", err)
		case <-idle.C:
			return records
		}
	}
}

// Consume reads n records of topic, beginning in every partition at an offset
// or at sarama.OffsetOldest or sarama.OffsetNewest, in order within each. Fewer
// within timeout fail the test. Records that are produced before Consume has
// looked up OffsetNewest are not seen: use NewReader to fix the position first.
func Consume(tb testing.TB, brokers []string, topic string, from int64, n int, timeout time.Duration) []Record {
	tb.Helper()
	r := NewReader(tb, brokers, topic, from)
	defer r.Close()
	return r.Read(n, timeout)
}

// Reader reads all partitions of one topic from a position that is fixed when
// NewReader returns. It is for one goroutine.
type Reader struct {
	tb       testing.TB
	topic    string
	client   sarama.Client
	parts    []sarama.PartitionConsumer
	records  chan Record
	failures chan error
	stop     chan struct{}
	done     sync.WaitGroup
	closed   sync.Once
}

// NewReader returns a Reader that begins in every partition at an offset or at
// sarama.OffsetOldest or sarama.OffsetNewest. It ends with the test, or with
// Close.
func NewReader(tb testing.TB, brokers []string, topic string, from int64) *Reader {
	tb.Helper()
	r := &Reader{
		tb:       tb,
		topic:    topic,
		client:   newClient(tb, brokers),
		records:  make(chan Record),
		failures: make(chan error, 1),
		stop:     make(chan struct{}),
	}
	tb.Cleanup(r.Close)
	consumer, err := sarama.NewConsumerFromClient(r.client)
	if err != nil {
		tb.Fatalf("Kafka consumer: %v", err)
	}
	partitions, err := r.client.Partitions(topic)
	if err != nil {
		tb.Fatalf("partitions of %q: %v", topic, err)
	}
	for _, p := range partitions {
		at := from
		// ConsumePartition would look the end up too, but only later, and
		// again when the leader changes.
		if from == sarama.OffsetNewest {
			if at, err = r.client.GetOffset(topic, p, sarama.OffsetNewest); err != nil {
				tb.Fatalf("end of %q/%d: %v", topic, p, err)
			}
		}
		pc, err := consumer.ConsumePartition(topic, p, at)
		if err != nil {
			tb.Fatalf("consume %q/%d: %v", topic, p, err)
		}
		r.parts = append(r.parts, pc)
		r.done.Go(func() { r.copy(pc) })
	}
	return r
}

func (r *Reader) copy(pc sarama.PartitionConsumer) {
	for {
		select {
		case <-r.stop:
			return
		case m := <-pc.Messages():
			select {
			case r.records <- fromMessage(m):
			case <-r.stop:
				return
			}
		case err := <-pc.Errors():
			select {
			case r.failures <- err:
			default: // The first one is enough.
			}
		}
	}
}

// Read returns the next n records. Fewer within timeout fail the test.
func (r *Reader) Read(n int, timeout time.Duration) []Record {
	r.tb.Helper()
	records := make([]Record, 0, n)
	deadline := time.Now().Add(timeout)
	for len(records) < n {
		record, ok := r.Next(time.Until(deadline))
		if !ok {
			r.tb.Fatalf("read %q: %d of %d records within %v: %s", r.topic, len(records), n, timeout, r.failure())
		}
		records = append(records, record)
	}
	return records
}

// Next returns the next record, or false when none comes within timeout.
func (r *Reader) Next(timeout time.Duration) (Record, bool) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case record := <-r.records:
		return record, true
	case <-timer.C:
		return Record{}, false
	}
}

func (r *Reader) failure() string {
	select {
	case err := <-r.failures:
		return err.Error()
	default:
		return "no error"
	}
}

// Close ends reading. It may be called more than once.
func (r *Reader) Close() {
	r.tb.Helper()
	r.closed.Do(func() {
		close(r.stop)
		r.done.Wait()
		for _, pc := range r.parts {
			pc.AsyncClose()
		}
		for _, pc := range r.parts {
			drain(pc)
		}
		closeClient(r.tb, r.client)
	})
}

// drain waits for the end of a partition consumer, whose channels have to be
// read until they are closed.
func drain(pc sarama.PartitionConsumer) {
	messages, failures := pc.Messages(), pc.Errors()
	for messages != nil || failures != nil {
		select {
		case _, ok := <-messages:
			if !ok {
				messages = nil
			}
		case _, ok := <-failures:
			if !ok {
				failures = nil
			}
		}
	}
}

func fromMessage(m *sarama.ConsumerMessage) Record {
	record := Record{
		Key: m.Key, Value: m.Value, Time: m.Timestamp,
		Topic: m.Topic, Partition: m.Partition, Offset: m.Offset,
	}
	for _, h := range m.Headers {
		record.Headers = append(record.Headers, Header{Name: string(h.Key), Value: h.Value})
	}
	return record
}
