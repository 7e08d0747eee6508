package daemon

import (
	"errors"
	"fmt"
	"sync"
)

var errNotYet = errors.New("not ready yet")

// Health collects what has to be in order before a process can do its work.
// The zero value is ready; all methods are safe for concurrent use.
type Health struct {
	mu     sync.Mutex
	checks []*Check
}

// Check is one such thing. It is made by [Health.Register].
type Check struct {
	health *Health
	name   string
	err    error // guarded by health.mu
}

// Register adds a check, which is not ready until it is set so. Checks live as
// long as the Health: register them once per component, never per connection.
func (h *Health) Register(name string) *Check {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &Check{health: h, name: name, err: errNotYet}
	h.checks = append(h.checks, c)
	return c
}

// Ready returns nil when all checks are ready, and otherwise the reasons of
// those that are not, joined and each with its name.
func (h *Health) Ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, c := range h.checks {
		if c.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name, c.err))
		}
	}
	return errors.Join(errs...)
}

// Set makes the check ready (nil) or not ready for the given reason, which
// /readyz shows to whoever asks: no secrets.
func (c *Check) Set(err error) {
	c.health.mu.Lock()
	defer c.health.mu.Unlock()
	c.err = err
}
