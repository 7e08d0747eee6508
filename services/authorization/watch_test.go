package authorization_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
)

// watcher is an open watch.
type watcher struct {
	stream authorizationv1.AuthorizationService_WatchClient
}

func (s *service) watch(t *testing.T, request *authorizationv1.WatchRequest) *watcher {
	t.Helper()
	stream, err := s.Watch(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return &watcher{stream: stream}
}

func (w *watcher) next(t *testing.T) *authorizationv1.WatchResponse {
	t.Helper()
	message, err := w.stream.Recv()
	if err != nil {
		t.Fatalf("watch: %v", err)
	}
	return message
}

// change skips heartbeats.
func (w *watcher) change(t *testing.T) *authorizationv1.Change {
	t.Helper()
	for {
		message := w.next(t)
		if message.GetHeartbeat() != nil {
			continue
		}
		if message.GetChange() == nil {
			t.Fatalf("watch: %v, want a change", message)
		}
		return message.GetChange()
	}
}

func TestWatchTellsOfRevocationAtOnce(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	s := start(t, configFor(t, i))
	root := s.root(t, i)
	root.createUser(t, "dev", "sub-demo", "demo")
	root.createApplication(t, "app", "")
	key := root.createKey(t, &adminv1.CreateApiKeyRequest{User: "demo"})

	w := s.watch(t, &authorizationv1.WatchRequest{})
	hello := w.next(t).GetHello()
	before := hello.GetRevision()
	if hello.GetStoreId() == "" || before == 0 {
		t.Fatalf("hello %v, want a store id and a revision", hello)
	}
	who := s.authenticate(t, byKey("demo", key.GetKey())).GetAuthenticated()
	began := time.Now()
	if _, err := s.admin.RevokeApiKey(root.ctx, &adminv1.RevokeApiKeyRequest{Id: key.GetApiKey().GetId()}); err != nil {
		t.Fatal(err)
	}
	want := &authorizationv1.Change{
		Revision: before + 1, Principal: &authorizationv1.Principal{Issuer: "dev", Subject: "sub-demo"}, CredentialId: key.GetApiKey().GetId(),
	}
	if diff := cmp.Diff(want, w.change(t), protocmp.Transform()); diff != "" {
		t.Errorf("change (-want +got)\n%s", diff)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v, want less than 2 s", took)
	}
	decision, err := s.Authorize(t.Context(), &authorizationv1.AuthorizeRequest{
		Principal: who.GetPrincipal(), Credential: who.GetCredential(), Permission: authorizationv1.Permission_PERMISSION_CONNECT,
	})
	if err != nil || decision.GetReason() != authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_CREDENTIAL_REVOKED ||
		decision.GetRevision() != before+1 {
		t.Errorf("after that: %v, %v, want CREDENTIAL_REVOKED at revision %d", decision, err, before+1)
	}

	// The other ways in which a right ends.
	root.setMember(t, "app", &adminv1.Member{User: "demo", Role: adminv1.Role_ROLE_READER})
	root.disable(t, "demo", true)
	for _, want := range []*authorizationv1.Change{
		{Revision: before + 2, Principal: &authorizationv1.Principal{Issuer: "dev", Subject: "sub-demo"}, Application: "app"},
		{Revision: before + 3, Principal: &authorizationv1.Principal{Issuer: "dev", Subject: "sub-demo"}},
	} {
		if diff := cmp.Diff(want, w.change(t), protocmp.Transform()); diff != "" {
			t.Errorf("change (-want +got)\n%s", diff)
		}
	}
}

func TestWatchHeartbeats(t *testing.T) {
	t.Parallel()
	s := start(t, configFor(t, devIssuer(t)))
	w := s.watch(t, &authorizationv1.WatchRequest{})
	revision := w.next(t).GetHello().GetRevision()
	for range 2 {
		began := time.Now()
		beat := w.next(t).GetHeartbeat()
		if beat == nil || beat.GetRevision() != revision {
			t.Errorf("heartbeat %v, want one with revision %d", beat, revision)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("heartbeat after %v, want about one second, and certainly not 3", took)
		}
	}
}

// Heartbeats come while there are changes, too.
func TestWatchHeartbeatsAmongChanges(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	s := start(t, configFor(t, i))
	root := s.root(t, i)
	root.createUser(t, "dev", "sub-demo", "demo")
	w := s.watch(t, &authorizationv1.WatchRequest{})
	seen := w.next(t).GetHello().GetRevision()
	if beat := w.next(t).GetHeartbeat(); beat.GetRevision() != seen {
		t.Errorf("the message after the hello: %v, want a heartbeat with revision %d", beat, seen)
	}
	beats := make(chan struct{})
	go func() {
		defer close(beats)
		for range 2 {
			for {
				message, err := w.stream.Recv()
				if err != nil {
					t.Errorf("watch: %v", err)
					return
				}
				if beat := message.GetHeartbeat(); beat != nil {
					if beat.GetRevision() != seen {
						t.Errorf("heartbeat with revision %d after the change %d", beat.GetRevision(), seen)
					}
					break
				}
				seen = message.GetChange().GetRevision()
			}
		}
	}()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for disabled := true; ; disabled = !disabled {
		select {
		case <-beats:
			return
		case <-deadline:
			t.Fatal("no two heartbeats in 10 s with ten changes a second")
		case <-tick.C:
			root.disable(t, "demo", disabled)
		}
	}
}

func TestWatchResumes(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	cfg := configFor(t, i)
	cfg.Store.KeepChanges = 300
	s := start(t, cfg)
	root := s.root(t, i)
	root.createUser(t, "dev", "sub-demo", "demo")
	w := s.watch(t, &authorizationv1.WatchRequest{})
	hello := w.next(t).GetHello()
	after := hello.GetRevision()

	// More than one batch of changes while nobody watches.
	for n := range 280 {
		root.disable(t, "demo", n%2 == 0)
	}
	resumed := s.watch(t, &authorizationv1.WatchRequest{AfterRevision: &after, StoreId: hello.GetStoreId()})
	if diff := cmp.Diff(hello, resumed.next(t).GetHello(), protocmp.Transform()); diff != "" {
		t.Errorf("hello (-want +got)\n%s", diff)
	}
	for n := range int64(280) {
		if got := resumed.change(t).GetRevision(); got != after+n+1 {
			t.Fatalf("change %d has revision %d, want %d", n, got, after+n+1)
		}
	}
	// The one that was open all the time has them all as well.
	for n := range int64(280) {
		if got := w.change(t).GetRevision(); got != after+n+1 {
			t.Fatalf("change %d has revision %d, want %d", n, got, after+n+1)
		}
	}

	for n := range 30 {
		root.disable(t, "demo", n%2 == 0)
	}
	current := after + 310
	future := current + 100
	for name, request := range map[string]*authorizationv1.WatchRequest{
		"pruned":              {AfterRevision: &after, StoreId: hello.GetStoreId()},
		"another store":       {AfterRevision: &current, StoreId: "other"},
		"no store":            {AfterRevision: &current},
		"before it was there": {AfterRevision: &future, StoreId: hello.GetStoreId()},
	} {
		w := s.watch(t, request)
		var got []string
		var revision int64
		for range 3 {
			message := w.next(t)
			switch {
			case message.GetHello() != nil:
				got = append(got, "hello")
				revision = message.GetHello().GetRevision()
			case message.GetStartOver() != nil:
				got = append(got, "start over")
			default:
				got = append(got, message.String())
			}
		}
		if diff := cmp.Diff([]string{"hello", "start over", "hello"}, got); diff != "" || revision != current {
			t.Errorf("%s: revision %d, want %d (-want +got)\n%s", name, revision, current, diff)
		}
	}
}

func TestWatchEndsWithTheService(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	cfg := configFor(t, i)
	s := start(t, cfg)
	w := s.watch(t, &authorizationv1.WatchRequest{})
	hello := w.next(t).GetHello()
	began := time.Now()
	s.stop()
	for {
		_, err := w.stream.Recv()
		if err == nil {
			continue
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("watch ended with %v, want UNAVAILABLE", err)
		}
		break
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if log := s.log.String(); strings.Contains(log, "cut off") {
		t.Errorf("calls were cut off:\n%s", log)
	}

	// With another configuration, everybody's decisions may have turned.
	after := hello.GetRevision()
	again := start(t, cfg).watch(t, &authorizationv1.WatchRequest{AfterRevision: &after, StoreId: hello.GetStoreId()})
	if got := again.next(t); got.GetHello().GetRevision() != after {
		t.Errorf("after a restart: %v, want a hello with revision %d", got, after)
	}
	if got := again.next(t); got.GetHeartbeat() == nil {
		t.Errorf("after a restart: %v, want a heartbeat: nothing changed", got)
	}
}

func TestAnotherConfigurationVoidsDecisions(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	cfg := configFor(t, i)
	cfg.Anonymous.Enabled = true
	s := start(t, cfg)
	hello := s.watch(t, &authorizationv1.WatchRequest{}).next(t).GetHello()
	s.stop()
	cfg.Anonymous.Enabled = false
	after := hello.GetRevision()
	w := start(t, cfg).watch(t, &authorizationv1.WatchRequest{AfterRevision: &after, StoreId: hello.GetStoreId()})
	w.next(t)
	if diff := cmp.Diff(&authorizationv1.Change{Revision: after + 1}, w.change(t), protocmp.Transform()); diff != "" {
		t.Errorf("change (-want +got)\n%s", diff)
	}
}

func TestTooManyWatches(t *testing.T) {
	t.Parallel()
	cfg := configFor(t, devIssuer(t))
	cfg.Limits.Watches = 1
	s := start(t, cfg)
	s.watch(t, &authorizationv1.WatchRequest{}).next(t)
	if _, err := s.watch(t, &authorizationv1.WatchRequest{}).stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a second watch: %v, want RESOURCE_EXHAUSTED", err)
	}
}

// Nothing is forgotten when the service is stopped and started again, and it
// answers while the provider is down.
func TestRestart(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	cfg := configFor(t, i)
	s := start(t, cfg)
	root := s.root(t, i)
	root.createUser(t, "dev", "sub-demo", "demo")
	key := root.createKey(t, &adminv1.CreateApiKeyRequest{User: "demo"})
	token := testkit.Mint(t, i, nil)
	s.stop()
	i.SetAvailable(false)
	s = start(t, cfg)
	if got := s.authenticate(t, byKey("demo", key.GetKey())); got.GetAuthenticated().GetPrincipal().GetName() != "demo" {
		t.Errorf("the key after a restart: %v", got)
	}
	if _, err := s.Authenticate(t.Context(), byToken(token)); status.Code(err) != codes.Unavailable {
		t.Errorf("a token while the provider is down: %v, want UNAVAILABLE", err)
	}
	if err := s.env.Health.Ready(); err != nil {
		t.Errorf("not ready while a provider is down: %v", err)
	}
	i.SetAvailable(true)
	if _, err := s.Authenticate(t.Context(), byToken(token)); err != nil {
		t.Errorf("a token after the provider came back: %v", err)
	}
}
