package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/naming"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/event-fanout/internal/commit"
	"mqtt-integration/services/event-fanout/internal/kafka"
	"mqtt-integration/services/event-fanout/internal/tail"
)

// refusal is why a subscription is not opened.
type refusal struct {
	reason  eventsv1.SubscriptionErrorReason
	message string
}

func (r refusal) Error() string { return r.message }

func refuse(reason eventsv1.SubscriptionErrorReason, message string) error {
	return refusal{reason, message}
}

// Short names of the reasons.
const (
	unavailable   = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNAVAILABLE
	noTopic       = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_NO_TOPIC
	invalid       = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_INVALID
	quotaExceeded = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_QUOTA_EXCEEDED
	unimplemented = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_UNIMPLEMENTED
	moved         = eventsv1.SubscriptionErrorReason_SUBSCRIPTION_ERROR_REASON_MOVED
)

// start is where a subscription is to begin in a partition.
type start struct {
	next           int64   // first event to deliver
	unacknowledged []int64 // received before, ascending
	end            int64   // where the log ended: the tail begins there
}

// position is the first offset that is not acknowledged.
func (s start) position() int64 {
	if len(s.unacknowledged) > 0 {
		return s.unacknowledged[0]
	}
	return s.next
}

func (s *stream) open(frame *eventsv1.Open) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	handle := frame.GetSubscription()
	if handle == 0 {
		return status.Error(codes.InvalidArgument, "open: subscription is 0")
	}
	if s.subscriptions[handle] != nil || s.shared[handle] != nil {
		return status.Errorf(codes.InvalidArgument, "open: subscription %d is in use", handle)
	}
	if frame.GetShareName() != "" {
		if err := s.openShared(frame); err != nil {
			s.refuse(handle, err)
		}
		return nil
	}
	sub, err := s.accept(frame)
	if err == nil && !sub.session.work.add(s.server, false, func(ctx context.Context) { s.opening(ctx, sub, frame) }) {
		s.endSubscription(sub)
		err = refuse(quotaExceeded, "the session asks for too much at once")
	}
	if err != nil {
		s.refuse(handle, err)
	}
	return nil
}

// accept makes a subscription that has no cursors yet, or says what is wrong with
// it. The caller holds mu.
func (s *stream) accept(frame *eventsv1.Open) (*subscription, error) {
	owner := s.sessions[frame.GetSession()]
	switch {
	case s.leaving || s.ended:
		return nil, refuse(moved, "shutting down")
	case frame.GetFilter() != "":
		return nil, refuse(unimplemented, "the user property filter is not there yet")
	case owner == nil || !owner.attached:
		return nil, refuse(invalid, "the session is not attached")
	}
	if err := naming.ValidateApplication(frame.GetApplication()); err != nil {
		return nil, refuse(invalid, err.Error())
	}
	if owner.subscriptions[frame.GetApplication()] != nil {
		return nil, refuse(invalid, "the session has a subscription of this application")
	}
	if s.full() {
		return nil, refuse(quotaExceeded, "this instance has too many subscriptions")
	}
	sub := &subscription{
		handle: frame.GetSubscription(), session: owner, application: frame.GetApplication(),
		topic: naming.EventsTopic(frame.GetApplication()),
	}
	s.setWindow(sub, frame.GetWindow())
	s.subscriptions[sub.handle] = sub
	owner.subscriptions[sub.application] = sub
	s.server.subscriptions.Add(1)
	return sub, nil
}

// full says whether a limit of subscriptions is reached. The caller holds mu.
func (s *stream) full() bool {
	return s.server.subscriptions.Load() >= int64(s.server.cfg.MaxSubscriptions) ||
		len(s.subscriptions)+len(s.shared) >= maxRecipients
}

