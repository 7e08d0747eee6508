// Package freeport finds addresses for tests that have to know where something
// will listen before it does.
package freeport

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// The ports that are tried lie below those that systems take for connections and
// for port 0, so that nobody gets one of them by accident before it is used.
const low, high = 15000, 30000

var (
	mu    sync.Mutex
	given = map[int]struct{}{} // to tests of this process; at most high - low
)

// Addresses returns n addresses of loopback on which nobody listens now. No two
// calls of a process get the same one. It is safe for concurrent use.
func Addresses(ctx context.Context, n int) ([]string, error) {
	mu.Lock()
	defer mu.Unlock()
	var addresses []string
	for tries := 0; len(addresses) < n; tries++ {
		if tries == high-low {
			return nil, errors.New("no free port")
		}
		port := low + rand.IntN(high-low) //nolint:gosec // no secret
		if _, taken := given[port]; taken {
			continue
		}
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			continue
		}
		if err := listener.Close(); err != nil {
			return nil, err
		}
		given[port] = struct{}{}
		addresses = append(addresses, address)
	}
	return addresses, nil
}
