package producer

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/kafkaclient"
	"mqtt-integration/services/command-ingress/internal/record"
)

// Config says where records go and how much may be on its way.
type Config struct {
	Kafka kafkaclient.Config
	Topic string
	// Partitioner is one of the names in this package.
	Partitioner string
	Compression sarama.CompressionCodec
	// DeliveryTimeout is how long after Submit a record has its outcome at latest.
	DeliveryTimeout time.Duration
	// MaxRecords and MaxBytes bound what is accepted and not yet let go of.
	MaxRecords int
	MaxBytes   int64
	// Window is how many records sarama may have at once.
	Window int
	// MaxRecordBytes caps what is told to be the largest record, whatever Kafka takes.
	MaxRecordBytes int
	// CreatePartitions and CreateReplication create the topic when it does not exist;
	// 0 partitions: it is not created. Replication 0 is the broker's default.
	CreatePartitions  int32
	CreateReplication int16
	// CheckInterval is how often it is checked that Kafka can be reached, and which
	// limits it has.
	CheckInterval time.Duration
}

// Status is what became of a record.
type Status uint8

const (
	// Written means that Kafka has it.
	Written Status = iota
	// Unavailable means that Kafka does not have it and cannot be reached or will not take it now.
	Unavailable
	// Unknown means that it may or may not be in Kafka.
	Unknown
	// Exhausted means that too much is on its way already. Kafka does not have it.
	Exhausted
	// TooLarge means that Kafka takes no record of this size.
	TooLarge
)

// String returns the status in lower case, fit for a metric's attribute.
func (s Status) String() string {
	switch s {
	case Written:
		return "ok"
	case Unavailable:
		return "unavailable"
	case Unknown:
		return "unknown_outcome"
	case Exhausted:
		return "resource_exhausted"
	case TooLarge:
		return "too_large"
	default:
		return "unspecified"
	}
}

// Outcome is what became of a record, and why.
type Outcome struct {
	Status Status
	// Message is text that may be shown to an MQTT client; empty when Written.
	Message string
}

// Sink takes the outcome of records. Done is called once for each accepted one,
// from goroutines of the producer, and must not block.
type Sink interface {
	Done(correlation uint64, outcome Outcome)
}

// Limits is what is known of Kafka's limits.
type Limits struct {
	// MaxRecordBytes is the largest record: key, value and headers together. 0: not
	// known yet.
	MaxRecordBytes int64
}

// Producer writes records. All methods are safe for concurrent use.
type Producer struct {
	cfg     Config
	logger  *slog.Logger
	check   *daemon.Check
	metrics *instruments

	wake chan struct{} // the queue has a record, or sarama has let go of one

	mu          sync.Mutex
	pending     list // not in sarama's hands, in order
	sent        list // in sarama's hands and without an outcome, in order of sending
	records     int  // accepted and not let go of
	bytes       int64
	inSarama    int
	closed      bool
	lastSuccess time.Time
	maxMessage  int // bytes that Kafka takes in a batch, 0 when not known
	changed     chan struct{}
	// down says why nothing is written at the moment, and since when; nil while it is.
	down      *failure
	downSince time.Time
}

// New makes a producer. Run has to be called once.
func New(cfg Config, env daemon.Env) (*Producer, error) {
	if newPartitioner(cfg.Partitioner) == nil {
		return nil, fmt.Errorf("partitioner %q is not known", cfg.Partitioner)
	}
	p := &Producer{
		cfg: cfg, logger: env.Logger, check: env.Health.Register("kafka topic " + cfg.Topic),
		wake: make(chan struct{}, 1), changed: make(chan struct{}),
		down: errNotConnected, downSince: time.Now(),
	}
	p.check.Set(errNotConnected)
	var err error
	p.metrics, err = newInstruments(env.Meter, p)
	if err != nil {
		return nil, fmt.Errorf("instruments: %w", err)
	}
	return p, nil
}

// Submit takes a record, or refuses it: then accepted is false, outcome says why,
// and sink is not called. It never blocks. Accepted records of one key are written
// in the order of Submit.
func (p *Producer) Submit(r record.Record, correlation uint64, sink Sink) (outcome Outcome, accepted bool) {
	now := time.Now()
	it := newItem(r, p.cfg.Topic, correlation, sink, now, now.Add(p.cfg.DeliveryTimeout))
	p.mu.Lock()
	outcome, accepted = p.admit(it, now)
	p.mu.Unlock()
	if accepted {
		p.signal()
	}
	return outcome, accepted
}

// admit needs the lock.
func (p *Producer) admit(it *item, now time.Time) (Outcome, bool) {
	switch {
	case p.closed:
		return Outcome{Unavailable, errStopping.public}, false
	case p.maxMessage > 0 && it.recordBytes > maxRecordBytes(p.maxMessage, p.cfg.MaxRecordBytes),
		p.maxMessage > 0 && it.message.ByteSize(2) > p.maxMessage-batchOverhead:
		return Outcome{TooLarge, fmt.Sprintf("command of %d bytes is larger than Kafka takes (%d bytes)",
			it.recordBytes, maxRecordBytes(p.maxMessage, p.cfg.MaxRecordBytes))}, false
	case p.maxMessage == 0 && it.recordBytes > p.cfg.MaxRecordBytes:
		return Outcome{TooLarge, fmt.Sprintf("command of %d bytes is larger than %d bytes", it.recordBytes, p.cfg.MaxRecordBytes)}, false
	case p.down != nil && (p.down.permanent || now.Sub(p.downSince) > p.cfg.DeliveryTimeout):
		// An outage that has lasted so long will not end within this deadline either.
		return Outcome{Unavailable, p.down.public}, false
	case p.records >= p.cfg.MaxRecords || p.bytes+it.bytes > p.cfg.MaxBytes && p.records > 0:
		return Outcome{Exhausted, "too many commands are waiting for Kafka"}, false
	}
	p.records++
	p.bytes += it.bytes
	p.pending.pushBack(it)
	return Outcome{}, true
}

