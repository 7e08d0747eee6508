package admin

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/google/uuid"

	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

const maxSubject = 256

func userTo(u store.User) *adminv1.User {
	return &adminv1.User{
		Issuer: u.Principal.Issuer, Subject: u.Principal.Subject, Name: u.Name, Disabled: u.Disabled,
		CreateTime: timestamp(u.CreateTime),
	}
}

// CreateUser implements AdminServiceServer.
func (s *Server) CreateUser(ctx context.Context, request *adminv1.CreateUserRequest) (*adminv1.CreateUserResponse, error) {
	if err := s.need(ctx, policy.Administer, ""); err != nil {
		return nil, err
	}
	user := store.User{Principal: policy.Principal{Issuer: request.GetIssuer(), Subject: request.GetSubject()}, Name: request.GetName()}
	if err := store.ValidateLoginName(user.Name); err != nil {
		return nil, invalid("name", err)
	}
	switch {
	case user.Principal.Issuer == "" || user.Principal.Issuer == policy.IssuerLocal:
		if user.Principal.Subject != "" {
			return nil, invalid("subject", errors.New("is made for local users"))
		}
		user.Principal = policy.Principal{Issuer: policy.IssuerLocal, Subject: uuid.NewString()}
	case !slices.Contains(s.cfg.Rules.Issuers, user.Principal.Issuer):
		return nil, invalid("issuer", errors.New("is no alias of a configured issuer"))
	case user.Principal.Subject == "" || len(user.Principal.Subject) > maxSubject:
		return nil, invalid("subject", errors.New("is required for users of an issuer, and has at most 256 bytes"))
	}
	created, err := s.cfg.Store.CreateUser(ctx, user)
	if err != nil {
		return nil, err
	}
	s.audit(ctx, "CreateUser", created.Name, slog.String("user", created.Principal.String()))
	return &adminv1.CreateUserResponse{User: userTo(created)}, nil
}

// GetUser implements AdminServiceServer.
func (s *Server) GetUser(ctx context.Context, request *adminv1.GetUserRequest) (*adminv1.GetUserResponse, error) {
	_, name, err := s.needSelf(ctx, request.GetName())
	if err != nil {
		return nil, err
	}
	user, err := s.cfg.Store.User(ctx, name)
	if err != nil {
		return nil, err
	}
	return &adminv1.GetUserResponse{User: userTo(user)}, nil
}

// ListUsers implements AdminServiceServer.
func (s *Server) ListUsers(ctx context.Context, request *adminv1.ListUsersRequest) (*adminv1.ListUsersResponse, error) {
	if err := s.need(ctx, policy.Administer, ""); err != nil {
		return nil, err
	}
	limit, after, err := page(request.GetPageSize(), request.GetPageToken())
	if err != nil {
		return nil, err
	}
	users, err := s.cfg.Store.Users(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	response := &adminv1.ListUsersResponse{
		NextPageToken: nextPage(len(users), limit, func() string { return users[len(users)-1].Name }),
	}
	for _, user := range users {
		response.Users = append(response.Users, userTo(user))
	}
	return response, nil
}

// UpdateUser implements AdminServiceServer.
func (s *Server) UpdateUser(ctx context.Context, request *adminv1.UpdateUserRequest) (*adminv1.UpdateUserResponse, error) {
	if err := s.need(ctx, policy.Administer, ""); err != nil {
		return nil, err
	}
	if request.Disabled == nil { // presence, which the getter hides
		user, err := s.cfg.Store.User(ctx, request.GetName())
		if err != nil {
			return nil, err
		}
		return &adminv1.UpdateUserResponse{User: userTo(user)}, nil
	}
	user, err := s.cfg.Store.SetUserDisabled(ctx, request.GetName(), request.GetDisabled())
	if err != nil {
		return nil, err
	}
	s.audit(ctx, "UpdateUser", user.Name, slog.Bool("disabled", user.Disabled))
	return &adminv1.UpdateUserResponse{User: userTo(user)}, nil
}

// DeleteUser implements AdminServiceServer.
func (s *Server) DeleteUser(ctx context.Context, request *adminv1.DeleteUserRequest) (*adminv1.DeleteUserResponse, error) {
	if err := s.need(ctx, policy.Administer, ""); err != nil {
		return nil, err
	}
	if err := s.cfg.Store.DeleteUser(ctx, request.GetName()); err != nil {
		return nil, err
	}
	s.audit(ctx, "DeleteUser", request.GetName())
	return &adminv1.DeleteUserResponse{}, nil
}
