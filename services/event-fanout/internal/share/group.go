package share

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"mqtt-integration/services/event-fanout/internal/kafka"
)

const (
	// rebalanceTimeout is how long Kafka waits for this member in a rebalance.
	rebalanceTimeout = 60 * time.Second
	// setupTimeout bounds the positioning of a group.
	setupTimeout = 10 * time.Second
	// readBackInterval is how often it is looked whether other members have
	// positioned their partitions.
	readBackInterval = 50 * time.Millisecond
	// grace is how long the subscribers may acknowledge what they hold of a partition
	// that goes to another member: less comes twice then.
	grace = 2 * time.Second
	// stopTimeout is how long a group may take to end in good order.
	stopTimeout  = 5 * time.Second
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 2 * time.Second
	// logInterval lies between two lines of the log about what disturbs a group.
	logInterval = 30 * time.Second
	// batch is how many records are decoded before they are dealt.
	batch = 256
	// buffered is how many records sarama may hold per partition; it is on top of
	// what waits here.
	buffered = 64
)

// group is a share group, as far as it is here.
type group struct {
	hub    *Hub
	id     identity
	name   string // of the consumer group
	topic  string
	log    *slog.Logger
	dealer dealer
	ctx    context.Context
	end    context.CancelFunc
	users  int // guarded by the hub's mu

	mu       sync.Mutex
	consumer sarama.ConsumerGroup
	session  sarama.ConsumerGroupSession // nil: not a member at the moment
	metadata string
	placed   bool          // every partition has a position
	err      error         // why it is no member
	changed  chan struct{} // closed with each change
}

var _ sarama.ConsumerGroupHandler = (*group)(nil)

func newGroup(h *Hub, id identity, topic string) *group {
	name := h.cfg.Template.Name(id.application, id.share)
	g := &group{
		hub: h, id: id, name: name, topic: topic,
		log:    h.cfg.Logger.With(slog.String("group", name), slog.String("kafka_topic", topic)),
		dealer: newDealer(), changed: make(chan struct{}),
	}
	g.ctx, g.end = context.WithCancel(h.ctx)
	return g
}

// change changes what mu guards, and wakes who waits for that.
func (g *group) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	close(g.changed)
	g.changed = make(chan struct{})
}

// positioned returns when the group has a position in every partition and this
// instance is a member.
func (g *group) positioned(ctx context.Context) error {
	for {
		g.mu.Lock()
		member, placed, err, changed := g.session != nil, g.placed, g.err, g.changed
		g.mu.Unlock()
		switch {
		case member && placed:
			return nil
		case !member && fatal(err):
			return fmt.Errorf("join group %q: %w", g.name, err)
		}
		select {
		case <-changed:
		case <-g.ctx.Done():
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("%w: position group %q: %w", kafka.ErrUnavailable, g.name, errors.Join(ctx.Err(), err))
		}
	}
}

// fatal says that it makes no sense to wait.
func fatal(err error) bool {
	for _, code := range []sarama.KError{
		sarama.ErrInconsistentGroupProtocol, sarama.ErrGroupAuthorizationFailed, sarama.ErrTopicAuthorizationFailed,
		sarama.ErrClusterAuthorizationFailed, sarama.ErrInvalidGroupId, sarama.ErrGroupMaxSizeReached,
	} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// readBack waits until every partition has a position: other members may have to
// position theirs.
func (g *group) readBack() {
	for {
		g.mu.Lock()
		member, changed := g.session != nil, g.changed
		g.mu.Unlock()
		var again <-chan time.Time
		if member {
			ctx, cancel := context.WithTimeout(g.ctx, setupTimeout)
			all, err := g.allPlaced(ctx)
			cancel()
			if all {
				g.change(func() { g.placed, g.err = true, nil })
				return
			}
			g.mu.Lock()
			g.err = err
			g.mu.Unlock()
			again = time.After(readBackInterval)
		}
		select {
		case <-changed:
		case <-again:
		case <-g.ctx.Done():
			return
		}
	}
}

func (g *group) wasPlaced() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.placed
}

