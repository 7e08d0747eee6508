package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"mqtt-integration/libs/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// resolver answers what the test sets.
type resolver struct {
	mu      sync.Mutex
	answers map[string]string // addresses by network and host; "!": an error
}

func (r *resolver) set(answers map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = answers
}

func (r *resolver) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := r.answers[network+" "+host]
	switch answer {
	case "!":
		return nil, errors.New("server misbehaving")
	case "":
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	case "empty":
		return nil, nil
	}
	var found []netip.Addr
	for address := range strings.FieldsSeq(answer) {
		found = append(found, netip.MustParseAddr(address))
	}
	return found, nil
}

func addresses(v *discovery.View) string {
	var all []string
	for _, i := range v.Instances() {
		all = append(all, i.Address)
	}
	return strings.Join(all, " ")
}

func run(t *testing.T, cfg discovery.Config) *discovery.Poller {
	t.Helper()
	p, err := discovery.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v, want nil", err)
		}
	})
	return p
}

func TestViewFollowsTheAnswers(t *testing.T) {
	t.Parallel()
	type answers = map[string]string
	steps := []struct {
		name    string
		answers answers
		want    string
	}{
		{name: "first answer", answers: answers{"ip4 fanout": "10.0.0.2 10.0.0.1"}, want: "10.0.0.1:7002 10.0.0.2:7002"},
		{name: "one comes", answers: answers{"ip4 fanout": "10.0.0.3 10.0.0.1 10.0.0.2"}, want: "10.0.0.1:7002 10.0.0.2:7002 10.0.0.3:7002"},
		{name: "one is missing", answers: answers{"ip4 fanout": "10.0.0.1 10.0.0.2"}, want: "10.0.0.1:7002 10.0.0.2:7002 10.0.0.3:7002"},
		{name: "and is back", answers: answers{"ip4 fanout": "10.0.0.1 10.0.0.2 10.0.0.3"}, want: "10.0.0.1:7002 10.0.0.2:7002 10.0.0.3:7002"},
		{name: "and is missing again", answers: answers{"ip4 fanout": "10.0.0.1 10.0.0.2"}, want: "10.0.0.1:7002 10.0.0.2:7002 10.0.0.3:7002"},
		{name: "a failure says nothing", answers: answers{"ip4 fanout": "!", "ip6 fanout": "::2"}, want: "10.0.0.1:7002 10.0.0.2:7002 10.0.0.3:7002"},
		{name: "an empty answer neither", answers: answers{"ip4 fanout": "empty"}, want: "10.0.0.1:7002 10.0.0.2:7002 10.0.0.3:7002"},
		{name: "no such host neither", want: "10.0.0.1:7002 10.0.0.2:7002 10.0.0.3:7002"},
		{name: "missing for the second time", answers: answers{"ip4 fanout": "10.0.0.1 10.0.0.2"}, want: "10.0.0.1:7002 10.0.0.2:7002"},
		{name: "all are replaced, first answer", answers: answers{"ip4 fanout": "10.0.0.8"}, want: "10.0.0.1:7002 10.0.0.2:7002 10.0.0.8:7002"},
		{name: "all are replaced, second answer", answers: answers{"ip4 fanout": "10.0.0.8"}, want: "10.0.0.8:7002"},
	}
	synctest.Test(t, func(t *testing.T) {
		r := &resolver{answers: steps[0].answers}
		p := run(t, discovery.Config{Addresses: []string{"fanout:7002"}, Interval: 10 * time.Second, Resolver: r})
		time.Sleep(5 * time.Second)
		for i, step := range steps {
			before := p.View()
			if i > 0 {
				r.set(step.answers)
				time.Sleep(10 * time.Second)
			}
			if got := addresses(p.View()); got != step.want {
				t.Errorf("%s: %s, want %s", step.name, got, step.want)
			}
			if i > 0 && addresses(before) == step.want && p.View() != before {
				t.Errorf("%s: a new view with nothing new", step.name)
			}
		}
	})
}

