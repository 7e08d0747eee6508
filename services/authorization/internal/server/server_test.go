package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/authorization/internal/credential"
	"mqtt-integration/services/authorization/internal/oidc"
	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/server"
	"mqtt-integration/services/authorization/internal/store"
)

// broken answers everything with an error.
type broken struct{ err error }

func (b broken) Authenticate(context.Context, credential.Attempt) (credential.Result, error) {
	return credential.Result{}, b.err
}

func (b broken) Facts(context.Context, []policy.Question) ([]policy.Facts, int64, error) {
	return nil, 0, b.err
}
func (b broken) ID() string                              { return "broken" }
func (b broken) Revision(context.Context) (int64, error) { return 0, b.err }
func (b broken) Updated() <-chan struct{}                { return nil }
func (b broken) Changes(context.Context, int64, int) ([]store.Change, bool, error) {
	return nil, false, b.err
}

// What could not be decided is never a denial.
func TestErrorsAreNoDenials(t *testing.T) {
	t.Parallel()
	errUnknown := errors.New("unknown")
	for _, tt := range []struct {
		name string
		err  error
		want codes.Code
	}{
		{"the store is down", fmt.Errorf("read: %w: disk on fire", store.ErrUnavailable), codes.Unavailable},
		{"no name for a new user", store.ErrNameTaken, codes.Unavailable},
		{"the provider is down", fmt.Errorf("verify token: %w", oidc.ErrUnavailable), codes.Unavailable},
		{"overloaded", credential.ErrOverloaded, codes.ResourceExhausted},
		{"anything else", errUnknown, codes.Unknown}, // grpcserver makes it Internal, and logs it
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := server.New(server.Config{
				Authenticator: broken{tt.err}, Store: broken{tt.err}, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{},
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Authenticate(t.Context(), &authorizationv1.AuthenticateRequest{
				Credential: &authorizationv1.AuthenticateRequest_AccessToken{},
			})
			check(t, "Authenticate", err, tt.want)
			_, err = s.Authorize(t.Context(), &authorizationv1.AuthorizeRequest{
				Principal:  &authorizationv1.Principal{Issuer: "dev", Subject: "ada"},
				Credential: &authorizationv1.Credential{Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_ACCESS_TOKEN},
				Permission: authorizationv1.Permission_PERMISSION_CONNECT,
			})
			check(t, "Authorize", err, tt.want)
		})
	}
}

func check(t *testing.T, rpc string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %v", rpc, err, want)
	}
}

func TestACallThatWasGivenUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, err := server.New(server.Config{
		Authenticator: broken{fmt.Errorf("read: %w", context.Canceled)}, Store: broken{}, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Authenticate(ctx, &authorizationv1.AuthenticateRequest{
		Credential: &authorizationv1.AuthenticateRequest_AccessToken{},
	})
	check(t, "Authenticate", err, codes.Canceled)
}
