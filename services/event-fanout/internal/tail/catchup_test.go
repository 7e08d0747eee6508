package tail

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"

	"mqtt-integration/services/event-fanout/internal/kafka"
)

// fakeKafka has a log of one-record batches from start to end.
type fakeKafka struct {
	start, end int64
	gate       chan struct{} // closed: fetches may go on
	fetches    atomic.Int64
	fail       atomic.Bool
	instead    *sarama.FetchResponseBlock // what fetches bring, if not that log
}

func (k *fakeKafka) Offsets(_ context.Context, _ string, partitions []int32, at int64) (map[int32]int64, error) {
	offset := k.start
	if at == kafka.Latest {
		offset = k.end
	}
	return map[int32]int64{partitions[0]: offset}, nil
}

func (k *fakeKafka) Fetch(ctx context.Context, _ string, _ int32, offset int64, _ int32) (*sarama.FetchResponseBlock, error) {
	k.fetches.Add(1)
	select {
	case <-k.gate:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if k.fail.Load() {
		return nil, errors.New("broken")
	}
	if offset < k.start || offset > k.end {
		return nil, sarama.ErrOffsetOutOfRange
	}
	if k.instead != nil {
		return k.instead, nil
	}
	block := &sarama.FetchResponseBlock{LastStableOffset: k.end, PreferredReadReplica: -1}
	for at := offset - offset%10; at < min(offset-offset%10+10, k.end); at++ {
		block.RecordsSet = append(block.RecordsSet, &sarama.Records{RecordBatch: &sarama.RecordBatch{
			FirstOffset: at, Records: []*sarama.Record{{Value: []byte("value")}},
		}})
	}
	return block, nil
}

type answer struct {
	chunk *Chunk
	err   error
}

func read(c *CatchUp, offset int64) <-chan answer {
	answers := make(chan answer, 1)
	c.Read(kafka.Place{Topic: "t"}, offset, func(chunk *Chunk, err error) { answers <- answer{chunk, err} })
	return answers
}

func newCatchUp(t *testing.T, k *fakeKafka, memory int64) *CatchUp {
	t.Helper()
	c := NewCatchUp(CatchUpConfig{Kafka: k, Decoder: &Decoder{MaxBytes: 1 << 20}, ChunkBytes: 1000, Memory: memory, Concurrency: 2})
	t.Cleanup(c.Close)
	return c
}

func TestChunkIsReadOnceForAll(t *testing.T) {
	t.Parallel()
	k := &fakeKafka{end: 100, gate: make(chan struct{})}
	c := newCatchUp(t, k, 1<<20)
	var answers []<-chan answer
	for range 20 {
		answers = append(answers, read(c, 5))
	}
	close(k.gate)
	for _, ch := range answers {
		got := <-ch
		if got.err != nil || got.chunk.From != 5 || got.chunk.To != 10 || len(got.chunk.Entries) != 5 || got.chunk.Entries[0].Offset != 5 {
			t.Fatalf("got %+v", got)
		}
	}
	if n := k.fetches.Load(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
	if kept := c.Kept(kafka.Place{Topic: "t"}, 7); kept == nil {
		t.Error("the chunk is not kept for others")
	}
	if kept := c.Kept(kafka.Place{Topic: "t"}, 10); kept != nil {
		t.Error("a chunk is kept that was not read")
	}
}

func TestKeptChunksAreBounded(t *testing.T) {
	t.Parallel()
	k := &fakeKafka{end: 10_000, gate: make(chan struct{})}
	close(k.gate)
	const memory = 5 * (maxSlab + 1000)
	c := newCatchUp(t, k, memory)
	for offset := int64(0); offset < k.end; offset += 10 {
		if got := <-read(c, offset); got.err != nil {
			t.Fatal(got.err)
		}
		c.mu.Lock()
		used, length := c.used, c.recent.Len()
		c.mu.Unlock()
		if used > memory || length > 6 {
			t.Fatalf("%d bytes in %d chunks are kept", used, length)
		}
	}
}

func TestConcurrentReadsAreBounded(t *testing.T) {
	t.Parallel()
	k := &fakeKafka{end: 1000, gate: make(chan struct{})}
	c := newCatchUp(t, k, 0)
	var answers []<-chan answer
	for n := range int64(10) {
		answers = append(answers, read(c, n*10))
	}
	time.Sleep(50 * time.Millisecond) // more would have begun by now
	if n := k.fetches.Load(); n > 2 {
		t.Errorf("%d fetches at once, want 2", n)
	}
	close(k.gate)
	for _, ch := range answers {
		if got := <-ch; got.err != nil {
			t.Error(got.err)
		}
	}
}

func TestReadOutOfRange(t *testing.T) {
	t.Parallel()
	k := &fakeKafka{start: 50, end: 100, gate: make(chan struct{})}
	close(k.gate)
	c := newCatchUp(t, k, 0)
	for _, offset := range []int64{0, 200} {
		var out RangeError
		if got := <-read(c, offset); !errors.As(got.err, &out) || out != (RangeError{50, 100}) {
			t.Errorf("at %d: %v, want that the log reaches from 50 to 100", offset, got.err)
		}
	}
	if got := <-read(c, 100); !errors.Is(got.err, errNothing) {
		t.Errorf("at the end: %v, want %v", got.err, errNothing)
	}
	k.fail.Store(true)
	if got := <-read(c, 60); got.err == nil {
		t.Error("no error from a broken Kafka")
	}
}

// Only what is known to hold no records is passed.
func TestEmptyAnswers(t *testing.T) {
	t.Parallel()
	partial := &sarama.Records{RecordBatch: &sarama.RecordBatch{FirstOffset: 5, PartialTrailingRecord: true}}
	for _, tt := range []struct {
		name  string
		block sarama.FetchResponseBlock
		to    int64 // 0: an error
	}{
		{name: "batch that compaction has emptied", block: sarama.FetchResponseBlock{PreferredReadReplica: -1}, to: 6},
		{name: "part of a batch", block: sarama.FetchResponseBlock{PreferredReadReplica: -1, RecordsSet: []*sarama.Records{partial}}},
		{name: "less than the header of a batch", block: sarama.FetchResponseBlock{PreferredReadReplica: -1, Partial: true}},
		{name: "another broker is to be asked", block: sarama.FetchResponseBlock{PreferredReadReplica: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.block.LastStableOffset = 100
			k := &fakeKafka{end: 100, gate: make(chan struct{}), instead: &tt.block}
			close(k.gate)
			got := <-read(newCatchUp(t, k, 0), 5)
			switch {
			case tt.to == 0 && got.err == nil:
				t.Errorf("no error, and offsets 5 to %d are passed", got.chunk.To)
			case tt.to > 0 && (got.err != nil || got.chunk.To != tt.to):
				t.Errorf("%+v, %v, want a chunk up to %d", got.chunk, got.err, tt.to)
			}
		})
	}
}

func TestCloseCallsBack(t *testing.T) {
	t.Parallel()
	k := &fakeKafka{end: 100, gate: make(chan struct{})}
	c := NewCatchUp(CatchUpConfig{Kafka: k, Decoder: &Decoder{MaxBytes: 100}, ChunkBytes: 1000, Concurrency: 1})
	var answers []<-chan answer
	for n := range int64(5) {
		answers = append(answers, read(c, n))
	}
	var closing sync.WaitGroup
	closing.Go(c.Close)
	for _, ch := range answers {
		if got := <-ch; got.err == nil {
			t.Error("a read that was cut off has no error")
		}
	}
	closing.Wait()
}

func TestAbortedTransactionsAndMarkersArePassed(t *testing.T) {
	t.Parallel()
	records := func(offset, producer int64, transactional bool) *sarama.Records {
		return &sarama.Records{RecordBatch: &sarama.RecordBatch{
			FirstOffset: offset, ProducerID: producer, IsTransactional: transactional, Records: []*sarama.Record{{Value: []byte("v")}},
		}}
	}
	marker := func(offset, producer int64, kind byte) *sarama.Records {
		r := records(offset, producer, true)
		r.RecordBatch.Control = true
		r.RecordBatch.Records[0].Key = []byte{0, 0, 0, kind}
		return r
	}
	block := &sarama.FetchResponseBlock{
		AbortedTransactions: []*sarama.AbortedTransaction{{ProducerID: 2, FirstOffset: 7}, {ProducerID: 1, FirstOffset: 0}},
		RecordsSet: []*sarama.Records{
			records(1, 1, true), records(2, 2, true), records(3, 1, false), marker(4, 1, 0), records(5, 1, true),
			marker(6, 2, 1), records(7, 2, true), records(8, 1, true), marker(9, 2, 0), marker(12, 1, 1),
		},
	}
	decoder := &Decoder{MaxBytes: 1000}
	chunk, err := decoder.chunk(kafka.Place{Topic: "t"}, 1, block)
	if err != nil {
		t.Fatal(err)
	}
	var got []int64
	for _, e := range chunk.Entries {
		got = append(got, e.Offset)
	}
	want := []int64{2, 3, 5, 8}
	if len(got) != len(want) || got[0] != 2 || got[1] != 3 || got[2] != 5 || got[3] != 8 {
		t.Errorf("events at %v, want %v", got, want)
	}
	if chunk.To != 13 {
		t.Errorf("the chunk reaches to %d, want 13", chunk.To)
	}
}
