package authorization_test

import (
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/issuer"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/authorization"
)

func byToken(token string) *authorizationv1.AuthenticateRequest {
	return &authorizationv1.AuthenticateRequest{
		Credential: &authorizationv1.AuthenticateRequest_AccessToken{AccessToken: token}, ConnectionId: "c1",
	}
}

func byKey(name, key string) *authorizationv1.AuthenticateRequest {
	return &authorizationv1.AuthenticateRequest{
		Credential: &authorizationv1.AuthenticateRequest_ApiKey{
			ApiKey: &authorizationv1.ApiKeyCredential{Name: name, Key: key},
		}, ConnectionId: "c1",
	}
}

func anonymously() *authorizationv1.AuthenticateRequest {
	return &authorizationv1.AuthenticateRequest{
		Credential: &authorizationv1.AuthenticateRequest_Anonymous{Anonymous: &authorizationv1.AnonymousCredential{}}, ConnectionId: "c1",
	}
}

func (s *service) authenticate(tb testing.TB, request *authorizationv1.AuthenticateRequest) *authorizationv1.AuthenticateResponse {
	tb.Helper()
	response, err := s.Authenticate(tb.Context(), request)
	if err != nil {
		tb.Fatalf("Authenticate: %v", err)
	}
	return response
}

// root signs in as the administrator.
func (s *service) root(tb testing.TB, i *issuer.Issuer) *adminClient {
	tb.Helper()
	return &adminClient{s: s, ctx: bearer(tb.Context(), testkit.Mint(tb, i, map[string]any{"sub": "sub-root"}))}
}

