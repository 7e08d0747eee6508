package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"mqtt-integration/libs/grpcclient"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

const (
	// helloTimeout is how long a server may take to answer.
	helloTimeout = 5 * time.Second
	// drainTimeout is how long a stream may take to end after the last frame.
	drainTimeout = 2 * time.Second
	// stopTimeout is the same when this process ends.
	stopTimeout = time.Second
	// acknowledgeDelay lies between two frames of acknowledgements: one for each
	// would cost more than what they say.
	acknowledgeDelay = time.Millisecond
)

var (
	errNoHello = errors.New("the stream does not begin with a hello")
	errSilent  = errors.New("there was no answer in time")
	errLeft    = errors.New("the stream was left")
)

type stream = grpc.BidiStreamingClient[eventsv1.DeliverRequest, eventsv1.DeliverResponse]

// run keeps a stream until ctx ends.
func (l *lane) run(ctx context.Context) {
	logger := l.client.logger.With(slog.String("address", l.address))
	attempt, broken := 0, false
	for ctx.Err() == nil {
		err := l.stream(ctx, func() {
			attempt = 0
			l.left.Store(false)
			l.idleSince.Store(0)
			signal(l.client.kicked)
			if broken {
				broken = false
				logger.LogAttrs(ctx, slog.LevelInfo, "stream to event-fanout is back")
			}
		})
		if ctx.Err() != nil {
			return
		}
		l.idleSince.CompareAndSwap(0, l.client.now())
		signal(l.client.kicked)
		if !broken && !errors.Is(err, errLeft) {
			broken = true
			logger.LogAttrs(ctx, slog.LevelWarn, "stream to event-fanout broke", slog.Any("error", err))
		}
		attempt++
		timer := time.NewTimer(delay(attempt))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// stream opens a stream and serves it until it ends.
func (l *lane) stream(running context.Context, opened func()) error {
	// The stream ends in good order after running does.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(running))
	defer cancel(nil)
	stopDialing := context.AfterFunc(running, func() { cancel(running.Err()) })
	defer stopDialing()
	watchdog := time.AfterFunc(helloTimeout, func() { cancel(errSilent) })
	defer watchdog.Stop()

	s, err := l.api.Deliver(ctx, grpc.WaitForReady(true), grpc.ForceCodecV2(newCodec()))
	if err != nil {
		return fmt.Errorf("open stream: %w", cause(ctx, err))
	}
	err = s.Send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Hello{Hello: &eventsv1.ClientHello{
		FrontendId: l.client.frontendID, MaxFrameBytes: grpcclient.MaxMessageSize,
	}}})
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
	if !watchdog.Stop() || !stopDialing() {
		return cause(ctx, errSilent)
	}
	opened()
	l.client.metrics.streams.Add(ctx, 1)
	defer l.client.metrics.streams.Add(ctx, -1)

	on := l.connect()
	defer l.disconnect(on)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		l.send(ctx, running, s, on, cancel)
	}()
	err = l.receive(ctx, s, on)
	cancel(nil)
	<-sent
	return err
}

// send sends what there is until ctx ends or the stream is left.
func (l *lane) send(ctx, running context.Context, s stream, on *link, cancel context.CancelCauseFunc) {
	acks := &acknowledgements{}
	var dirty []*Subscription
	var acknowledged time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	stop, limit := running.Done(), drainTimeout
	for {
		frames, leaving := l.takeQueue(on)
		dirty = l.takeDirty(dirty)
		if len(dirty) > 0 {
			if !l.sendDirty(s, on, acks, dirty) {
				return
			}
			acknowledged = time.Now()
		}
		for _, frame := range frames {
			if message := frame(); message != nil && s.SendMsg(message) != nil {
				return // the receiver hears why
			}
		}
		if leaving {
			// The receiver goes on until the server has ended the stream. Whatever
			// is wrong with this one it hears too.
			_ = s.CloseSend()
			time.AfterFunc(limit, func() { cancel(errSilent) })
			return
		}
		if len(frames) > 0 {
			continue
		}
		select {
		case <-l.queued:
		case <-l.marked:
			if wait := acknowledgeDelay - time.Since(acknowledged); wait > 0 {
				timer.Reset(wait)
				select {
				case <-timer.C:
				case <-l.queued:
				case <-ctx.Done():
				}
			}
		case <-stop:
			stop, limit = nil, stopTimeout
			l.leave(on)
		case <-ctx.Done():
			return
		}
	}
}

// takeQueue takes what is to be sent.
func (l *lane) takeQueue(on *link) (frames []func() any, leaving bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	frames, on.queue = on.queue, nil
	return frames, on.leaving
}

// takeDirty takes the list of those with something to send, and gives it the room
// of an older one.
func (l *lane) takeDirty(old []*Subscription) []*Subscription {
	clear(old)
	l.dirtyMu.Lock()
	defer l.dirtyMu.Unlock()
	dirty := l.dirty
	l.dirty = old[:0]
	return dirty
}

// sendDirty sends acknowledgements and windows. It is false when the stream broke.
func (l *lane) sendDirty(s stream, on *link, acks *acknowledgements, dirty []*Subscription) bool {
	for _, sub := range dirty {
		var resized *eventsv1.DeliverRequest
		sub.mu.Lock()
		sub.dirty = false
		if sub.link == on && sub.ready {
			acks.take(sub)
			if sub.resized {
				sub.resized = false
				resized = credit(sub.handle, sub.window)
			}
		}
		sub.mu.Unlock()
		if resized != nil && s.SendMsg(resized) != nil {
			return false
		}
	}
	for _, frame := range acks.finish() {
		if s.SendMsg(frame) != nil {
			return false
		}
	}
	return true
}

func cause(ctx context.Context, err error) error {
	if reason := context.Cause(ctx); reason != nil {
		return reason
	}
	return err
}
