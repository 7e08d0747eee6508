package standalone

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"mqtt-integration/libs/daemon"
)

// supervisor runs parts that are stopped one by one. A part that ends before it
// is stopped ends everything.
type supervisor struct {
	ctx  context.Context // ended by the caller, or by a part that failed
	fail context.CancelCauseFunc

	mu   sync.Mutex
	errs []error // of parts that ended badly while they were stopped
}

var errEndedEarly = errors.New("ended by itself")

// start starts a part. Its context does not end with ctx, but with stop: parts
// end one after the other, not all at once.
func (s *supervisor) start(ctx context.Context, name string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := run(ctx)
		switch {
		case ctx.Err() == nil && err == nil:
			s.fail(fmt.Errorf("%s: %w", name, errEndedEarly))
		case ctx.Err() == nil:
			s.fail(fmt.Errorf("%s: %w", name, err))
		case err != nil && !errors.Is(err, context.Canceled):
			s.mu.Lock()
			s.errs = append(s.errs, fmt.Errorf("stop %s: %w", name, err))
			s.mu.Unlock()
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

func (s *supervisor) stopErrors() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.errs...)
}

// waitReady waits until every check is ready.
func (s *supervisor) waitReady(health *daemon.Health) error {
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := health.Ready()
		if err == nil {
			return nil
		}
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-timeout.C:
			return fmt.Errorf("not ready after %v: %w", startTimeout, err)
		case <-tick.C:
		}
	}
}

// startTimeout bounds how long a part may take to become ready.
const startTimeout = 30 * time.Second
