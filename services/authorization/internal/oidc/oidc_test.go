package oidc_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/issuer"
	"mqtt-integration/services/authorization/internal/oidc"
	"mqtt-integration/services/authorization/internal/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// now is the time of all verifiers here: claims are set against it.
var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const leeway = 30 * time.Second

func at(d time.Duration) int64 { return now.Add(d).Unix() }

// good are the claims of a good token of the test issuer.
func good() map[string]any {
	return map[string]any{"sub": "sub-ada", "preferred_username": "ada", "iat": at(-time.Minute), "exp": at(time.Hour)}
}

func run(t *testing.T, issuers ...oidc.Issuer) *oidc.Verifier {
	t.Helper()
	v, err := oidc.New(oidc.Config{
		Issuers: issuers, Leeway: leeway, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := v.Run(ctx); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return v
}

func dev(i *issuer.Issuer) oidc.Issuer {
	return oidc.Issuer{Alias: "dev", URL: i.URL(), Audiences: []string{"other", i.Audience()}}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	i := testkit.Issuer(t, issuer.Config{})
	stranger := testkit.Issuer(t, issuer.Config{})
	plain := run(t, dev(i))
	strict := dev(i)
	strict.RequireATJWT, strict.RequiredScopes = true, []string{"mqtt", "events"}
	strict.Algorithms = []string{"ES256"}
	strictly := run(t, strict)

	ok := oidc.Token{
		Principal: policy.Principal{Issuer: "dev", Subject: "sub-ada"}, Name: "ada", ExpireTime: now.Add(time.Hour),
	}
	expiring := func(d time.Duration) oidc.Token {
		token := ok
		token.ExpireTime = now.Add(d)
		return token
	}
	for _, tt := range []struct {
		name   string
		with   map[string]any // over good
		token  issuer.Token
		strict bool
		want   oidc.Token
		err    error
	}{
		{name: "a good token", want: ok},
		{name: "ES256", token: issuer.Token{Algorithm: "ES256"}, want: ok},

		{name: "header typ JWT", token: issuer.Token{Type: "JWT"}, want: ok},
		{name: "no header typ", token: issuer.Token{Type: "-"}, want: ok},
		{name: "header typ as a media type in another case", token: issuer.Token{Type: "application/AT+JWT"}, want: ok},
		{name: "another header typ", token: issuer.Token{Type: "logout+jwt"}, err: oidc.ErrBad},
		{name: "header typ JWT where at+jwt is required", strict: true, token: issuer.Token{Type: "JWT", Algorithm: "ES256"}, with: map[string]any{"scope": "mqtt events"}, err: oidc.ErrBad},

		{name: "an ID token, by typ", with: map[string]any{"typ": "ID"}, err: oidc.ErrBad},
		{name: "an ID token, by nonce", with: map[string]any{"nonce": "n"}, err: oidc.ErrBad},
		{name: "an ID token, by at_hash", with: map[string]any{"at_hash": "h"}, err: oidc.ErrBad},
		{name: "an ID token, by c_hash", with: map[string]any{"c_hash": "h"}, err: oidc.ErrBad},
		{name: "a refresh token", with: map[string]any{"typ": "Refresh"}, err: oidc.ErrBad},
		{name: "no claim typ", with: map[string]any{"typ": nil}, want: ok},

		{name: "an audience as a string", with: map[string]any{"aud": "other"}, want: ok},
		{name: "an audience in a list", with: map[string]any{"aud": []string{"account", i.Audience()}}, want: ok},
		{name: "another audience", with: map[string]any{"aud": "somebody"}, err: oidc.ErrWrongAudience},
		{name: "other audiences", with: map[string]any{"aud": []string{"somebody", "else"}}, err: oidc.ErrWrongAudience},
		{name: "audiences in one string", with: map[string]any{"aud": "account " + i.Audience()}, err: oidc.ErrWrongAudience},
		{name: "no audience", with: map[string]any{"aud": nil}, err: oidc.ErrWrongAudience},
		{name: "the audience in azp", with: map[string]any{"aud": nil, "azp": i.Audience()}, err: oidc.ErrWrongAudience},

		{name: "expired a moment before the leeway's end", with: map[string]any{"exp": at(-leeway + time.Second)}, want: expiring(time.Second)},
		{name: "expired at the leeway's end", with: map[string]any{"exp": at(-leeway)}, err: oidc.ErrExpired},
		{name: "expired just now", with: map[string]any{"exp": at(0)}, want: expiring(leeway)},
		{name: "expires in a second", with: map[string]any{"exp": at(time.Second)}, want: expiring(time.Second)},
		{name: "exp with a fraction", with: map[string]any{"exp": float64(at(0)) + 1.5}, want: expiring(1500 * time.Millisecond)},
		{name: "no exp", with: map[string]any{"exp": nil}, err: oidc.ErrBad},
		{name: "exp null", with: map[string]any{"exp": json.RawMessage("null")}, err: oidc.ErrBad},
		{name: "exp as a string", with: map[string]any{"exp": strconv.FormatInt(at(time.Hour), 10)}, err: oidc.ErrBad},
		{name: "exp beyond all time", with: map[string]any{"exp": json.RawMessage("1e300")}, err: oidc.ErrBad},
		{name: "nbf at the leeway's end", with: map[string]any{"nbf": at(leeway)}, want: ok},
		{name: "nbf after the leeway's end", with: map[string]any{"nbf": at(leeway + time.Second)}, err: oidc.ErrNotYetValid},
		{name: "iat at the leeway's end", with: map[string]any{"iat": at(leeway)}, want: ok},
		{name: "iat after the leeway's end", with: map[string]any{"iat": at(leeway + time.Second)}, err: oidc.ErrNotYetValid},
		{name: "no iat", with: map[string]any{"iat": nil}, want: ok},

		{name: "no sub", with: map[string]any{"sub": nil}, err: oidc.ErrBad},
		{name: "an empty sub", with: map[string]any{"sub": ""}, err: oidc.ErrBad},
		{name: "a long sub", with: map[string]any{"sub": strings.Repeat("x", 257)}, err: oidc.ErrBad},
		{name: "sub in another case is another claim", with: map[string]any{"SUB": "sub-root"}, want: ok},

		{name: "another issuer", with: map[string]any{"iss": stranger.URL()}, err: oidc.ErrWrongIssuer},
		{name: "the issuer with a slash", with: map[string]any{"iss": i.URL() + "/"}, err: oidc.ErrWrongIssuer},
		{name: "no issuer", with: map[string]any{"iss": nil}, err: oidc.ErrWrongIssuer},

		{name: "another key under the issuer's key id", token: issuer.Token{Forged: true}, err: oidc.ErrBad},
		{name: "an unknown key id", token: issuer.Token{KeyID: "unknown"}, err: oidc.ErrBad},
		{name: "too large", with: map[string]any{"x": strings.Repeat("x", oidc.MaxTokenSize)}, err: oidc.ErrBad},

		{name: "strict: all scopes", strict: true, token: issuer.Token{Algorithm: "ES256"}, with: map[string]any{"scope": "events other mqtt"}, want: ok},
		{name: "strict: all scopes in scp", strict: true, token: issuer.Token{Algorithm: "ES256"}, with: map[string]any{"scp": []string{"events", "mqtt"}}, want: ok},
		{name: "strict: a scope is missing", strict: true, token: issuer.Token{Algorithm: "ES256"}, with: map[string]any{"scope": "mqtt"}, err: oidc.ErrBad},
		{name: "strict: an algorithm that is not allowed", strict: true, with: map[string]any{"scope": "mqtt events"}, err: oidc.ErrBad},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			claims := good()
			maps.Copy(claims, tt.with)
			tt.token.Claims = claims
			raw, err := i.MintToken(tt.token)
			if err != nil {
				t.Fatal(err)
			}
			v := plain
			if tt.strict {
				v = strictly
			}
			got, err := v.Verify(t.Context(), raw)
			if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Fatalf("Verify: error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Verify: (-want +got)\n%s", diff)
			}
		})
	}
}

