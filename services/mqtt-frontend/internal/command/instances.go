package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"mqtt-integration/libs/discovery"
	"mqtt-integration/libs/grpcclient"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
)

// instance is a command-ingress.
type instance struct {
	address string
	conn    *grpc.ClientConn
	api     commandsv1.CommandsServiceClient

	// Guarded by the client's mu.
	lanes int  // that use it
	left  bool // it has left the view: whoever is the last one closes it
}

func (c *Client) newInstance(at discovery.Instance) (*instance, error) {
	conn, err := grpcclient.New(c.cfg.Instance(at), c.env, c.opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to command-ingress: %w", err)
	}
	conn.Connect() // so that lanes know whether it can be reached
	return &instance{address: at.Address, conn: conn, api: commandsv1.NewCommandsServiceClient(conn)}, nil
}

// follow keeps up with the view until ctx ends.
func (c *Client) follow(ctx context.Context) {
	view := c.view // nobody else changes it
	for {
		var err error
		if view, err = c.poller.Next(ctx, view); err != nil {
			return
		}
		if len(view.Instances()) > 0 {
			c.apply(ctx, view)
		}
	}
}

// apply takes up a view.
func (c *Client) apply(ctx context.Context, view *discovery.View) {
	instances := map[string]*instance{}
	for _, at := range view.Instances() {
		one := c.instances[at.Address]
		if one == nil {
			var err error
			if one, err = c.newInstance(at); err != nil {
				c.logger.LogAttrs(ctx, slog.LevelError, "command-ingress cannot be used", slog.String("address", at.Address), slog.Any("error", err))
				continue
			}
		}
		instances[at.Address] = one
	}
	var unused []*instance
	c.mu.Lock()
	for address, one := range c.instances {
		if instances[address] == nil {
			if one.left = true; one.lanes == 0 {
				unused = append(unused, one)
			}
		}
	}
	c.view, c.instances = view, instances
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	for _, one := range unused {
		c.close(ctx, one)
	}
}

// acquire chooses the instance for a lane's next stream, and waits until there is
// one. only is true when there is no other. It is nil when ctx has ended.
func (c *Client) acquire(ctx context.Context, l *lane) (to *instance, only bool) {
	for ctx.Err() == nil {
		c.mu.Lock()
		if candidates := c.candidates(l); len(candidates) > 0 {
			to = candidates[l.tried%len(candidates)]
			to.lanes++
			c.mu.Unlock()
			return to, len(candidates) == 1
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return nil, false
}

// letGo is the opposite of acquire.
func (c *Client) letGo(ctx context.Context, one *instance) {
	c.mu.Lock()
	one.lanes--
	unused := one.left && one.lanes == 0
	c.mu.Unlock()
	if unused {
		c.close(ctx, one)
	}
}

// candidates are the instances in the order in which a lane tries them. Lanes
// begin at different ones, frontends in different orders. The caller holds mu.
func (c *Client) candidates(l *lane) []*instance {
	var candidates []*instance
	ordered := c.view.Ordered(c.frontendID)
	for i := range ordered {
		if one := c.instances[ordered[(i+l.number)%len(ordered)].Address]; one != nil {
			candidates = append(candidates, one)
		}
	}
	return candidates
}

// better says whether a lane should leave an instance: because that has left the
// view, or the one that the lane prefers can be reached and is trusted.
func (c *Client) better(l *lane, than *instance, trusted bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	candidates := c.candidates(l)
	if len(candidates) == 0 || candidates[0] == than {
		return false
	}
	return than.left || trusted && candidates[0].conn.GetState() == connectivity.Ready
}

// viewChanged is closed with the next view.
func (c *Client) viewChanged() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *Client) close(ctx context.Context, one *instance) {
	if err := one.conn.Close(); err != nil {
		c.logger.LogAttrs(ctx, slog.LevelWarn, "connection to command-ingress not closed", slog.String("address", one.address), slog.Any("error", err))
	}
}

// closeInstances closes what is in the view, when no lane uses it any more.
func (c *Client) closeInstances() error {
	var errs []error
	for _, one := range c.instances {
		if err := one.conn.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the connection to command-ingress: %w", err))
		}
	}
	return errors.Join(errs...)
}
