package watch

import (
	"context"
	"errors"
	"time"

	"mqtt-integration/services/authorization/internal/store"
)

const (
	// heartbeat is a little less than the second that is promised.
	heartbeat = 900 * time.Millisecond
	batch     = 256
)

// ErrStopping means that the service ends.
var ErrStopping = errors.New("stopping")

type changeStore interface {
	ID() string
	Revision(ctx context.Context) (int64, error)
	Changes(ctx context.Context, after int64, limit int) (changes []store.Change, complete bool, err error)
	Updated() <-chan struct{}
}

// Sink is where a watch is sent to. An error of its methods ends the watch.
type Sink interface {
	Hello(storeID string, revision int64) error
	Change(c store.Change) error
	Heartbeat(revision int64) error
	StartOver() error
}

// Request says from where on changes are wanted.
type Request struct {
	// After is the revision that is known already; nil: that of now.
	After *int64
	// StoreID is the store that After belongs to.
	StoreID string
}

// Run streams until ctx ends, stopping is closed (ErrStopping), or the store or
// the sink fails.
func Run(ctx context.Context, stopping <-chan struct{}, s changeStore, request Request, sink Sink) error {
	// The first heartbeat comes as soon as everything that was missed has been sent,
	// and changes put none off: a receiver may live by heartbeats alone.
	timer := time.NewTimer(0)
	defer timer.Stop()
	at, err := begin(ctx, s, request, sink)
	if err != nil {
		return err
	}
	for {
		select {
		case <-stopping:
			return ErrStopping
		default:
		}
		updated := s.Updated() // before reading, so that nothing is missed in between
		changes, complete, err := s.Changes(ctx, at, batch)
		if err != nil {
			return err
		}
		if !complete {
			if at, err = startOver(ctx, s, sink); err != nil {
				return err
			}
			continue
		}
		for _, c := range changes {
			if err := sink.Change(c); err != nil {
				return err
			}
			at = c.Revision
		}
		if len(changes) == batch {
			continue // there may be more
		}
		if at, err = wait(ctx, waiting{stopping: stopping, updated: updated, timer: timer, at: at}, sink); err != nil {
			return err
		}
	}
}

type waiting struct {
	stopping <-chan struct{}
	updated  <-chan struct{}
	timer    *time.Timer
	at       int64
}

// wait sends heartbeats until there are changes.
func wait(ctx context.Context, w waiting, sink Sink) (int64, error) {
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-w.stopping:
			return 0, ErrStopping
		case <-w.updated:
			return w.at, nil
		case <-w.timer.C:
			if err := sink.Heartbeat(w.at); err != nil {
				return 0, err
			}
			w.timer.Reset(heartbeat)
		}
	}
}

// begin sends the hello and returns the revision that the watch begins after.
func begin(ctx context.Context, s changeStore, request Request, sink Sink) (int64, error) {
	revision, err := s.Revision(ctx)
	if err != nil {
		return 0, err
	}
	if request.After == nil {
		return revision, sink.Hello(s.ID(), revision)
	}
	if request.StoreID == s.ID() {
		_, complete, err := s.Changes(ctx, *request.After, 1)
		if err != nil {
			return 0, err
		}
		if complete {
			return *request.After, sink.Hello(s.ID(), *request.After)
		}
	}
	// The first message is a hello in any case.
	if err := sink.Hello(s.ID(), revision); err != nil {
		return 0, err
	}
	return startOver(ctx, s, sink)
}

func startOver(ctx context.Context, s changeStore, sink Sink) (int64, error) {
	if err := sink.StartOver(); err != nil {
		return 0, err
	}
	// Read after the message: what changed before it counts as forgotten.
	revision, err := s.Revision(ctx)
	if err != nil {
		return 0, err
	}
	return revision, sink.Hello(s.ID(), revision)
}