// allPlaced asks Kafka, not through the member's client, whether every partition
// has a position.
func (g *group) allPlaced(ctx context.Context) (bool, error) {
	partitions, err := g.hub.cfg.Kafka.Partitions(ctx, g.topic)
	if err != nil {
		return false, err
	}
	committed, err := g.committed(ctx)
	if err != nil {
		return false, err
	}
	atEnd, _ := unplaced(partitions, committed)
	return len(atEnd) == 0, nil
}

func (g *group) committed(ctx context.Context) (map[int32]kafka.Committed, error) {
	all, err := g.hub.cfg.Kafka.Group(g.name).Offsets(ctx)
	if err != nil {
		return nil, err
	}
	committed := make(map[int32]kafka.Committed, len(all))
	for place, c := range all {
		if place.Topic == g.topic {
			committed[place.Partition] = c
		}
	}
	return committed, nil
}

// run keeps this instance a member until the group ends.
func (g *group) run() {
	defer g.end()
	conf, err := g.hub.cfg.Sarama()
	if err != nil {
		g.log.ErrorContext(g.ctx, "share group cannot be joined", slog.Any("error", err))
		return
	}
	g.configure(conf)
	client, consumer, err := connect(g.hub.cfg.Brokers, g.name, conf)
	if err != nil {
		g.log.ErrorContext(g.ctx, "share group cannot be joined", slog.Any("error", err))
		return
	}
	g.mu.Lock()
	g.consumer = consumer
	g.mu.Unlock()
	var running sync.WaitGroup
	running.Go(func() { g.logErrors(consumer) })
	running.Go(g.readBack)
	running.Go(g.commits)
	running.Go(g.expiry)
	stopped := make(chan struct{})
	running.Go(func() { g.hurry(client, stopped) })
	g.consume(consumer)
	if err := consumer.Close(); err != nil {
		g.log.WarnContext(g.ctx, "share group not left in good order", slog.Any("error", err))
	}
	close(stopped)
	running.Wait()
	g.hub.metrics.count(g.dealer.counts())
}

func connect(brokers []string, name string, conf *sarama.Config) (sarama.Client, sarama.ConsumerGroup, error) {
	client, err := sarama.NewClient(brokers, conf)
	if err != nil {
		return nil, nil, err
	}
	consumer, err := sarama.NewConsumerGroupFromClient(name, client)
	if err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return client, consumer, nil
}

func (g *group) configure(conf *sarama.Config) {
	cfg := &g.hub.cfg
	conf.ChannelBufferSize = buffered
	conf.Net.DialTimeout = 3 * time.Second
	// Kafka answers a join when all members have come, at the latest after the
	// rebalance timeout.
	conf.Net.ReadTimeout = rebalanceTimeout + 10*time.Second
	conf.Metadata.RefreshFrequency = cfg.RefreshInterval
	conf.Metadata.Timeout = 5 * time.Second
	conf.Consumer.IsolationLevel = sarama.ReadCommitted
	conf.Consumer.MaxWaitTime = cfg.MaxWait
	conf.Consumer.Return.Errors = true
	conf.Consumer.Retry.Backoff = 250 * time.Millisecond
	conf.Consumer.Offsets.AutoCommit.Enable = false
	// Claims that are added in a cooperative rebalance get no Setup: they begin at
	// the start of the log unless there is a position.
	conf.Consumer.Offsets.Initial = sarama.OffsetOldest
	conf.Consumer.Group.ResetInvalidOffsets = true
	conf.Consumer.Group.Session.Timeout = cfg.SessionTimeout
	conf.Consumer.Group.Heartbeat.Interval = min(time.Second, cfg.SessionTimeout/6)
	conf.Consumer.Group.Rebalance.Timeout = rebalanceTimeout
	conf.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategyCooperativeSticky()}
}

