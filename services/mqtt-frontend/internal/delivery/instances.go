package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"mqtt-integration/libs/discovery"
	"mqtt-integration/libs/grpcclient"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

// moveAfter is how long a lane may be without a stream before its sessions go to
// another instance. A stream that only broke is back sooner.
const moveAfter = 500 * time.Millisecond

// instance is an event-fanout and the lanes to it.
type instance struct {
	conn  *grpc.ClientConn
	lanes []*lane

	stop    context.CancelFunc
	running sync.WaitGroup // the lanes
}

func (c *Client) newInstance(at discovery.Instance) (*instance, error) {
	conn, err := grpcclient.New(c.cfg.Instance(at), c.env, c.opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to event-fanout: %w", err)
	}
	one := &instance{conn: conn, lanes: make([]*lane, c.cfg.Streams)}
	for i := range one.lanes {
		one.lanes[i] = newLane(c, eventsv1.NewEventsServiceClient(conn), at.Address)
	}
	return one, nil
}

// start runs the lanes of an instance.
func (i *instance) start(ctx context.Context) {
	ctx, i.stop = context.WithCancel(ctx)
	for _, l := range i.lanes {
		l.idleSince.Store(l.client.now())
		i.running.Go(func() { l.run(ctx) })
	}
}

// Run keeps the streams until ctx ends, and returns nil then. Acknowledgements
// given before are sent; what waits to be opened fails.
func (c *Client) Run(ctx context.Context) error {
	var running sync.WaitGroup
	views := make(chan *discovery.View)
	running.Go(func() { c.poll(ctx, views) })
	running.Go(func() {
		// It returns when ctx ends, and never an error.
		_ = c.poller.Run(ctx)
	})
	for _, one := range c.instances { // nobody else changes them
		one.start(ctx)
	}
	var retired sync.WaitGroup
	timer := time.NewTimer(0)
	settled := time.Now().Add(c.settle) // when share subscriptions are to be moved; zero: they were
	for ctx.Err() == nil {
		select {
		case view := <-views:
			c.apply(ctx, view, &retired)
			settled = time.Now().Add(c.settle)
		case <-c.kicked:
			settled = time.Now().Add(c.settle)
		case <-timer.C:
		case <-ctx.Done():
			continue
		}
		next := c.rescue(ctx)
		if !settled.IsZero() && !time.Now().Before(settled) {
			if settled = time.Now().Add(regroupPause); c.regroup(ctx) {
				settled = time.Time{}
			}
		}
		if !settled.IsZero() {
			next = min(next, time.Until(settled))
		}
		timer.Reset(max(next, time.Millisecond))
	}
	timer.Stop()
	running.Wait()
	for _, one := range c.instances {
		one.stop()
		one.running.Wait()
	}
	retired.Wait()
	c.limbo.close()
	for _, one := range c.instances {
		for _, l := range one.lanes {
			l.close()
		}
	}
	return c.closeInstances()
}

// poll hands views over until ctx ends.
func (c *Client) poll(ctx context.Context, views chan<- *discovery.View) {
	view := c.view // nobody changes it before the first one is handed over
	for {
		var err error
		if view, err = c.poller.Next(ctx, view); err != nil {
			return
		}
		select {
		case views <- view:
		case <-ctx.Done():
			return
		}
	}
}

func (c *Client) closeInstances() error {
	var errs []error
	for _, one := range c.instances {
		if err := one.conn.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the connection to event-fanout: %w", err))
		}
	}
	return errors.Join(errs...)
}

// apply takes up a view: lanes to new instances, none to those that have left.
// Sessions stay where they are when instances are added.
func (c *Client) apply(ctx context.Context, view *discovery.View, retired *sync.WaitGroup) {
	if len(view.Instances()) == 0 {
		return
	}
	instances := map[string]*instance{}
	var left []*instance
	for address, one := range c.instances {
		if view.Has(address) {
			instances[address] = one
		} else {
			left = append(left, one)
		}
	}
	for _, at := range view.Instances() {
		if instances[at.Address] != nil {
			continue
		}
		one, err := c.newInstance(at)
		if err != nil {
			c.logger.LogAttrs(ctx, slog.LevelError, "event-fanout cannot be used", slog.String("address", at.Address), slog.Any("error", err))
			continue
		}
		instances[at.Address] = one
		one.start(ctx)
	}
	c.mu.Lock()
	c.view, c.instances = view, instances
	c.mu.Unlock()
	for _, one := range left {
		retired.Go(func() { c.retire(ctx, one) })
	}
}

// retire ends an instance that has left the view. Its streams end in good order,
// and then its sessions go elsewhere.
func (c *Client) retire(ctx context.Context, one *instance) {
	one.stop()
	one.running.Wait()
	for _, l := range one.lanes {
		l.mu.Lock()
		l.gone = true
		l.mu.Unlock()
		c.evacuate(ctx, l)
	}
	if err := one.conn.Close(); err != nil {
		c.logger.LogAttrs(ctx, slog.LevelWarn, "connection to event-fanout not closed", slog.Any("error", err))
	}
}

