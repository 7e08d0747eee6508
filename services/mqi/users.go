package mqi

import (
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
)

const pageSize = 1000

type userCommands struct {
	Create  userCreate  `cmd:"" help:"Create a user before the first sign-in, or one who has API keys alone."`
	Get     userGet     `cmd:"" help:"Show a user."`
	List    userList    `cmd:"" help:"List all users."`
	Enable  userEnable  `cmd:"" help:"Let a user sign in again."`
	Disable userDisable `cmd:"" help:"Keep a user out: ends their connections, keeps everything they have."`
	Delete  userDelete  `cmd:"" help:"Delete a user with API keys and memberships. A user of an OIDC provider comes back, with nothing, at the next sign-in: disable them to keep them out."`
}

func userTable(users ...*adminv1.User) table {
	t := table{header: []string{"NAME", "ISSUER", "SUBJECT", "STATE", "CREATED"}}
	for _, u := range users {
		state := "enabled"
		if u.GetDisabled() {
			state = "disabled"
		}
		t.rows = append(t.rows, []string{u.GetName(), u.GetIssuer(), u.GetSubject(), state, timeText(u.GetCreateTime())})
	}
	return t
}

type userCreate struct {
	Name    string `arg:"" help:"Login name."`
	Issuer  string `help:"Alias of the OIDC provider that knows the user. Without: none does." placeholder:"ALIAS"`
	Subject string `help:"The user's claim sub at the provider."`
}

// Help is shown by kong.
func (userCreate) Help() string {
	return "Examples:\n  mqi user create ci-robot\n  mqi user create demo --issuer keycloak --subject 6f1c…"
}

// Run is called by kong.
func (c userCreate) Run(s *session) error {
	if (c.Issuer == "") != (c.Subject == "") {
		return usageError{"--issuer and --subject belong together"}
	}
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.CreateUser(ctx, &adminv1.CreateUserRequest{Name: c.Name, Issuer: c.Issuer, Subject: c.Subject})
	if err != nil {
		return err
	}
	return s.show(response.GetUser(), userTable(response.GetUser()))
}

type userGet struct {
	Name string `arg:"" help:"Login name."`
}

// Run is called by kong.
func (c userGet) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.GetUser(ctx, &adminv1.GetUserRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return s.show(response.GetUser(), userTable(response.GetUser()))
}

type userList struct{}

// Run is called by kong.
func (userList) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	all := &adminv1.ListUsersResponse{}
	for request := (&adminv1.ListUsersRequest{PageSize: pageSize}); ; {
		page, err := client.ListUsers(ctx, request)
		if err != nil {
			return err
		}
		all.Users = append(all.Users, page.GetUsers()...)
		if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
			return s.show(all, userTable(all.GetUsers()...))
		}
	}
}

type userEnable struct {
	Name string `arg:"" help:"Login name."`
}

// Run is called by kong.
func (c userEnable) Run(s *session) error { return setDisabled(s, c.Name, false) }

type userDisable struct {
	Name string `arg:"" help:"Login name."`
}

// Run is called by kong.
func (c userDisable) Run(s *session) error { return setDisabled(s, c.Name, true) }

func setDisabled(s *session, name string, disabled bool) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.UpdateUser(ctx, &adminv1.UpdateUserRequest{Name: name, Disabled: &disabled})
	if err != nil {
		return err
	}
	return s.show(response.GetUser(), userTable(response.GetUser()))
}

type userDelete struct {
	Name string `arg:"" help:"Login name."`
}

// Run is called by kong.
func (c userDelete) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.DeleteUser(ctx, &adminv1.DeleteUserRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return s.done(response)
}
