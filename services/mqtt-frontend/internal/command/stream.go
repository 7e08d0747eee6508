package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
)

const (
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = time.Second
	// helloTimeout is how long a server may take to answer.
	helloTimeout = 5 * time.Second
	// lookInterval is how often a lane looks whether the instance that it prefers
	// can be reached, and distrust how long it does not after a stream broke.
	lookInterval = time.Second
	distrust     = 10 * time.Second
)

var (
	errNoHello  = errors.New("the stream does not begin with a hello")
	errSilent   = errors.New("there was no answer in time")
	errOverdue  = errors.New("results stay away")
	errFinished = errors.New("the server has ended the stream")
	errBetter   = errors.New("another instance is to be used")
)

// stream is one stream of a lane.
type stream = grpc.BidiStreamingClient[commandsv1.PublishRequest, commandsv1.PublishResponse]

// run keeps a stream until ctx ends.
func (l *lane) run(ctx context.Context) {
	backoff, broken := firstBackoff, false
	for ctx.Err() == nil {
		to, only := l.client.acquire(ctx, l)
		if to == nil {
			return
		}
		logger := l.client.logger.With(slog.String("address", to.address))
		err := l.stream(ctx, to, only, func() {
			backoff = firstBackoff
			if broken {
				broken = false
				logger.LogAttrs(ctx, slog.LevelInfo, "stream to command-ingress is back")
			}
		})
		l.end()
		l.client.letGo(ctx, to)
		if errors.Is(err, errBetter) {
			l.tried = 0
			continue
		}
		l.tried++
		l.broke = time.Now()
		if ctx.Err() != nil {
			return
		}
		if !broken && !errors.Is(err, errFinished) {
			broken = true
			logger.LogAttrs(ctx, slog.LevelWarn, "stream to command-ingress broke", slog.Any("error", err))
		}
		wait := backoff/2 + rand.N(backoff/2) //nolint:gosec // no secret
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		backoff = min(2*backoff, maxBackoff)
	}
}

// stream opens a stream to an instance and serves it until it ends. If it is the
// only one, it is waited for.
func (l *lane) stream(ctx context.Context, to *instance, only bool, opened func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(helloTimeout, func() { cancel(errSilent) })
	defer watchdog.Stop()

	s, err := to.api.Publish(ctx, grpc.WaitForReady(only), grpc.ForceCodecV2(newCodec()))
	if err != nil {
		return fmt.Errorf("open stream: %w", cause(ctx, err))
	}
	err = s.Send(&commandsv1.PublishRequest{Frame: &commandsv1.PublishRequest_Hello{
		Hello: &commandsv1.ClientHello{FrontendId: l.client.frontendID},
	}})
	if err != nil && !errors.Is(err, io.EOF) { // with io.EOF, Recv says why
		return fmt.Errorf("send hello: %w", cause(ctx, err))
	}
	first, err := s.Recv()
	if err != nil {
		return fmt.Errorf("receive hello: %w", cause(ctx, err))
	}
	if first.GetHello() == nil {
		return errNoHello
	}
	if !watchdog.Stop() {
		return errSilent
	}
	l.begin(first.GetHello(), func() { cancel(errOverdue) })
	opened()

	leaving := &leaving{after: l.client.cfg.Deadline, cancel: cancel}
	defer leaving.stop()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		l.send(ctx, s, to, leaving)
	}()
	err = l.receive(ctx, s, leaving)
	if reason := leaving.reason(); reason != nil && errors.Is(err, io.EOF) {
		err = reason
	}
	cancel(nil)
	<-sent
	return err
}

// leaving is whether a stream is being left: nothing more is sent, and the server
// ends it after the last result. Nothing is sent elsewhere before that: it could
// overtake what is still under way here.
type leaving struct {
	after  time.Duration
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	why      error // nil: it is not
	watchdog *time.Timer
}

// begin leaves the stream. By the end of after, everything that is under way is
// overdue.
func (l *leaving) begin(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why == nil {
		l.why = why
		l.watchdog = time.AfterFunc(l.after, func() { l.cancel(errOverdue) })
	}
}

func (l *leaving) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why
}

func (l *leaving) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watchdog != nil {
		l.watchdog.Stop()
	}
}

// send sends what there is until ctx ends or the stream is left.
func (l *lane) send(ctx context.Context, s stream, to *instance, leaving *leaving) {
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	changed := l.client.viewChanged()
	for {
		if leaving.reason() != nil {
			// The receiver goes on until the server has ended the stream. Whatever
			// is wrong with this one it hears too.
			_ = s.CloseSend()
			return
		}
		if frame := l.frame(); frame != nil {
			if s.SendMsg((*rawFrame)(&frame)) != nil {
				return // the receiver hears why
			}
			continue
		}
		select {
		case <-l.wake:
			continue
		case <-ctx.Done():
			return
		case <-changed:
			changed = l.client.viewChanged()
		case <-look.C:
		}
		if l.client.better(l, to, time.Since(l.broke) > distrust) {
			leaving.begin(errBetter)
		}
	}
}

// receive takes what comes until the stream ends.
func (l *lane) receive(ctx context.Context, s stream, leaving *leaving) error {
	for {
		response, err := s.Recv()
		if err != nil {
			return fmt.Errorf("receive: %w", cause(ctx, err))
		}
		switch frame := response.GetFrame().(type) {
		case *commandsv1.PublishResponse_Results:
			l.settle(ctx, frame.Results.GetResults())
		case *commandsv1.PublishResponse_Hello:
			l.limits(frame.Hello)
		case *commandsv1.PublishResponse_Goaway:
			leaving.begin(errFinished)
			signal(l.wake)
		}
	}
}

func cause(ctx context.Context, err error) error {
	if reason := context.Cause(ctx); reason != nil {
		return reason
	}
	return err
}

// rawFrame is a PublishRequest in its wire form.
type rawFrame []byte

// codec sends raw frames as they are, and does everything else as gRPC does.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Marshal encodes a message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if frame, ok := v.(*rawFrame); ok {
		return mem.BufferSlice{mem.SliceBuffer(*frame)}, nil
	}
	return c.CodecV2.Marshal(v)
}