// rescue moves the sessions of lanes that have lost their instance, and says when
// to look again.
func (c *Client) rescue(ctx context.Context) time.Duration {
	next := time.Hour
	lanes := []*lane{c.limbo}
	for _, one := range c.instances { // only this goroutine changes them
		lanes = append(lanes, one.lanes...)
	}
	for _, l := range lanes {
		if l.usable() {
			if since := l.idleSince.Load(); since > 0 && l != c.limbo {
				next = min(next, time.Duration(since-c.now())+moveAfter)
			}
			continue
		}
		c.evacuate(ctx, l)
	}
	return max(next, time.Millisecond)
}

// usable says whether a lane has a stream or will have one any moment.
func (l *lane) usable() bool {
	if l == l.client.limbo || l.left.Load() {
		return false
	}
	since := l.idleSince.Load()
	return since == 0 || l.client.now()-since < int64(moveAfter)
}

// evacuate moves the sessions of a lane without a stream to instances that can
// be used. If it is gone they move in any case.
func (c *Client) evacuate(ctx context.Context, from *lane) {
	from.mu.Lock()
	var sessions []*attachment
	if !from.streaming {
		for a := range from.attachments {
			sessions = append(sessions, a)
		}
	}
	must := from.gone || from == c.limbo
	from.mu.Unlock()
	moved := 0
	for _, a := range sessions {
		for {
			to := c.choose(a)
			if to == from || !must && !to.usable() {
				break
			}
			done, again := a.move(from, to)
			if done {
				moved++
			}
			if !again {
				break
			}
		}
	}
	if moved > 0 && from != c.limbo {
		c.logger.LogAttrs(ctx, slog.LevelInfo, "sessions were moved to other instances of event-fanout",
			slog.String("address", from.address), slog.Int("sessions", moved))
	}
}

// move moves an attachment from a lane without a stream to another one. again is
// true when the other one takes nothing any more.
func (a *attachment) move(from, to *lane) (done, again bool) {
	defer lockBoth(from, to)()
	if _, here := from.attachments[a]; !here || from.streaming {
		return false, false // it has ended, or its instance is back
	}
	if to.gone {
		return false, true
	}
	a.transfer(from, to)
	return true, false
}

// lockBoth locks two lanes, and returns what unlocks them.
func lockBoth(a, b *lane) func() {
	if b.number < a.number {
		a, b = b, a
	}
	a.mu.Lock()
	b.mu.Lock()
	return func() {
		b.mu.Unlock()
		a.mu.Unlock()
	}
}

// transfer puts an attachment whose subscriptions are on no stream to another
// lane. The caller holds the mu of both.
func (a *attachment) transfer(from, to *lane) {
	delete(from.attachments, a)
	to.attachments[a] = struct{}{}
	a.lane.Store(to)
	a.retries, a.state, a.handle = 0, detached, 0
	for sub := range a.subs {
		sub.frame = 0 // frames are counted by lane
		sub.mu.Lock()
		sub.dirty = false // what there is to say is part of Open
		sub.mu.Unlock()
	}
	if to.link != nil && (a.before || len(a.subs) > 0) {
		to.attach(a)
	}
}

// place gives an attachment its first lane.
func (c *Client) place(a *attachment) {
	for {
		l := c.choose(a)
		l.mu.Lock()
		gone := l.gone
		if !gone {
			a.lane.Store(l)
			l.attachments[a] = struct{}{}
		}
		l.mu.Unlock()
		if gone {
			continue // the view has changed just now
		}
		if l == c.limbo {
			signal(c.kicked) // there may be instances by now
		}
		return
	}
}

// choose chooses the lane of a session: of the first instance that can be used,
// in the order that every frontend finds for the session, the one that its first
// application is on, so that an event comes once for nearly all sessions. It
// stays there: to the owner, a session that attaches on another stream has moved.
// For share subscriptions, the order is that of their group.
func (c *Client) choose(a *attachment) *lane {
	key := a.place()
	c.mu.RLock()
	defer c.mu.RUnlock()
	if at, ok := c.view.Pick(key...); ok {
		if l := c.laneOf(at, a.application); l != nil && l.usable() {
			return l
		}
	}
	first := c.limbo
	for _, at := range c.view.Ordered(key...) {
		l := c.laneOf(at, a.application)
		if l == nil {
			continue
		}
		if l.usable() {
			return l
		}
		if first == c.limbo {
			first = l
		}
	}
	return first
}

// laneOf is the lane of an instance that an application is on. The caller holds
// mu.
func (c *Client) laneOf(at discovery.Instance, application string) *lane {
	one := c.instances[at.Address]
	if one == nil {
		return nil
	}
	return one.lanes[discovery.Hash(application)%uint64(len(one.lanes))]
}
