package credential

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	flushInterval = time.Minute
	flushTimeout  = 5 * time.Second
	// maxUnwritten bounds what is remembered between two writes. What is above it
	// is noted at the key's next use.
	maxUnwritten = 10_000
	useUnit      = time.Hour
)

type useStore interface {
	Used(ctx context.Context, keys map[string]time.Time) error
}

// LastUse notes when API keys were last used: to the hour, and written later, so
// that signing in does not write.
type LastUse struct {
	store  useStore
	logger *slog.Logger

	mu        sync.Mutex
	unwritten map[string]time.Time
}

// NewLastUse makes a LastUse, which writes once Run has been called.
func NewLastUse(store useStore, logger *slog.Logger) *LastUse {
	return &LastUse{store: store, logger: logger, unwritten: map[string]time.Time{}}
}

// Note notes that a key is used, unless that is known already.
func (l *LastUse) Note(id string, known, now time.Time) {
	now = now.UTC().Truncate(useUnit)
	if !known.Before(now) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.unwritten[id]; ok || len(l.unwritten) < maxUnwritten {
		l.unwritten[id] = now
	}
}

// Run writes every minute until ctx ends, and a last time then. It returns nil.
func (l *LastUse) Run(ctx context.Context) error {
	ticker := time.NewTicker(flushInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			l.flush(ctx)
		case <-ctx.Done():
			l.flush(context.WithoutCancel(ctx))
			return nil
		}
	}
}

func (l *LastUse) flush(ctx context.Context) {
	l.mu.Lock()
	unwritten := l.unwritten
	l.unwritten = map[string]time.Time{}
	l.mu.Unlock()
	if len(unwritten) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := l.store.Used(ctx, unwritten); err != nil {
		// Nothing depends on it, and the next use tries again.
		l.logger.WarnContext(ctx, "last use of API keys not written", slog.Any("error", err))
	}
}
