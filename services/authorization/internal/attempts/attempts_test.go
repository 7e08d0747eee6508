package attempts_test

import (
	"testing"
	"time"

	"mqtt-integration/services/authorization/internal/attempts"
)

func TestLimiter(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	l := attempts.New(attempts.Config{
		PerAddress: attempts.Limit{Burst: 5, Recovery: time.Second},
		PerName:    attempts.Limit{Burst: 2, Recovery: 10 * time.Second},
		Now:        func() time.Time { return now },
	})
	check := func(what, address, name string, want bool) {
		t.Helper()
		if got := l.Allowed(address, name); got != want {
			t.Errorf("%s: Allowed(%q, %q) = %v, want %v", what, address, name, got, want)
		}
	}
	check("before anything failed", "10.0.0.1", "ada", true)
	l.Failed("10.0.0.1", "ada")
	check("after one failure", "10.0.0.1", "ada", true)
	l.Failed("10.0.0.1", "ada")
	check("after a burst", "10.0.0.1", "ada", false)
	check("another name from there", "10.0.0.1", "bob", true)
	check("the same name from elsewhere", "10.0.0.2", "ada", true)
	check("a caller that sends no address", "", "ada", true)
	now = now.Add(9 * time.Second)
	check("before it has recovered", "10.0.0.1", "ada", false)
	now = now.Add(time.Second)
	check("after it has recovered", "10.0.0.1", "ada", true)
	for range 5 {
		l.Failed("10.0.0.1", "")
	}
	check("after many failures with any name", "10.0.0.1", "carol", false)

	for range 5 {
		l.Failed("2001:db8::1", "")
	}
	check("the same IPv6 network", "2001:db8::ffff:1", "", false)
	check("another IPv6 network", "2001:db8:0:1::1", "", true)
	for range 5 {
		l.Failed("::ffff:10.0.0.3", "")
	}
	check("IPv4 in IPv6", "10.0.0.3", "", false)
}

func TestNoLimit(t *testing.T) {
	t.Parallel()
	l := attempts.New(attempts.Config{})
	for range 1000 {
		l.Failed("10.0.0.1", "ada")
	}
	if !l.Allowed("10.0.0.1", "ada") {
		t.Error("a limit of 0 limits")
	}
}
