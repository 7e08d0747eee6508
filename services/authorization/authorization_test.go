package authorization_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/issuer"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/authorization"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(int) { http.DefaultClient.CloseIdleConnections() }))
}

// service is a running authorization with connections to it.
type service struct {
	authorizationv1.AuthorizationServiceClient
	admin adminv1.AdminServiceClient
	env   daemon.Env
	log   *logBuffer
	stop  func()
}

// logBuffer is what the service logged.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// devIssuer is the issuer of most tests.
func devIssuer(tb testing.TB) *issuer.Issuer {
	tb.Helper()
	return testkit.Issuer(tb, issuer.Config{
		Users:   []issuer.User{{Subject: "sub-root", Name: "root", Password: "root's password"}},
		Clients: []issuer.Client{{ID: "cli"}},
	})
}

// configFor has an issuer "dev" whose user sub-root is administrator.
func configFor(tb testing.TB, i *issuer.Issuer) authorization.Config {
	tb.Helper()
	cfg := authorization.DefaultConfig()
	cfg.Store.SQLite.Path = filepath.Join(tb.TempDir(), "authorization.db")
	cfg.Issuers = []authorization.Issuer{{
		Alias: "dev", URL: i.URL(), Audiences: []string{i.Audience()},
		RolesClaim: "realm_access.roles", AdministratorRoles: []string{"mqtt-admin"},
	}}
	cfg.Administrators = []authorization.Administrator{{Issuer: "dev", Subject: "sub-root"}}
	cfg.DrainTimeout = 5 * time.Second
	return cfg
}

// start runs the service until the test ends or stop is called.
func start(tb testing.TB, cfg authorization.Config) *service {
	tb.Helper()
	s := &service{log: &logBuffer{}}
	s.env = daemon.NewEnv(slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	addresses := make(chan [2]string, 2)
	s.env.Listen = func(ctx context.Context, network, address string) (net.Listener, error) {
		l, err := new(net.ListenConfig).Listen(ctx, network, "127.0.0.1:0")
		if err == nil {
			addresses <- [2]string{address, l.Addr().String()}
		}
		return l, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- authorization.Run(ctx, cfg, s.env) }()
	bound := map[string]string{}
	for range 2 {
		select {
		case a := <-addresses:
			bound[a[0]] = a[1]
		case err := <-done:
			cancel()
			tb.Fatalf("Run = %v", err)
		}
	}
	connections := map[string]*grpc.ClientConn{}
	for configured, address := range bound {
		c, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			tb.Fatal(err)
		}
		connections[configured] = c
	}
	s.AuthorizationServiceClient = authorizationv1.NewAuthorizationServiceClient(connections[cfg.GRPC.Address])
	s.admin = adminv1.NewAdminServiceClient(connections[cfg.AdminAPI.Address])
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Run = %v, want nil", err)
		}
		for _, c := range connections {
			_ = c.Close()
		}
	})
	tb.Cleanup(s.stop)
	return s
}

func bearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func basic(ctx context.Context, name, key string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(name+":"+key)))
}

// passwordGrant gets a token as standalone's users do.
func passwordGrant(t *testing.T, i *issuer.Issuer, name, password string) string {
	t.Helper()
	response, err := http.PostForm(i.TokenURL(), url.Values{
		"grant_type": {"password"}, "client_id": {"cli"}, "username": {name}, "password": {password},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.AccessToken == "" {
		t.Fatalf("no token in %q: %v", body, err)
	}
	return answer.AccessToken
}

// The bootstrap: an administrator of the configuration, whom the store does not
// know yet, signs in with a token and creates everything that a client needs.
func TestBootstrapByAdministratorOfTheConfiguration(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	s := start(t, configFor(t, i))
	ctx := bearer(t.Context(), passwordGrant(t, i, "root", "root's password"))

	if _, err := s.admin.CreateUser(ctx, &adminv1.CreateUserRequest{Issuer: "dev", Subject: "sub-demo", Name: "demo"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.admin.CreateApplication(ctx, &adminv1.CreateApplicationRequest{Name: "example-app", Owner: "demo"}); err != nil {
		t.Fatal(err)
	}
	made, err := s.admin.CreateApiKey(ctx, &adminv1.CreateApiKeyRequest{User: "demo"})
	if err != nil {
		t.Fatal(err)
	}

	response, err := s.Authenticate(t.Context(), &authorizationv1.AuthenticateRequest{
		Credential: &authorizationv1.AuthenticateRequest_ApiKey{
			ApiKey: &authorizationv1.ApiKeyCredential{Name: "demo", Key: made.GetKey()},
		},
		ClientAddress: "10.0.0.1", ConnectionId: "c1",
	})
	if err != nil {
		t.Fatal(err)
	}
	who := response.GetAuthenticated()
	if who.GetPrincipal().GetIssuer() != "dev" || who.GetPrincipal().GetSubject() != "sub-demo" || who.GetCredential().GetId() != made.GetApiKey().GetId() {
		t.Fatalf("Authenticate = %v, want dev/sub-demo with the key's id", response)
	}
	for _, permission := range []authorizationv1.Permission{
		authorizationv1.Permission_PERMISSION_READ, authorizationv1.Permission_PERMISSION_WRITE,
	} {
		decision, err := s.Authorize(t.Context(), &authorizationv1.AuthorizeRequest{
			Principal: who.GetPrincipal(), Credential: who.GetCredential(), Permission: permission, Application: "example-app",
		})
		if err != nil || !decision.GetAllowed() {
			t.Errorf("Authorize(%v) = %v, %v, want allowed", permission, decision, err)
		}
	}
	if log := s.log.String(); strings.Contains(log, made.GetKey()) || !strings.Contains(log, `"action":"CreateApiKey"`) {
		t.Errorf("the log has the key, or no audit line:\n%s", log)
	}
}
