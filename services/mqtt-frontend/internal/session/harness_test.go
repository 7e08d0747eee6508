package session_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/libs/daemon"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
	"mqtt-integration/services/mqtt-frontend/internal/command"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/event"
	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
	"mqtt-integration/services/mqtt-frontend/internal/session"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// frontend is a session manager and an MQTT server over fakes.
type frontend struct {
	t        testing.TB
	manager  *session.Manager
	server   *wire.Server
	access   *fakeAccess
	events   *fakeEvents
	commands *fakeCommands
	log      *logBuffer

	ctx         context.Context //nolint:containedctx // of the test's server
	connections sync.WaitGroup
}

func defaults() session.Settings {
	return session.Settings{
		MaxConnections: 1000, MaxPacketSize: 1 << 20, ReceiveMaximum: 100, TopicAliasMaximum: 32,
		MaxInflight: 256, MaxInflightBytes: 1 << 20, MaxSubscriptions: 10,
		SubscribeTimeout: 15 * time.Second, CommandTimeout: 10 * time.Second, WriteTimeout: 5 * time.Second,
		AuthContext: true,
	}
}

func newFrontend(tb testing.TB, change ...func(*session.Settings)) *frontend {
	tb.Helper()
	return newTracedFrontend(tb, nil, change...)
}

func newTracedFrontend(tb testing.TB, tracer trace.TracerProvider, change ...func(*session.Settings)) *frontend {
	tb.Helper()
	settings := defaults()
	for _, f := range change {
		f(&settings)
	}
	f := &frontend{
		t: tb, access: newFakeAccess(), events: &fakeEvents{}, commands: &fakeCommands{}, log: &logBuffer{},
	}
	logger := slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	env := daemon.Env{Logger: logger, Tracer: tracer}.Complete()
	var err error
	f.manager, err = session.NewManager(settings, session.Deps{
		Access: f.access, Commands: f.commands, Events: f.events, Env: env,
	})
	if err != nil {
		tb.Fatal(err)
	}
	f.server, err = wire.NewServer(wire.Config{
		MaxPacketSize: settings.MaxPacketSize, MaxConnectSize: 256 << 10, TopicAliasMaximum: settings.TopicAliasMaximum,
		ConnectTimeout: 10 * time.Second, WriteTimeout: settings.WriteTimeout, Linger: 100 * time.Millisecond, Logger: logger,
		NewHandler: f.manager.NewSession, Passed: f.manager.Passed,
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.ctx = ctx
	tb.Cleanup(func() {
		cancel()
		f.connections.Wait()
	})
	return f
}

// dial returns a client that has said nothing yet.
func (f *frontend) dial(level byte) *mqtttest.Client {
	f.t.Helper()
	server, client := net.Pipe()
	f.connections.Go(func() { f.server.Serve(f.ctx, server) })
	return mqtttest.New(f.t, client, level)
}

// connect returns a client of user "anna" that is connected.
func (f *frontend) connect(level byte, clientID string, change ...func(*packets.Packet)) *mqtttest.Client {
	f.t.Helper()
	c := f.dial(level)
	c.Send(mqtttest.Connect(level, clientID, "anna", "key", change...))
	if k := c.Want(packets.Connack); k.ReasonCode != 0 {
		f.t.Fatalf("CONNACK %#x %q", k.ReasonCode, k.Properties.ReasonString)
	}
	return c
}

// subscribe returns a client that is subscribed to app/a, and the subscription.
func (f *frontend) subscribe(level byte, clientID string, change ...func(*packets.Packet)) (*mqtttest.Client, *fakeSubscription) {
	f.t.Helper()
	c := f.connect(level, clientID, change...)
	c.Send(mqtttest.Subscribe(level, 1, "app/a"))
	if s := c.Want(packets.Suback); s.ReasonCodes[0] != 1 {
		f.t.Fatalf("SUBACK %#x", s.ReasonCodes)
	}
	return c, f.events.last()
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// fakeAccess knows the user anna with the key "key" and the token "token", and
// who may do what.
type fakeAccess struct {
	mu        sync.Mutex
	err       error // of all questions
	denial    *access.Denial
	expires   time.Time
	denied    map[string]authorizationv1.AuthorizationDenialReason // by permission and application
	changed   map[int]func()
	next      int
	presented []access.Credentials
	hold      chan struct{} // Authorize waits for it
}

func newFakeAccess() *fakeAccess {
	return &fakeAccess{changed: map[int]func(){}, denied: map[string]authorizationv1.AuthorizationDenialReason{}}
}

func (a *fakeAccess) Authenticate(_ context.Context, c access.Credentials) (access.Identity, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.presented = append(a.presented, c)
	id := access.Identity{Issuer: "sso", Subject: "anna", Name: "anna", Expires: a.expires}
	switch {
	case a.err != nil:
		return access.Identity{}, a.err
	case a.denial != nil:
		return access.Identity{}, a.denial
	case c.Anonymous:
		return access.Identity{
			Issuer: "anonymous", Subject: c.ConnectionID, Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_ANONYMOUS,
		}, nil
	case c.Token == "token":
		id.Kind = authorizationv1.CredentialKind_CREDENTIAL_KIND_ACCESS_TOKEN
		return id, nil
	case c.APIKey == "key":
		id.Kind, id.Issuer, id.Subject, id.Name = authorizationv1.CredentialKind_CREDENTIAL_KIND_API_KEY, "local", c.UserName, c.UserName
		return id, nil
	}
	return access.Identity{}, &access.Denial{
		Reason:  authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_BAD_CREDENTIALS,
		Message: "bad credentials",
	}
}

func (a *fakeAccess) Authorize(ctx context.Context, _ access.Identity, p authorizationv1.Permission, application, share string) (access.Decision, error) {
	a.mu.Lock()
	hold := a.hold
	a.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return access.Decision{}, ctx.Err()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return access.Decision{}, a.err
	}
	reason, denied := a.denied[question(p, application)]
	if !denied && share != "" {
		reason, denied = a.denied[question(p, "$share/"+share+"/"+application)]
	}
	if !denied && application == "forbidden" {
		reason, denied = authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_NOT_GRANTED, true
	}
	return access.Decision{Allowed: !denied, Reason: reason}, nil
}

func question(p authorizationv1.Permission, application string) string {
	return p.String() + " " + application
}

func (a *fakeAccess) Watch(_ access.Identity, changed func()) func() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next++
	n := a.next
	a.changed[n] = changed
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.changed, n)
	}
}