// refuse answers an Open with an error. The caller holds mu.
func (s *stream) refuse(handle uint64, err error) {
	var r refusal
	switch {
	case errors.As(err, &r):
	case errors.Is(err, kafka.ErrNoTopic):
		r = refusal{noTopic, "no events topic"}
	case errors.Is(err, kafka.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		r = refusal{unavailable, "Kafka cannot be reached"}
	default:
		// Kafka's own words, as an operator needs them, are in the log.
		r = refusal{unavailable, "Kafka refused"}
	}
	s.answer(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_SubscriptionError{SubscriptionError: &eventsv1.SubscriptionError{
		Subscription: handle, Reason: r.reason, Message: r.message,
	}}})
}

// opening positions a subscription: it finds where to begin, commits that, and
// only then adds cursors and answers. A request that hangs may keep it longer than
// its deadline, but not the answer.
func (s *stream) opening(ctx context.Context, sub *subscription, frame *eventsv1.Open) {
	ctx, cancel := context.WithTimeout(ctx, s.server.cfg.OpenTimeout)
	defer cancel()
	late := context.AfterFunc(ctx, func() { s.notOpened(ctx, sub, ctx.Err()) })
	defer late()
	if err := s.position(ctx, sub, frame); err != nil {
		s.notOpened(ctx, sub, err)
	}
}

// notOpened answers an Open that failed, once.
func (s *stream) notOpened(ctx context.Context, sub *subscription, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub.closing || sub.opened {
		return
	}
	if !errors.As(err, new(refusal)) {
		s.log.WarnContext(ctx, "subscription not opened", slog.String("kafka_topic", sub.topic), slog.Any("error", err))
	}
	s.endSubscription(sub)
	s.refuse(sub.handle, err)
}

func (s *stream) position(ctx context.Context, sub *subscription, frame *eventsv1.Open) error {
	partitions, err := s.partitions(ctx, sub.topic)
	if err != nil {
		return err
	}
	ends, err := s.server.cfg.Kafka.Offsets(ctx, sub.topic, partitions, kafka.Latest)
	if err != nil {
		return err
	}
	starts, err := s.starts(ctx, sub, frame, ends)
	if err != nil {
		return err
	}
	offsets := make(map[kafka.Place]int64, len(starts))
	for partition, st := range starts {
		offsets[kafka.Place{Topic: sub.topic, Partition: partition}] = st.position()
	}
	positions, err := sub.session.group.Start(ctx, offsets, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return !sub.closing
	})
	if err != nil {
		return fmt.Errorf("commit start positions: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub.closing || positions == nil {
		return nil
	}
	sub.opened = true
	opened := &eventsv1.Opened{Subscription: sub.handle}
	for _, partition := range partitions {
		place := kafka.Place{Topic: sub.topic, Partition: partition}
		s.addCursor(sub, place, starts[partition], positions[place]) //nolint:contextcheck // rings outlive the request
		opened.Positions = append(opened.Positions, &eventsv1.Position{Partition: partition, Offset: starts[partition].next})
	}
	s.answer(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Opened{Opened: opened}})
	return nil
}

// partitions are those of a topic, which is created if that is configured.
func (s *stream) partitions(ctx context.Context, topic string) ([]int32, error) {
	partitions, err := s.server.cfg.Kafka.Partitions(ctx, topic)
	create := s.server.cfg.CreateTopics
	if !errors.Is(err, kafka.ErrNoTopic) || create.Partitions == 0 {
		return partitions, err
	}
	if err := s.server.cfg.Kafka.CreateTopic(ctx, topic, create.Partitions, create.ReplicationFactor); err != nil {
		return nil, err
	}
	s.log.InfoContext(ctx, "topic created", slog.String("kafka_topic", topic))
	for {
		// Brokers learn of it one after the other.
		partitions, err = s.server.cfg.Kafka.Partitions(ctx, topic)
		if !errors.Is(err, kafka.ErrNoTopic) || ctx.Err() != nil {
			return partitions, err
		}
	}
}

