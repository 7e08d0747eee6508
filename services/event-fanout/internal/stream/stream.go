package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/event-fanout/internal/kafka"
	"mqtt-integration/services/event-fanout/internal/tail"
)

const (
	// defaultMaxFrame is what a frontend takes that does not say so.
	defaultMaxFrame = 4 << 20
	// minMaxFrame is the least that it may say.
	minMaxFrame = reservedBytes + 64<<10
	// maxReads is how many chunks are read or held for one stream.
	maxReads = 4
	// maxAnswers is how many answers may wait to be sent before the stream reads on.
	maxAnswers = 1024
)

// stream is one call of Deliver. The goroutine of the call receives; another one,
// which it waits for, sends.
type stream struct {
	server   *Server
	grpc     grpc.BidiStreamingServer[eventsv1.DeliverRequest, eventsv1.DeliverResponse]
	ctx      context.Context //nolint:containedctx // that of the call
	log      *slog.Logger
	frontend string
	maxEvent int
	wake     chan struct{}
	room     chan struct{} // answers were taken

	notifiedMu     sync.Mutex
	notified       []*lane   // whose rings have grown
	notifiedShared []*shared // which were given something

	mu            sync.Mutex
	ended         bool // nothing is delivered any more
	leaving       bool // goaway was sent
	answers       []*eventsv1.DeliverResponse
	sessions      map[uint64]*session
	subscriptions map[uint64]*subscription
	shared        map[uint64]*shared
	sharedReady   queue[*shared] // with something to take
	sharedFirst   bool           // there was no room for all of it in the former frame
	lanes         map[kafka.Place]*lane
	liveLanes     queue[*lane]
	readyLanes    queue[*lane]
	readyFirst    bool // the former frame was full of live events
	reads         int
	waiting       []*cursorOf // for a read to end
	recipients    []byte      // scratch, as the next ones
	group, others []*cursorOf
}

// serve runs the stream until one of both sides ends it.
func (s *stream) serve() error {
	if err := s.server.register(s); err != nil {
		return err
	}
	defer s.server.unregister(s)
	if greeted, err := s.greet(); err != nil || !greeted {
		return err
	}
	finish := make(chan struct{})
	sent, received := make(chan error, 1), make(chan error, 1)
	// A panic would end the process, for all streams. The receiver ends after
	// this call: nothing else interrupts it. The server waits for both.
	s.server.done.Go(func() { sent <- guarded(func() error { return s.send(finish) }) })
	s.server.done.Go(func() { received <- guarded(s.receive) })
	select {
	case err := <-sent:
		s.end()
		return err
	case err := <-received:
		s.end()
		close(finish)
		if last := <-sent; err == nil {
			err = last
		}
		return err // as it is: a status that is wrapped would be hidden
	}
}

func guarded(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return f()
}

// greet exchanges hellos. False if the frontend ended the stream before.
func (s *stream) greet() (bool, error) {
	first, err := s.grpc.Recv()
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	hello := first.GetHello()
	if hello == nil {
		return false, status.Error(codes.InvalidArgument, "the first frame is no hello")
	}
	maxFrame := int(hello.GetMaxFrameBytes())
	if maxFrame == 0 {
		maxFrame = defaultMaxFrame
	}
	if maxFrame < minMaxFrame {
		return false, status.Errorf(codes.InvalidArgument, "max_frame_bytes is %d, less than %d", maxFrame, minMaxFrame)
	}
	s.frontend = hello.GetFrontendId()
	s.log = s.server.cfg.Logger.With(slog.String("frontend_id", s.frontend))
	s.maxEvent = min(s.server.cfg.MaxEventBytes, maxFrame-reservedBytes)
	return true, s.grpc.Send(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Hello{Hello: &eventsv1.ServerHello{
		InstanceId: s.server.cfg.InstanceID, MaxEventBytes: uint32(s.maxEvent), //nolint:gosec // a few MiB
	}}})
}

