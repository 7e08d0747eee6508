package access

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
)

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 2 * time.Second
)

var (
	errSilent   = errors.New("nothing was heard for too long")
	errProtocol = errors.New("the watch does not begin with a hello")
)

// watch keeps a watch open until ctx ends.
func (c *Client) watch(ctx context.Context) {
	backoff, broken := firstBackoff, false
	for ctx.Err() == nil {
		err := c.watchOnce(ctx, func() {
			backoff = firstBackoff
			if broken {
				broken = false
				c.logger.LogAttrs(ctx, slog.LevelInfo, "changes of authorization are heard again")
			}
			c.ready.Set(nil)
		})
		if ctx.Err() != nil {
			return
		}
		if !broken {
			broken = true
			c.logger.LogAttrs(ctx, slog.LevelWarn, "changes of authorization are not heard", slog.Any("error", err))
		}
		// Not all frontends at once.
		wait := backoff/2 + rand.N(backoff/2) //nolint:gosec // no secret
		_ = pause(ctx, c.ended, wait)         // the loop looks at ctx
		backoff = min(2*backoff, maxBackoff)
	}
}

// watchOnce follows one stream, and calls opened after its hello.
func (c *Client) watchOnce(ctx context.Context, opened func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()

	stream, err := c.api.Watch(ctx, c.watchRequest(), grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("open watch: %w", cause(ctx, err))
	}
	hello := false
	for {
		message, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch: %w", cause(ctx, err))
		}
		watchdog.Reset(silence)
		if message.GetHello() == nil && message.GetStartOver() == nil && !hello {
			return errProtocol
		}
		c.handle(message)
		if message.GetHello() != nil {
			hello = true
			opened()
		}
	}
}

func cause(ctx context.Context, err error) error {
	if reason := context.Cause(ctx); reason != nil {
		return reason
	}
	return err
}

func (c *Client) watchRequest() *authorizationv1.WatchRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fresh {
		return &authorizationv1.WatchRequest{}
	}
	return &authorizationv1.WatchRequest{AfterRevision: new(c.revision), StoreId: c.storeID}
}

// handle takes in a message of the watch, and calls those whom it concerns.
func (c *Client) handle(message *authorizationv1.WatchResponse) {
	for _, changed := range c.take(message) {
		changed()
	}
}

func (c *Client) take(message *authorizationv1.WatchResponse) []func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m := message.GetMessage().(type) {
	case *authorizationv1.WatchResponse_Hello:
		return c.takeHello(m.Hello)
	case *authorizationv1.WatchResponse_Change:
		c.changes.add(m.Change)
		c.revision = max(c.revision, m.Change.GetRevision())
		return c.watchers.concerned(m.Change)
	case *authorizationv1.WatchResponse_Heartbeat:
		c.revision = max(c.revision, m.Heartbeat.GetRevision())
		c.heard = time.Now()
	case *authorizationv1.WatchResponse_StartOver:
		// Those who watch are called after the hello: what they ask before it
		// could be older than where the watch begins.
		c.void(0)
		c.fresh = true
	}
	return nil
}

// takeHello begins a watch. The caller holds mu.
func (c *Client) takeHello(hello *authorizationv1.WatchHello) []func() {
	if !c.fresh && hello.GetStoreId() == c.storeID && hello.GetRevision() == c.revision {
		// It goes on where the last one broke off. What was missed comes now;
		// the first heartbeat says that it was all.
		return nil
	}
	c.fresh = false
	c.storeID = hello.GetStoreId()
	c.revision = hello.GetRevision()
	c.void(c.revision)
	c.heard = time.Now()
	return c.watchers.all()
}

// void forgets everything, and asks for answers of at least a revision from now
// on. The caller holds mu.
func (c *Client) void(floor int64) {
	c.generation++
	c.changes = newChanges(floor)
	c.granted.clear()
	c.denied.clear()
	// Who asks now does not want the answer to an older question.
	clear(c.flights)
}

// lapse forgets everything one lifetime after the last heartbeat, and again after
// each further lifetime without one, and calls all who watch.
func (c *Client) lapse(ctx context.Context) {
	c.mu.Lock()
	c.lapsed = time.Now()
	c.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-c.sooner:
		}
		calls, next := c.expire(time.Now())
		for _, changed := range calls {
			changed()
		}
		timer.Reset(next)
	}
}

// expire does what is due now, and says when to look again.
func (c *Client) expire(now time.Time) ([]func(), time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	since := c.lapsed
	if c.heard.After(since) {
		since = c.heard
	}
	end := since.Add(c.lifetime)
	if silent := c.heard.Add(silence); silent.After(end) {
		end = silent
	}
	if left := end.Sub(now); left > 0 {
		return nil, left
	}
	c.lapsed = now
	c.generation++
	c.granted.clear()
	c.denied.clear()
	clear(c.flights)
	return c.watchers.all(), c.lifetime
}
