//go:build integration

package integration_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"mqtt-integration/libs/testkit/issuer"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/tests/internal/rawmqtt"
	"mqtt-integration/tests/internal/system"
)

// connectHandmade signs claims in a way that the issuer would not: with nothing, or
// with a key that everybody knows.
func connectHandmade(t *testing.T, header, claims map[string]any, sign func(input []byte) []byte) string {
	t.Helper()
	var parts []string
	for _, part := range []map[string]any{header, claims} {
		encoded, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(encoded))
	}
	input := strings.Join(parts, ".")
	return input + "." + base64.RawURLEncoding.EncodeToString(sign([]byte(input)))
}

// connectPublishedKeys is the key set of the issuer as anybody can read it.
func connectPublishedKeys(t *testing.T, s *system.System) []byte {
	t.Helper()
	response, err := http.Get(s.Issuer().URL() + "/keys")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// What is wrong with a token decides about the reason string; the codes are those of
// bad credentials.
func TestConnectTokens(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user := s.CreateUser(t)
	application := s.CreateApplicationOf(t, user, 1)

	now := time.Now()
	mint := func(token issuer.Token) string {
		t.Helper()
		claims := map[string]any{"sub": user.Subject}
		maps.Copy(claims, token.Claims)
		token.Claims = claims
		minted, err := s.Issuer().MintToken(token)
		if err != nil {
			t.Fatal(err)
		}
		return minted
	}
	with := func(claims map[string]any) string { return mint(issuer.Token{Claims: claims}) }
	in := func(d time.Duration) int64 { return now.Add(d).Unix() }

	good := with(nil)
	goodClaims := map[string]any{
		"iss": s.Issuer().URL(), "aud": s.Issuer().Audience(), "sub": user.Subject, "iat": now.Unix(), "exp": in(time.Hour),
	}
	publicKeys := connectPublishedKeys(t, s)
	var published struct {
		Keys []struct {
			KeyID string `json:"kid"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(publicKeys, &published); err != nil || len(published.Keys) == 0 {
		t.Fatalf("keys of the issuer: %v in %s", err, publicKeys)
	}
	header := func(algorithm string) map[string]any {
		return map[string]any{"alg": algorithm, "typ": "at+jwt", "kid": published.Keys[0].KeyID}
	}
	hs256 := func(input []byte) []byte {
		mac := hmac.New(sha256.New, publicKeys)
		mac.Write(input)
		return mac.Sum(nil)
	}
	unsigned := func([]byte) []byte { return nil }
	parts := strings.Split(good, ".")
	other := strings.Split(with(map[string]any{"sub": "somebody-else"}), ".")

	tests := []struct {
		name  string
		token string
		want  connectAnswer
	}{
		{"good", good, connectAccepted},
		{"signed with ES256", mint(issuer.Token{Algorithm: "ES256"}), connectAccepted},
		{"header typ JWT", mint(issuer.Token{Type: "JWT"}), connectAccepted},
		{"no header typ", mint(issuer.Token{Type: "-"}), connectAccepted},
		{"for several audiences", with(map[string]any{"aud": []string{"others", s.Issuer().Audience()}}), connectAccepted},
		{"expired within the leeway", with(map[string]any{"iat": in(-time.Hour), "exp": in(-5 * time.Second)}), connectAccepted},
		{"not yet valid within the leeway", with(map[string]any{"nbf": in(20 * time.Second), "iat": in(20 * time.Second)}), connectAccepted},

		{"expired", with(map[string]any{"iat": in(-time.Hour), "exp": in(-40 * time.Second)}), connectExpired},
		{"not before a time to come", with(map[string]any{"nbf": in(5 * time.Minute)}), connectNotYetValid},
		{"issued at a time to come", with(map[string]any{"iat": in(5 * time.Minute)}), connectNotYetValid},
		{"wrong issuer", with(map[string]any{"iss": "https://id.example.com"}), connectWrongIssuer},
		{"issuer with a slash at its end", with(map[string]any{"iss": s.Issuer().URL() + "/"}), connectWrongIssuer},
		{"no issuer", with(map[string]any{"iss": nil}), connectWrongIssuer},
		{"wrong audience", with(map[string]any{"aud": "others"}), connectWrongAudience},
		{"no audience", with(map[string]any{"aud": nil}), connectWrongAudience},

		{"no end", with(map[string]any{"exp": nil}), connectBadCredentials},
		{"end that is no number", with(map[string]any{"exp": "tomorrow"}), connectBadCredentials},
		{"no subject", with(map[string]any{"sub": nil}), connectBadCredentials},
		{"ID token by claim typ", with(map[string]any{"typ": "ID"}), connectBadCredentials},
		{"ID token by nonce", with(map[string]any{"nonce": "n"}), connectBadCredentials},
		{"ID token by at_hash", with(map[string]any{"at_hash": "h"}), connectBadCredentials},
		{"ID token by c_hash", with(map[string]any{"c_hash": "h"}), connectBadCredentials},
		{"refresh token", with(map[string]any{"typ": "Refresh"}), connectBadCredentials},
		{"other header typ", mint(issuer.Token{Type: "logout+jwt"}), connectBadCredentials},
		{"forged", mint(issuer.Token{Forged: true}), connectBadCredentials},
		{"changed signature", flipped(good), connectBadCredentials},
		{"signature of another token", strings.Join([]string{parts[0], parts[1], other[2]}, "."), connectBadCredentials},
		{"claims of another token", strings.Join([]string{parts[0], other[1], parts[2]}, "."), connectBadCredentials},
		{"no signature", parts[0] + "." + parts[1] + ".", connectBadCredentials},
		{"two parts", parts[0] + "." + parts[1], connectBadCredentials},
		{"algorithm none", connectHandmade(t, header("none"), goodClaims, unsigned), connectBadCredentials},
		{"algorithm None", connectHandmade(t, header("None"), goodClaims, unsigned), connectBadCredentials},
		{"algorithm HS256 with the public keys", connectHandmade(t, header("HS256"), goodClaims, hs256), connectBadCredentials},
		{"unknown key", mint(issuer.Token{KeyID: "no-such-key"}), connectBadCredentials},
		{"larger than 16 KiB", with(map[string]any{"padding": strings.Repeat("x", 16<<10)}), connectBadCredentials},
		{"white space around it", " " + good + " ", connectBadCredentials},
	}
	for _, tt := range tests {
		for _, v := range connectVersions {
			// One after the other: who waits for its turn among all parallel tests
			// comes too late for tokens that are about seconds.
			t.Run(fmt.Sprintf("%s/%s", tt.name, v), func(t *testing.T) {
				client, _ := connectTry(t, s.MQTT(), v, connectAs(t, &tt.token, nil), tt.want)
				if tt.want == connectAccepted {
					if code := connectSubscribe(t, client, "app/"+application.Name); code != 1 {
						t.Errorf("SUBACK 0x%02x, want 0x01: the token is that of the owner", code)
					}
				}
			})
		}
	}
}

// A user that nobody has made is one from the first sign-in on.
func TestConnectFirstSignInMakesTheUser(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user := system.User{Name: "new-" + strings.ToLower(t.Name()), Subject: "subject-of-new"}
	token := s.Token(t, user, nil)
	client, _ := connectTry(t, s.MQTT(), rawmqtt.V5, connectAs(t, &token, nil), connectAccepted)
	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		found, err := admin.GetUser(ctx, &adminv1.GetUserRequest{Name: user.Name})
		if err == nil && (found.GetUser().GetIssuer() != system.IssuerAlias || found.GetUser().GetSubject() != user.Subject) {
			return fmt.Errorf("user %v, want the subject of the token", found.GetUser())
		}
		return err
	})
	application := s.CreateApplicationOf(t, user, 1)
	if code := connectSubscribe(t, client, "app/"+application.Name); code != 1 {
		t.Errorf("SUBACK 0x%02x, want 0x01: ownership counts on live connections, too", code)
	}
}

func TestConnectKeys(t *testing.T) {
	t.Parallel()
	s := connectSystem(t, nil)
	user := s.CreateUser(t)
	application := s.CreateApplicationOf(t, user, 1)
	otherApplication := s.CreateApplicationOf(t, user, 1)
	create := func(request *adminv1.CreateApiKeyRequest) (id, key string) {
		t.Helper()
		request.User = user.Name
		connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
			made, err := admin.CreateApiKey(ctx, request)
			id, key = made.GetApiKey().GetId(), made.GetKey()
			return err
		})
		return id, key
	}
	revokedID, revoked := create(&adminv1.CreateApiKeyRequest{})
	connectAdminister(t, s, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
		_, err := admin.RevokeApiKey(ctx, &adminv1.RevokeApiKeyRequest{Id: revokedID})
		return err
	})
	end := time.Now().Add(1500 * time.Millisecond)
	_, expired := create(&adminv1.CreateApiKeyRequest{ExpireTime: timestamppb.New(end)})
	_, lasting := create(&adminv1.CreateApiKeyRequest{ExpireTime: timestamppb.New(end.Add(time.Hour))})
	_, restricted := create(&adminv1.CreateApiKeyRequest{Applications: []string{otherApplication.Name}})
	_, writeOnly := create(&adminv1.CreateApiKeyRequest{Scopes: []adminv1.ApiKeyScope{adminv1.ApiKeyScope_API_KEY_SCOPE_WRITE}})
	<-time.After(time.Until(end.Add(10 * time.Millisecond)))

	tests := []struct {
		name string
		key  string
		want connectAnswer
		// reads says that the key is good for the events of application.
		reads bool
	}{
		{"good", user.Key, connectAccepted, true},
		{"with an end to come", lasting, connectAccepted, true},
		{"revoked", revoked, connectBadCredentials, false},
		{"expired", expired, connectExpired, false},
		{"for another application", restricted, connectAccepted, false},
		{"for commands alone", writeOnly, connectAccepted, false},
	}
	for _, tt := range tests {
		for _, v := range connectVersions {
			t.Run(fmt.Sprintf("%s/%s", tt.name, v), func(t *testing.T) {
				t.Parallel()
				client, _ := connectTry(t, s.MQTT(), v, connectAs(t, &user.Name, &tt.key), tt.want)
				if tt.want != connectAccepted {
					return
				}
				want := byte(1)
				if !tt.reads {
					want = 0x87
					if v == rawmqtt.V311 {
						want = 0x80
					}
				}
				if code := connectSubscribe(t, client, "app/"+application.Name); code != want {
					t.Errorf("SUBACK 0x%02x, want 0x%02x", code, want)
				}
			})
		}
	}
}