// consume joins, and joins again when Kafka ended the membership.
func (g *group) consume(consumer sarama.ConsumerGroup) {
	backoff := firstBackoff
	for g.ctx.Err() == nil {
		began := time.Now()
		err := consumer.Consume(g.ctx, []string{g.topic}, g)
		g.change(func() { g.session, g.err = nil, err })
		if g.ctx.Err() != nil {
			return
		}
		g.log.WarnContext(g.ctx, "membership of the share group ended, joining again", slog.Any("error", err))
		if time.Since(began) > maxBackoff {
			backoff = firstBackoff
		}
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-g.ctx.Done():
			timer.Stop()
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// hurry ends all requests when the group does not come to its end by itself: a
// join may wait for others for a long time. It closes the client.
func (g *group) hurry(client sarama.Client, stopped <-chan struct{}) {
	<-g.ctx.Done()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
	}
	_ = client.Close() // nothing depends on it any more
	<-stopped
}

func (g *group) logErrors(consumer sarama.ConsumerGroup) {
	var logged time.Time
	for err := range consumer.Errors() {
		if g.ctx.Err() != nil || time.Since(logged) < logInterval {
			continue // in an outage there is one per second and partition
		}
		logged = time.Now()
		g.log.WarnContext(g.ctx, "share group is disturbed", slog.Any("error", err))
	}
}

// Setup implements sarama.ConsumerGroupHandler. It is called once per membership.
func (g *group) Setup(s sarama.ConsumerGroupSession) error {
	ctx, cancel := context.WithTimeout(g.ctx, setupTimeout)
	defer cancel()
	metadata, err := g.place(ctx, s, s.Claims()[g.topic])
	if err != nil {
		return fmt.Errorf("position group: %w", err)
	}
	g.change(func() { g.session, g.metadata, g.err = s, metadata, nil })
	return nil
}

// place commits where the claims begin that have no position, and reads it back:
// sarama does not tell whether a commit succeeded.
func (g *group) place(ctx context.Context, s sarama.ConsumerGroupSession, claims []int32) (metadata string, err error) {
	if err := g.hub.cfg.Kafka.Refresh(g.topic); err != nil {
		return "", err
	}
	partitions, err := g.hub.cfg.Kafka.Partitions(ctx, g.topic)
	if err != nil {
		return "", err
	}
	committed, err := g.committed(ctx)
	if err != nil {
		return "", err
	}
	metadata = originOf(committed).metadata(len(partitions))
	atEnd, atStart := unplaced(claims, committed)
	if g.wasPlaced() {
		// Then there were positions: the topic was created anew meanwhile.
		atEnd, atStart = nil, append(atStart, atEnd...)
	}
	starts := make(map[int32]int64, len(atEnd)+len(atStart))
	for _, part := range []struct {
		partitions []int32
		at         int64
	}{{atEnd, kafka.Latest}, {atStart, kafka.Earliest}} {
		if len(part.partitions) == 0 {
			continue
		}
		offsets, err := g.hub.cfg.Kafka.Offsets(ctx, g.topic, part.partitions, part.at)
		if err != nil {
			return "", err
		}
		maps.Copy(starts, offsets)
	}
	for p, offset := range starts {
		s.MarkOffset(g.topic, p, offset, metadata)
	}
	return metadata, g.commitSurely(ctx, s, starts)
}

var errNotCommitted = errors.New("positions were not committed")

// commitSurely commits what is marked, and returns when Kafka has these offsets.
func (g *group) commitSurely(ctx context.Context, s sarama.ConsumerGroupSession, offsets map[int32]int64) error {
	const attempts = 3
	for attempt := 0; len(offsets) > 0; attempt++ {
		s.Commit()
		committed, err := g.committed(ctx)
		if err == nil {
			missing := false
			for p, offset := range offsets {
				c, ok := committed[p]
				missing = missing || !ok || c.Offset < offset
			}
			if !missing {
				return nil
			}
			err = errNotCommitted
		}
		if attempt == attempts || s.Context().Err() != nil || ctx.Err() != nil {
			return err
		}
		timer := time.NewTimer(firstBackoff)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

// Cleanup implements sarama.ConsumerGroupHandler.
func (g *group) Cleanup(s sarama.ConsumerGroupSession) error {
	s.Commit()
	g.change(func() { g.session = nil })
	return nil
}

var errUnplaced = errors.New("a partition was claimed that nobody has positioned")

// ConsumeClaim implements sarama.ConsumerGroupHandler. It waits for messages, and
// for nothing else; it returns when the partition is taken away.
func (g *group) ConsumeClaim(s sarama.ConsumerGroupSession, from sarama.ConsumerGroupClaim) error {
	partition, initial := from.Partition(), from.InitialOffset()
	if initial < 0 && !g.wasPlaced() {
		ctx, cancel := context.WithTimeout(s.Context(), setupTimeout)
		committed, err := g.committed(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("look up position: %w", err)
		}
		if atEnd, _ := unplaced([]int32{partition}, committed); len(atEnd) > 0 {
			// A member died while it positioned the group. Setup makes up for it.
			return errUnplaced
		}
	}
	c := g.dealer.begin(partition, initial)
	flow := flowControl{consumer: g.consumer, partitions: map[string][]int32{g.topic: {partition}}}
	flow.resume() // sarama remembers
	decoder := g.hub.cfg.Decoder.Messages()
	records := make([]record, 0, batch)
	for {
		select {
		case m, ok := <-from.Messages():
			if !ok {
				return g.endClaim(s, c)
			}
			if initial < 0 {
				// What is committed may be beyond a log that was created anew.
				s.ResetOffset(g.topic, partition, m.Offset, g.metadata)
				initial = m.Offset
			}
			records = append(records[:0], recordOf(decoder, m))
			for more := true; more && len(records) < batch; {
				select {
				case m, more = <-from.Messages():
					if more {
						records = append(records, recordOf(decoder, m))
					}
				default:
					more = false
				}
			}
			decoder.Flush()
			if g.dealer.add(c, records) {
				flow.pause()
			}
			clear(records)
		case <-c.wake:
			if flow.paused && g.dealer.roomy(c) {
				flow.resume()
			}
		case <-s.Context().Done():
			return g.endClaim(s, c)
		}
	}
}

// flowControl pauses the fetching of a partition.
type flowControl struct {
	consumer   sarama.ConsumerGroup
	partitions map[string][]int32
	paused     bool
}

func (f *flowControl) pause() {
	if !f.paused {
		f.paused = true
		f.consumer.Pause(f.partitions)
	}
}

func (f *flowControl) resume() {
	f.paused = false
	f.consumer.Resume(f.partitions)
}

// endClaim gives a partition up.
func (g *group) endClaim(s sarama.ConsumerGroupSession, c *claim) error {
	if held := g.dealer.end(c); held > 0 && s.Context().Err() == nil {
		g.awaitAcknowledgements(s, c)
	}
	at := g.dealer.abandon(c)
	if at < 0 {
		return nil
	}
	s.MarkOffset(g.topic, c.partition, at, g.metadata)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(g.ctx), stopTimeout)
	defer cancel()
	if err := g.commitSurely(ctx, s, map[int32]int64{c.partition: at}); err != nil {
		g.log.WarnContext(ctx, "position of a share group not committed", slog.Int("partition", int(c.partition)), slog.Any("error", err))
	}
	return nil
}

// awaitAcknowledgements gives subscribers the time to acknowledge what they hold
// of a partition that goes to another member, which would deliver it again.
func (g *group) awaitAcknowledgements(s sarama.ConsumerGroupSession, c *claim) {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for g.dealer.heldOf(c) > 0 {
		select {
		case <-c.wake:
		case <-timer.C:
			return
		case <-s.Context().Done():
			return
		}
	}
}

// commits commits positions until the group ends.
func (g *group) commits() {
	ticker := time.NewTicker(g.hub.cfg.CommitInterval)
	defer ticker.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-ticker.C:
		}
		g.mu.Lock()
		s, metadata := g.session, g.metadata
		g.mu.Unlock()
		if s == nil {
			continue
		}
		for c, at := range g.dealer.positions() {
			s.MarkOffset(g.topic, c.partition, at, metadata)
		}
		s.Commit() // what could not be committed is tried again with the next
	}
}

// expiry ends those who do not acknowledge, until the group ends.
func (g *group) expiry() {
	timeout := g.hub.cfg.AckTimeout
	ticker := time.NewTicker(min(time.Second, timeout/4))
	defer ticker.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case now := <-ticker.C:
			for _, m := range g.dealer.expired(now.Add(-timeout)) {
				g.hub.metrics.expired.Add(g.ctx, 1)
				m.subscriber.Expire()
			}
			g.hub.metrics.count(g.dealer.counts())
		}
	}
}