// The rows of the tables of CONNECT that authorization decides.
func TestAuthenticate(t *testing.T) {
	t.Parallel()
	i, stranger := devIssuer(t), testkit.Issuer(t, issuer.Config{})
	down := testkit.Issuer(t, issuer.Config{})
	down.SetAvailable(false)
	cfg := configFor(t, i)
	cfg.Issuers = append(cfg.Issuers, authorization.Issuer{Alias: "down", URL: down.URL(), Audiences: []string{down.Audience()}})
	s := start(t, cfg)
	root := s.root(t, i)
	for _, name := range []string{"demo", "other", "disabled"} {
		root.createUser(t, "dev", "sub-"+name, name)
	}
	key := root.createKey(t, &adminv1.CreateApiKeyRequest{User: "demo"})
	other := root.createKey(t, &adminv1.CreateApiKeyRequest{User: "other"})
	disabled := root.createKey(t, &adminv1.CreateApiKeyRequest{User: "disabled"})
	revoked := root.createKey(t, &adminv1.CreateApiKeyRequest{User: "demo"})
	short := root.createKey(t, &adminv1.CreateApiKeyRequest{User: "demo", ExpireTime: timestamppb.New(time.Now().Add(2 * time.Second))})
	root.disable(t, "disabled", true)
	if _, err := s.admin.RevokeApiKey(root.ctx, &adminv1.RevokeApiKeyRequest{Id: revoked.GetApiKey().GetId()}); err != nil {
		t.Fatal(err)
	}
	<-time.After(time.Until(short.GetApiKey().GetExpireTime().AsTime()))
	claims := func(pairs ...any) map[string]any {
		c := map[string]any{"sub": "sub-demo", "preferred_username": "demo"}
		for n := 0; n < len(pairs); n += 2 {
			c[pairs[n].(string)] = pairs[n+1] //nolint:errcheck,forcetypeassert // a test that is wrong may panic
		}
		return c
	}
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	id, err := i.MintToken(issuer.Token{Claims: claims("typ", "ID", "nonce", "n"), Type: "JWT"})
	if err != nil {
		t.Fatal(err)
	}
	forged, err := i.MintToken(issuer.Token{Claims: claims(), Forged: true})
	if err != nil {
		t.Fatal(err)
	}

	const (
		allowed  = authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_UNSPECIFIED
		bad      = authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_BAD_CREDENTIALS
		expired  = authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_EXPIRED
		early    = authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_NOT_YET_VALID
		iss      = authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_WRONG_ISSUER
		aud      = authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_WRONG_AUDIENCE
		noAnon   = authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_ANONYMOUS_DISABLED
		disabler = authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_USER_DISABLED
	)
	for _, tt := range []struct {
		name    string
		request *authorizationv1.AuthenticateRequest
		want    authorizationv1.AuthenticationDenialReason
		code    codes.Code
	}{
		{name: "token", request: byToken(testkit.Mint(t, i, claims())), want: allowed},
		{name: "name and key", request: byKey("demo", key.GetKey()), want: allowed},

		{name: "nothing", request: anonymously(), want: noAnon},
		{name: "a name that is no token", request: byToken("demo"), want: bad},
		{name: "an empty token", request: byToken(""), want: bad},
		{name: "a forged token", request: byToken(forged), want: bad},
		{name: "an ID token", request: byToken(id), want: bad},
		{name: "a large token", request: byToken(testkit.Mint(t, i, claims("x", strings.Repeat("x", 16<<10)))), want: bad},
		{name: "an expired token", request: byToken(testkit.Mint(t, i, claims("exp", in(-time.Minute)))), want: expired},
		{name: "a token that is not valid yet", request: byToken(testkit.Mint(t, i, claims("nbf", in(time.Minute)))), want: early},
		{name: "a token of an unknown issuer", request: byToken(testkit.Mint(t, stranger, claims())), want: iss},
		{name: "a token for another audience", request: byToken(testkit.Mint(t, i, claims("aud", "account"))), want: aud},
		{name: "a token of a disabled user", request: byToken(testkit.Mint(t, i, claims("sub", "sub-disabled"))), want: disabler},
		{name: "a key as a token", request: byToken(key.GetKey()), want: bad},

		{name: "an unknown name", request: byKey("nobody", key.GetKey()), want: bad},
		{name: "another's key", request: byKey("demo", other.GetKey()), want: bad},
		{name: "a wrong key", request: byKey("demo", wrongSecret(key.GetKey(), other.GetKey())), want: bad},
		{name: "a password", request: byKey("demo", "hunter2"), want: bad},
		{name: "a name in another spelling", request: byKey("Demo", key.GetKey()), want: bad},
		{name: "a token with a name", request: byKey("demo", testkit.Mint(t, i, claims())), want: bad},
		{name: "a revoked key", request: byKey("demo", revoked.GetKey()), want: bad},
		{name: "an expired key", request: byKey("demo", short.GetKey()), want: expired},
		{name: "a key of a disabled user", request: byKey("disabled", disabled.GetKey()), want: disabler},
		{name: "a wrong key of a disabled user", request: byKey("disabled", key.GetKey()), want: bad},

		{name: "a provider that is down", request: byToken(testkit.Mint(t, down, claims())), code: codes.Unavailable},
		{name: "no credential at all", request: &authorizationv1.AuthenticateRequest{}, code: codes.InvalidArgument},
		{name: "anonymous without a connection", request: &authorizationv1.AuthenticateRequest{
			Credential: &authorizationv1.AuthenticateRequest_Anonymous{},
		}, code: codes.InvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			response, err := s.Authenticate(t.Context(), tt.request)
			if status.Code(err) != tt.code {
				t.Fatalf("Authenticate: error %v, want code %v", err, tt.code)
			}
			if got := response.GetDenial().GetReason(); got != tt.want {
				t.Errorf("Authenticate: denial %v, want %v", response.GetDenial(), tt.want)
			}
			if err != nil {
				return
			}
			if tt.want == allowed && response.GetAuthenticated().GetPrincipal().GetSubject() != "sub-demo" {
				t.Errorf("Authenticate = %v, want sub-demo", response)
			}
			if response.GetRevision() == 0 || response.GetLifetime().AsDuration() != 5*time.Minute {
				t.Errorf("revision %d, lifetime %v, want both", response.GetRevision(), response.GetLifetime().AsDuration())
			}
		})
	}

	// Nothing tells whether a user exists.
	unknown := s.authenticate(t, byKey("nobody", key.GetKey()))
	wrong := s.authenticate(t, byKey("demo", other.GetKey()))
	if diff := cmp.Diff(unknown, wrong, protocmp.Transform()); diff != "" {
		t.Errorf("an unknown name and a wrong key differ:\n%s", diff)
	}
	if log := s.log.String(); strings.Contains(log, "hunter2") || strings.Contains(log, key.GetKey()) {
		t.Error("the log has a password or a key")
	}
}

// wrongSecret is a well-formed key with the public id of one key and the secret of
// another.
func wrongSecret(id, secret string) string {
	const head, tail, alphabet = len("mqi_") + 12, 6, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	text := []byte(id[:head] + secret[head:len(secret)-tail])
	sum := crc32.ChecksumIEEE(text)
	digits := make([]byte, tail)
	for i := tail - 1; i >= 0; i-- {
		digits[i] = alphabet[sum%62]
		sum /= 62
	}
	return string(append(text, digits...))
}

