package attempts

import (
	"net/netip"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/time/rate"
)

// maxEntries bounds how many addresses and names are remembered. The least used
// are forgotten first, so that whoever has more addresses than that is not
// limited, but does not cost memory either.
const maxEntries = 100_000

// Limit is a token bucket.
type Limit struct {
	// Burst is how many may fail in a row. 0: no limit.
	Burst int
	// Recovery is how long it takes until one more may fail.
	Recovery time.Duration
}

// Config has the limits.
type Config struct {
	PerAddress Limit
	// PerName is for a login name from an address.
	PerName Limit
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Limiter remembers failures. Its methods may be used from several goroutines.
type Limiter struct {
	cfg     Config
	buckets *otter.Cache[key, *rate.Limiter]
}

type key struct{ address, name string }

// New makes a Limiter.
func New(cfg Config) *Limiter {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	// A bucket that is full again is like none.
	full := max(time.Duration(cfg.PerAddress.Burst)*cfg.PerAddress.Recovery, time.Duration(cfg.PerName.Burst)*cfg.PerName.Recovery, time.Second)
	return &Limiter{cfg: cfg, buckets: otter.Must(&otter.Options[key, *rate.Limiter]{
		MaximumSize:      maxEntries,
		ExpiryCalculator: otter.ExpiryAccessing[key, *rate.Limiter](full),
	})}
}

// Allowed says whether another attempt may be made. Empty addresses are not
// limited; the name may be empty.
func (l *Limiter) Allowed(address, name string) bool {
	return l.each(address, name, func(k key, _ Limit) bool {
		bucket, ok := l.buckets.GetIfPresent(k)
		return !ok || bucket.TokensAt(l.cfg.Now()) >= 1
	})
}

// Failed notes a failed attempt.
func (l *Limiter) Failed(address, name string) {
	l.each(address, name, func(k key, limit Limit) bool {
		bucket, _ := l.buckets.ComputeIfAbsent(k, func() (*rate.Limiter, bool) {
			return rate.NewLimiter(rate.Every(limit.Recovery), limit.Burst), false
		})
		bucket.AllowN(l.cfg.Now(), 1)
		return true
	})
}

// each calls f for the buckets that count, until it returns false.
func (l *Limiter) each(address, name string, f func(key, Limit) bool) bool {
	if address == "" {
		return true
	}
	address = network(address)
	if l.cfg.PerAddress.Burst > 0 && !f(key{address: address}, l.cfg.PerAddress) {
		return false
	}
	return name == "" || l.cfg.PerName.Burst == 0 || f(key{address, name}, l.cfg.PerName)
}

// network is what one client can be assumed to have: an IPv4 address, or the /64
// of an IPv6 address.
func network(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return address
	}
	return prefix.String()
}

// Close ends what the Limiter does in the background.
func (l *Limiter) Close() { l.buckets.StopAllGoroutines() }