// starts finds where to begin in each partition.
func (s *stream) starts(ctx context.Context, sub *subscription, frame *eventsv1.Open, ends map[int32]int64) (map[int32]start, error) {
	starts := make(map[int32]start, len(ends))
	for p, end := range ends {
		starts[p] = start{next: end, end: end}
	}
	if frame.GetResume() != nil {
		return starts, s.resume(ctx, sub, frame.GetResume(), starts)
	}
	known := sub.session.group.Known(sub.topic)
	if len(known) == 0 && sub.session.reattached {
		var err error
		if known, err = sub.session.group.Committed(ctx, sub.topic); err != nil {
			return nil, err
		}
	}
	if len(known) > 0 {
		return starts, s.continueAt(ctx, sub.topic, known, starts)
	}
	var at int64
	switch from := frame.GetStart().GetPosition().(type) {
	case *eventsv1.StartPosition_Earliest:
		if !from.Earliest {
			return starts, nil
		}
		at = kafka.Earliest
	case *eventsv1.StartPosition_Time:
		if err := from.Time.CheckValid(); err != nil || from.Time.GetSeconds() < 0 {
			return nil, refuse(invalid, "the time to start at is not valid")
		}
		at = from.Time.AsTime().UnixMilli()
	default:
		return starts, nil
	}
	offsets, err := s.server.cfg.Kafka.Offsets(ctx, sub.topic, keys(starts), at)
	for p, offset := range offsets {
		starts[p] = start{next: min(offset, ends[p]), end: ends[p]}
	}
	return starts, err
}

// continueAt sets positions that are known; other partitions, and those whose
// position is beyond the log, begin at the start of the log.
func (s *stream) continueAt(ctx context.Context, topic string, known map[int32]int64, starts map[int32]start) error {
	var fromStart []int32
	for p, st := range starts {
		if offset, ok := known[p]; ok && offset <= st.end {
			starts[p] = start{next: offset, end: st.end}
		} else {
			fromStart = append(fromStart, p)
		}
	}
	return s.atLogStart(ctx, topic, fromStart, starts)
}

func (s *stream) atLogStart(ctx context.Context, topic string, partitions []int32, starts map[int32]start) error {
	if len(partitions) == 0 {
		return nil
	}
	offsets, err := s.server.cfg.Kafka.Offsets(ctx, topic, partitions, kafka.Earliest)
	for p, offset := range offsets {
		starts[p] = start{next: offset, end: starts[p].end}
	}
	return err
}

// resume sets positions that the frontend knows. Partitions that it does not name
// continue at what is committed.
func (s *stream) resume(ctx context.Context, sub *subscription, point *eventsv1.ResumePoint, starts map[int32]start) error {
	named := map[int32]start{}
	for _, p := range point.GetPositions() {
		st, ok := starts[p.GetPartition()]
		if !ok {
			continue // the topic was re-created with fewer
		}
		if p.GetNextOffset() < 0 {
			return refuse(invalid, "a position to resume at is negative")
		}
		unacknowledged, err := s.unacknowledged(p)
		if err != nil {
			return err
		}
		named[p.GetPartition()] = start{next: p.GetNextOffset(), unacknowledged: unacknowledged, end: st.end}
	}
	known := sub.session.group.Known(sub.topic)
	if len(known) < len(starts) && len(named) < len(starts) {
		var err error
		if known, err = sub.session.group.Committed(ctx, sub.topic); err != nil {
			return err
		}
	}
	if err := s.continueAt(ctx, sub.topic, without(known, named), starts); err != nil {
		return err
	}
	for p, st := range named {
		if st.next <= st.end {
			starts[p] = st // else the log is another one: it begins at its start, as just found out
		}
	}
	return nil
}

// without drops what is named: its positions need no look.
func without(known map[int32]int64, named map[int32]start) map[int32]int64 {
	rest := maps.Clone(known)
	for p, st := range named {
		rest[p] = st.next
	}
	return rest
}

