package listener

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
)

const (
	firstBackoff = 5 * time.Millisecond
	maxBackoff   = time.Second
)

// Config is what accepting needs. All fields are required.
type Config struct {
	// Listener is closed by [Run].
	Listener net.Listener
	// Serve handles a connection and closes it. It is called on a goroutine of its
	// own.
	Serve func(net.Conn)
	// Slots bounds the connections that are open at a time, over all listeners that
	// share it. More are closed at once.
	Slots Slots
	// Refused counts those.
	Refused metric.Int64Counter
	Logger  *slog.Logger
}

// Slots is a number of connections that may be open at a time.
type Slots chan struct{}

// NewSlots returns n of them.
func NewSlots(n int) Slots { return make(Slots, n) }

// Run accepts until ctx ends, or the listener cannot accept any more, which it
// reports as an error. It does not wait for the connections: connections does,
// to which each of them is added.
func Run(ctx context.Context, cfg Config, connections *sync.WaitGroup) error {
	stop := context.AfterFunc(ctx, func() { _ = cfg.Listener.Close() })
	defer stop()
	defer func() { _ = cfg.Listener.Close() }()
	backoff := firstBackoff
	for {
		conn, err := cfg.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // no file descriptors, or the client has gone again
			cfg.Logger.WarnContext(ctx, "accepting a connection failed", slog.Any("error", err),
				slog.Duration("pause", backoff), slog.String("address", cfg.Listener.Addr().String()))
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(backoff):
			}
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		backoff = firstBackoff
		select {
		case cfg.Slots <- struct{}{}:
		default:
			cfg.Refused.Add(ctx, 1)
			_ = conn.Close()
			continue
		}
		connections.Go(func() {
			defer func() { <-cfg.Slots }()
			cfg.Serve(conn)
		})
	}
}