// change alters what is allowed, and tells the watchers.
func (a *fakeAccess) change(f func()) {
	a.mu.Lock()
	f()
	var all []func()
	for _, changed := range a.changed {
		all = append(all, changed)
	}
	a.mu.Unlock()
	for _, changed := range all {
		changed()
	}
}

// fakeEvents opens subscriptions.
type fakeEvents struct {
	mu            sync.Mutex
	fail          func(delivery.OpenRequest) error
	sessions      []*fakeSession
	subscriptions []*fakeSubscription
}

type fakeSession struct {
	events *fakeEvents
	info   delivery.SessionInfo
	lost   func(delivery.SessionError)

	detached []delivery.DetachOptions // guarded by events.mu
}

func (e *fakeEvents) Session(info delivery.SessionInfo, lost func(delivery.SessionError)) session.EventSession {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := &fakeSession{events: e, info: info, lost: lost}
	e.sessions = append(e.sessions, s)
	return s
}

func (e *fakeEvents) last() *fakeSubscription {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.subscriptions[len(e.subscriptions)-1]
}

func (e *fakeEvents) opened() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.subscriptions)
}

func (s *fakeSession) Open(ctx context.Context, r delivery.OpenRequest, sink delivery.Sink) (session.Subscription, error) {
	s.events.mu.Lock()
	fail := s.events.fail
	s.events.mu.Unlock()
	if fail != nil {
		if err := fail(r); errors.Is(err, errNever) {
			<-ctx.Done()
			return nil, ctx.Err()
		} else if err != nil {
			return nil, err
		}
	}
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	sub := &fakeSubscription{request: r, sink: sink}
	s.events.subscriptions = append(s.events.subscriptions, sub)
	return sub, nil
}

var errNever = errors.New("no answer")

func (s *fakeSession) Detach(_ context.Context, o delivery.DetachOptions) error {
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	s.detached = append(s.detached, o)
	return nil
}

