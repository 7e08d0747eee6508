package commit

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"mqtt-integration/services/event-fanout/internal/kafka"
)

// Config is what [NewScheduler] needs.
type Config struct {
	// Store returns the consumer group of a name.
	Store func(name string) *kafka.Group
	// Metadata is committed with each offset and names this process.
	Metadata string
	// Interval is the time from one round to the next, Refresh that after which
	// everything of an idle group is committed again.
	Interval, Refresh time.Duration
	// Workers is how many groups are committed at the same time.
	Workers int
	// Commits counts requests by "outcome", and may be nil.
	Commits metric.Int64Counter
	Logger  *slog.Logger
}

// Scheduler commits the positions of many groups.
type Scheduler struct {
	cfg    Config
	outage atomic.Bool // Kafka could not be reached at last

	mu     sync.Mutex
	dirty  []*Group
	groups map[*Group]struct{}
}

const (
	// roundTimeout bounds the requests for one group in a round.
	roundTimeout = 5 * time.Second
	// refreshEvery is how often groups are looked at whether they are due.
	refreshEvery = time.Minute
)

// NewScheduler returns a scheduler without groups.
func NewScheduler(cfg Config) *Scheduler {
	return &Scheduler{cfg: cfg, groups: map[*Group]struct{}{}}
}

// Group adds a group, which need not exist in Kafka.
func (s *Scheduler) Group(name string) *Group {
	return s.group(s.cfg.Store(name))
}

func (s *Scheduler) group(store store) *Group {
	g := &Group{scheduler: s, store: store, turn: make(chan struct{}, 1), positions: map[kafka.Place]*Position{}}
	g.turn <- struct{}{}
	g.refreshAt.Store(s.nextRefresh().UnixNano())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[g] = struct{}{}
	return g
}

// nextRefresh is somewhere in the last quarter of the interval, so that groups
// that began together do not stay together.
func (s *Scheduler) nextRefresh() time.Time {
	quarter := s.cfg.Refresh / 4
	return time.Now().Add(s.cfg.Refresh - rand.N(quarter+1)) //nolint:gosec // spreading load
}

func (s *Scheduler) remove(g *Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.groups, g)
}

func (s *Scheduler) add(g *Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty = append(s.dirty, g)
}

// Groups is the number of groups.
func (s *Scheduler) Groups() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.groups)
}

// Age is how long the oldest acknowledgement has not been committed.
func (s *Scheduler) Age() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest time.Duration
	now := time.Now().UnixNano()
	for g := range s.groups {
		for _, since := range [2]int64{g.underWay.Load(), g.dirtySince.Load()} {
			if since > 0 {
				oldest = max(oldest, time.Duration(now-since))
			}
		}
	}
	return oldest
}

// Run commits until ctx ends. Call Flush after it for what is left.
func (s *Scheduler) Run(ctx context.Context) {
	ticker := time.NewTicker(s.cfg.Interval)
	defer ticker.Stop()
	refresh := time.NewTicker(min(refreshEvery, s.cfg.Refresh/4))
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.round(ctx, s.take(), false)
		case <-refresh.C:
			s.round(ctx, s.due(), true)
		}
	}
}

// Flush commits all positions that have moved, as far as ctx allows.
func (s *Scheduler) Flush(ctx context.Context) { s.round(ctx, s.take(), false) }

func (s *Scheduler) take() []*Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	dirty := s.dirty
	s.dirty = nil
	return dirty
}

func (s *Scheduler) due() []*Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	var due []*Group
	now := time.Now().UnixNano()
	for g := range s.groups {
		if g.refreshAt.Load() <= now {
			g.refreshAt.Store(s.nextRefresh().UnixNano())
			due = append(due, g)
		}
	}
	return due
}

// round commits groups, and gives up on the rest when Kafka cannot be reached:
// they stay dirty.
func (s *Scheduler) round(ctx context.Context, groups []*Group, everything bool) {
	var next atomic.Int64
	var away atomic.Bool
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(groups) {
				return
			}
			g := groups[i]
			if away.Load() || ctx.Err() != nil {
				s.postpone(g, everything)
				continue
			}
			groupCtx, cancel := context.WithTimeout(ctx, roundTimeout)
			err := g.flush(groupCtx, everything)
			cancel()
			if err == nil {
				s.outage.Store(false)
				continue
			}
			if everything {
				g.refreshAt.Store(0) // with the next look
			}
			if errors.Is(err, kafka.ErrUnavailable) {
				away.Store(true)
				if s.outage.Swap(true) {
					continue // once per outage is enough
				}
			}
			s.cfg.Logger.WarnContext(ctx, "positions not committed",
				slog.String("group", g.Name()), slog.Any("error", err))
		}
	}
	var workers sync.WaitGroup
	for range min(s.cfg.Workers, len(groups)) {
		workers.Go(work)
	}
	workers.Wait()
}

func (s *Scheduler) postpone(g *Group, everything bool) {
	if everything {
		g.refreshAt.Store(0)
		return
	}
	s.add(g) // it is still marked as dirty
}

func (s *Scheduler) count(ctx context.Context, err error) {
	if s.cfg.Commits == nil {
		return
	}
	outcome := "committed"
	if err != nil {
		outcome = "failed"
	}
	s.cfg.Commits.Add(context.WithoutCancel(ctx), 1, metric.WithAttributes(attribute.String("outcome", outcome)))
}
