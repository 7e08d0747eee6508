package testkit

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Proxy stands between Kafka clients and the brokers of a cluster. Clients
// follow the addresses that brokers advertise, so the proxy understands just
// enough of the protocol to replace these in Metadata, FindCoordinator,
// DescribeCluster, Produce and Fetch answers by addresses of its own: one
// listener per broker, opened when its address is first seen. It works for the
// emulated and for a real Kafka without changes to either.
//
// Its methods may be used from several goroutines.
type Proxy struct {
	done sync.WaitGroup
	ctx  context.Context // the life of the proxy, ended by Close
	end  context.CancelFunc

	mu        sync.Mutex
	closed    bool
	brokers   []string          // our addresses of the bootstrap brokers
	upstreams map[string]string // upstream address → our address
	listeners []net.Listener
	conns     map[net.Conn]struct{} // towards clients and towards brokers
	cut       bool
	open      [2]chan struct{} // per direction: closed while traffic flows
	accepted  int
}

type direction int

const (
	requests direction = iota
	responses
)

// maxFrame is above what any broker here accepts as a request, and above any
// answer of a test.
const maxFrame = 128 << 20

// NewProxy starts a proxy in front of brokers. It ends with the test, or with
// Close.
func NewProxy(tb testing.TB, brokers []string) *Proxy {
	tb.Helper()
	ctx, end := context.WithCancel(context.WithoutCancel(tb.Context()))
	p := &Proxy{ctx: ctx, end: end, upstreams: map[string]string{}, conns: map[net.Conn]struct{}{}}
	for d := range p.open {
		p.open[d] = make(chan struct{})
		close(p.open[d])
	}
	tb.Cleanup(p.Close)
	for _, b := range brokers {
		address, err := p.addressOf(b)
		if err != nil {
			tb.Fatalf("proxy for %s: %v", b, err)
		}
		p.brokers = append(p.brokers, address)
	}
	return p
}

// Brokers returns the addresses to bootstrap a client with, so that all its
// traffic passes through the proxy.
func (p *Proxy) Brokers() []string { return slices.Clone(p.brokers) }

// Cut closes every connection, and every new one at once, until Restore: Kafka
// is gone, and clients notice.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	p.closeConns()
}

// Stall keeps connections open and passes nothing on in either direction until
// Restore: Kafka hangs. Nothing is lost, it only waits.
func (p *Proxy) Stall() { p.hold(requests, responses) }

// StallResponses lets requests through and holds the answers back until
// Restore: what was asked for happens, and the client does not learn it.
func (p *Proxy) StallResponses() { p.hold(responses) }

func (p *Proxy) hold(directions ...direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range directions {
		select {
		case <-p.open[d]:
			p.open[d] = make(chan struct{})
		default: // Held already.
		}
	}
}

// Restore undoes Cut and Stall.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
	for _, open := range p.open {
		select {
		case <-open:
		default:
			close(open)
		}
	}
}

// Accepted returns how many connections clients have made so far, refused ones
// included.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Close ends the proxy and all its connections. It may be called more than
// once.
func (p *Proxy) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		p.end()
		for _, l := range p.listeners {
			_ = l.Close()
		}
		p.closeConns()
	}
	p.mu.Unlock()
	p.done.Wait()
}

func (p *Proxy) closeConns() {
	for conn := range p.conns {
		abort(conn)
	}
}

// abort closes with a reset where it can, as a broker that is gone does.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// addressOf returns our address for an upstream broker and opens a listener
// when there is none.
func (p *Proxy) addressOf(upstream string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if address, ok := p.upstreams[upstream]; ok {
		return address, nil
	}
	if p.closed {
		return "", net.ErrClosed
	}
	listener, err := (&net.ListenConfig{}).Listen(p.ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listen for %s: %w", upstream, err)
	}
	address := listener.Addr().String()
	p.upstreams[upstream] = address
	p.listeners = append(p.listeners, listener)
	p.done.Go(func() { p.accept(listener, upstream) })
	return address, nil
}

func (p *Proxy) accept(listener net.Listener, upstream string) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		p.done.Go(func() { p.serve(client, upstream) })
	}
}

