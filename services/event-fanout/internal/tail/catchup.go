package tail

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/services/event-fanout/internal/kafka"
)

// fetcher is what catching up needs of Kafka.
type fetcher interface {
	offsets
	Fetch(ctx context.Context, topic string, partition int32, offset int64, maxBytes int32) (*sarama.FetchResponseBlock, error)
}

// Chunk is a piece of a partition. It never changes.
type Chunk struct {
	// From and To are the offsets that it covers: From inclusive, To exclusive.
	From, To int64
	Entries  []Entry
	cost     int64
}

// RangeError says that a log does not reach to a position: it begins at Start,
// above the position, or ends at End, below it.
type RangeError struct{ Start, End int64 }

func (e RangeError) Error() string {
	return fmt.Sprintf("the log reaches from %d to %d", e.Start, e.End)
}

// CatchUpConfig is what [NewCatchUp] needs.
type CatchUpConfig struct {
	Kafka   fetcher
	Decoder *Decoder
	// ChunkBytes is how much is read at once, Memory what is kept of it for others.
	ChunkBytes, Memory int64
	// Concurrency is how many chunks are read at the same time.
	Concurrency int
}

// CatchUp reads chunks of partitions, each once for everybody who waits for it.
type CatchUp struct {
	cfg   CatchUpConfig
	slots chan struct{}
	ctx   context.Context // the life of the reads, ended by Close
	end   context.CancelFunc
	done  sync.WaitGroup

	mu      sync.Mutex
	pending map[chunkKey][]func(*Chunk, error)
	kept    map[kafka.Place][]*list.Element
	recent  list.List // of keptChunk, most recently used first
	used    int64
}

type chunkKey struct {
	place  kafka.Place
	offset int64
}

type keptChunk struct {
	place kafka.Place
	chunk *Chunk
}

// NewCatchUp returns a CatchUp that has read nothing yet.
func NewCatchUp(cfg CatchUpConfig) *CatchUp {
	ctx, end := context.WithCancel(context.Background())
	return &CatchUp{
		cfg: cfg, slots: make(chan struct{}, cfg.Concurrency), ctx: ctx, end: end,
		pending: map[chunkKey][]func(*Chunk, error){}, kept: map[kafka.Place][]*list.Element{},
	}
}

// Close ends all reads, calls back who waits for them, and waits for that.
func (c *CatchUp) Close() {
	c.end()
	c.done.Wait()
}

// Kept returns a chunk that covers an offset if there is one in memory.
func (c *CatchUp) Kept(place kafka.Place, offset int64) *Chunk {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, element := range c.kept[place] {
		kept, _ := element.Value.(keptChunk)
		if kept.chunk.From <= offset && offset < kept.chunk.To {
			c.recent.MoveToFront(element)
			return kept.chunk
		}
	}
	return nil
}

// Read reads the chunk at an offset and calls back from another goroutine: with
// the chunk, which covers at least that offset; with a RangeError; or, not before
// a while, with another error after which it is worth trying again. The caller
// bounds how many reads it has under way, each of which keeps a goroutine.
func (c *CatchUp) Read(place kafka.Place, offset int64, callback func(*Chunk, error)) {
	key := chunkKey{place, offset}
	c.mu.Lock()
	defer c.mu.Unlock()
	waiting, reading := c.pending[key]
	c.pending[key] = append(waiting, callback)
	if !reading {
		c.done.Go(func() { c.read(key) })
	}
}

// retryAfter is how long an error holds its callers back.
const retryAfter = 200 * time.Millisecond

func (c *CatchUp) read(key chunkKey) {
	var chunk *Chunk
	err := c.ctx.Err()
	select {
	case c.slots <- struct{}{}:
		if chunk = c.Kept(key.place, key.offset); chunk == nil {
			chunk, err = c.fetch(key)
		}
		<-c.slots
	case <-c.ctx.Done():
		err = c.ctx.Err()
	}
	if err != nil && !errors.As(err, new(RangeError)) {
		sleep(c.ctx, retryAfter)
	}
	c.mu.Lock()
	callbacks := c.pending[key]
	delete(c.pending, key)
	if chunk != nil {
		c.keep(key.place, chunk)
	}
	c.mu.Unlock()
	for _, callback := range callbacks {
		callback(chunk, err)
	}
}

var (
	errNothing    = errors.New("there is nothing to read yet")
	errUnreadable = errors.New("kafka answered with a part of a batch, or named another broker")
)

func (c *CatchUp) fetch(key chunkKey) (*Chunk, error) {
	block, err := c.cfg.Kafka.Fetch(c.ctx, key.place.Topic, key.place.Partition, key.offset, int32(c.cfg.ChunkBytes)) //nolint:gosec // at most 64 MiB
	if errors.Is(err, sarama.ErrOffsetOutOfRange) {
		return nil, c.outOfRange(key)
	}
	if err != nil {
		return nil, err
	}
	chunk, err := c.cfg.Decoder.chunk(key.place, key.offset, block)
	if err != nil {
		return nil, err
	}
	if chunk.To > key.offset {
		return chunk, nil
	}
	if block.Partial || len(block.RecordsSet) > 0 || block.PreferredReadReplica >= 0 {
		// There is something, and we cannot see it: passing it would lose it.
		return nil, errUnreadable
	}
	if key.offset < block.LastStableOffset {
		// sarama hides batches that compaction has emptied, and so how far they
		// reach. They are few; one offset after the other gets over them.
		chunk.To = key.offset + 1
		return chunk, nil
	}
	return nil, errNothing // the end, or an open transaction
}

