package system

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Relay passes TCP connections on to an address until they are cut: it stands
// between two services.
type Relay struct {
	listener net.Listener
	done     sync.WaitGroup

	mu       sync.Mutex
	target   string
	turn     int // counts what has changed for connections that are being made
	closed   bool
	cut      bool
	accepted int
	conns    map[net.Conn]struct{}
}

// NewRelay starts a relay to an address where somebody listens, or will do so.
// It ends with the test.
func NewRelay(tb testing.TB, target string) *Relay {
	tb.Helper()
	listener, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &Relay{target: target, listener: listener, conns: map[net.Conn]struct{}{}}
	r.done.Go(r.accept)
	tb.Cleanup(func() {
		r.mu.Lock()
		r.closed = true
		r.mu.Unlock()
		_ = listener.Close()
		r.reset()
		r.done.Wait()
	})
	return r
}

// Address is where the relay listens.
func (r *Relay) Address() string { return r.listener.Addr().String() }

// Cut resets all connections, and new ones at once until Restore.
func (r *Relay) Cut() {
	r.mu.Lock()
	r.cut = true
	r.turn++
	r.mu.Unlock()
	r.reset()
}

// Restore undoes Cut.
func (r *Relay) Restore() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = false
}

// SetTarget has connections that are made from now on passed on to another address.
func (r *Relay) SetTarget(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
	r.turn++
}

// Accepted is how many connections were passed on so far.
func (r *Relay) Accepted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.accepted
}

func (r *Relay) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for conn := range r.conns {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
	clear(r.conns)
}

func (r *Relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.done.Go(func() { r.serve(client) })
	}
}

func (r *Relay) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	r.mu.Lock()
	target, turn, cut := r.target, r.turn, r.cut
	r.mu.Unlock()
	if cut {
		return
	}
	server, err := (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	r.mu.Lock()
	// Whoever was let through before a cut must not come out after it.
	if r.turn != turn || r.closed {
		r.mu.Unlock()
		return
	}
	r.accepted++
	r.conns[client], r.conns[server] = struct{}{}, struct{}{}
	r.mu.Unlock()

	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			_, _ = io.Copy(way[1], way[0])
			_ = way[0].Close()
			_ = way[1].Close()
		})
	}
	both.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, client)
	delete(r.conns, server)
}
