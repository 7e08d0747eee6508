package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
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
)

var (
	errNoHello  = errors.New("the stream does not begin with a hello")
	errSilent   = errors.New("there was no answer in time")
	errOverdue  = errors.New("results stay away")
	errFinished = errors.New("the server has ended the stream")
)

// stream is one stream of a lane.
type stream = grpc.BidiStreamingClient[commandsv1.PublishRequest, commandsv1.PublishResponse]

// run keeps a stream until ctx ends.
func (l *lane) run(ctx context.Context) {
	backoff, broken := firstBackoff, false
	logger := l.client.logger.With(slog.String("address", l.address))
	for ctx.Err() == nil {
		err := l.stream(ctx, func() {
			backoff = firstBackoff
			if broken {
				broken = false
				logger.LogAttrs(ctx, slog.LevelInfo, "stream to command-ingress is back")
			}
		})
		l.end()
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

// stream opens a stream and serves it until it ends.
func (l *lane) stream(ctx context.Context, opened func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(helloTimeout, func() { cancel(errSilent) })
	defer func() { watchdog.Stop() }()

	s, err := l.api.Publish(ctx, grpc.WaitForReady(true), grpc.ForceCodecV2(newCodec()))
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

	var leaving atomic.Bool
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		l.send(ctx, s, &leaving)
	}()
	err = l.receive(ctx, s, func() {
		leaving.Store(true)
		signal(l.wake)
		// By then everything that is under way here is overdue.
		watchdog = time.AfterFunc(l.client.cfg.Deadline, func() { cancel(errOverdue) })
	})
	if leaving.Load() && errors.Is(err, io.EOF) {
		err = errFinished
	}
	cancel(nil)
	<-sent
	return err
}

// send sends what there is until ctx ends or the server wants no more.
func (l *lane) send(ctx context.Context, s stream, leaving *atomic.Bool) {
	for {
		if leaving.Load() {
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
		case <-ctx.Done():
			return
		}
	}
}

// receive takes what comes until the stream ends. It calls leave when the server
// wants nothing more.
func (l *lane) receive(ctx context.Context, s stream, leave func()) error {
	leaving := false
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
			// Nothing is sent elsewhere before the last result has come: it could
			// overtake what is still under way here.
			if !leaving {
				leaving = true
				leave()
			}
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