func (c *CatchUp) outOfRange(key chunkKey) error {
	partition := []int32{key.place.Partition}
	starts, err := c.cfg.Kafka.Offsets(c.ctx, key.place.Topic, partition, kafka.Earliest)
	if err != nil {
		return err
	}
	ends, err := c.cfg.Kafka.Offsets(c.ctx, key.place.Topic, partition, kafka.Latest)
	if err != nil {
		return err
	}
	out := RangeError{Start: starts[key.place.Partition], End: ends[key.place.Partition]}
	if out.Start <= key.offset && key.offset <= out.End {
		return errNothing // it has changed meanwhile: try again
	}
	return out
}

// keep puts a chunk into memory for others, if it is not there yet.
func (c *CatchUp) keep(place kafka.Place, chunk *Chunk) {
	for _, element := range c.kept[place] {
		if kept, _ := element.Value.(keptChunk); kept.chunk == chunk {
			return
		}
	}
	c.kept[place] = append(c.kept[place], c.recent.PushFront(keptChunk{place, chunk}))
	c.used += chunk.cost
	for c.used > c.cfg.Memory {
		oldest := c.recent.Back()
		gone, _ := oldest.Value.(keptChunk)
		c.recent.Remove(oldest)
		c.used -= gone.chunk.cost
		rest := c.kept[gone.place]
		for i := range rest {
			if rest[i] == oldest {
				rest[i] = rest[len(rest)-1]
				rest[len(rest)-1] = nil
				rest = rest[:len(rest)-1]
				break
			}
		}
		if len(rest) == 0 {
			delete(c.kept, gone.place)
		} else {
			c.kept[gone.place] = rest
		}
	}
}

// chunk decodes what a fetch at an offset brought: committed records only.
func (d *Decoder) chunk(place kafka.Place, from int64, block *sarama.FetchResponseBlock) (*Chunk, error) {
	chunk := &Chunk{From: from, To: from, cost: blockSize}
	o := outcomes{decoder: d}
	defer o.flush()
	w := chunkWriter{chunk: chunk}
	aborted := newAborted(block.AbortedTransactions)
	var record cloudevent.Record
	add := func(offset int64, key, value []byte, headers []*sarama.RecordHeader, timestamp time.Time) {
		if offset < from {
			return // brokers return whole batches
		}
		recordOf(&record, place.Topic, place.Partition, offset, key, value, headers, timestamp)
		if event, size, deliver := o.decode(&record); deliver {
			w.add(offset, &event, size)
		}
	}
	for _, records := range block.RecordsSet {
		switch {
		case records.RecordBatch != nil:
			batch := records.RecordBatch
			if batch.PartialTrailingRecord {
				return chunk, nil
			}
			skip, err := aborted.skips(batch)
			if err != nil {
				return nil, err
			}
			if !skip {
				for _, r := range batch.Records {
					timestamp := batch.FirstTimestamp.Add(r.TimestampDelta)
					if batch.LogAppendTime {
						timestamp = batch.MaxTimestamp
					}
					add(batch.FirstOffset+r.OffsetDelta, r.Key, r.Value, r.Headers, timestamp)
				}
			}
			chunk.To = max(chunk.To, batch.LastOffset()+1)
		case records.MsgSet != nil:
			for _, set := range records.MsgSet.Messages {
				messages := set.Messages()
				base := int64(0)
				if last := messages[len(messages)-1]; set.Msg.Version >= 1 {
					base = set.Offset - last.Offset // offsets in compressed sets are relative
				}
				for _, m := range messages {
					add(m.Offset+base, m.Msg.Key, m.Msg.Value, nil, m.Msg.Timestamp)
				}
				chunk.To = max(chunk.To, set.Offset+1)
			}
		}
	}
	return chunk, nil
}

// chunkWriter fills a chunk from slabs.
type chunkWriter struct {
	chunk *Chunk
	slab  []byte
}

func (w *chunkWriter) add(offset int64, event appendable, size int) {
	if size > cap(w.slab)-len(w.slab) {
		w.slab = make([]byte, 0, max(maxSlab, size))
		w.chunk.cost += int64(cap(w.slab))
	}
	from := len(w.slab)
	w.slab = event.AppendWire(w.slab)
	w.chunk.Entries = append(w.chunk.Entries, Entry{Offset: offset, Event: w.slab[from:len(w.slab):len(w.slab)]})
	w.chunk.cost += entrySize
}

// aborted follows the transactions of a fetch.
type aborted struct {
	coming    []*sarama.AbortedTransaction // by first offset
	producers map[int64]struct{}
}

func newAborted(transactions []*sarama.AbortedTransaction) *aborted {
	a := &aborted{coming: append([]*sarama.AbortedTransaction(nil), transactions...), producers: map[int64]struct{}{}}
	sortByFirstOffset(a.coming)
	return a
}

// skips says whether a batch holds no events: a marker, or records of a
// transaction that was aborted.
func (a *aborted) skips(batch *sarama.RecordBatch) (bool, error) {
	for len(a.coming) > 0 && a.coming[0].FirstOffset <= batch.LastOffset() {
		a.producers[a.coming[0].ProducerID] = struct{}{}
		a.coming = a.coming[1:]
	}
	if batch.Control {
		marker, err := markerOf(batch)
		if err != nil {
			return false, err
		}
		if marker == abortMarker {
			delete(a.producers, batch.ProducerID)
		}
		return true, nil
	}
	if !batch.IsTransactional {
		return false, nil
	}
	_, gone := a.producers[batch.ProducerID]
	return gone, nil
}