// track remembers a connection, so that Cut and Close can end it. It returns
// false, and the connection is closed, when it must not live.
func (p *Proxy) track(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut || p.closed {
		abort(conn)
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

func (p *Proxy) forget(conn net.Conn) {
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
	_ = conn.Close()
}

func (p *Proxy) serve(client net.Conn, upstream string) {
	p.mu.Lock()
	p.accepted++
	p.mu.Unlock()
	if !p.track(client) {
		return
	}
	defer p.forget(client)
	broker, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(p.ctx, "tcp", upstream)
	if err != nil {
		return // The client sees a closed connection, as it would without us.
	}
	if !p.track(broker) {
		return
	}
	defer p.forget(broker)

	asked := &pending{kinds: map[int32]kind{}}
	var both sync.WaitGroup
	for _, way := range []struct {
		direction
		from, to net.Conn
		rewrite  func([]byte) ([]byte, error)
	}{
		{requests, client, broker, asked.note},
		{responses, broker, client, func(b []byte) ([]byte, error) { return p.rewrite(b, asked) }},
	} {
		both.Go(func() {
			// Either end takes the other with it, but what it has written
			// before still arrives.
			defer func() { _ = client.Close() }()
			defer func() { _ = broker.Close() }()
			p.copy(way.direction, way.from, way.to, way.rewrite)
		})
	}
	both.Wait()
}

// copy passes frames on until either end is closed.
func (p *Proxy) copy(d direction, from io.Reader, to io.Writer, rewrite func([]byte) ([]byte, error)) {
	size := make([]byte, 4)
	for {
		if _, err := io.ReadFull(from, size); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(size)
		if n > maxFrame {
			return // No Kafka protocol.
		}
		frame := make([]byte, n)
		if _, err := io.ReadFull(from, frame); err != nil {
			return
		}
		frame, err := rewrite(frame)
		if err != nil {
			return
		}
		if !p.pass(d) {
			return
		}
		out := append(binary.BigEndian.AppendUint32(make([]byte, 0, len(frame)+4), uint32(len(frame))), frame...) //nolint:gosec // A frame is about as long as one that was read, of at most maxFrame.
		if _, err := to.Write(out); err != nil {
			return
		}
	}
}

// pass waits while a direction is held. It returns false when the proxy ends.
func (p *Proxy) pass(d direction) bool {
	p.mu.Lock()
	open := p.open[d]
	p.mu.Unlock()
	select {
	case <-open:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// kind is what one needs to know of a request to understand its answer.
type kind struct{ key, version int16 }

// pending remembers the requests of one connection that we have to rewrite the
// answers of.
type pending struct {
	mu    sync.Mutex
	kinds map[int32]kind
}

func (a *pending) note(frame []byte) ([]byte, error) {
	r := kbin.Reader{Src: frame}
	k := kind{key: r.Int16(), version: r.Int16()}
	correlation := r.Int32()
	if err := r.Complete(); err != nil {
		return nil, fmt.Errorf("read request header: %w", err)
	}
	if k.carriesAddresses() {
		a.mu.Lock()
		a.kinds[correlation] = k
		a.mu.Unlock()
	}
	return frame, nil
}

func (a *pending) take(correlation int32) (kind, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.kinds[correlation]
	delete(a.kinds, correlation)
	return k, ok
}

func (k kind) carriesAddresses() bool {
	switch kmsg.Key(k.key) {
	case kmsg.Metadata, kmsg.FindCoordinator, kmsg.DescribeCluster:
		return true
	case kmsg.Produce: // Since KIP-951 they name the new leader.
		return k.version >= 10
	case kmsg.Fetch:
		return k.version >= 16
	default:
		return false
	}
}

// rewrite replaces the brokers' addresses in an answer by ours.
func (p *Proxy) rewrite(frame []byte, asked *pending) ([]byte, error) {
	if len(frame) < 4 {
		return nil, io.ErrUnexpectedEOF
	}
	k, ok := asked.take(int32(binary.BigEndian.Uint32(frame))) //nolint:gosec // The protocol's type is int32.
	if !ok {
		return frame, nil
	}
	resp := kmsg.ResponseForKey(k.key)
	if k.version > resp.MaxVersion() {
		return nil, fmt.Errorf("version %d of request %d is not known here", k.version, k.key)
	}
	resp.SetVersion(k.version)
	header := frame[:4]
	if resp.IsFlexible() {
		r := kbin.Reader{Src: frame[4:]}
		kmsg.SkipTags(&r)
		header = frame[:len(frame)-len(r.Src)]
	}
	if err := resp.ReadFrom(frame[len(header):]); err != nil {
		return nil, fmt.Errorf("read answer to request %d: %w", k.key, err)
	}
	var err error
	replace := func(host *string, port *int32) {
		if *host == "" || err != nil {
			return // No coordinator, no leader.
		}
		err = p.replace(host, port)
	}
	switch r := resp.(type) {
	case *kmsg.MetadataResponse:
		for i := range r.Brokers {
			replace(&r.Brokers[i].Host, &r.Brokers[i].Port)
		}
	case *kmsg.FindCoordinatorResponse:
		replace(&r.Host, &r.Port)
		for i := range r.Coordinators {
			replace(&r.Coordinators[i].Host, &r.Coordinators[i].Port)
		}
	case *kmsg.DescribeClusterResponse:
		for i := range r.Brokers {
			replace(&r.Brokers[i].Host, &r.Brokers[i].Port)
		}
	case *kmsg.ProduceResponse:
		for i := range r.Brokers {
			replace(&r.Brokers[i].Host, &r.Brokers[i].Port)
		}
	case *kmsg.FetchResponse:
		for i := range r.Brokers {
			replace(&r.Brokers[i].Host, &r.Brokers[i].Port)
		}
	}
	if err != nil {
		return nil, err
	}
	return resp.AppendTo(slices.Clone(header)), nil
}

func (p *Proxy) replace(host *string, port *int32) error {
	ours, err := p.addressOf(net.JoinHostPort(*host, strconv.Itoa(int(*port))))
	if err != nil {
		return err
	}
	h, portText, err := net.SplitHostPort(ours)
	if err != nil {
		return fmt.Errorf("own address: %w", err)
	}
	n, err := strconv.ParseInt(portText, 10, 32)
	if err != nil {
		return fmt.Errorf("own port: %w", err)
	}
	*host, *port = h, int32(n)
	return nil
}
