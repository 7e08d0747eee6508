package demo_test

import (
	"context"
	"fmt"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/standalone/internal/demo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// admin is an AdminService with one user, one application and keys, in memory.
type admin struct {
	adminv1.UnimplementedAdminServiceServer

	user        *adminv1.User
	application *adminv1.Application
	member      *adminv1.Member
	keys        []*adminv1.ApiKey
	calls       []string
}

func (a *admin) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer t-1" {
		return nil, status.Errorf(codes.Unauthenticated, "authorization is %q", got)
	}
	a.calls = append(a.calls, info.FullMethod[len("/mqttintegration.admin.v1.AdminService/"):])
	return handle(ctx, req)
}

func (a *admin) GetUser(context.Context, *adminv1.GetUserRequest) (*adminv1.GetUserResponse, error) {
	if a.user == nil {
		return nil, status.Error(codes.NotFound, "no such user")
	}
	return &adminv1.GetUserResponse{User: a.user}, nil
}

func (a *admin) CreateUser(_ context.Context, r *adminv1.CreateUserRequest) (*adminv1.CreateUserResponse, error) {
	a.user = &adminv1.User{Issuer: r.GetIssuer(), Subject: r.GetSubject(), Name: r.GetName()}
	return &adminv1.CreateUserResponse{User: a.user}, nil
}

func (a *admin) GetApplication(context.Context, *adminv1.GetApplicationRequest) (*adminv1.GetApplicationResponse, error) {
	if a.application == nil {
		return nil, status.Error(codes.NotFound, "no such application")
	}
	return &adminv1.GetApplicationResponse{Application: a.application}, nil
}

func (a *admin) CreateApplication(_ context.Context, r *adminv1.CreateApplicationRequest) (*adminv1.CreateApplicationResponse, error) {
	a.application = &adminv1.Application{Name: r.GetName(), Owner: r.GetOwner()}
	return &adminv1.CreateApplicationResponse{Application: a.application}, nil
}

func (a *admin) SetMember(_ context.Context, r *adminv1.SetMemberRequest) (*adminv1.SetMemberResponse, error) {
	a.member = r.GetMember()
	return &adminv1.SetMemberResponse{Member: a.member}, nil
}

//nolint:revive,staticcheck // The name is generated.
func (a *admin) ListApiKeys(context.Context, *adminv1.ListApiKeysRequest) (*adminv1.ListApiKeysResponse, error) {
	return &adminv1.ListApiKeysResponse{ApiKeys: a.keys}, nil
}

//nolint:revive,staticcheck // The name is generated.
func (a *admin) CreateApiKey(_ context.Context, r *adminv1.CreateApiKeyRequest) (*adminv1.CreateApiKeyResponse, error) {
	key := &adminv1.ApiKey{Id: fmt.Sprintf("id%d", len(a.calls)), User: r.GetUser(), Scopes: r.GetScopes()}
	a.keys = append(a.keys, key)
	return &adminv1.CreateApiKeyResponse{ApiKey: key, Key: "mqi_" + key.GetId() + "_secret"}, nil
}

// secrets are kept in memory.
type secrets map[string]string

func (s secrets) Secret(name string) (string, error)   { return s[name], nil }
func (s secrets) KeepSecret(name, secret string) error { s[name] = secret; return nil }

func TestSetUp(t *testing.T) {
	t.Parallel()
	service, kept := &admin{}, secrets{}
	server := grpc.NewServer(grpc.UnaryInterceptor(service.intercept))
	adminv1.RegisterAdminServiceServer(server, service)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	setUp := func() (string, []string) {
		t.Helper()
		service.calls = nil
		key, err := demo.SetUp(t.Context(), demo.Config{
			Admin: conn, Token: "t-1", Issuer: "dev", Subject: "s", User: "demo", Application: "example-app", Secrets: kept, KeyName: "demo.key",
		})
		if err != nil {
			t.Fatal(err)
		}
		return key, service.calls
	}

	first, _ := setUp()
	if service.user.GetIssuer() != "dev" || service.user.GetSubject() != "s" || service.application.GetOwner() != "demo" {
		t.Errorf("user %v, application %v, want demo of dev as the owner", service.user, service.application)
	}
	if !service.member.GetAnonymous() || service.member.GetRole() != adminv1.Role_ROLE_READER {
		t.Errorf("member %v, want everyone as reader", service.member)
	}
	if kept["demo.key"] != first || first == "" {
		t.Errorf("key %q is kept as %q", first, kept["demo.key"])
	}

	second, calls := setUp()
	if second != first {
		t.Errorf("second key %q, want the first, %q", second, first)
	}
	if diff := cmp.Diff([]string{"GetUser", "GetApplication", "ListApiKeys"}, calls); diff != "" {
		t.Errorf("calls when everything is there (-want +got):\n%s", diff)
	}

	service.keys = nil // Somebody has revoked it.
	third, _ := setUp()
	if third == first || kept["demo.key"] != third {
		t.Errorf("third key %q, kept %q, want a new one", third, kept["demo.key"])
	}
}

func TestSetUpTellsWhatFailed(t *testing.T) {
	t.Parallel()
	conn, err := grpc.NewClient("127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := demo.SetUp(t.Context(), demo.Config{Admin: conn, User: "demo", Secrets: secrets{}}); status.Code(err) != codes.Unavailable {
		t.Errorf("SetUp: %v, want UNAVAILABLE", err)
	}
}
