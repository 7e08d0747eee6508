package stream

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/event-fanout/internal/commit"
	"mqtt-integration/services/event-fanout/internal/kafka"
	"mqtt-integration/services/event-fanout/internal/share"
	"mqtt-integration/services/event-fanout/internal/tail"
)

// Config is what [New] needs.
type Config struct {
	Kafka     *kafka.Cluster
	Tails     *tail.Tails
	CatchUp   *tail.CatchUp
	Scheduler *commit.Scheduler
	Share     *share.Hub
	// InstanceID names this process to frontends.
	InstanceID string
	// FrameBytes is when a frame is full, MaxEventBytes the largest event.
	FrameBytes, MaxEventBytes int
	// OpenTimeout bounds the opening of a subscription, Grace how long a session
	// without a stream is kept.
	OpenTimeout, Grace time.Duration
	// RefreshInterval is how often new partitions are looked for.
	RefreshInterval time.Duration
	CreateTopics    CreateTopics
	// Limits.
	MaxStreams, MaxSessions, MaxSubscriptions, MaxWindow int
	Meter                                                metric.Meter
	Logger                                               *slog.Logger
}

// CreateTopics says how to create a topic that is missing. Without partitions, it
// is not created.
type CreateTopics struct {
	Partitions        int32
	ReplicationFactor int16
}

// Server is EventsService. Run keeps it going; Close ends what it started.
type Server struct {
	eventsv1.UnsafeEventsServiceServer

	cfg     Config
	metrics *metrics
	frames  *frames
	owners  owners
	ctx     context.Context // the life of work that outlives the request for it
	end     context.CancelFunc
	done    sync.WaitGroup

	subscriptions atomic.Int64

	mu      sync.Mutex
	leaving bool
	streams map[*stream]struct{}
}

// New returns a server without streams.
func New(cfg Config) (*Server, error) {
	s := &Server{
		cfg: cfg, frames: &frames{target: cfg.FrameBytes},
		owners:  owners{sessions: map[key]*owner{}},
		streams: map[*stream]struct{}{},
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	m, err := newMetrics(cfg.Meter, s)
	if err != nil {
		return nil, err
	}
	s.metrics = m
	return s, nil
}

// Close waits for what is under way for sessions, until ctx ends, and for streams
// that gRPC has ended.
func (s *Server) Close(ctx context.Context) {
	stop := context.AfterFunc(ctx, s.end)
	s.done.Wait()
	stop()
	s.end()
	s.metrics.close()
}

// Deliver serves a stream.
func (s *Server) Deliver(call grpc.BidiStreamingServer[eventsv1.DeliverRequest, eventsv1.DeliverResponse]) error {
	st := &stream{
		server: s, grpc: call, ctx: call.Context(), log: s.cfg.Logger,
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1),
		sessions: map[uint64]*session{}, subscriptions: map[uint64]*subscription{}, lanes: map[kafka.Place]*lane{},
		shared: map[uint64]*shared{},
	}
	return st.serve()
}

func (s *Server) register(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return status.Error(codes.Unavailable, "shutting down")
	}
	if len(s.streams) >= s.cfg.MaxStreams {
		return status.Error(codes.ResourceExhausted, "this instance has too many streams")
	}
	s.streams[st] = struct{}{}
	return nil
}

func (s *Server) unregister(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
}

func (s *Server) allStreams() []*stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		all = append(all, st)
	}
	return all
}

// Leave asks all frontends to move on, and takes nothing new.
func (s *Server) Leave(reason string) {
	s.mu.Lock()
	s.leaving = true
	s.mu.Unlock()
	for _, st := range s.allStreams() {
		st.goaway(reason)
	}
}

// tidyInterval is how often sessions and partitions that nobody uses are looked for.
const tidyInterval = time.Second

// Run forgets sessions whose frontend did not come back, stops reading what
// nobody subscribes to, and looks for new partitions, until ctx ends.
func (s *Server) Run(ctx context.Context) {
	tidy := time.NewTicker(tidyInterval)
	defer tidy.Stop()
	refresh := time.NewTicker(s.cfg.RefreshInterval)
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tidy.C:
			s.cfg.Tails.Sweep()
			for _, group := range s.owners.expire(now) {
				s.done.Go(func() { s.deleteLeftGroup(group) }) //nolint:contextcheck // it outlives this loop
			}
		case <-refresh.C:
			s.refreshTopics(ctx)
		}
	}
}

// refreshTopics gives new partitions to the subscriptions of their topics.
func (s *Server) refreshTopics(ctx context.Context) {
	streams := s.allStreams()
	topics := map[string]struct{}{}
	for _, st := range streams {
		st.topics(topics)
	}
	for topic := range topics {
		if ctx.Err() != nil {
			return
		}
		if err := s.refreshTopic(ctx, topic, streams); err != nil {
			s.cfg.Logger.WarnContext(ctx, "partitions not looked up", slog.String("kafka_topic", topic), slog.Any("error", err))
			if errors.Is(err, kafka.ErrUnavailable) {
				return // so it would be for the others
			}
		}
	}
}

func (s *Server) refreshTopic(ctx context.Context, topic string, streams []*stream) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RefreshInterval)
	defer cancel()
	if err := s.cfg.Kafka.Refresh(topic); err != nil {
		return err
	}
	partitions, err := s.cfg.Kafka.Partitions(ctx, topic)
	if err != nil {
		return err
	}
	missing := map[int32]struct{}{}
	for _, st := range streams {
		st.missing(topic, partitions, missing)
	}
	if len(missing) == 0 {
		return nil
	}
	list := make([]int32, 0, len(missing))
	for p := range missing {
		list = append(list, p)
	}
	starts, err := s.cfg.Kafka.Offsets(ctx, topic, list, kafka.Earliest)
	if err != nil {
		return err
	}
	s.cfg.Logger.InfoContext(ctx, "topic has new partitions", slog.String("kafka_topic", topic), slog.Int("count", len(starts)))
	for _, st := range streams {
		st.grow(topic, starts) //nolint:contextcheck // rings outlive the request
	}
	return nil
}

// deleteTimeout bounds the deletion of a group. One that stays is empty and
// expires with its offsets.
const deleteTimeout = 30 * time.Second

// deleteGroup deletes the group of a session that is over, after what is under
// way for it.
func (s *Server) deleteGroup(of *session, group *commit.Group) {
	remove := func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
		defer cancel()
		s.deleted(ctx, group, group.Delete(ctx))
	}
	if of != nil {
		of.work.add(s, true, remove)
		return
	}
	s.done.Go(func() { remove(s.ctx) })
}

// deleteLeftGroup deletes the group of a session whose frontend did not come
// back, unless it went to another instance.
func (s *Server) deleteLeftGroup(group *commit.Group) {
	ctx, cancel := context.WithTimeout(s.ctx, deleteTimeout)
	defer cancel()
	s.deleted(ctx, group, group.DeleteUnlessTaken(ctx))
}

func (s *Server) deleted(ctx context.Context, group *commit.Group, err error) {
	if err == nil {
		return
	}
	s.cfg.Logger.WarnContext(ctx, "group not deleted", slog.String("group", group.Name()), slog.Any("error", err))
	group.Abandon()
}
