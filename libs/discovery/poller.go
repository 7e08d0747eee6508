package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// DefaultInterval lies between two polls.
	DefaultInterval = 10 * time.Second
	// lookupTimeout is how long one lookup may take.
	lookupTimeout = 5 * time.Second
	// impatience lies between two polls while nothing is known at all.
	impatience = time.Second
	// misses is how many answers an address has to be missing in.
	misses = 2
)

var errNoAddresses = errors.New("has no addresses")

// Resolver looks names up; [*net.Resolver] is one. network is ip4 or ip6. The
// answer may be empty, or an error that is a [*net.DNSError] with IsNotFound.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Config of a poller.
type Config struct {
	// Addresses are host:port; the port is a number or the name of a service.
	Addresses []string
	// Interval lies between two polls. Zero: 10 s.
	Interval time.Duration
	// Resolver looks names up. Nil: the system's.
	Resolver Resolver
	// Logger hears of lookups that fail, once until the next that does not, and of
	// changes. Nil: nobody does.
	Logger *slog.Logger
}

// Poller keeps a view up to date. All methods are safe for concurrent use.
type Poller struct {
	cfg   Config
	fixed []Instance

	// Of Run's goroutine.
	names   []*name
	failure error // of the last poll

	mu      sync.Mutex
	view    *View
	changed chan struct{} // closed with the next view
}

// name is a host to be looked up.
type name struct {
	host, port string
	known      []*known
	failing    bool
}

// known is an address that a name had.
type known struct {
	address netip.Addr
	missing int // in so many answers one after the other
}

// New makes a poller. IP addresses are in its view at once, names with the first
// poll.
func New(cfg Config) (*Poller, error) {
	if cfg.Interval <= 0 {
		cfg.Interval = DefaultInterval
	}
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Poller{cfg: cfg, changed: make(chan struct{})}
	for _, address := range cfg.Addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		if ip, err := netip.ParseAddr(host); err == nil {
			p.fixed = append(p.fixed, Instance{Address: net.JoinHostPort(ip.String(), port), Name: host})
		} else {
			p.names = append(p.names, &name{host: host, port: port})
		}
	}
	p.view = NewView(p.fixed...)
	return p, nil
}

// View is what is known now.
func (p *Poller) View() *View {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view
}

// Next waits for a view that is not the one that the caller has seen, and returns
// the newest one, or ctx's error. Views in between are passed.
func (p *Poller) Next(ctx context.Context, seen *View) (*View, error) {
	for {
		p.mu.Lock()
		view, changed := p.view, p.changed
		p.mu.Unlock()
		if view != seen {
			return view, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Run polls until ctx ends, and returns nil then. Call it once.
func (p *Poller) Run(ctx context.Context) error {
	for len(p.names) > 0 && ctx.Err() == nil {
		p.poll(ctx)
		if ctx.Err() == nil {
			p.publish(ctx)
		}
		wait := p.cfg.Interval
		if len(p.View().Instances()) == 0 {
			wait = min(wait, impatience)
		}
		// Not everybody at the same time.
		timer := time.NewTimer(wait - wait/20 + rand.N(wait/10+1)) //nolint:gosec // no secret
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	<-ctx.Done()
	return nil
}

// poll looks all names up.
func (p *Poller) poll(ctx context.Context) {
	var lookups sync.WaitGroup
	errs := make([]error, len(p.names))
	for i, n := range p.names {
		lookups.Go(func() {
			found, err := p.lookup(ctx, n.host)
			if err != nil {
				errs[i] = fmt.Errorf("look up %s: %w", n.host, err)
				return
			}
			n.update(found)
		})
	}
	lookups.Wait()
	for i, n := range p.names {
		if failing := errs[i] != nil; failing != n.failing && ctx.Err() == nil {
			n.failing = failing
			if failing {
				p.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "lookup failed, the last answer stays", slog.String("host", n.host), slog.Any("error", errs[i]))
			} else {
				p.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "lookup succeeds again", slog.String("host", n.host))
			}
		}
	}
	p.failure = errors.Join(errs...)
}

// lookup is the addresses of a host, at least one: IPv4 ones, or IPv6 ones if it
// certainly has none of those.
func (p *Poller) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	for _, network := range []string{"ip4", "ip6"} {
		found, err := p.cfg.Resolver.LookupNetIP(ctx, network, host)
		if err == nil && len(found) > 0 {
			for i := range found {
				found[i] = found[i].Unmap()
			}
			return found, nil
		}
		if dns, ok := errors.AsType[*net.DNSError](err); err != nil && (!ok || !dns.IsNotFound) {
			return nil, err
		}
	}
	return nil, errNoAddresses
}

// update takes an answer in.
func (n *name) update(found []netip.Addr) {
	for _, k := range n.known {
		k.missing++
	}
	for _, address := range found {
		i := slices.IndexFunc(n.known, func(k *known) bool { return k.address == address })
		if i < 0 {
			n.known = append(n.known, &known{address: address})
		} else {
			n.known[i].missing = 0
		}
	}
	n.known = slices.DeleteFunc(n.known, func(k *known) bool { return k.missing >= misses })
}

// publish makes a new view if there is anything new.
func (p *Poller) publish(ctx context.Context) {
	instances := slices.Clone(p.fixed)
	for _, n := range p.names {
		for _, k := range n.known {
			instances = append(instances, Instance{Address: net.JoinHostPort(k.address.String(), n.port), Name: n.host})
		}
	}
	next := NewView(instances...)
	if len(next.instances) == 0 {
		next.err = p.failure
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if next.equal(p.view) && (p.view.err == nil) == (next.err == nil) {
		return
	}
	if len(next.instances) > 0 {
		p.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "instances changed",
			slog.Any("addresses", next.addresses()), slog.Any("before", p.view.addresses()))
	}
	p.view = next
	close(p.changed)
	p.changed = make(chan struct{})
}

func (v *View) addresses() []string {
	all := make([]string, len(v.instances))
	for i, instance := range v.instances {
		all[i] = instance.Address
	}
	return all
}
