package share

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"go.opentelemetry.io/otel/metric"

	"mqtt-integration/services/event-fanout/internal/kafka"
	"mqtt-integration/services/event-fanout/internal/tail"
)

// Errors that callers tell apart.
var (
	// ErrTooManyGroups says that a limit is reached.
	ErrTooManyGroups = errors.New("too many share groups")
	// ErrClosed says that the hub is closed.
	ErrClosed = errors.New("shutting down")
)

// Config is what [New] needs.
type Config struct {
	Brokers []string
	// Sarama makes a configuration for one client. Each call makes its own.
	Sarama func() (*sarama.Config, error)
	// Kafka is for everything but consuming: it reads back what members commit.
	Kafka    *kafka.Cluster
	Decoder  *tail.Decoder
	Template Template
	// AckTimeout is how long a member may hold events and acknowledge none.
	AckTimeout time.Duration
	// SessionTimeout is after what silence Kafka gives the partitions of an
	// instance to others.
	SessionTimeout time.Duration
	// CommitInterval is the time from one commit of a group to the next.
	CommitInterval time.Duration
	// RefreshInterval is how often new partitions are looked for.
	RefreshInterval time.Duration
	// MaxWait is how long Kafka may hold an answer back when there is nothing to read.
	MaxWait time.Duration
	// MaxGroups bounds the groups of this instance, MaxGroupsPerApplication those
	// of one application.
	MaxGroups, MaxGroupsPerApplication int
	Meter                              metric.Meter
	Logger                             *slog.Logger
}

// Hub has the groups of this instance. Its methods may be used from several
// goroutines.
type Hub struct {
	cfg     Config
	metrics *metrics
	ctx     context.Context // the life of the groups, ended by Close
	end     context.CancelFunc
	done    sync.WaitGroup

	mu     sync.Mutex
	closed bool
	groups map[identity]*group
	perApp map[string]int
}

// identity is which group it is.
type identity struct{ application, share string }

// New returns a hub without groups.
func New(cfg Config) (*Hub, error) {
	h := &Hub{cfg: cfg, groups: map[identity]*group{}, perApp: map[string]int{}}
	h.ctx, h.end = context.WithCancel(context.Background())
	var err error
	if h.metrics, err = newMetrics(cfg.Meter, h); err != nil {
		h.end()
		return nil, err
	}
	return h, nil
}

// Close ends all groups: positions are committed, and Kafka gives the partitions
// to others at once.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.end()
	h.done.Wait()
	h.metrics.close()
}

// Request says what to subscribe to.
type Request struct {
	Application, Share, Topic string
	Window                    Window
}

// Join makes a subscriber a member of a group. It returns when the group is
// positioned: what is appended to the topic from then on reaches one of its
// members. Errors of Kafka are as in package kafka.
func (h *Hub) Join(ctx context.Context, r Request, s Subscriber) (*Member, error) {
	g, err := h.enter(r)
	if err != nil {
		return nil, err
	}
	if err := g.positioned(ctx); err != nil {
		h.leave(g)
		return nil, err
	}
	m := &Member{group: g, subscriber: s, window: r.Window, leave: func() { h.leave(g) }}
	g.dealer.join(m)
	return m, nil
}

// enter counts somebody who needs a group, which begins with the first.
func (h *Hub) enter(r Request) (*group, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	id := identity{r.Application, r.Share}
	g := h.groups[id]
	if g == nil {
		if len(h.groups) >= h.cfg.MaxGroups || h.perApp[id.application] >= h.cfg.MaxGroupsPerApplication {
			return nil, ErrTooManyGroups
		}
		g = newGroup(h, id, r.Topic)
		h.groups[id] = g
		h.perApp[id.application]++
		h.done.Go(g.run)
	}
	g.users++
	return g, nil
}

// leave is the opposite; the group ends with the last.
func (h *Hub) leave(g *group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g.users--; g.users > 0 {
		return
	}
	g.end()
	delete(h.groups, g.id)
	if h.perApp[g.id.application]--; h.perApp[g.id.application] == 0 {
		delete(h.perApp, g.id.application)
	}
}

// all are the groups that there are.
func (h *Hub) all() []*group {
	h.mu.Lock()
	defer h.mu.Unlock()
	groups := make([]*group, 0, len(h.groups))
	for _, g := range h.groups {
		groups = append(groups, g)
	}
	return groups
}