func TestNamesAndAddresses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &resolver{answers: map[string]string{
			"ip4 both": "10.0.0.1", "ip6 both": "fd00::1",
			"ip6 six":   "fd00::2",
			"ip4 again": "10.0.0.1",
		}}
		p := run(t, discovery.Config{Addresses: []string{"both:1", "six:1", "again:1", "again:2", "127.0.0.1:1", "[::1]:1"}, Resolver: r})
		if got, want := addresses(p.View()), "127.0.0.1:1 [::1]:1"; got != want {
			t.Errorf("before the first poll: %s, want %s", got, want)
		}
		synctest.Wait()
		want := []discovery.Instance{
			{Address: "10.0.0.1:1", Name: "both"},
			{Address: "10.0.0.1:2", Name: "again"},
			{Address: "127.0.0.1:1", Name: "127.0.0.1"},
			{Address: "[::1]:1", Name: "::1"},
			{Address: "[fd00::2]:1", Name: "six"},
		}
		if diff := cmp.Diff(want, p.View().Instances()); diff != "" {
			t.Errorf("instances (-want +got):\n%s", diff)
		}
		if v := p.View(); !v.Has("10.0.0.1:2") || v.Has("10.0.0.1:3") {
			t.Error("Has() is wrong")
		}
	})
}

func TestNextTellsOfChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &resolver{answers: map[string]string{"ip4 a": "!"}}
		p := run(t, discovery.Config{Addresses: []string{"a:1"}, Resolver: r})
		seen := p.View()
		next := func(want string) {
			t.Helper()
			view, err := p.Next(t.Context(), seen)
			if err != nil || addresses(view) != want {
				t.Fatalf("Next() = %s, %v, want %s", addresses(view), err, want)
			}
			seen = view
		}
		next("")
		if seen.Err() == nil {
			t.Error("Err() of a view that could not be found = nil")
		}
		began := time.Now()
		r.set(map[string]string{"ip4 a": "10.0.0.1"})
		next("10.0.0.1:1")
		if took := time.Since(began); took > 2*time.Second || seen.Err() != nil {
			t.Errorf("first view after %v, error %v, want within 2 s, nil", took, seen.Err())
		}
		began = time.Now()
		r.set(map[string]string{"ip4 a": "10.0.0.1 10.0.0.2"})
		next("10.0.0.1:1 10.0.0.2:1")
		if took := time.Since(began); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("next view after %v, want 10 s by default", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if view, err := p.Next(ctx, seen); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Next() = %s, %v with nothing new, want the deadline", addresses(view), err)
		}
	})
}

func TestMalformedAddresses(t *testing.T) {
	t.Parallel()
	if _, err := discovery.New(discovery.Config{Addresses: []string{"fanout"}}); err == nil {
		t.Error("New() without a port = nil, want an error")
	}
}

func view(n int) *discovery.View {
	var all []discovery.Instance
	for i := range n {
		all = append(all, discovery.Instance{Address: fmt.Sprintf("10.0.0.%d:7002", i+1)})
	}
	return discovery.NewView(all...)
}

func TestOnlyKeysOfTheInstanceMove(t *testing.T) {
	t.Parallel()
	const keys, instances = 10_000, 5
	before, after := view(instances), view(instances-1)
	gone := before.Instances()[instances-1].Address
	count := map[string]int{}
	inherited := map[string]int{}
	for i := range keys {
		key := []string{"issuer", fmt.Sprint("user-", i), "client"}
		was, ok := before.Pick(key...)
		order := before.Ordered(key...)
		if !ok || len(order) != instances || order[0] != was {
			t.Fatalf("Pick() = %v, %v, but Ordered() = %v", was, ok, order)
		}
		is, _ := after.Pick(key...)
		want := was
		if was.Address == gone {
			want = order[1]
			inherited[is.Address]++
		}
		if is != want {
			t.Fatalf("without %s, %v is first, want %v", gone, is, want)
		}
		count[was.Address]++
	}
	for address, n := range count {
		if mean := keys / instances; n < mean*9/10 || n > mean*11/10 {
			t.Errorf("%s has %d keys of %d", address, n, keys)
		}
	}
	for address, n := range inherited {
		if mean := count[gone] / (instances - 1); n < mean*3/4 || n > mean*5/4 {
			t.Errorf("%s inherits %d keys of %d", address, n, count[gone])
		}
	}
}

func TestHashIsForEver(t *testing.T) {
	t.Parallel()
	if got, want := discovery.Hash("10.0.0.1:7002", "issuer", "subject", "client"), uint64(hash); got != want {
		t.Errorf("Hash() = %#x, want %#x: releases have to agree", got, want)
	}
	if discovery.Hash("ab", "c") == discovery.Hash("a", "bc") {
		t.Error("parts run into each other")
	}
	if _, ok := view(0).Pick("key"); ok || len(view(0).Ordered("key")) != 0 {
		t.Error("there is something in an empty view")
	}
}

// hash is what the first release computed.
const hash = 0x34aeb2a899126eaa