// send sends answers and events, and after finish what is left of the answers.
func (s *stream) send(finish <-chan struct{}) error {
	for last := false; !last; {
		select {
		case <-finish:
			last = true
		case <-s.wake:
		}
		for {
			answers, f := s.collect()
			if len(answers) == 0 && f == nil {
				break
			}
			for _, answer := range answers {
				if err := s.grpc.Send(answer); err != nil {
					return err
				}
			}
			if f != nil {
				s.server.metrics.frame(f)
				if err := s.grpc.SendMsg(f.finish()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// collect takes what is to be sent: the answers, and then a frame.
func (s *stream) collect() ([]*eventsv1.DeliverResponse, *frame) {
	s.notifiedMu.Lock()
	notified, notifiedShared := s.notified, s.notifiedShared
	s.notified, s.notifiedShared = nil, nil
	s.notifiedMu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	answers := s.answers
	s.answers = nil
	if len(answers) > 0 {
		select {
		case s.room <- struct{}{}:
		default:
		}
	}
	if s.ended {
		return answers, nil
	}
	for _, l := range notified {
		l.notified.Store(false)
		s.queueLive(l)
	}
	for _, sub := range notifiedShared {
		sub.notified.Store(false)
		s.queueShared(sub)
	}
	if s.liveLanes.len() == 0 && s.readyLanes.len() == 0 && s.sharedReady.len() == 0 {
		return answers, nil
	}
	f := s.server.frames.begin()
	if s.sharedFirst {
		s.fillShared(f)
	}
	if s.readyFirst {
		s.fillReady(f)
	}
	s.readyFirst = s.fillLive(f) && !s.readyFirst
	s.fillReady(f)
	s.fillShared(f)
	s.sharedFirst = s.sharedReady.len() > 0 && !s.sharedFirst
	if f.empty() {
		f.discard()
		f = nil
	}
	return answers, f
}

// fillLive fills a frame from live lanes, and says whether that made it full.
func (s *stream) fillLive(f *frame) (full bool) {
	for s.liveLanes.len() > 0 {
		l := s.liveLanes.pop()
		l.inLive = false
		if s.serveLive(f, l) {
			s.queueLive(l)
			return true
		}
	}
	return false
}

// fillReady fills a frame from ready lanes, each in its turn.
func (s *stream) fillReady(f *frame) {
	for s.readyLanes.len() > 0 {
		l := s.readyLanes.pop()
		l.inReady = false
		full := s.serveReady(f, l)
		if len(l.ready) > 0 {
			s.queueReady(l)
		}
		if full {
			return
		}
	}
}

// signal has the sender look what there is to do.
func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// notify is called by the tail of a lane.
func (s *stream) notify(l *lane) {
	if l.notified.Swap(true) {
		return
	}
	s.notifiedMu.Lock()
	s.notified = append(s.notified, l)
	s.notifiedMu.Unlock()
	s.signal()
}

// answer queues an answer. The caller holds mu.
func (s *stream) answer(response *eventsv1.DeliverResponse) {
	s.answers = append(s.answers, response)
	s.signal()
}

// fetched takes a chunk that was read for a cursor.
func (s *stream) fetched(c *cursorOf, chunk *tail.Chunk, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads--
	if c.state == fetching {
		if out, ok := errors.AsType[tail.RangeError](err); ok {
			s.outOfRange(c, out)
		}
		c.chunk = chunk
		s.makeReady(c)
	}
	// The chunk that just came may be what others wait for.
	for _, waiting := range s.waiting {
		if waiting.state == fetching {
			s.makeReady(waiting)
		}
	}
	clear(s.waiting)
	s.waiting = s.waiting[:0]
	s.signal()
}

// outOfRange takes a cursor to the start of the log.
func (s *stream) outOfRange(c *cursorOf, out tail.RangeError) {
	if c.next > out.End {
		s.restart(c, out.Start)
		return
	}
	skipped := out.Start - c.next
	if skipped <= 0 {
		return
	}
	c.next = out.Start
	if c.tracker.Len() == 0 {
		c.position.Move(c.next)
	}
	s.server.metrics.skipped(skipped)
	s.log.WarnContext(s.ctx, "retention overtook a subscription", slog.String("kafka_topic", c.lane.place.Topic),
		slog.Int("partition", int(c.lane.place.Partition)), slog.Int64("offset", c.next), slog.Int64("count", skipped))
	s.answer(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_OffsetsSkipped{OffsetsSkipped: &eventsv1.OffsetsSkipped{
		Subscription: c.sub.handle, Partition: c.lane.place.Partition, Count: skipped,
	}}})
}