// Tokens that no issuer would make.
func TestVerifyRefusesWhatIsNoToken(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	v := run(t, p.configured())
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	claims := p.claims()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	valid := p.sign(t, p.rs, jose.RS256, "rs", claims)
	if _, err := v.Verify(t.Context(), valid); err != nil {
		t.Fatalf("the valid token: %v", err)
	}
	parts := strings.Split(valid, ".")

	// HS256 with what everybody knows of an RSA key as the secret.
	der, err := x509.MarshalPKIXPublicKey(p.rs.Public())
	if err != nil {
		t.Fatal(err)
	}
	modulus := p.rs.PublicKey.N.Bytes()

	for name, raw := range map[string]string{
		"empty":                      "",
		"a name":                     "ada",
		"two parts":                  parts[0] + "." + parts[1],
		"four parts":                 valid + ".x",
		"a changed payload":          parts[0] + "." + encode(strings.Replace(string(payload), "sub-ada", "sub-eve", 1)) + "." + parts[2],
		"a changed header":           encode(`{"alg":"RS256","kid":"rs","typ":"JWT","x":1}`) + "." + parts[1] + "." + parts[2],
		"no signature":               parts[0] + "." + parts[1] + ".",
		"alg none":                   encode(`{"alg":"none"}`) + "." + parts[1] + ".",
		"alg None":                   encode(`{"alg":"None"}`) + "." + parts[1] + "." + parts[2],
		"HS256 with the public key":  p.sign(t, der, jose.HS256, "rs", claims),
		"HS256 with the modulus":     p.sign(t, modulus, jose.HS256, "rs", claims),
		"the key in the header":      p.signEmbedded(t, claims),
		"an encryption key":          p.sign(t, p.enc, jose.RS256, "enc", claims),
		"a key of another algorithm": p.sign(t, p.rs, jose.PS256, "rs", claims),
		"a small RSA key":            p.sign(t, p.small, jose.RS256, "small", claims),
		"a critical header":          p.signCritical(t, claims),
		"no JSON":                    parts[0] + "." + encode("claims") + "." + parts[2],
		"a list for claims":          parts[0] + "." + encode("[]") + "." + parts[2],
		"null for claims":            parts[0] + "." + encode("null") + "." + parts[2],
		"something after the claims": parts[0] + "." + encode(string(payload)+"{}") + "." + parts[2],
		"the JSON serialization":     `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if token, err := v.Verify(t.Context(), raw); !errors.Is(err, oidc.ErrBad) && !errors.Is(err, oidc.ErrWrongIssuer) {
				t.Errorf("Verify(%.60q…) = %+v, %v, want ErrBad", raw, token, err)
			}
		})
	}
}

func TestAlgorithmsAndKeyIDs(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	all := p.configured()
	all.Algorithms = oidc.Algorithms()
	v := run(t, all)
	for _, tt := range []struct {
		name      string
		key       crypto.PrivateKey
		algorithm jose.SignatureAlgorithm
		id        string
		ok        bool
	}{
		{"RS256", p.rs, jose.RS256, "rs", true},
		{"EdDSA", p.ed, jose.EdDSA, "ed", true},
		{"ES384", p.es384, jose.ES384, "es384", true},
		{"PS256 of a key without alg", p.any, jose.PS256, "any", true},
		{"RS512 of a key without alg", p.any, jose.RS512, "any", true},
		{"no key id, so that all fitting keys are tried", p.any, jose.PS512, "", true},
		{"a key id of another key", p.any, jose.PS256, "ed", false},
		{"an algorithm that is not the key's", p.rs, jose.RS384, "rs", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := v.Verify(t.Context(), p.sign(t, tt.key, tt.algorithm, tt.id, p.claims()))
			if (err == nil) != tt.ok {
				t.Errorf("Verify: error %v, want ok %v", err, tt.ok)
			}
		})
	}
}

func TestNamesAndRoles(t *testing.T) {
	t.Parallel()
	i := testkit.Issuer(t, issuer.Config{})
	for _, tt := range []struct {
		name   string
		issuer func(*oidc.Issuer)
		claims map[string]any
		want   string
		admin  bool
	}{
		{name: "Keycloak", claims: map[string]any{"realm_access": map[string]any{"roles": []string{"x", "boss"}}}, want: "ada", admin: true},
		{name: "other roles", claims: map[string]any{"realm_access": map[string]any{"roles": []string{"bosses", "BOSS"}}}, want: "ada"},
		{name: "no roles", want: "ada"},
		{name: "roles of another shape", claims: map[string]any{"realm_access": "boss"}, want: "ada"},
		{name: "not configured", issuer: func(i *oidc.Issuer) { i.RolesClaim = "" }, claims: map[string]any{"realm_access": map[string]any{"roles": []string{"boss"}}, "": "boss"}, want: "ada"},
		{
			name:   "a name with dots (Auth0)",
			issuer: func(i *oidc.Issuer) { i.RolesClaim = "https://example.com/roles" },
			claims: map[string]any{"https://example.com/roles": []any{1, "boss"}}, want: "ada", admin: true,
		},
		{
			name:   "a client with dots (Keycloak)",
			issuer: func(i *oidc.Issuer) { i.RolesClaim = "resource_access.my.client.roles" },
			claims: map[string]any{"resource_access": map[string]any{"my.client": map[string]any{"roles": []string{"boss"}}}}, want: "ada", admin: true,
		},
		{name: "a string with spaces", issuer: func(i *oidc.Issuer) { i.RolesClaim = "groups" }, claims: map[string]any{"groups": "x boss"}, want: "ada", admin: true},
		{name: "another name claim", issuer: func(i *oidc.Issuer) { i.NameClaim = "user.email" }, claims: map[string]any{"user": map[string]any{"email": "ada@example.org"}}, want: "ada@example.org"},
		{name: "no name", claims: map[string]any{"preferred_username": nil}},
		{name: "a name that is no string", claims: map[string]any{"preferred_username": 7}},
		{name: "an administrator by name", issuer: func(i *oidc.Issuer) { i.AdministratorNames = []string{"root", "ada"} }, want: "ada", admin: true},
		{name: "no administrator without a name", issuer: func(i *oidc.Issuer) { i.AdministratorNames = []string{""} }, claims: map[string]any{"preferred_username": nil}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := dev(i)
			cfg.RolesClaim, cfg.AdministratorRoles = "realm_access.roles", []string{"boss"}
			if tt.issuer != nil {
				tt.issuer(&cfg)
			}
			claims := good()
			maps.Copy(claims, tt.claims)
			got, err := run(t, cfg).Verify(t.Context(), testkit.Mint(t, i, claims))
			if err != nil {
				t.Fatal(err)
			}
			if got.Name != tt.want || got.Administrator != tt.admin {
				t.Errorf("name %q, administrator %v, want %q, %v", got.Name, got.Administrator, tt.want, tt.admin)
			}
		})
	}
}

// The same subject at two issuers is two principals, and no issuer's keys are good
// for another's tokens.
func TestTwoIssuers(t *testing.T) {
	t.Parallel()
	a, b := testkit.Issuer(t, issuer.Config{}), testkit.Issuer(t, issuer.Config{})
	v := run(t, oidc.Issuer{Alias: "a", URL: a.URL(), Audiences: []string{a.Audience()}},
		oidc.Issuer{Alias: "b", URL: b.URL(), Audiences: []string{b.Audience()}})
	for alias, i := range map[string]*issuer.Issuer{"a": a, "b": b} {
		token, err := v.Verify(t.Context(), testkit.Mint(t, i, good()))
		if want := (policy.Principal{Issuer: alias, Subject: "sub-ada"}); err != nil || token.Principal != want {
			t.Errorf("Verify = %v, %v, want %v", token.Principal, err, want)
		}
	}
	claims := good()
	claims["iss"] = b.URL()
	if _, err := v.Verify(t.Context(), testkit.Mint(t, a, claims)); !errors.Is(err, oidc.ErrBad) {
		t.Errorf("a token of a in the name of b: %v, want ErrBad", err)
	}
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	i := testkit.Issuer(t, issuer.Config{})
	v := run(t, dev(i))
	verify := func() error {
		_, err := v.Verify(t.Context(), testkit.Mint(t, i, good()))
		return err
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	old := testkit.Mint(t, i, good())
	if err := i.Rotate(true); err != nil {
		t.Fatal(err)
	}
	if err := verify(); err != nil {
		t.Errorf("the first token with the new key: %v", err)
	}
	if _, err := v.Verify(t.Context(), old); err != nil {
		t.Errorf("a token with the former key, which is still published: %v", err)
	}

	// Nobody makes us ask the provider as often as they like.
	before := i.KeyRequests()
	for range 50 {
		raw, err := i.MintToken(issuer.Token{Claims: good(), KeyID: rand.Text()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), raw); !errors.Is(err, oidc.ErrBad) {
			t.Errorf("an unknown key id: %v, want ErrBad", err)
		}
	}
	if asked := i.KeyRequests() - before; asked > 4 {
		t.Errorf("asked for the keys %d times for 50 unknown key ids, want at most 4", asked)
	}
}

func TestProviderDownAtTheStart(t *testing.T) {
	t.Parallel()
	down, up := testkit.Issuer(t, issuer.Config{}), testkit.Issuer(t, issuer.Config{})
	down.SetAvailable(false)
	cfg := dev(up)
	cfg.Alias = "up"
	v := run(t, dev(down), cfg)
	token := testkit.Mint(t, down, good())
	if _, err := v.Verify(t.Context(), token); !errors.Is(err, oidc.ErrUnavailable) {
		t.Errorf("while the provider is down: %v, want ErrUnavailable", err)
	}
	if _, err := v.Verify(t.Context(), testkit.Mint(t, up, good())); err != nil {
		t.Errorf("the other provider: %v", err)
	}
	down.SetAvailable(true)
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := v.Verify(t.Context(), token)
		if err == nil {
			break
		}
		if !errors.Is(err, oidc.ErrUnavailable) || time.Now().After(deadline) {
			t.Fatalf("after the provider came back: %v", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestProviderDownDuringOperation(t *testing.T) {
	t.Parallel()
	i := testkit.Issuer(t, issuer.Config{})
	v := run(t, dev(i))
	known := testkit.Mint(t, i, good())
	if _, err := v.Verify(t.Context(), known); err != nil {
		t.Fatal(err)
	}
	if err := i.Rotate(false); err != nil {
		t.Fatal(err)
	}
	i.SetAvailable(false)
	if _, err := v.Verify(t.Context(), testkit.Mint(t, i, good())); !errors.Is(err, oidc.ErrUnavailable) {
		t.Errorf("a key that cannot be looked up: %v, want ErrUnavailable", err)
	}
	if _, err := v.Verify(t.Context(), known); err != nil {
		t.Errorf("a known key: %v, want it to work on", err)
	}
}

func TestAContextThatEnds(t *testing.T) {
	t.Parallel()
	block := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-block }))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(block) })
	v := run(t, oidc.Issuer{Alias: "dev", URL: server.URL, Audiences: []string{"a"}})
	p := newProvider(t)
	claims := p.claims()
	claims["iss"] = server.URL
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := v.Verify(ctx, p.sign(t, p.rs, jose.RS256, "rs", claims)); !errors.Is(err, oidc.ErrUnavailable) {
		t.Errorf("Verify = %v, want ErrUnavailable", err)
	}
}

func TestCAFile(t *testing.T) {
	t.Parallel()
	if _, err := oidc.New(oidc.Config{Logger: slog.New(slog.DiscardHandler), Issuers: []oidc.Issuer{
		{Alias: "dev", URL: "https://example.com", CAFile: "/does/not/exist"},
	}}); err == nil || !strings.Contains(err.Error(), "dev: ca_file") {
		t.Errorf("New = %v, want an error that names issuer and setting", err)
	}
}

// provider is one whose key set is unusual.
type provider struct {
	url     string
	rs, any *rsa.PrivateKey
	enc     *rsa.PrivateKey
	small   *rsa.PrivateKey
	es384   *ecdsa.PrivateKey
	ed      ed25519.PrivateKey
	keys    []byte
}

var rsaKeys = sync.OnceValue(func() (keys [3]*rsa.PrivateKey) {
	for i := range keys {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			panic(err)
		}
	}
	return keys
})

// smallKey has 1024 bits, which package rsa makes for nobody any more but reads.
var smallKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		panic(err)
	}
	return key
})

func newProvider(t *testing.T) *provider {
	t.Helper()
	keys := rsaKeys()
	p := &provider{rs: keys[0], any: keys[1], enc: keys[2], small: smallKey()}
	var err error
	if p.es384, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if _, p.ed, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: p.enc.Public(), KeyID: "enc", Use: "enc", Algorithm: "RSA-OAEP"},
		{Key: p.rs.Public(), KeyID: "rs", Use: "sig", Algorithm: "RS256"},
		{Key: p.any.Public(), KeyID: "any"},
		{Key: p.small.Public(), KeyID: "small"},
		{Key: p.es384.Public(), KeyID: "es384", Use: "sig", Algorithm: "ES384"},
		{Key: p.ed.Public(), KeyID: "ed", Use: "sig", Algorithm: "EdDSA"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	// Kinds of keys that nobody knows, and a secret that should not be there.
	p.keys = []byte(strings.Replace(string(set), `{"keys":[`,
		`{"keys":[{"kty":"future","kid":"rs"},{"kty":"EC","crv":"secp256k1","kid":"rs"},{"kty":"oct","kid":"rs","k":"c2VjcmV0"},`, 1))
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	p.url = server.URL
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, p.url, p.url+"/keys")
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(p.keys) })
	return p
}

func (p *provider) configured() oidc.Issuer {
	return oidc.Issuer{Alias: "dev", URL: p.url, Audiences: []string{"mqtt"}}
}

func (p *provider) claims() map[string]any {
	claims := good()
	claims["iss"], claims["aud"] = p.url, "mqtt"
	return claims
}

func (p *provider) sign(t *testing.T, key any, algorithm jose.SignatureAlgorithm, id string, claims map[string]any) string {
	t.Helper()
	return sign(t, jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: key, KeyID: id}}, &jose.SignerOptions{}, claims)
}

// signEmbedded signs with a key of our own, which is in the header.
func (p *provider) signEmbedded(t *testing.T, claims map[string]any) string {
	t.Helper()
	return sign(t, jose.SigningKey{Algorithm: jose.ES384, Key: p.es384}, &jose.SignerOptions{EmbedJWK: true}, claims)
}

func (p *provider) signCritical(t *testing.T, claims map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithCritical("exp").WithHeader("exp", 1)
	return sign(t, jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: p.rs, KeyID: "rs"}}, options, claims)
}

func sign(t *testing.T, key jose.SigningKey, options *jose.SignerOptions, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(key, options)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
