package producer

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Pauses between attempts to reach Kafka.
const (
	minPause = 100 * time.Millisecond
	maxPause = time.Second
)

// Run writes until ctx ends. Then nothing more is accepted, and what was accepted is
// written as long as its deadline allows. It returns nil when every record has its
// outcome and nothing is left of sarama.
func (p *Producer) Run(ctx context.Context) error {
	deadlines, stop := context.WithCancel(context.WithoutCancel(ctx))
	late := make(chan struct{}, 1)
	var watch sync.WaitGroup
	watch.Go(func() { p.watchDeadlines(deadlines, late) })
	defer watch.Wait()
	defer stop()
	defer p.refuseAll(ctx)

	for pause := minPause; ; {
		s, err := p.connect(ctx)
		if err == nil {
			pause = minPause
			err = p.write(ctx, s, late)
		}
		switch {
		case errors.Is(err, errStuck):
			return err
		case ctx.Err() != nil:
			p.setDown(errStopping)
			return nil
		case errors.Is(err, errLimits):
			continue
		}
		if f := asFailure(err); p.setDown(f) {
			p.logger.WarnContext(ctx, "commands cannot be written", slog.String("kafka_topic", p.cfg.Topic), slog.Any("error", f))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, maxPause)
	}
}

// watchDeadlines gives records their outcome in time, whatever else hangs.
func (p *Producer) watchDeadlines(ctx context.Context, late chan<- struct{}) {
	ticker := time.NewTicker(p.tick())
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			if p.expire(ctx, now) {
				select {
				case late <- struct{}{}:
				default:
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// errStuck ends the process, as other dead parts do: sarama holds on to records
// although its connections are gone.
var errStuck = errors.New("sarama does not let go of its records")

// write feeds sarama until it makes no progress any more, which the error says, or
// until ctx ends and everything is written or too late.
func (p *Producer) write(ctx context.Context, s *session, late <-chan struct{}) error {
	select {
	case <-late: // in the session before
	default:
	}
	p.setUp()
	p.logger.InfoContext(ctx, "commands are written", slog.String("kafka_topic", p.cfg.Topic))

	var both sync.WaitGroup
	both.Go(func() { s.feed(p) })
	both.Go(func() { s.check(ctx, p) })
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		s.collect(ctx, p)
	}()

	var err error
	select {
	case <-late:
		err = errStalled
	case err = <-s.failed:
	case <-ctx.Done():
		err = p.drain(s, late)
	}
	if !inOrder(err) {
		if f := asFailure(err); p.setDown(f) {
			p.logger.WarnContext(ctx, "connection to kafka given up", slog.String("kafka_topic", p.cfg.Topic), slog.Any("error", f))
		}
		s.cut()
	}
	close(s.stop)
	both.Wait()
	s.producer.AsyncClose()
	defer s.closeClients()
	select {
	case <-collected:
		return err
	case <-time.After(3 * p.cfg.DeliveryTimeout):
		return errStuck
	}
}

// drain waits until nothing is left to write.
func (p *Producer) drain(s *session, late <-chan struct{}) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !p.idle() {
		select {
		case <-ticker.C:
		case <-late:
			return errStalled
		case err := <-s.failed:
			return err
		}
	}
	return nil
}