type fakeSubscription struct {
	request delivery.OpenRequest
	sink    delivery.Sink

	mu           sync.Mutex
	next         int64
	acknowledged []int64
	closed       bool
}

func (s *fakeSubscription) Acknowledge(_ int32, offset int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acknowledged = append(s.acknowledged, offset)
}

func (s *fakeSubscription) Close(context.Context, bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

// deliver delivers n events to partition 0.
func (s *fakeSubscription) deliver(tb testing.TB, n int) {
	tb.Helper()
	batch := make([]delivery.Delivery, n)
	for i := range batch {
		batch[i] = delivery.Delivery{Event: newEvent(tb, `{"n":1}`), Offset: s.next}
		s.next++
	}
	s.sink.Deliver(batch)
}

func (s *fakeSubscription) acks() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.acknowledged)
}

func newEvent(tb testing.TB, data string) *event.Shared {
	tb.Helper()
	e := cloudevent.Event{
		Attributes: []cloudevent.Attribute{
			{Name: "specversion", Value: "1.0"},
			{Name: "id", Value: "1"},
			{Name: "source", Value: "drogue://a/dev"},
			{Name: "type", Value: "t"},
			{Name: "datacontenttype", Value: "application/json"},
		},
		Data: []byte(data), Kind: cloudevent.JSON,
	}
	shared, err := event.New(e.AppendWire(nil), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return shared
}

// fakeCommands answers at once, unless held.
type fakeCommands struct {
	mu       sync.Mutex
	status   commandsv1.ResultStatus // OK unless set
	message  string
	held     bool
	commands []*commandsv1.Command
	waiting  []func(command.Result)
	limit    int64
}

func (c *fakeCommands) Publish(cmd *commandsv1.Command, done func(command.Result)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commands = append(c.commands, cmd)
	if c.held {
		c.waiting = append(c.waiting, done)
		return
	}
	go done(c.result())
}

func (c *fakeCommands) result() command.Result {
	if c.status == commandsv1.ResultStatus_RESULT_STATUS_UNSPECIFIED {
		return command.Result{Status: commandsv1.ResultStatus_RESULT_STATUS_OK}
	}
	return command.Result{Status: c.status, Message: c.message}
}

func (c *fakeCommands) MaxRecordBytes() int64 { return c.limit }

func (c *fakeCommands) set(status commandsv1.ResultStatus, message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status, c.message = status, message
}

func (c *fakeCommands) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = true
}

// release answers the commands that were held, the last one first.
func (c *fakeCommands) release() int {
	c.mu.Lock()
	waiting := c.waiting
	c.waiting, c.held = nil, false
	result := c.result()
	c.mu.Unlock()
	for _, done := range slices.Backward(waiting) {
		done(result)
	}
	return len(waiting)
}

func (c *fakeCommands) sent() []*commandsv1.Command {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.commands)
}

// eventually waits for something that happens in another goroutine.
func eventually(tb testing.TB, what string, f func() bool) {
	tb.Helper()
	deadline := time.Now().Add(mqtttest.Patience)
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for !f() {
		if time.Now().After(deadline) {
			tb.Fatal("not in time: " + what)
		}
		<-ticker.C
	}
}

func unavailable(reason eventsv1.SubscriptionErrorReason, message string) func(delivery.OpenRequest) error {
	return func(delivery.OpenRequest) error { return &delivery.OpenError{Reason: reason, Message: message} }
}

// stalled returns a connection of "anna" that is subscribed to app/a and does not
// read any more.
func (f *frontend) stalled(level byte, clientID string) (net.Conn, *fakeSubscription) {
	f.t.Helper()
	server, client := net.Pipe()
	f.connections.Go(func() { f.server.Serve(f.ctx, server) })
	f.t.Cleanup(func() { _ = client.Close() })
	for _, packet := range [][]byte{mqtttest.Connect(level, clientID, "anna", "key"), mqtttest.Subscribe(level, 1, "app/a")} {
		if _, err := client.Write(packet); err != nil {
			f.t.Fatal(err)
		}
		if _, err := client.Read(make([]byte, 1000)); err != nil {
			f.t.Fatal(err)
		}
	}
	return client, f.events.last()
}
