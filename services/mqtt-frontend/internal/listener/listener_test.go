package listener_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/goleak"

	"mqtt-integration/services/mqtt-frontend/internal/listener"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted accepts what it is given.
type scripted struct {
	accept chan any // net.Conn or error
	closed chan struct{}
	once   sync.Once
}

func newScripted() *scripted {
	return &scripted{accept: make(chan any), closed: make(chan struct{})}
}

func (s *scripted) Accept() (net.Conn, error) {
	select {
	case <-s.closed:
		return nil, net.ErrClosed
	case v := <-s.accept:
		if err, ok := v.(error); ok {
			return nil, err
		}
		return v.(net.Conn), nil //nolint:forcetypeassert,errcheck // the test's
	}
}

func (s *scripted) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *scripted) Addr() net.Addr { return &net.TCPAddr{} }

func config(l net.Listener, slots int, serve func(net.Conn)) listener.Config {
	return listener.Config{
		Listener: l, Serve: serve, Slots: listener.NewSlots(slots), Refused: noop.Int64Counter{}, Logger: slog.New(slog.DiscardHandler),
	}
}

// Trap: the library's listener ends with the first error.
func TestErrorsAreWaitedOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newScripted()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		served := make(chan net.Conn, 10)
		var connections sync.WaitGroup
		go func() { done <- listener.Run(ctx, config(l, 10, func(c net.Conn) { served <- c }), &connections) }()
		begin := time.Now()
		for range 20 {
			l.accept <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
		}
		here, _ := net.Pipe()
		l.accept <- here
		<-served
		if took := time.Since(begin); took < 10*time.Second || took > 20*time.Second {
			t.Errorf("20 errors took %v, want the pause to grow to a second", took)
		}
		l.accept <- errors.New("another")
		synctest.Wait()
		cancel() // in the pause
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		connections.Wait()
	})
}

func TestSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newScripted()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		free := make(chan struct{})
		var connections sync.WaitGroup
		go func() { done <- listener.Run(ctx, config(l, 1, func(net.Conn) { <-free }), &connections) }()
		first, _ := net.Pipe()
		l.accept <- first
		second, client := net.Pipe()
		l.accept <- second
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the second one: %v, want it closed", err)
		}
		free <- struct{}{}
		synctest.Wait()
		third, _ := net.Pipe()
		l.accept <- third
		free <- struct{}{}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		connections.Wait()
	})
}

func TestClosedListenerIsAnError(t *testing.T) {
	t.Parallel()
	l := newScripted()
	_ = l.Close()
	var connections sync.WaitGroup
	if err := listener.Run(t.Context(), config(l, 1, func(net.Conn) {}), &connections); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}