func (s *stream) unacknowledged(p *eventsv1.ResumePosition) ([]int64, error) {
	var offsets []int64
	ranges := slices.Clone(p.GetUnacknowledged())
	slices.SortFunc(ranges, func(a, b *eventsv1.OffsetRange) int {
		return int(max(min(a.GetFirst()-b.GetFirst(), 1), -1))
	})
	for _, r := range ranges {
		if r.GetFirst() < 0 || r.GetLast() < r.GetFirst() || r.GetLast() >= p.GetNextOffset() || r.GetLast() == math.MaxInt64 ||
			len(offsets) > 0 && r.GetFirst() <= offsets[len(offsets)-1] {
			return nil, refuse(invalid, "unacknowledged ranges overlap or are not below the position to resume at")
		}
		if r.GetLast()-r.GetFirst() >= int64(s.server.cfg.MaxWindow-len(offsets)) {
			return nil, refuse(invalid, "more events are unacknowledged than a window has")
		}
		for offset := r.GetFirst(); offset <= r.GetLast(); offset++ {
			offsets = append(offsets, offset)
		}
	}
	return offsets, nil
}

func keys(m map[int32]start) []int32 {
	list := make([]int32, 0, len(m))
	for p := range m {
		list = append(list, p)
	}
	slices.Sort(list)
	return list
}

// addCursor has a partition delivered to a subscription. The caller holds mu.
func (s *stream) addCursor(sub *subscription, place kafka.Place, at start, position *commit.Position) {
	l := s.lanes[place]
	if l == nil {
		l = &lane{stream: s, place: place, ring: s.server.cfg.Tails.Acquire(place, at.end)}
		l.watcher = &tail.Watcher{Notify: func() { s.notify(l) }}
		l.generation, _, _ = l.ring.Generation()
		l.ring.Watch(l.watcher)
		s.lanes[place] = l
	}
	c := &cursorOf{sub: sub, lane: l, next: at.next, position: position}
	for _, offset := range at.unacknowledged {
		c.tracker.Add(offset, 0)
		sub.events++
	}
	l.cursors = append(l.cursors, c)
	sub.cursors = append(sub.cursors, c)
	s.makeReady(c)
	s.signal()
}

// removeCursor is its end. The caller holds mu.
func (s *stream) removeCursor(c *cursorOf) {
	l := c.lane
	switch c.state {
	case live:
		l.live = remove(l.live, c)
	case ready:
		l.ready = remove(l.ready, c)
	case stalled, fetching, closed:
	}
	c.state, c.chunk = closed, nil
	l.cursors = remove(l.cursors, c)
	if len(l.cursors) > 0 {
		return
	}
	l.ring.Unwatch(l.watcher)
	s.server.cfg.Tails.Release(l.place)
	delete(s.lanes, l.place)
}

func remove(list []*cursorOf, c *cursorOf) []*cursorOf {
	i := slices.Index(list, c)
	if i < 0 {
		return list
	}
	return slices.Delete(list, i, i+1)
}

// topics are those that are subscribed to on this stream.
func (s *stream) topics(into map[string]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for place := range s.lanes {
		into[place.Topic] = struct{}{}
	}
}

// missing are those of the partitions of a topic that a subscription lacks.
func (s *stream) missing(topic string, partitions []int32, into map[int32]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.subscriptions {
		if sub.topic != topic || len(sub.cursors) == 0 || len(sub.cursors) >= len(partitions) {
			continue
		}
		for _, p := range partitions {
			if sub.cursorAt(p) == nil {
				into[p] = struct{}{}
			}
		}
	}
}

// grow adds partitions to the subscriptions of a topic, each at its log start.
func (s *stream) grow(topic string, starts map[int32]int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.subscriptions {
		if sub.topic != topic || len(sub.cursors) == 0 {
			continue
		}
		for p, offset := range starts {
			if sub.cursorAt(p) == nil {
				place := kafka.Place{Topic: topic, Partition: p}
				s.addCursor(sub, place, start{next: offset, end: offset}, sub.session.group.StartLater(place, offset))
			}
		}
	}
}
