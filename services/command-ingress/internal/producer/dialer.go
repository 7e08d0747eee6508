package producer

import (
	"net"
	"sync"
	"time"
)

// dialer makes sarama's connections and can end all of them at once, for good:
// sarama itself waits for answers before it closes one.
type dialer struct {
	dialer net.Dialer

	mu    sync.Mutex
	conns map[*conn]struct{}
	ended bool
}

func newDialer(timeout time.Duration) *dialer {
	return &dialer{
		dialer: net.Dialer{Timeout: timeout, KeepAlive: 15 * time.Second},
		conns:  map[*conn]struct{}{},
	}
}

// Dial implements proxy.Dialer of golang.org/x/net.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	if d.isCut() {
		return nil, net.ErrClosed
	}
	c, err := d.dialer.Dial(network, address)
	if err != nil {
		return nil, err
	}
	tracked := &conn{Conn: c, dialer: d}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	d.conns[tracked] = struct{}{}
	return tracked, nil
}

func (d *dialer) isCut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended
}

func (d *dialer) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	for c := range d.conns {
		_ = c.Conn.Close()
	}
	clear(d.conns)
}

type conn struct {
	net.Conn
	dialer *dialer
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.dialer.mu.Lock()
	delete(c.dialer.conns, c)
	c.dialer.mu.Unlock()
	return c.Conn.Close()
}
