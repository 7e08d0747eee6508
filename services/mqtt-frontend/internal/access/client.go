package access

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcclient"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
)

const (
	// timeout is how long an answer may take.
	timeout = 5 * time.Second
	// silence is how long the watch may be silent before it counts as unheard.
	silence = 5 * time.Second
	// defaultLifetime counts until authorization has said what it is.
	defaultLifetime = 5 * time.Minute
	// retryDelay lies between two attempts at one question.
	retryDelay = 50 * time.Millisecond
	// maxQuestions is how many questions are asked at the same time.
	maxQuestions = 512
)

var errEnded = errors.New("the client has ended")

// Client asks authorization. All methods are safe for concurrent use.
type Client struct {
	api       authorizationv1.AuthorizationServiceClient
	close     func() error
	logger    *slog.Logger
	ready     *daemon.Check
	decisions metric.Int64Counter
	slots     chan struct{} // one element per question that is asked now
	ended     chan struct{}
	asking    sync.WaitGroup
	sooner    chan struct{} // the lifetime has become shorter

	mu         sync.Mutex
	closed     bool
	generation uint64 // grows when everything known becomes void
	changes    changes
	granted    *cache
	denied     *cache
	flights    map[question]*flight
	watchers   watchers
	storeID    string
	revision   int64     // up to which every change is known
	fresh      bool      // the next hello begins anew
	heard      time.Time // when the watch was last known to miss nothing
	lapsed     time.Time // when everything was last void because of its age
	lifetime   time.Duration
}

// flight is a question that is being asked.
type flight struct {
	done   chan struct{}
	answer answer // valid once done is closed and err is nil
	err    error
}

// New makes a client. Run has to be called once; it closes the connection.
func New(cfg Config, env daemon.Env, opts ...grpc.DialOption) (*Client, error) {
	conn, err := grpcclient.New(cfg.Config, env, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to authorization: %w", err)
	}
	c, err := newClient(cfg, env, authorizationv1.NewAuthorizationServiceClient(conn), conn.Close)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

func newClient(cfg Config, env daemon.Env, api authorizationv1.AuthorizationServiceClient, closeAPI func() error) (*Client, error) {
	env = env.Complete()
	decisions, err := env.Meter.Meter("mqtt-frontend/access").Int64Counter("mqtt_integration.authorization.decisions",
		metric.WithUnit("{decision}"), metric.WithDescription("Decisions that authorization was asked for."))
	if err != nil {
		return nil, fmt.Errorf("make instruments: %w", err)
	}
	return &Client{
		api:       api,
		close:     closeAPI,
		logger:    env.Logger,
		ready:     env.Health.Register("authorization"),
		decisions: decisions,
		slots:     make(chan struct{}, maxQuestions),
		ended:     make(chan struct{}),
		sooner:    make(chan struct{}, 1),
		changes:   newChanges(0),
		granted:   newCache(cfg.MaxDecisions),
		denied:    newCache(max(cfg.MaxDecisions/10, 1)),
		flights:   map[question]*flight{},
		watchers:  newWatchers(),
		fresh:     true,
		lifetime:  defaultLifetime,
	}, nil
}

// Run keeps the watch until ctx ends, and returns nil then. The check
// "authorization" of the process becomes ready when the first watch is there,
// and stays so: connections outlive an outage of authorization.
func (c *Client) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { c.watch(ctx) })
	running.Go(func() { c.lapse(ctx) })
	running.Wait()

	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	close(c.ended)
	err := c.close()
	c.asking.Wait()
	if err != nil {
		return fmt.Errorf("close the connection to authorization: %w", err)
	}
	return nil
}

