package commit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"mqtt-integration/services/event-fanout/internal/kafka"
)

// ErrGone says that a group was deleted.
var ErrGone = errors.New("the group was deleted")

// store is a consumer group in Kafka.
type store interface {
	Name() string
	Commit(ctx context.Context, offsets map[kafka.Place]int64, metadata string) error
	Offsets(ctx context.Context) (map[kafka.Place]kafka.Committed, error)
	Forget(ctx context.Context, topic string, partitions []int32) error
	Delete(ctx context.Context) error
}

// Position is where a subscription stands in a partition: everything below it is
// acknowledged. Safe for concurrent use.
type Position struct {
	group  *Group
	offset atomic.Int64
	// committed is what Kafka has. Guarded by the group's turn.
	committed int64
}

// Offset is the position.
func (p *Position) Offset() int64 { return p.offset.Load() }

// Move sets the position. It is committed with the next round.
func (p *Position) Move(offset int64) {
	if p.offset.Swap(offset) != offset {
		p.group.touch()
	}
}

// Group is the consumer group of a session. Made by [Scheduler.Group]. Its
// methods may be used from several goroutines.
type Group struct {
	scheduler *Scheduler
	store     store
	turn      chan struct{} // holds one token while nobody talks to Kafka for this group

	dirty      atomic.Bool
	dirtySince atomic.Int64 // nanoseconds since 1970; 0: what has moved since is on its way, or nothing has
	underWay   atomic.Int64 // since when that was dirty which is being committed; 0: nothing
	refreshAt  atomic.Int64 // nanoseconds since 1970

	mu        sync.Mutex
	gone      bool
	positions map[kafka.Place]*Position
}

// Name is the name of the group.
func (g *Group) Name() string { return g.store.Name() }

func (g *Group) touch() {
	if !g.dirty.Swap(true) {
		g.dirtySince.Store(time.Now().UnixNano())
		g.scheduler.add(g)
	}
}

func (g *Group) enter(ctx context.Context) error {
	select {
	case <-g.turn:
	case <-ctx.Done():
		return fmt.Errorf("%w: group %q is busy: %w", kafka.ErrUnavailable, g.Name(), ctx.Err())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone {
		g.leave()
		return ErrGone
	}
	return nil
}

func (g *Group) leave() { g.turn <- struct{}{} }

// Start commits where a subscription begins, and returns once Kafka has it. The
// positions that it returns replace those of the same partitions. wanted is asked
// when it is the group's turn; if it says no, Start does nothing and returns nil.
func (g *Group) Start(ctx context.Context, offsets map[kafka.Place]int64, wanted func() bool) (map[kafka.Place]*Position, error) {
	if err := g.enter(ctx); err != nil {
		return nil, err
	}
	defer g.leave()
	if !wanted() {
		return nil, nil
	}
	if err := g.store.Commit(ctx, offsets, g.scheduler.cfg.Metadata); err != nil {
		return nil, err
	}
	g.scheduler.count(ctx, nil)
	positions := make(map[kafka.Place]*Position, len(offsets))
	for place, offset := range offsets {
		p := &Position{group: g, committed: offset}
		p.offset.Store(offset)
		positions[place] = p
	}
	g.put(positions)
	return positions, nil
}

// StartLater is Start for a partition that appeared while its topic was
// subscribed to: nothing is lost if it is committed with the next round, since
// a partition without a position begins at its start.
func (g *Group) StartLater(place kafka.Place, offset int64) *Position {
	p := &Position{group: g, committed: -1}
	p.offset.Store(offset)
	g.put(map[kafka.Place]*Position{place: p})
	g.touch()
	return p
}

func (g *Group) put(positions map[kafka.Place]*Position) {
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.Copy(g.positions, positions)
}

// Known returns the positions of a topic that this process has, which are as new
// as those in Kafka or newer.
func (g *Group) Known(topic string) map[int32]int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	known := map[int32]int64{}
	for place, p := range g.positions {
		if place.Topic == topic {
			known[place.Partition] = p.Offset()
		}
	}
	return known
}

