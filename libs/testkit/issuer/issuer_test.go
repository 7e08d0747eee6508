package issuer_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
	"go.uber.org/goleak"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/issuer"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(int) { http.DefaultClient.CloseIdleConnections() }))
}

func config() issuer.Config {
	return issuer.Config{
		Users: []issuer.User{{
			Subject: "8f1", Name: "ada", Password: "correct horse", Roles: []string{"operator"},
			Claims: map[string]any{"email": "ada@example.org"},
		}},
		Clients: []issuer.Client{{ID: "cli"}, {ID: "robot", Secret: "battery staple", Subject: "r-1"}},
	}
}

// verifier is an independent relying party: discovery, key set and all.
func verifier(t *testing.T, i *issuer.Issuer, audience string) *oidc.IDTokenVerifier {
	t.Helper()
	provider, err := oidc.NewProvider(t.Context(), i.URL())
	if err != nil {
		t.Fatal(err)
	}
	return provider.Verifier(&oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{"RS256", "ES256"}})
}

type answer struct {
	Status      int    `json:"-"`
	AccessToken string `json:"access_token"`
	IDToken     string `json:"id_token"`
	ExpiresIn   int    `json:"expires_in"`
	Error       string `json:"error"`
}

func ask(t *testing.T, i *issuer.Issuer, form url.Values) answer {
	t.Helper()
	resp, err := http.PostForm(i.TokenURL(), form)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{Status: resp.StatusCode}
	if err := json.Unmarshal(body, &a); err != nil {
		t.Fatalf("answer %q: %v", body, err)
	}
	return a
}

func TestPasswordGrant(t *testing.T) {
	t.Parallel()
	i := testkit.Issuer(t, config())
	a := ask(t, i, url.Values{
		"grant_type": {"password"}, "client_id": {"cli"}, "username": {"ada"}, "password": {"correct horse"}, "scope": {"openid"},
	})
	if a.Status != http.StatusOK || a.ExpiresIn != 3600 {
		t.Fatalf("answer %+v, want 200 and an hour", a)
	}
	token, err := verifier(t, i, issuer.DefaultAudience).Verify(t.Context(), a.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Name   string `json:"preferred_username"`
		Email  string `json:"email"`
		Type   string `json:"typ"`
		Access struct {
			Roles []string `json:"roles"`
		} `json:"realm_access"`
	}
	if err := token.Claims(&claims); err != nil {
		t.Fatal(err)
	}
	if token.Subject != "8f1" || claims.Name != "ada" || claims.Email != "ada@example.org" || claims.Type != "Bearer" ||
		strings.Join(claims.Access.Roles, " ") != "operator" {
		t.Errorf("subject %q, claims %+v, want those of ada", token.Subject, claims)
	}
	if _, err := verifier(t, i, "cli").Verify(t.Context(), a.IDToken); err != nil {
		t.Errorf("the ID token is not for the client: %v", err)
	}
	if _, err := verifier(t, i, issuer.DefaultAudience).Verify(t.Context(), a.IDToken); err == nil {
		t.Error("the ID token is for the resource too")
	}
}

func TestTokenEndpointRefuses(t *testing.T) {
	t.Parallel()
	i := testkit.Issuer(t, config())
	tests := []struct {
		name string
		form url.Values
		want string
	}{
		{"wrong password", url.Values{"grant_type": {"password"}, "client_id": {"cli"}, "username": {"ada"}, "password": {"x"}}, "invalid_grant"},
		{"unknown user", url.Values{"grant_type": {"password"}, "client_id": {"cli"}, "username": {"bob"}, "password": {""}}, "invalid_grant"},
		{"no client", url.Values{"grant_type": {"password"}, "username": {"ada"}, "password": {"correct horse"}}, "invalid_client"},
		{"wrong secret", url.Values{"grant_type": {"client_credentials"}, "client_id": {"robot"}, "client_secret": {"x"}}, "invalid_client"},
		{"public client", url.Values{"grant_type": {"client_credentials"}, "client_id": {"cli"}}, "unauthorized_client"},
		{"other grant", url.Values{"grant_type": {"refresh_token"}, "client_id": {"cli"}}, "unsupported_grant_type"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if a := ask(t, i, tt.form); a.Error != tt.want || a.AccessToken != "" {
				t.Errorf("error %q, want %q and no token", a.Error, tt.want)
			}
		})
	}
}

