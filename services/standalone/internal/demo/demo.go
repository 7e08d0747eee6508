package demo

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
)

// Secrets keeps secrets by name; an unknown one is empty.
type Secrets interface {
	Secret(name string) (string, error)
	KeepSecret(name, secret string) error
}

// Config says what to make.
type Config struct {
	// Admin is a connection to the administration API.
	Admin grpc.ClientConnInterface
	// Token is the access token of an administrator.
	Token string
	// Issuer and Subject are who the user is, User is the login name.
	Issuer, Subject, User string
	// Application is the name of the application that the user owns.
	Application string
	// Secrets keeps the API key as KeyName.
	Secrets Secrets
	KeyName string
}

// SetUp makes what is missing and returns the API key.
func SetUp(ctx context.Context, cfg Config) (key string, err error) {
	s := setup{Config: cfg, admin: adminv1.NewAdminServiceClient(cfg.Admin)}
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+cfg.Token)
	if err := s.user(ctx); err != nil {
		return "", err
	}
	if err := s.application(ctx); err != nil {
		return "", err
	}
	return s.key(ctx)
}

type setup struct {
	Config
	admin adminv1.AdminServiceClient
}

func (s setup) user(ctx context.Context) error {
	_, err := s.admin.GetUser(ctx, &adminv1.GetUserRequest{Name: s.User})
	if status.Code(err) == codes.NotFound {
		_, err = s.admin.CreateUser(ctx, &adminv1.CreateUserRequest{Issuer: s.Issuer, Subject: s.Subject, Name: s.User})
	}
	if err != nil {
		return fmt.Errorf("make user %q: %w", s.User, err)
	}
	return nil
}

// application makes the application. Everyone may read it from the start; who
// takes that right away later is not overruled by the next start.
func (s setup) application(ctx context.Context) error {
	_, err := s.admin.GetApplication(ctx, &adminv1.GetApplicationRequest{Name: s.Application})
	if err == nil {
		return nil
	}
	if status.Code(err) == codes.NotFound {
		_, err = s.admin.CreateApplication(ctx, &adminv1.CreateApplicationRequest{Name: s.Application, Owner: s.User})
	}
	if err != nil {
		return fmt.Errorf("make application %q: %w", s.Application, err)
	}
	if _, err := s.admin.SetMember(ctx, &adminv1.SetMemberRequest{
		Application: s.Application,
		Member:      &adminv1.Member{Anonymous: true, Role: adminv1.Role_ROLE_READER},
	}); err != nil {
		return fmt.Errorf("let everyone read application %q: %w", s.Application, err)
	}
	return nil
}

// key returns the key that was kept, or makes one when there is none, or when
// somebody has revoked it.
func (s setup) key(ctx context.Context) (string, error) {
	kept, err := s.Secrets.Secret(s.KeyName)
	if err != nil {
		return "", err
	}
	existing, err := s.admin.ListApiKeys(ctx, &adminv1.ListApiKeysRequest{User: s.User})
	if err != nil {
		return "", fmt.Errorf("list the API keys of %q: %w", s.User, err)
	}
	for _, k := range existing.GetApiKeys() {
		if kept != "" && strings.Contains(kept, "_"+k.GetId()+"_") {
			return kept, nil
		}
	}
	made, err := s.admin.CreateApiKey(ctx, &adminv1.CreateApiKeyRequest{
		User:        s.User,
		Description: "made by standalone",
		Scopes: []adminv1.ApiKeyScope{
			adminv1.ApiKeyScope_API_KEY_SCOPE_READ, adminv1.ApiKeyScope_API_KEY_SCOPE_WRITE, adminv1.ApiKeyScope_API_KEY_SCOPE_ADMIN,
		},
	})
	if err != nil {
		return "", fmt.Errorf("make an API key for %q: %w", s.User, err)
	}
	return made.GetKey(), s.Secrets.KeepSecret(s.KeyName, made.GetKey())
}
