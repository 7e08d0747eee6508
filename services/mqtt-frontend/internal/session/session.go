package session

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// Session is what happens on one connection. It is made by [Manager.NewSession].
type Session struct {
	manager *Manager
	conn    *wire.Conn
	logger  *slog.Logger

	// Set by Connect, and not changed after.
	key      key
	level    byte
	identity access.Identity
	events   EventSession
	unwatch  func()
	window   delivery.Window

	acks     acks
	work     work
	aliases  map[uint16]string // of the reading goroutine
	draining atomic.Bool

	mu            sync.Mutex
	subscriptions map[string]*subscription // by topic filter
	expiry        *time.Timer
	recheck       recheckState
	closed        bool           // no goroutine is started any more
	running       sync.WaitGroup // goroutines of work and recheck
}

var _ wire.Handler = (*Session)(nil)

// Connected implements wire.Handler.
func (s *Session) Connected() {
	s.logger.LogAttrs(s.conn.Context(), slog.LevelDebug, "connected", s.attributes()...)
}

// Acknowledge implements wire.Handler.
func (s *Session) Acknowledge(id uint16, code wire.Code) {
	if !s.conn.Engine().Acknowledge(id) {
		return // of a connection before, or twice: it means nothing
	}
	outcome := s.manager.metrics.accepted
	if code.Refused() {
		outcome = s.manager.metrics.refused
	}
	s.manager.metrics.acknowledged.Add(context.Background(), 1, outcome...)
}

// run starts a goroutine that Close waits for, unless the session is closed.
func (s *Session) run(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Go(func() {
		defer s.recovered(s.conn.Context())
		f()
	})
	return true
}

// recovered ends the connection of a goroutine that panicked, not the process:
// what made it panic came from a client. It is to be deferred.
func (s *Session) recovered(ctx context.Context) {
	if p := recover(); p != nil {
		s.logger.LogAttrs(ctx, slog.LevelError, "session panicked", append(s.attributes(), slog.Any("panic", p))...)
		s.conn.End(wire.End{Label: "panic", Code: wire.UnspecifiedError, Reason: "internal error"})
	}
}

// detachTimeout bounds how long the end of a session waits for event-fanout.
const detachTimeout = 2 * time.Second

// Close implements wire.Handler.
func (s *Session) Close(end wire.End) {
	s.mu.Lock()
	s.closed = true
	if s.expiry != nil {
		s.expiry.Stop()
	}
	subscriptions := len(s.subscriptions)
	s.mu.Unlock()
	if s.unwatch != nil {
		s.unwatch()
	}
	s.acks.close()
	s.work.close()
	s.running.Wait() // their contexts have ended
	if s.events != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.conn.Context()), detachTimeout)
		defer cancel()
		clean := end.Client != nil && end.Client.Code == wire.Success
		if err := s.events.Detach(ctx, delivery.DetachOptions{DropWill: clean, Discard: end.Label == labelRevoked}); err != nil {
			s.logger.LogAttrs(ctx, slog.LevelWarn, "detaching from event-fanout failed", append(s.attributes(), slog.Any("error", err))...)
		}
	}
	s.manager.metrics.subscriptions.Add(context.Background(), -int64(subscriptions))
	s.manager.leave(s)
	s.logEnd(end)
}

func (s *Session) logEnd(end wire.End) {
	ctx := context.Background()
	s.manager.metrics.disconnect(ctx, end.Label)
	attributes := append(s.attributes(), slog.String("reason", end.Label))
	code := end.Code
	switch {
	case end.Refusal != wire.Success:
		code = end.Refusal
	case code == wire.Success && end.Client != nil:
		code = end.Client.Code
	}
	if code != wire.Success {
		attributes = append(attributes, slog.String("code", code.String()))
	}
	if end.Reason != "" {
		attributes = append(attributes, slog.String("text", end.Reason))
	}
	if end.Err != nil {
		attributes = append(attributes, slog.Any("error", end.Err))
	}
	switch {
	case end.Refusal != wire.Success:
		s.logger.LogAttrs(ctx, slog.LevelInfo, "connection refused", attributes...)
	case end.Code != wire.Success:
		s.logger.LogAttrs(ctx, slog.LevelInfo, "connection ended by us", attributes...)
	default:
		s.logger.LogAttrs(ctx, slog.LevelDebug, "connection ended", attributes...)
	}
}

func (s *Session) attributes() []slog.Attr {
	return []slog.Attr{
		slog.String("client_id", s.key.clientID), slog.String("principal", s.key.issuer+"/"+s.key.subject),
		slog.String("remote_address", s.conn.RemoteAddr().String()), slog.String("connection_id", s.conn.ID()),
	}
}

// Labels of ends, for metrics and logs, that are used more than once.
const (
	labelRevoked     = "access_revoked"
	labelUndecided   = "authorization_unreachable"
	labelTakenOver   = "taken_over"
	labelCommand     = "command_refused"
	labelUnsupported = "unsupported"
)

// lost ends the session because event-fanout says so.
func (s *Session) lost(err delivery.SessionError) {
	switch err.Reason {
	case eventsv1.SessionErrorReason_SESSION_ERROR_REASON_TAKEN_OVER:
		s.conn.End(takenOver)
	case eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ADMINISTRATIVE:
		s.conn.End(wire.End{Label: "administrative", Code: wire.AdministrativeAction, Reason: "disconnected by an administrator"})
	case eventsv1.SessionErrorReason_SESSION_ERROR_REASON_ACKNOWLEDGE_TIMEOUT:
		s.conn.End(wire.End{Label: "acknowledge_timeout", Code: wire.AdministrativeAction, Reason: "nothing acknowledged for too long"})
	default:
		s.conn.End(wire.End{Label: "session_lost", Code: wire.ImplementationSpecificError, Reason: "session lost, connect again"})
	}
}

var takenOver = wire.End{Label: labelTakenOver, Code: wire.SessionTakenOver, Reason: "another connection uses this client identifier"}

var shuttingDown = wire.End{Label: "shutting_down", Code: wire.ServerShuttingDown, Reason: "server is shutting down"}

// drain ends the session for a restart, once its commands have their results.
func (s *Session) drain(ctx context.Context) {
	s.draining.Store(true)
	s.acks.settled(ctx)
	s.conn.End(shuttingDown)
	select {
	case <-ctx.Done():
	case <-s.conn.Engine().Done():
	}
}
