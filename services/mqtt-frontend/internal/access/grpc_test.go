package access_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"mqtt-integration/libs/daemon"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/mqtt-frontend/internal/access"
)

// server is an authorization service on loopback.
type server struct {
	authorizationv1.UnimplementedAuthorizationServiceServer

	authenticate func(*authorizationv1.AuthenticateRequest) (*authorizationv1.AuthenticateResponse, error)
}

func (s *server) Authenticate(_ context.Context, request *authorizationv1.AuthenticateRequest) (*authorizationv1.AuthenticateResponse, error) {
	return s.authenticate(request)
}

func (s *server) Watch(_ *authorizationv1.WatchRequest, stream grpc.ServerStreamingServer[authorizationv1.WatchResponse]) error {
	if err := stream.Send(helloMessage("store", 1)); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func dial(t *testing.T, s *server) *access.Client {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	grpcServer := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}))
	authorizationv1.RegisterAuthorizationServiceServer(grpcServer, s)
	served := make(chan error, 1)
	go func() { served <- grpcServer.Serve(listener) }()

	cfg := access.DefaultConfig()
	cfg.Addresses = []string{listener.Addr().String()}
	client, err := access.New(cfg, daemon.NewEnv(nil))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v, want nil", err)
		}
		grpcServer.Stop()
		if err := <-served; err != nil {
			t.Errorf("Serve() = %v", err)
		}
	})
	return client
}

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	expires := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	answer := func(credential *authorizationv1.Credential) *authorizationv1.AuthenticateResponse {
		return &authorizationv1.AuthenticateResponse{Result: &authorizationv1.AuthenticateResponse_Authenticated{
			Authenticated: &authorizationv1.Authenticated{
				Principal:  &authorizationv1.Principal{Issuer: "idp", Subject: "s1", Name: "alice"},
				Credential: credential,
			},
		}}
	}
	client := dial(t, &server{authenticate: func(request *authorizationv1.AuthenticateRequest) (*authorizationv1.AuthenticateResponse, error) {
		switch c := request.GetCredential().(type) {
		case *authorizationv1.AuthenticateRequest_AccessToken:
			switch c.AccessToken {
			case "good":
				return answer(&authorizationv1.Credential{
					Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_ACCESS_TOKEN, ExpireTime: timestamppb.New(expires), Administrator: true,
				}), nil
			case "down":
				return nil, status.Error(codes.Unavailable, "no keys")
			case "busy":
				return nil, status.Error(codes.ResourceExhausted, "too much")
			case "malformed":
				return nil, status.Error(codes.InvalidArgument, "too large")
			case "empty":
				return &authorizationv1.AuthenticateResponse{}, nil
			}
			return &authorizationv1.AuthenticateResponse{Result: &authorizationv1.AuthenticateResponse_Denial{
				Denial: &authorizationv1.AuthenticationDenial{
					Reason:  authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_EXPIRED,
					Message: "access token expired",
				},
			}}, nil
		case *authorizationv1.AuthenticateRequest_ApiKey:
			if c.ApiKey.GetName() == "alice" && c.ApiKey.GetKey() == "mqi_k" {
				return answer(&authorizationv1.Credential{Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_API_KEY, Id: "k"}), nil
			}
		case *authorizationv1.AuthenticateRequest_Anonymous:
			return &authorizationv1.AuthenticateResponse{Result: &authorizationv1.AuthenticateResponse_Authenticated{
				Authenticated: &authorizationv1.Authenticated{
					Principal:  &authorizationv1.Principal{Issuer: "anonymous", Subject: request.GetConnectionId()},
					Credential: &authorizationv1.Credential{Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_ANONYMOUS},
				},
			}}, nil
		}
		return nil, status.Error(codes.Internal, "internal error")
	}})

	tests := []struct {
		name        string
		credentials access.Credentials
		want        access.Identity
		denial      authorizationv1.AuthenticationDenialReason
		unavailable bool
		overloaded  bool
	}{
		{
			name: "access token", credentials: access.Credentials{Token: "good"},
			want: access.Identity{
				Issuer: "idp", Subject: "s1", Name: "alice", Expires: expires, Administrator: true,
				Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_ACCESS_TOKEN,
			},
		},
		{
			name: "API key", credentials: access.Credentials{UserName: "alice", APIKey: "mqi_k"},
			want: access.Identity{
				Issuer: "idp", Subject: "s1", Name: "alice", CredentialID: "k",
				Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_API_KEY,
			},
		},
		{
			name: "anonymous", credentials: access.Credentials{Anonymous: true, ConnectionID: "c1"},
			want: access.Identity{
				Issuer: "anonymous", Subject: "c1", Kind: authorizationv1.CredentialKind_CREDENTIAL_KIND_ANONYMOUS,
			},
		},
		{
			name: "a denial", credentials: access.Credentials{Token: "old"},
			denial: authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_EXPIRED,
		},
		{
			name: "bytes that are no text", credentials: access.Credentials{UserName: "alice", APIKey: "\xff\xfe"},
			denial: authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_BAD_CREDENTIALS,
		},
		{
			name: "a malformed request", credentials: access.Credentials{Token: "malformed"},
			denial: authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_BAD_CREDENTIALS,
		},
		{name: "could not decide", credentials: access.Credentials{Token: "down"}, unavailable: true},
		{name: "overload", credentials: access.Credentials{Token: "busy"}, unavailable: true, overloaded: true},
		{name: "an internal error", credentials: access.Credentials{UserName: "bob", APIKey: "x"}, unavailable: true},
		{name: "an answer without a principal", credentials: access.Credentials{Token: "empty"}, unavailable: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := client.Authenticate(t.Context(), tt.credentials)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Authenticate() identity (-want +got):\n%s", diff)
			}
			denial, denied := errors.AsType[*access.Denial](err)
			if denied != (tt.denial != 0) || denied && denial.Reason != tt.denial {
				t.Errorf("Authenticate() = %v, want denial %v", err, tt.denial)
			}
			if errors.Is(err, access.ErrUnavailable) != tt.unavailable || errors.Is(err, access.ErrOverloaded) != tt.overloaded {
				t.Errorf("Authenticate() = %v, want unavailable %t, overloaded %t", err, tt.unavailable, tt.overloaded)
			}
		})
	}
	again, err := client.Authenticate(t.Context(), access.Credentials{Token: "good"})
	if err != nil || again != tests[0].want {
		t.Errorf("identities of equal content are not equal: %v, %v", again, err)
	}
}
