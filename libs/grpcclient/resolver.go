package grpcclient

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc/resolver"

	"mqtt-integration/libs/discovery"
)

// scheme of our targets.
const scheme = "instances"

// builder makes the resolver of one connection.
type builder struct {
	poller     *discovery.Poller
	serverName string // what certificates have to be for; empty: the name of the instance
}

var _ resolver.Builder = builder{}

// Scheme implements [resolver.Builder].
func (builder) Scheme() string { return scheme }

// Build implements [resolver.Builder]. gRPC calls it once, as connections do not
// become idle, and closes the resolver with the connection.
func (b builder) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &viewResolver{cancel: cancel}
	view := b.poller.View()
	b.update(cc, view)
	r.running.Go(func() {
		// It returns when ctx ends, and never an error.
		_ = b.poller.Run(ctx)
	})
	r.running.Go(func() {
		for {
			next, err := b.poller.Next(ctx, view)
			if err != nil {
				return
			}
			view = next
			b.update(cc, view)
		}
	})
	return r, nil
}

// update tells gRPC what the instances are. It ignores the answer: the balancer
// takes any list that is not empty.
func (b builder) update(cc resolver.ClientConn, view *discovery.View) {
	if len(view.Instances()) == 0 {
		if view.Err() != nil {
			cc.ReportError(view.Err())
		}
		return
	}
	state := resolver.State{Endpoints: make([]resolver.Endpoint, len(view.Instances()))}
	for i, instance := range view.Instances() {
		state.Endpoints[i] = resolver.Endpoint{Addresses: []resolver.Address{{
			Addr: instance.Address, ServerName: b.authority(instance),
		}}}
	}
	_ = cc.UpdateState(state)
}

// authority is what the certificate of an instance has to be for; with the port,
// as in any authority.
func (b builder) authority(instance discovery.Instance) string {
	if b.serverName != "" {
		return b.serverName
	}
	_, port, err := net.SplitHostPort(instance.Address)
	if err != nil {
		return instance.Name
	}
	return net.JoinHostPort(instance.Name, port)
}

// viewResolver follows a poller.
type viewResolver struct {
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// ResolveNow implements [resolver.Resolver]. The poller has its own pace.
func (*viewResolver) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements [resolver.Resolver].
func (r *viewResolver) Close() {
	r.cancel()
	r.running.Wait()
}
