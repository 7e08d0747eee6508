package session

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/telemetry"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
	"mqtt-integration/services/mqtt-frontend/internal/command"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// Settings bound what a session may do. All but AuthContext, TokenGrace,
// MaxKeepAlive, AcknowledgeRejected and TrustRemoteSampling are required.
type Settings struct {
	// MaxConnections that have sent CONNECT.
	MaxConnections int
	// MaxPacketSize announced to clients, in bytes.
	MaxPacketSize int
	// ReceiveMaximum is ours: how many PUBLISH packets may be unacknowledged.
	ReceiveMaximum uint16
	// TopicAliasMaximum is ours; 0: none.
	TopicAliasMaximum uint16
	// MaxInflight and MaxInflightBytes bound what a client may have unacknowledged.
	MaxInflight      int
	MaxInflightBytes int64
	// MaxSubscriptions of a session.
	MaxSubscriptions int
	// MaxKeepAlive in seconds is asked of MQTT 5 clients; 0: any, and none.
	MaxKeepAlive uint16
	// SubscribeTimeout bounds SUBSCRIBE, CommandTimeout a command that has to wait,
	// WriteTimeout a client that does not read.
	SubscribeTimeout, CommandTimeout, WriteTimeout time.Duration
	// TokenGrace is how long a connection outlives its credential.
	TokenGrace time.Duration
	// AcknowledgeRejected acknowledges to MQTT 3.1.1 clients commands that will
	// never be accepted, instead of closing the connection.
	AcknowledgeRejected bool
	// AuthContext tells consumers of commands who sent them.
	AuthContext bool
	// TrustRemoteSampling lets clients decide whether their commands are recorded
	// as traces.
	TrustRemoteSampling bool
}

// authority decides.
type authority interface {
	Authenticate(ctx context.Context, credentials access.Credentials) (access.Identity, error)
	Authorize(ctx context.Context, id access.Identity, permission authorizationv1.Permission, application, shareName string) (access.Decision, error)
	Watch(id access.Identity, changed func()) (stop func())
}

// publisher takes commands.
type publisher interface {
	Publish(cmd *commandsv1.Command, done func(command.Result))
	MaxRecordBytes() int64
}

// Events opens sessions at event-fanout.
type Events interface {
	Session(info delivery.SessionInfo, onError func(delivery.SessionError)) EventSession
}

// EventSession is one of them.
type EventSession interface {
	Open(ctx context.Context, request delivery.OpenRequest, sink delivery.Sink) (Subscription, error)
	Detach(ctx context.Context, options delivery.DetachOptions) error
}

// Subscription is a subscription of an EventSession.
type Subscription interface {
	Acknowledge(partition int32, offset int64)
	Close(ctx context.Context, unsubscribe bool) error
}

// Deps are what sessions talk to. All fields are required.
type Deps struct {
	Access   authority
	Commands publisher
	Events   Events
	Env      daemon.Env
}

// Manager makes sessions and knows them. All methods are safe for concurrent use.
type Manager struct {
	settings Settings
	deps     Deps
	logger   *slog.Logger
	metrics  *metrics
	tracer   trace.Tracer // nil: nothing is recorded

	mu        sync.Mutex
	draining  bool
	sessions  map[*Session]bool // of all connections; true when CONNECT was counted
	connected int
	owners    map[key]*Session
	lastEpoch uint64
}

// key identifies an MQTT session.
type key struct{ issuer, subject, clientID string }

// NewManager returns a manager without sessions.
func NewManager(settings Settings, deps Deps) (*Manager, error) {
	m := &Manager{
		settings: settings, deps: deps, logger: deps.Env.Logger,
		sessions: make(map[*Session]bool), owners: make(map[key]*Session),
	}
	var err error
	if m.metrics, err = newMetrics(deps.Env.Meter); err != nil {
		return nil, err
	}
	if telemetry.Records(deps.Env.Tracer) {
		m.tracer = deps.Env.Tracer.Tracer("mqtt-integration/services/mqtt-frontend")
	}
	return m, nil
}

// lateConnect is how long a connection that came while we stop may take to say
// CONNECT.
const lateConnect = time.Second

// NewSession makes the session of a connection. It is for [wire.Config].
func (m *Manager) NewSession(conn *wire.Conn) wire.Handler {
	s := &Session{manager: m, conn: conn, logger: m.logger, subscriptions: make(map[string]*subscription)}
	s.acks.init(s, int(m.settings.ReceiveMaximum))
	s.work.init()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions[s] = false
	if m.draining { // and has not seen this one: it may say CONNECT, and be refused
		time.AfterFunc(lateConnect, func() { conn.End(shuttingDown) })
	}
	return s
}

// enter counts a connection that has sent CONNECT.
func (m *Manager) enter(ctx context.Context, s *Session) (wire.Connack, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.draining:
		return wire.Connack{Code: wire.ServerUnavailable, Reason: "server is shutting down"}, false
	case m.connected >= m.settings.MaxConnections:
		return wire.Connack{Code: wire.ServerBusy, Reason: "too many connections"}, false
	}
	m.sessions[s] = true
	m.connected++
	m.metrics.connections.Add(ctx, 1)
	return wire.Connack{}, true
}

// claim makes s the owner of its session, and returns the one before and the
// epoch of the claim: claims of this process are in its order.
func (m *Manager) claim(s *Session) (previous *Session, epoch uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	previous = m.owners[s.key]
	m.owners[s.key] = s
	m.lastEpoch = max(uint64(time.Now().UnixMicro()), m.lastEpoch+1)
	return previous, m.lastEpoch
}

// leave forgets a session.
func (m *Manager) leave(s *Session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	counted := m.sessions[s]
	delete(m.sessions, s)
	if counted {
		m.connected--
		m.metrics.connections.Add(context.Background(), -1)
	}
	if m.owners[s.key] == s {
		delete(m.owners, s.key)
	}
}

// drainPace is the longest pause between two connections that are told to go.
const drainPace = 10 * time.Millisecond

// Drain ends all connections: each when its commands have their results, and
// spread over half of the time until the context's deadline, so that their
// clients do not all come to the next frontend at once. New ones are refused. It
// returns when all have been told, or ctx ended.
func (m *Manager) Drain(ctx context.Context) {
	m.mu.Lock()
	m.draining = true
	sessions := make([]*Session, 0, len(m.sessions))
	for s := range m.sessions {
		sessions = append(sessions, s)
	}
	m.mu.Unlock()
	if len(sessions) == 0 {
		return
	}
	pace := drainPace
	if deadline, ok := ctx.Deadline(); ok {
		pace = min(pace, time.Until(deadline)/2/time.Duration(len(sessions)))
	}
	var told sync.WaitGroup
	defer told.Wait()
	for _, s := range sessions {
		told.Go(func() { s.drain(ctx) })
		select {
		case <-ctx.Done():
			return
		case <-time.After(pace):
		}
	}
}