func TestAnonymous(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	cfg := configFor(t, i)
	cfg.Anonymous.Enabled = true
	s := start(t, cfg)
	root := s.root(t, i)
	root.createApplication(t, "open", "")
	root.setMember(t, "open", &adminv1.Member{Anonymous: true, Role: adminv1.Role_ROLE_READER})
	who := s.authenticate(t, anonymously()).GetAuthenticated()
	if diff := cmp.Diff(&authorizationv1.Principal{Issuer: "anonymous", Subject: "c1"}, who.GetPrincipal(), protocmp.Transform()); diff != "" {
		t.Errorf("principal (-want +got)\n%s", diff)
	}
	for _, tt := range []struct {
		name       string
		permission authorizationv1.Permission
		app, share string
		want       authorizationv1.AuthorizationDenialReason
	}{
		{name: "connect", permission: authorizationv1.Permission_PERMISSION_CONNECT},
		{name: "read", permission: authorizationv1.Permission_PERMISSION_READ, app: "open"},
		{
			name: "read shared", permission: authorizationv1.Permission_PERMISSION_READ, app: "open", share: "g",
			want: authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_ANONYMOUS_FORBIDDEN,
		},
		{
			name: "write", permission: authorizationv1.Permission_PERMISSION_WRITE, app: "open",
			want: authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_NOT_GRANTED,
		},
		{
			name: "an unknown application", permission: authorizationv1.Permission_PERMISSION_READ, app: "lost",
			want: authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_NOT_GRANTED,
		},
		{
			name: "administer", permission: authorizationv1.Permission_PERMISSION_ADMINISTER,
			want: authorizationv1.AuthorizationDenialReason_AUTHORIZATION_DENIAL_REASON_NOT_GRANTED,
		},
	} {
		decision, err := s.Authorize(t.Context(), &authorizationv1.AuthorizeRequest{
			Principal: who.GetPrincipal(), Credential: who.GetCredential(), Permission: tt.permission, Application: tt.app, ShareName: tt.share,
		})
		if err != nil || decision.GetReason() != tt.want || decision.GetAllowed() != (tt.want == 0) {
			t.Errorf("%s: %v, %v, want %v", tt.name, decision, err, tt.want)
		}
	}
}

func TestFirstSignIn(t *testing.T) {
	t.Parallel()
	a, b := devIssuer(t), testkit.Issuer(t, issuer.Config{})
	cfg := configFor(t, a)
	cfg.Issuers = append(cfg.Issuers, authorization.Issuer{Alias: "second", URL: b.URL(), Audiences: []string{b.Audience()}})
	s := start(t, cfg)
	sign := func(i *issuer.Issuer, sub string, name any) *authorizationv1.Principal {
		t.Helper()
		return s.authenticate(t, byToken(testkit.Mint(t, i, map[string]any{"sub": sub, "preferred_username": name}))).GetAuthenticated().GetPrincipal()
	}
	for _, tt := range []struct {
		what string
		got  *authorizationv1.Principal
		want *authorizationv1.Principal
	}{
		{"a name", sign(a, "1", "ada"), &authorizationv1.Principal{Issuer: "dev", Subject: "1", Name: "ada"}},
		{"a clash with equal subjects", sign(b, "1", "ada"), &authorizationv1.Principal{Issuer: "second", Subject: "1", Name: "ada@second"}},
		{"again, under another name", sign(a, "1", "countess"), &authorizationv1.Principal{Issuer: "dev", Subject: "1", Name: "ada"}},
		{"no name", sign(a, "2", nil), &authorizationv1.Principal{Issuer: "dev", Subject: "2", Name: "2"}},
		{"a name that cannot be one", sign(a, "3", "a:b"), &authorizationv1.Principal{Issuer: "dev", Subject: "3", Name: "3"}},
		{"a name that looks like a qualified one", sign(a, "4", "bob@second"), &authorizationv1.Principal{Issuer: "dev", Subject: "4", Name: "bob@second"}},
		{"a name", sign(a, "5", "bob"), &authorizationv1.Principal{Issuer: "dev", Subject: "5", Name: "bob"}},
	} {
		if diff := cmp.Diff(tt.want, tt.got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.what, diff)
		}
	}
	if got := sign(b, "5", "bob").GetName(); !strings.HasPrefix(got, "bob@second-") {
		t.Errorf("a clash with the qualified name, too: %q, want one behind it", got)
	}
	if got := sign(b, "6", strings.Repeat("x", 300)).GetName(); got != "6" {
		t.Errorf("a long name: %q, want the subject", got)
	}
}