// Authenticate says who presented the credentials. The error is a [*Denial] or
// wraps [ErrUnavailable]. It takes at most 5 s.
func (c *Client) Authenticate(ctx context.Context, credentials Credentials) (Identity, error) {
	// What is not UTF-8 cannot be asked, and is nobody's credential.
	for _, text := range []string{credentials.Token, credentials.UserName, credentials.APIKey} {
		if !utf8.ValidString(text) {
			return Identity{}, badCredentials()
		}
	}
	request := &authorizationv1.AuthenticateRequest{
		ClientAddress: credentials.ClientAddress,
		ConnectionId:  credentials.ConnectionID,
	}
	switch {
	case credentials.Anonymous:
		request.Credential = &authorizationv1.AuthenticateRequest_Anonymous{Anonymous: &authorizationv1.AnonymousCredential{}}
	case credentials.Token != "":
		request.Credential = &authorizationv1.AuthenticateRequest_AccessToken{AccessToken: credentials.Token}
	default:
		request.Credential = &authorizationv1.AuthenticateRequest_ApiKey{
			ApiKey: &authorizationv1.ApiKeyCredential{Name: credentials.UserName, Key: credentials.APIKey},
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	response, err := retry(ctx, c.ended, func() (*authorizationv1.AuthenticateResponse, error) {
		return c.api.Authenticate(ctx, request, grpc.WaitForReady(true))
	})
	if status.Code(err) == codes.InvalidArgument {
		return Identity{}, badCredentials()
	}
	if err != nil {
		return Identity{}, unavailable(err)
	}
	if denial := response.GetDenial(); denial != nil {
		return Identity{}, &Denial{Reason: denial.GetReason(), Message: denial.GetMessage()}
	}
	authenticated := response.GetAuthenticated()
	if authenticated.GetPrincipal().GetIssuer() == "" || authenticated.GetPrincipal().GetSubject() == "" {
		return Identity{}, unavailable(errors.New("the answer names no principal"))
	}
	c.mu.Lock()
	c.noteLifetime(response.GetLifetime().AsDuration())
	c.mu.Unlock()
	who, credential := authenticated.GetPrincipal(), authenticated.GetCredential()
	id := Identity{
		Issuer:        who.GetIssuer(),
		Subject:       who.GetSubject(),
		Name:          who.GetName(),
		Kind:          credential.GetKind(),
		CredentialID:  credential.GetId(),
		Administrator: credential.GetAdministrator(),
	}
	if credential.GetExpireTime() != nil {
		id.Expires = credential.GetExpireTime().AsTime()
	}
	return id, nil
}

func badCredentials() *Denial {
	return &Denial{
		Reason:  authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_BAD_CREDENTIALS,
		Message: "bad credentials",
	}
}

// Authorize says whether id may do something, mostly from what it knows. The
// error wraps [ErrUnavailable]. It takes at most 5 s.
func (c *Client) Authorize(ctx context.Context, id Identity, permission authorizationv1.Permission, application, shareName string) (Decision, error) {
	if !utf8.ValidString(application) || !utf8.ValidString(shareName) {
		return Decision{Reason: authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_NOT_GRANTED}, nil
	}
	q := question{identity: id, permission: permission, application: application, shareName: shareName}
	q.identity.Name = ""
	if a, ok := c.known(&q); ok {
		return a.decision, nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		f, err := c.fly(ctx, &q)
		if err != nil {
			return Decision{}, err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return Decision{}, unavailable(ctx.Err())
		}
		if f.err != nil {
			return Decision{}, f.err
		}
		if c.accept(&q, &f.answer) {
			return f.answer.decision, nil
		}
		// It is older than a change that we have seen: another replica of
		// authorization has not seen that yet, or it came while we asked.
		if err := pause(ctx, c.ended, retryDelay); err != nil {
			return Decision{}, unavailable(err)
		}
	}
}

// Watch calls changed when decisions about id may have turned, or when they have
// become too old while no watch was heard: ask again then. changed must not block
// and may be called from any goroutine. A call that has begun when stop is called
// may end after it.
func (c *Client) Watch(id Identity, changed func()) (stop func()) {
	who := principal{id.Issuer, id.Subject}
	member := &watcher{credentialID: id.CredentialID, changed: changed}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers.add(who, member)
	return func() { // more than once is harmless
		c.mu.Lock()
		defer c.mu.Unlock()
		c.watchers.remove(who, member)
	}
}

// known returns what is kept and still counts.
func (c *Client) known(q *question) (answer, bool) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.granted.get(q); ok {
		if c.counts(q, &a) && c.recent(q, &a, now) {
			c.watchers.uses(principal{q.identity.Issuer, q.identity.Subject}, q.application)
			return a, true
		}
		c.granted.remove(q)
	}
	if a, ok := c.denied.get(q); ok {
		if c.counts(q, &a) && now.Before(a.at.Add(denialLifetime)) {
			return a, true
		}
		c.denied.remove(q)
	}
	return answer{}, false
}

// counts says whether nothing is known that may have turned the answer. The
// caller holds mu.
func (c *Client) counts(q *question, a *answer) bool {
	return a.generation == c.generation && a.revision >= c.changes.last(q)
}

// recent says whether an answer is not too old. The caller holds mu.
func (c *Client) recent(q *question, a *answer, now time.Time) bool {
	if expires := q.identity.Expires; !expires.IsZero() && !now.Before(expires) {
		return false
	}
	if now.Before(c.heard.Add(silence)) {
		return true
	}
	since := a.at
	if c.heard.After(since) {
		since = c.heard
	}
	return now.Before(since.Add(a.lifetime))
}

// accept takes an answer that was just given, unless a change has overtaken it.
func (c *Client) accept(q *question, a *answer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.counts(q, a) {
		return false
	}
	if a.decision.Allowed {
		// Under the lock that changes are handled under: a change comes either
		// before, and the answer does not count, or after, and finds the user.
		c.watchers.uses(principal{q.identity.Issuer, q.identity.Subject}, q.application)
	}
	return true
}

// fly asks a question, or joins whoever is asking it.
func (c *Client) fly(ctx context.Context, q *question) (*flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, unavailable(errEnded)
	}
	if f, ok := c.flights[*q]; ok {
		return f, nil
	}
	f := &flight{done: make(chan struct{})}
	f.answer.generation = c.generation
	c.flights[*q] = f
	// Others may wait for the answer too: it does not end with this caller.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	asked := *q // so that q stays on the stack where the answer is known
	c.asking.Go(func() {
		defer cancel()
		c.ask(ctx, asked, f)
	})
	return f, nil
}

