package admin

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"mqtt-integration/libs/naming"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

func applicationTo(a store.Application) *adminv1.Application {
	return &adminv1.Application{Name: a.Name, Owner: a.Owner, CreateTime: timestamp(a.CreateTime)}
}

// CreateApplication implements AdminServiceServer.
func (s *Server) CreateApplication(ctx context.Context, request *adminv1.CreateApplicationRequest) (*adminv1.CreateApplicationResponse, error) {
	c := callerOf(ctx)
	owner := request.GetOwner()
	if owner == "" {
		owner = c.name
	}
	unrestricted := c.key == nil || len(c.key.Applications) == 0
	if !s.cfg.UsersCreateApplications || owner != c.name || !unrestricted {
		if err := s.need(ctx, policy.Administer, ""); err != nil {
			return nil, err
		}
	}
	if err := naming.ValidateApplication(request.GetName()); err != nil {
		return nil, invalid("name", err)
	}
	created, err := s.cfg.Store.CreateApplication(ctx, request.GetName(), owner)
	if err != nil {
		return nil, err
	}
	s.audit(ctx, "CreateApplication", created.Name, slog.String("owner", created.Owner))
	return &adminv1.CreateApplicationResponse{Application: applicationTo(created)}, nil
}

// GetApplication implements AdminServiceServer.
func (s *Server) GetApplication(ctx context.Context, request *adminv1.GetApplicationRequest) (*adminv1.GetApplicationResponse, error) {
	if err := s.need(ctx, policy.Administer, nonEmpty(request.GetName())); err != nil {
		return nil, err
	}
	a, err := s.cfg.Store.Application(ctx, request.GetName())
	if err != nil {
		return nil, err
	}
	return &adminv1.GetApplicationResponse{Application: applicationTo(a)}, nil
}

// nonEmpty keeps an application without a name from meaning everything.
func nonEmpty(name string) string {
	if name == "" {
		return "/" // no application has this name
	}
	return name
}

// ListApplications implements AdminServiceServer.
func (s *Server) ListApplications(ctx context.Context, request *adminv1.ListApplicationsRequest) (*adminv1.ListApplicationsResponse, error) {
	c := callerOf(ctx)
	limit, after, err := page(request.GetPageSize(), request.GetPageToken())
	if err != nil {
		return nil, err
	}
	everything, err := s.may(ctx, c, policy.Administer, "")
	if err != nil {
		return nil, err
	}
	of := &c.principal
	if everything {
		of = nil
	}
	applications, err := s.cfg.Store.Applications(ctx, of, after, limit)
	if err != nil {
		return nil, err
	}
	response := &adminv1.ListApplicationsResponse{
		NextPageToken: nextPage(len(applications), limit, func() string { return applications[len(applications)-1].Name }),
	}
	for _, a := range applications {
		if c.key == nil || len(c.key.Applications) == 0 || slices.Contains(c.key.Applications, a.Name) {
			response.Applications = append(response.Applications, applicationTo(a))
		}
	}
	return response, nil
}

// DeleteApplication implements AdminServiceServer.
func (s *Server) DeleteApplication(ctx context.Context, request *adminv1.DeleteApplicationRequest) (*adminv1.DeleteApplicationResponse, error) {
	if err := s.need(ctx, policy.Own, nonEmpty(request.GetName())); err != nil {
		return nil, err
	}
	if err := s.cfg.Store.DeleteApplication(ctx, request.GetName()); err != nil {
		return nil, err
	}
	s.audit(ctx, "DeleteApplication", request.GetName())
	return &adminv1.DeleteApplicationResponse{}, nil
}

// TransferOwnership implements AdminServiceServer.
func (s *Server) TransferOwnership(ctx context.Context, request *adminv1.TransferOwnershipRequest) (*adminv1.TransferOwnershipResponse, error) {
	if err := s.need(ctx, policy.Own, nonEmpty(request.GetApplication())); err != nil {
		return nil, err
	}
	a, err := s.cfg.Store.TransferOwnership(ctx, request.GetApplication(), request.GetOwner())
	if err != nil {
		return nil, err
	}
	s.audit(ctx, "TransferOwnership", a.Name, slog.String("owner", a.Owner))
	return &adminv1.TransferOwnershipResponse{Application: applicationTo(a)}, nil
}