func TestTooManyAttempts(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	cfg := configFor(t, i)
	cfg.Limits.FailuresPerAddress = authorization.FailureLimit{Burst: 5, Recovery: time.Hour}
	cfg.Limits.FailuresPerName = authorization.FailureLimit{Burst: 2, Recovery: time.Hour}
	s := start(t, cfg)
	root := s.root(t, i)
	root.createUser(t, "dev", "sub-demo", "demo")
	key := root.createKey(t, &adminv1.CreateApiKeyRequest{User: "demo"}).GetKey()
	from := func(address string, request *authorizationv1.AuthenticateRequest) authorizationv1.AuthenticationDenialReason {
		t.Helper()
		request.ClientAddress = address
		return s.authenticate(t, request).GetDenial().GetReason()
	}
	const (
		bad     = authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_BAD_CREDENTIALS
		tooMany = authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_TOO_MANY_ATTEMPTS
	)
	for n, tt := range []struct {
		address string
		request *authorizationv1.AuthenticateRequest
		want    authorizationv1.AuthenticationDenialReason
	}{
		{"10.0.0.1", byKey("demo", "wrong"), bad},
		{"10.0.0.1", byKey("demo", "wrong"), bad},
		{"10.0.0.1", byKey("demo", key), tooMany},  // this name from this address
		{"10.0.0.2", byKey("demo", key), 0},        // nobody locks another out
		{"10.0.0.1", byKey("other", "wrong"), bad}, // 3 of 5
		{"10.0.0.1", byToken("wrong"), bad},        // 4
		{"10.0.0.1", byToken("wrong"), bad},        // 5
		{"10.0.0.1", byToken("wrong"), tooMany},    // this address
		{"10.0.0.1", byKey("third", key), tooMany}, // with any name
		{"", byKey("demo", key), 0},                // a caller that sends no address
	} {
		if got := from(tt.address, tt.request); got != tt.want {
			t.Errorf("attempt %d: %v, want %v", n, got, tt.want)
		}
	}
	expired := byToken(testkit.Mint(t, i, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}))
	for range 10 {
		if got := from("10.0.0.3", expired); got == tooMany {
			t.Fatal("an expired token counts as a guess")
		}
	}
}

func TestAuthorizeRefusesWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	s := start(t, configFor(t, devIssuer(t)))
	ada := &authorizationv1.Principal{Issuer: "dev", Subject: "ada"}
	token := &authorizationv1.Credential{Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_ACCESS_TOKEN}
	key := &authorizationv1.Credential{Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_API_KEY}
	const (
		connect = authorizationv1.Permission_PERMISSION_CONNECT
		read    = authorizationv1.Permission_PERMISSION_READ
		write   = authorizationv1.Permission_PERMISSION_WRITE
	)
	for want, request := range map[string]*authorizationv1.AuthorizeRequest{
		"principal":             {Credential: token, Permission: connect},
		"credential.kind":       {Principal: ada, Permission: connect},
		"credential.id":         {Principal: ada, Credential: key, Permission: connect},
		"permission":            {Principal: ada, Credential: token},
		"application: is req":   {Principal: ada, Credential: token, Permission: read},
		"application: is not":   {Principal: ada, Credential: token, Permission: connect, Application: "app"},
		"share_name: is not fo": {Principal: ada, Credential: token, Permission: write, Application: "app", ShareName: "g"},
	} {
		_, err := s.Authorize(t.Context(), request)
		if status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), want) {
			t.Errorf("Authorize(%v): %v, want INVALID_ARGUMENT with %q", request, err, want)
		}
	}
	for _, n := range []int{0, 257} {
		_, err := s.BatchAuthorize(t.Context(), &authorizationv1.BatchAuthorizeRequest{Requests: make([]*authorizationv1.AuthorizeRequest, n)})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("BatchAuthorize of %d: %v, want INVALID_ARGUMENT", n, err)
		}
	}
	_, err := s.BatchAuthorize(t.Context(), &authorizationv1.BatchAuthorizeRequest{Requests: []*authorizationv1.AuthorizeRequest{
		{Principal: ada, Credential: token, Permission: connect}, {Principal: ada, Credential: token},
	}})
	if !strings.HasPrefix(status.Convert(err).Message(), "requests[1]: permission") {
		t.Errorf("BatchAuthorize: %v, want the index", err)
	}
}