// ask asks authorization, and keeps what it says.
func (c *Client) ask(ctx context.Context, q question, f *flight) {
	a := answer{generation: f.answer.generation, at: time.Now()}
	response, err := c.authorize(ctx, &q)
	malformed := status.Code(err) == codes.InvalidArgument
	switch {
	case malformed:
		a.decision = Decision{Reason: authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_NOT_GRANTED}
		err = nil
	case err != nil:
		err = unavailable(err)
	default:
		a.decision = Decision{Allowed: response.GetAllowed(), Reason: response.GetReason()}
	}
	a.revision = response.GetRevision()
	a.lifetime = response.GetLifetime().AsDuration()
	c.count(ctx, a.decision, err)

	c.mu.Lock()
	if c.flights[q] == f {
		delete(c.flights, q)
	}
	if malformed {
		a.generation, a.revision = c.generation, c.changes.last(&q) // and stays so
	}
	if err == nil {
		c.noteLifetime(a.lifetime)
		switch {
		case !c.counts(&q, &a):
		case a.decision.Allowed:
			c.granted.put(&q, a)
		default:
			c.denied.put(&q, a)
		}
	}
	c.mu.Unlock()
	f.answer, f.err = a, err
	close(f.done)
}

// authorize makes the call.
func (c *Client) authorize(ctx context.Context, q *question) (*authorizationv1.AuthorizeResponse, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a turn: %w", ctx.Err())
	case <-c.ended:
		return nil, errEnded
	}
	id := &q.identity
	request := &authorizationv1.AuthorizeRequest{
		Principal: &authorizationv1.Principal{Issuer: id.Issuer, Subject: id.Subject},
		Credential: &authorizationv1.Credential{
			Kind: id.Kind, Id: id.CredentialID, Administrator: id.Administrator,
		},
		Permission:  q.permission,
		Application: q.application,
		ShareName:   q.shareName,
	}
	if !id.Expires.IsZero() {
		request.Credential.ExpireTime = timestamppb.New(id.Expires)
	}
	return retry(ctx, c.ended, func() (*authorizationv1.AuthorizeResponse, error) {
		return c.api.Authorize(ctx, request, grpc.WaitForReady(true))
	})
}

func (c *Client) count(ctx context.Context, decision Decision, err error) {
	outcome, reason := "denied", decision.Reason.String()
	switch {
	case err != nil:
		outcome, reason = "unavailable", ""
	case decision.Allowed:
		outcome, reason = "allowed", ""
	}
	c.decisions.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome), attribute.String("reason", reason)))
}

// noteLifetime remembers what lifetime authorization gives. The caller holds mu.
func (c *Client) noteLifetime(lifetime time.Duration) {
	if lifetime <= 0 || lifetime == c.lifetime {
		return
	}
	shorter := lifetime < c.lifetime
	c.lifetime = lifetime
	if shorter {
		select {
		case c.sooner <- struct{}{}:
		default:
		}
	}
}

// retry makes a call, and once more when authorization could not answer: another
// replica may.
func retry[T any](ctx context.Context, ended <-chan struct{}, call func() (T, error)) (T, error) {
	result, err := call()
	if status.Code(err) != codes.Unavailable {
		return result, err
	}
	if pause(ctx, ended, retryDelay) != nil {
		return result, err
	}
	return call()
}

// pause waits, and says why it did not wait to the end.
func pause(ctx context.Context, ended <-chan struct{}, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-ended:
		return errEnded
	}
}

func unavailable(err error) error {
	if status.Code(err) == codes.ResourceExhausted {
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrOverloaded, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