func (p *Producer) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Limits returns what is known of Kafka's limits, and a channel that is closed when
// that changes.
func (p *Producer) Limits() (Limits, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.maxMessage == 0 {
		return Limits{}, p.changed
	}
	return Limits{MaxRecordBytes: int64(maxRecordBytes(p.maxMessage, p.cfg.MaxRecordBytes))}, p.changed
}

// setMaxMessage says whether the limit has changed.
func (p *Producer) setMaxMessage(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.maxMessage == n {
		return false
	}
	p.maxMessage = n
	close(p.changed)
	p.changed = make(chan struct{})
	return true
}

// setDown says whether the reason is news.
func (p *Producer) setDown(f *failure) bool {
	p.mu.Lock()
	news := p.down == nil || p.down.public != f.public
	if p.down == nil {
		p.downSince = time.Now()
	}
	p.down = f
	p.mu.Unlock()
	p.check.Set(f)
	return news
}

func (p *Producer) setUp() {
	p.mu.Lock()
	p.down = nil
	p.mu.Unlock()
	p.check.Set(nil)
}

// next takes the first record that may be given to sarama, nil when there is none.
func (p *Producer) next(now time.Time) *item {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inSarama >= p.cfg.Window || p.pending.head == nil {
		return nil
	}
	it := p.pending.head
	p.pending.remove(it)
	p.sent.pushBack(it)
	p.inSarama++
	it.sentAt = now
	return it
}

// takeBack undoes next: sarama never had the record.
func (p *Producer) takeBack(it *item) {
	p.mu.Lock()
	p.inSarama--
	if it.resolved {
		p.release(it)
	} else {
		p.sent.remove(it)
		p.pending.pushFront(it)
	}
	p.mu.Unlock()
}

// release needs the lock.
func (p *Producer) release(it *item) {
	p.records--
	p.bytes -= it.bytes
}

// complete is called when sarama lets go of a record.
func (p *Producer) complete(ctx context.Context, it *item, outcome Outcome, now time.Time) {
	p.mu.Lock()
	p.inSarama--
	p.release(it)
	late := it.resolved
	if !late {
		it.resolved = true
		p.sent.remove(it)
	}
	if outcome.Status == Written {
		p.lastSuccess = now
	}
	p.mu.Unlock()
	p.signal()
	if late {
		p.metrics.late(ctx, outcome.Status)
		return
	}
	p.deliver(ctx, it, outcome, now)
}

func (p *Producer) deliver(ctx context.Context, it *item, outcome Outcome, now time.Time) {
	p.metrics.sent(ctx, outcome.Status, now.Sub(it.accepted))
	it.sink.Done(it.correlation, outcome)
}

// silentSince says whether Kafka has acknowledged nothing since t.
func (p *Producer) silentSince(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastSuccess.Before(t)
}

// expire gives records their outcome whose deadline is near, and says whether
// sarama has one that is late while nothing else gets through either.
func (p *Producer) expire(ctx context.Context, now time.Time) (stalled bool) {
	var unavailable, unknown []*item
	p.mu.Lock()
	reason := "Kafka did not take the command in time"
	if p.down != nil {
		reason = p.down.public
	}
	for it := p.pending.head; it != nil && !now.Before(it.deadline.Add(-3*p.tick())); it = p.pending.head {
		p.pending.remove(it)
		p.release(it)
		it.resolved = true
		unavailable = append(unavailable, it)
	}
	for it := p.sent.head; it != nil && !now.Before(it.deadline.Add(-3*p.tick())); it = p.sent.head {
		p.sent.remove(it)
		it.resolved = true // and accounted for until sarama lets go of it
		stalled = stalled || p.lastSuccess.Before(it.sentAt)
		unknown = append(unknown, it)
	}
	p.mu.Unlock()
	for _, it := range unavailable {
		p.deliver(ctx, it, Outcome{Unavailable, reason}, now)
	}
	for _, it := range unknown {
		p.deliver(ctx, it, Outcome{Unknown, "Kafka did not answer in time, outcome unknown"}, now)
	}
	return stalled
}

// tick is how often deadlines are looked at, with some of it in reserve for a busy
// machine.
func (p *Producer) tick() time.Duration { return p.cfg.DeliveryTimeout / 64 }

// refuseAll ends what is still pending, when nothing is going to write it any more.
func (p *Producer) refuseAll(ctx context.Context) {
	p.mu.Lock()
	p.closed = true
	var refused []*item
	for it := p.pending.head; it != nil; it = p.pending.head {
		p.pending.remove(it)
		p.release(it)
		it.resolved = true
		refused = append(refused, it)
	}
	p.mu.Unlock()
	for _, it := range refused {
		p.deliver(ctx, it, Outcome{Unavailable, errStopping.public}, time.Now())
	}
}

// load is what the producer holds.
func (p *Producer) load() (records int, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.records, p.bytes
}

// nothingSent says whether sarama has no record.
func (p *Producer) nothingSent() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inSarama == 0
}

// idle says whether no record is left.
func (p *Producer) idle() bool {
	records, _ := p.load()
	return records == 0
}