func TestClientCredentials(t *testing.T) {
	t.Parallel()
	i := testkit.Issuer(t, config())
	a := ask(t, i, url.Values{"grant_type": {"client_credentials"}, "client_id": {"robot"}, "client_secret": {"battery staple"}})
	token, err := verifier(t, i, issuer.DefaultAudience).Verify(t.Context(), a.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	if token.Subject != "r-1" {
		t.Errorf("subject %q, want r-1", token.Subject)
	}
}

func TestMintedTokens(t *testing.T) {
	t.Parallel()
	i := testkit.Issuer(t, config())
	check := verifier(t, i, issuer.DefaultAudience)
	tests := []struct {
		name  string
		token issuer.Token
		valid bool
	}{
		{"default", issuer.Token{}, true},
		{"ES256", issuer.Token{Algorithm: "ES256"}, true},
		{"several audiences", issuer.Token{Claims: map[string]any{"aud": []string{"x", issuer.DefaultAudience}}}, true},
		{"no header type", issuer.Token{Type: "-"}, true},
		{"forged", issuer.Token{Forged: true}, false},
		{"unknown key", issuer.Token{KeyID: "nobody's"}, false},
		{"expired", issuer.Token{Claims: map[string]any{"exp": 1}}, false},
		{"no audience", issuer.Token{Claims: map[string]any{"aud": nil}}, false},
		{"other issuer", issuer.Token{Claims: map[string]any{"iss": "https://example.org"}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			token, err := i.MintToken(tt.token)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := check.Verify(t.Context(), token); (err == nil) != tt.valid {
				t.Errorf("Verify: %v, want valid: %v", err, tt.valid)
			}
		})
	}
	if _, err := i.MintToken(issuer.Token{Algorithm: "HS256"}); err == nil {
		t.Error("a token was signed with an algorithm that there is no key for")
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	i := testkit.Issuer(t, config())
	check := verifier(t, i, issuer.DefaultAudience)
	first := testkit.Mint(t, i, nil)
	if err := i.Rotate(true); err != nil {
		t.Fatal(err)
	}
	second := testkit.Mint(t, i, nil)
	for name, token := range map[string]string{"old": first, "new": second} {
		if _, err := check.Verify(t.Context(), token); err != nil {
			t.Errorf("%s token after a rotation that keeps the old keys: %v", name, err)
		}
	}
	if got := i.KeyRequests(); got == 0 {
		t.Error("KeyRequests() = 0 after verifications")
	}
	if err := i.Rotate(false); err != nil {
		t.Fatal(err)
	}
	fresh := verifier(t, i, issuer.DefaultAudience)
	if _, err := fresh.Verify(t.Context(), second); err == nil {
		t.Error("a token is valid though its key is not published any more")
	}
}

func TestOutage(t *testing.T) {
	t.Parallel()
	i := testkit.Issuer(t, config())
	i.SetAvailable(false)
	if _, err := oidc.NewProvider(t.Context(), i.URL()); err == nil {
		t.Error("discovery works during an outage")
	}
	i.SetAvailable(true)
	if _, err := oidc.NewProvider(t.Context(), i.URL()); err != nil {
		t.Errorf("discovery after the outage: %v", err)
	}
}

func TestKeysSurviveARestart(t *testing.T) {
	t.Parallel()
	cfg := config()
	cfg.Dir = filepath.Join(t.TempDir(), "issuer")
	first := testkit.Issuer(t, cfg)
	token := testkit.Mint(t, first, nil)
	cfg.Address = strings.TrimPrefix(first.URL(), "http://")
	if _, err := issuer.Start(cfg); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port in use: %v, want EADDRINUSE", err)
	}
	first.Close()

	second := testkit.Issuer(t, cfg)
	if _, err := verifier(t, second, issuer.DefaultAudience).Verify(t.Context(), token); err != nil {
		t.Errorf("token of the first start: %v", err)
	}
	files, err := os.ReadDir(cfg.Dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, error %v, want one", files, err)
	}
	info, err := files[0].Info()
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v, want 0600", info.Name(), info.Mode().Perm())
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]issuer.Config{
		"every interface":         {Address: ":0"},
		"another interface":       {Address: "192.0.2.1:0"},
		"user without a password": {Users: []issuer.User{{Subject: "1", Name: "ada"}}},
		"client without an id":    {Clients: []issuer.Client{{Secret: "x"}}},
	} {
		if i, err := issuer.Start(cfg); err == nil {
			i.Close()
			t.Errorf("%s: no error", name)
		}
	}
}