// Committed returns the offsets of a topic that Kafka has.
func (g *Group) Committed(ctx context.Context, topic string) (map[int32]int64, error) {
	if err := g.enter(ctx); err != nil {
		return nil, err
	}
	defer g.leave()
	all, err := g.store.Offsets(ctx)
	if err != nil {
		return nil, err
	}
	committed := map[int32]int64{}
	for place, c := range all {
		if place.Topic == topic {
			committed[place.Partition] = c.Offset
		}
	}
	return committed, nil
}

// Forget deletes the positions of a topic.
func (g *Group) Forget(ctx context.Context, topic string) error {
	if err := g.enter(ctx); err != nil {
		return err
	}
	defer g.leave()
	var partitions []int32
	g.mu.Lock()
	for place := range g.positions {
		if place.Topic == topic {
			partitions = append(partitions, place.Partition)
			delete(g.positions, place)
		}
	}
	g.mu.Unlock()
	if len(partitions) == 0 {
		return nil
	}
	return g.store.Forget(ctx, topic, partitions)
}

// Delete deletes the group. Nothing is committed to it any more.
func (g *Group) Delete(ctx context.Context) error {
	if err := g.enter(ctx); err != nil {
		if errors.Is(err, ErrGone) {
			return nil
		}
		return err
	}
	defer g.leave()
	if err := g.store.Delete(ctx); err != nil {
		return err
	}
	g.abandon()
	return nil
}

// DeleteUnlessTaken deletes the group unless another process has committed to
// it. Either way nothing is committed to it from here any more.
func (g *Group) DeleteUnlessTaken(ctx context.Context) error {
	if err := g.enter(ctx); err != nil {
		if errors.Is(err, ErrGone) {
			return nil
		}
		return err
	}
	defer g.leave()
	offsets, err := g.store.Offsets(ctx)
	if err != nil {
		return err
	}
	for _, committed := range offsets {
		if committed.Metadata != g.scheduler.cfg.Metadata {
			g.abandon()
			return nil
		}
	}
	if err := g.store.Delete(ctx); err != nil {
		return err
	}
	g.abandon()
	return nil
}

// Abandon ends all commits of this process to the group, and leaves it as it is.
func (g *Group) Abandon() {
	g.abandon()
}

func (g *Group) abandon() {
	g.mu.Lock()
	g.gone = true
	g.mu.Unlock()
	g.scheduler.remove(g)
}

// Flush commits what has moved.
func (g *Group) Flush(ctx context.Context) error { return g.flush(ctx, false) }

// flush commits what has moved, or everything.
func (g *Group) flush(ctx context.Context, everything bool) error {
	if err := g.enter(ctx); err != nil {
		if errors.Is(err, ErrGone) {
			return nil
		}
		g.dirty.Store(true)
		g.scheduler.add(g)
		return err
	}
	defer g.leave()
	since := g.dirtySince.Swap(0)
	g.underWay.Store(since)
	defer g.underWay.Store(0)
	// Before the positions are looked at: what moves later makes it dirty again.
	g.dirty.Store(false)
	offsets := map[kafka.Place]int64{}
	moved := map[kafka.Place]*Position{}
	g.mu.Lock()
	for place, p := range g.positions {
		if offset := p.Offset(); everything || offset != p.committed {
			offsets[place], moved[place] = offset, p
		}
	}
	g.mu.Unlock()
	if len(offsets) == 0 {
		return nil
	}
	err := g.store.Commit(ctx, offsets, g.scheduler.cfg.Metadata)
	g.scheduler.count(ctx, err)
	var refused kafka.PartitionsError
	if err != nil && !errors.As(err, &refused) {
		g.touch()
		if since > 0 {
			g.dirtySince.Store(since)
		}
		return err
	}
	for place, p := range moved {
		// A refused partition (its topic is gone) is not tried again until it moves.
		p.committed = offsets[place]
	}
	return err
}