func memberTo(m store.Member) *adminv1.Member {
	return &adminv1.Member{User: m.User, Anonymous: m.Everyone, Role: roleTo(m.Role)}
}

func roleTo(r policy.Role) adminv1.Role {
	switch r {
	case policy.Reader:
		return adminv1.Role_ROLE_READER
	case policy.Publisher:
		return adminv1.Role_ROLE_PUBLISHER
	case policy.Manager:
		return adminv1.Role_ROLE_MANAGER
	case policy.Admin:
		return adminv1.Role_ROLE_ADMIN
	case policy.Owner:
		return adminv1.Role_ROLE_OWNER
	default:
		return adminv1.Role_ROLE_UNSPECIFIED
	}
}

func roleOf(r adminv1.Role) policy.Role {
	switch r {
	case adminv1.Role_ROLE_READER:
		return policy.Reader
	case adminv1.Role_ROLE_PUBLISHER:
		return policy.Publisher
	case adminv1.Role_ROLE_MANAGER:
		return policy.Manager
	case adminv1.Role_ROLE_ADMIN:
		return policy.Admin
	case adminv1.Role_ROLE_OWNER:
		return policy.Owner
	default:
		return policy.NoRole
	}
}

// memberOf checks the fields that name a member.
func memberOf(user string, everyone bool) (store.Member, error) {
	if (user != "") == everyone {
		return store.Member{}, invalid("user", errors.New("exactly one of a user and anonymous is required"))
	}
	return store.Member{User: user, Everyone: everyone}, nil
}

func memberName(m store.Member) string {
	if m.Everyone {
		return policy.IssuerAnonymous
	}
	return m.User
}

// SetMember implements AdminServiceServer.
func (s *Server) SetMember(ctx context.Context, request *adminv1.SetMemberRequest) (*adminv1.SetMemberResponse, error) {
	if err := s.need(ctx, policy.Administer, nonEmpty(request.GetApplication())); err != nil {
		return nil, err
	}
	member, err := memberOf(request.GetMember().GetUser(), request.GetMember().GetAnonymous())
	if err != nil {
		return nil, err
	}
	member.Role = roleOf(request.GetMember().GetRole())
	switch {
	case member.Role == policy.NoRole:
		return nil, invalid("role", errors.New("is required"))
	case member.Role == policy.Owner:
		return nil, invalid("role", errors.New("ownership is transferred, not given"))
	case member.Everyone && member.Role == policy.Admin:
		return nil, invalid("role", errors.New("not everyone can be admin"))
	}
	if err := s.cfg.Store.SetMember(ctx, request.GetApplication(), member); err != nil {
		return nil, err
	}
	s.audit(ctx, "SetMember", request.GetApplication(),
		slog.String("member", memberName(member)), slog.String("role", roleTo(member.Role).String()))
	return &adminv1.SetMemberResponse{Member: memberTo(member)}, nil
}

// RemoveMember implements AdminServiceServer.
func (s *Server) RemoveMember(ctx context.Context, request *adminv1.RemoveMemberRequest) (*adminv1.RemoveMemberResponse, error) {
	if err := s.need(ctx, policy.Administer, nonEmpty(request.GetApplication())); err != nil {
		return nil, err
	}
	member, err := memberOf(request.GetUser(), request.GetAnonymous())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Store.RemoveMember(ctx, request.GetApplication(), member); err != nil {
		return nil, err
	}
	s.audit(ctx, "RemoveMember", request.GetApplication(), slog.String("member", memberName(member)))
	return &adminv1.RemoveMemberResponse{}, nil
}

// ListMembers implements AdminServiceServer.
func (s *Server) ListMembers(ctx context.Context, request *adminv1.ListMembersRequest) (*adminv1.ListMembersResponse, error) {
	if err := s.need(ctx, policy.Administer, nonEmpty(request.GetApplication())); err != nil {
		return nil, err
	}
	members, err := s.cfg.Store.Members(ctx, request.GetApplication())
	if err != nil {
		return nil, err
	}
	response := &adminv1.ListMembersResponse{}
	for _, m := range members {
		response.Members = append(response.Members, memberTo(m))
	}
	return response, nil
}
