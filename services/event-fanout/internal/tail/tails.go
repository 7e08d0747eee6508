package tail

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/services/event-fanout/internal/kafka"
)

// offsets is what tails need to know of Kafka besides records.
type offsets interface {
	Offsets(ctx context.Context, topic string, partitions []int32, at int64) (map[int32]int64, error)
}

// Config is what [New] needs.
type Config struct {
	// Client is for the tails alone: its fetches are long polls.
	Client  sarama.Client
	Offsets offsets
	Decoder *Decoder
	Budget  *Budget
	// Linger is how long a partition without readers is read on.
	Linger time.Duration
	Logger *slog.Logger
}

// Tails reads partitions while somebody is interested in them.
type Tails struct {
	cfg      Config
	consumer sarama.Consumer
	ctx      context.Context // the life of the readers, ended by Close
	end      context.CancelFunc
	done     sync.WaitGroup

	mu    sync.Mutex
	tails map[kafka.Place]*running
}

type running struct {
	place    kafka.Place
	ring     *Ring
	stop     context.CancelFunc
	refs     int
	unusedAt time.Time
}

// New returns tails without a reader.
func New(cfg Config) (*Tails, error) {
	consumer, err := sarama.NewConsumerFromClient(cfg.Client)
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(context.Background())
	return &Tails{cfg: cfg, consumer: consumer, ctx: ctx, end: end, tails: map[kafka.Place]*running{}}, nil
}

// Close ends all readers and waits for them.
func (t *Tails) Close() error {
	t.end()
	t.done.Wait()
	return t.consumer.Close()
}

// Acquire returns the ring of a partition. If it is not read yet, reading begins
// at start. Each Acquire needs a Release.
func (t *Tails) Acquire(place kafka.Place, start int64) *Ring {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.tails[place]
	if r == nil {
		ctx, stop := context.WithCancel(t.ctx)
		r = &running{place: place, ring: NewRing(t.cfg.Budget, start), stop: stop}
		t.tails[place] = r
		reader := reader{tails: t, ring: r.ring, place: place}
		t.done.Go(func() { reader.run(ctx) })
	}
	r.refs++
	return r.ring
}

// Release gives a ring back.
func (t *Tails) Release(place kafka.Place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.tails[place]
	r.refs--
	if r.refs == 0 {
		r.unusedAt = time.Now()
	}
}

// Sweep ends the reading of what nobody has used for the time of Linger.
func (t *Tails) Sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for place, r := range t.tails {
		if r.refs == 0 && time.Since(r.unusedAt) >= t.cfg.Linger {
			r.stop()
			delete(t.tails, place)
		}
	}
}

// Partitions is the number of partitions that are read.
func (t *Tails) Partitions() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.tails)
}

// reader fills one ring.
type reader struct {
	tails *Tails
	ring  *Ring
	place kafka.Place

	record   cloudevent.Record
	outcomes outcomes
	warned   time.Time // zero while it can be read
}

// warnEvery is how often an outage is in the log, per partition.
const warnEvery = 30 * time.Second

func (r *reader) warn(ctx context.Context, log *slog.Logger, err error) {
	if time.Since(r.warned) < warnEvery {
		return
	}
	r.warned = time.Now()
	log.WarnContext(ctx, "partition cannot be read for now", slog.Any("error", err))
}

const (
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 2 * time.Second
	// batch is how many records are decoded before readers are told.
	batch = 256
)

// run reads until ctx ends. sarama finds leaders and bridges outages; run begins
// anew where sarama gives up.
func (r *reader) run(ctx context.Context) {
	r.outcomes.decoder = r.tails.cfg.Decoder
	// The blocks are the budget's until somebody gives them back.
	defer func() { r.ring.reset(r.ring.End(), 0, false) }()
	log := r.tails.cfg.Logger.With(slog.String("kafka_topic", r.place.Topic), slog.Int("partition", int(r.place.Partition)))
	backoff := firstBackoff
	for ctx.Err() == nil {
		began := time.Now()
		consumer, err := r.tails.consumer.ConsumePartition(r.place.Topic, r.place.Partition, r.ring.End())
		if err == nil {
			err = r.consume(ctx, log, consumer)
		}
		if errors.Is(err, sarama.ErrOffsetOutOfRange) {
			err = r.reposition(ctx, log)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.warn(ctx, log, err)
		}
		if time.Since(began) > maxBackoff {
			backoff = firstBackoff
		}
		if !sleep(ctx, backoff) {
			return
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// reposition is for when the log does not reach to where we are any more, at
// either end.
func (r *reader) reposition(ctx context.Context, log *slog.Logger) error {
	partition := []int32{r.place.Partition}
	ctx, cancel := context.WithTimeout(ctx, maxBackoff)
	defer cancel()
	starts, err := r.tails.cfg.Offsets.Offsets(ctx, r.place.Topic, partition, kafka.Earliest)
	if err != nil {
		return err
	}
	ends, err := r.tails.cfg.Offsets.Offsets(ctx, r.place.Topic, partition, kafka.Latest)
	if err != nil {
		return err
	}
	at, start, end := r.ring.End(), starts[r.place.Partition], ends[r.place.Partition]
	switch {
	case at > end:
		log.WarnContext(ctx, "log was cut or re-created, reading from its start", slog.Int64("offset", at), slog.Int64("log_end", end))
		r.ring.reset(start, end, true)
	case at < start:
		log.WarnContext(ctx, "retention overtook the reader", slog.Int64("offset", at), slog.Int64("log_start", start))
		r.ring.reset(start, end, false)
	default:
		return nil
	}
	r.ring.notify()
	return nil
}

// consume reads until ctx ends or sarama gives up, and says why.
func (r *reader) consume(ctx context.Context, log *slog.Logger, consumer sarama.PartitionConsumer) error {
	defer drain(consumer)
	messages, failures := consumer.Messages(), consumer.Errors()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case message, ok := <-messages:
			if !ok {
				// What ended it is in the other channel.
				if failure, ok := <-failures; ok && failure != nil {
					return failure.Err
				}
				return nil
			}
			r.take(message) //nolint:contextcheck // a span has the context of its record
			for n := 1; n < batch; n++ {
				select {
				case message, ok = <-messages:
					if ok {
						r.take(message) //nolint:contextcheck // a span has the context of its record
						continue
					}
				default:
				}
				break
			}
			r.warned = time.Time{}
			r.ring.publish()
			r.outcomes.flush() //nolint:contextcheck // a counter needs none
			r.ring.notify()
		case failure, ok := <-failures:
			switch {
			case !ok:
				return nil
			case errors.Is(failure, sarama.ErrOffsetOutOfRange):
				return failure.Err
			default:
				r.warn(ctx, log, failure.Err)
			}
		}
	}
}

func (r *reader) take(m *sarama.ConsumerMessage) {
	recordOf(&r.record, m.Topic, m.Partition, m.Offset, m.Key, m.Value, m.Headers, m.Timestamp)
	if event, size, deliver := r.outcomes.decode(&r.record); deliver {
		r.ring.add(m.Offset, &event, size)
		return
	}
	r.ring.pass(m.Offset + 1)
}

// drain closes a consumer, whose channels have to be read until they are closed.
func drain(consumer sarama.PartitionConsumer) {
	consumer.AsyncClose()
	messages, failures := consumer.Messages(), consumer.Errors()
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

// sleep waits, and says whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
