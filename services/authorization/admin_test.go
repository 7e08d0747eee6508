package authorization_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/authorization"
)

// adminClient does as somebody what a test needs.
type adminClient struct {
	s   *service
	ctx context.Context //nolint:containedctx // who somebody is
}

func (c *adminClient) createUser(tb testing.TB, issuer, subject, name string) {
	tb.Helper()
	if _, err := c.s.admin.CreateUser(c.ctx, &adminv1.CreateUserRequest{Issuer: issuer, Subject: subject, Name: name}); err != nil {
		tb.Fatal(err)
	}
}

func (c *adminClient) createKey(tb testing.TB, request *adminv1.CreateApiKeyRequest) *adminv1.CreateApiKeyResponse {
	tb.Helper()
	response, err := c.s.admin.CreateApiKey(c.ctx, request)
	if err != nil {
		tb.Fatal(err)
	}
	return response
}

func (c *adminClient) createApplication(tb testing.TB, name, owner string) {
	tb.Helper()
	if _, err := c.s.admin.CreateApplication(c.ctx, &adminv1.CreateApplicationRequest{Name: name, Owner: owner}); err != nil {
		tb.Fatal(err)
	}
}

func (c *adminClient) setMember(t *testing.T, application string, member *adminv1.Member) {
	t.Helper()
	if _, err := c.s.admin.SetMember(c.ctx, &adminv1.SetMemberRequest{Application: application, Member: member}); err != nil {
		t.Fatal(err)
	}
}

func (c *adminClient) disable(t *testing.T, name string, disabled bool) {
	t.Helper()
	if _, err := c.s.admin.UpdateUser(c.ctx, &adminv1.UpdateUserRequest{Name: name, Disabled: &disabled}); err != nil {
		t.Fatal(err)
	}
}

func TestAdminSignIn(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	s := start(t, configFor(t, i))
	root := s.root(t, i)
	root.createUser(t, "dev", "sub-demo", "demo")
	admin := root.createKey(t, &adminv1.CreateApiKeyRequest{Scopes: []adminv1.ApiKeyScope{adminv1.ApiKeyScope_API_KEY_SCOPE_ADMIN}})
	plain := root.createKey(t, &adminv1.CreateApiKeyRequest{})
	name := admin.GetApiKey().GetUser()
	disabled := root.createKey(t, &adminv1.CreateApiKeyRequest{User: "demo", Scopes: []adminv1.ApiKeyScope{adminv1.ApiKeyScope_API_KEY_SCOPE_ADMIN}})
	root.disable(t, "demo", true)
	with := func(values ...string) context.Context {
		return metadata.NewOutgoingContext(t.Context(), metadata.MD{"authorization": values})
	}
	token := func(claims map[string]any) context.Context { return bearer(t.Context(), testkit.Mint(t, i, claims)) }
	roles := func(r ...string) map[string]any {
		return map[string]any{"sub": "by-role", "realm_access": map[string]any{"roles": r}}
	}
	for _, tt := range []struct {
		name string
		ctx  context.Context
		want codes.Code
	}{
		{"a token of an administrator", root.ctx, codes.OK},
		{"a token with an administrator's role", token(roles("mqtt-admin")), codes.OK},
		{"an administrator's key with the admin scope", basic(t.Context(), name, admin.GetKey()), codes.OK},
		{"an administrator's key without the admin scope", basic(t.Context(), name, plain.GetKey()), codes.PermissionDenied},
		{"a token of somebody else", token(roles("mqtt-user")), codes.PermissionDenied},
		{"a disabled user", basic(t.Context(), "demo", disabled.GetKey()), codes.PermissionDenied},
		{"nothing", t.Context(), codes.Unauthenticated},
		{"two authorizations", with("Bearer x", "Bearer y"), codes.Unauthenticated},
		{"another scheme", with("Digest x"), codes.Unauthenticated},
		{"no base64", with("Basic !"), codes.Unauthenticated},
		{"no colon", with("Basic eA=="), codes.Unauthenticated},
		{"a wrong key", basic(t.Context(), name, "wrong"), codes.Unauthenticated},
		{"a wrong token", with("Bearer x"), codes.Unauthenticated},
		{"an expired token", token(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), codes.Unauthenticated},
		{"a token for another audience", token(map[string]any{"aud": "x"}), codes.Unauthenticated},
	} {
		if _, err := s.admin.ListUsers(tt.ctx, &adminv1.ListUsersRequest{}); status.Code(err) != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if _, err := s.admin.RotateApiKey(root.ctx, &adminv1.RotateApiKeyRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("RotateApiKey: %v, want UNIMPLEMENTED", err)
	}
	if _, err := s.admin.ListAuditRecords(t.Context(), &adminv1.ListAuditRecordsRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("ListAuditRecords without credentials: %v, want UNAUTHENTICATED", err)
	}
}

// Who may do what to applications and members, and what they learn if not.
func TestAdministrationOfApplications(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	s := start(t, configFor(t, i))
	root := s.root(t, i)
	as := map[string]*adminClient{"root": root}
	for _, name := range []string{"owner", "admin", "manager", "stranger"} {
		root.createUser(t, "dev", "sub-"+name, name)
		as[name] = &adminClient{s: s, ctx: bearer(t.Context(), testkit.Mint(t, i, map[string]any{"sub": "sub-" + name}))}
	}
	root.createApplication(t, "app", "owner")
	root.createApplication(t, "private", "")
	as["owner"].setMember(t, "app", &adminv1.Member{User: "admin", Role: adminv1.Role_ROLE_ADMIN})
	as["admin"].setMember(t, "app", &adminv1.Member{User: "manager", Role: adminv1.Role_ROLE_MANAGER})
	as["admin"].setMember(t, "app", &adminv1.Member{Anonymous: true, Role: adminv1.Role_ROLE_READER})

	calls := map[string]func(ctx context.Context) error{
		"get": func(ctx context.Context) error {
			_, err := s.admin.GetApplication(ctx, &adminv1.GetApplicationRequest{Name: "app"})
			return err
		},
		"members": func(ctx context.Context) error {
			_, err := s.admin.ListMembers(ctx, &adminv1.ListMembersRequest{Application: "app"})
			return err
		},
		"set": func(ctx context.Context) error {
			_, err := s.admin.SetMember(ctx, &adminv1.SetMemberRequest{
				Application: "app", Member: &adminv1.Member{User: "manager", Role: adminv1.Role_ROLE_MANAGER},
			})
			return err
		},
		"remove nobody": func(ctx context.Context) error {
			_, err := s.admin.RemoveMember(ctx, &adminv1.RemoveMemberRequest{Application: "app", User: "stranger"})
			return err
		},
		"transfer": func(ctx context.Context) error {
			_, err := s.admin.TransferOwnership(ctx, &adminv1.TransferOwnershipRequest{Application: "app", Owner: "owner"})
			return err
		},
		"transfer to nobody": func(ctx context.Context) error {
			_, err := s.admin.TransferOwnership(ctx, &adminv1.TransferOwnershipRequest{Application: "app", Owner: "nobody"})
			return err
		},
		"get what is not there": func(ctx context.Context) error {
			_, err := s.admin.GetApplication(ctx, &adminv1.GetApplicationRequest{Name: "lost"})
			return err
		},
		"delete what is not there": func(ctx context.Context) error {
			_, err := s.admin.DeleteApplication(ctx, &adminv1.DeleteApplicationRequest{Name: "lost"})
			return err
		},
		"get nothing": func(ctx context.Context) error {
			_, err := s.admin.GetApplication(ctx, &adminv1.GetApplicationRequest{})
			return err
		},
		"create": func(ctx context.Context) error {
			_, err := s.admin.CreateApplication(ctx, &adminv1.CreateApplicationRequest{Name: "a/b"})
			return err
		},
		"create user": func(ctx context.Context) error {
			_, err := s.admin.CreateUser(ctx, &adminv1.CreateUserRequest{Name: "a:b"})
			return err
		},
		"key for another": func(ctx context.Context) error {
			_, err := s.admin.CreateApiKey(ctx, &adminv1.CreateApiKeyRequest{User: "nobody"})
			return err
		},
		"another user": func(ctx context.Context) error {
			_, err := s.admin.GetUser(ctx, &adminv1.GetUserRequest{Name: "nobody"})
			return err
		},
	}
	const (
		ok = codes.OK
		no = codes.PermissionDenied
		nf = codes.NotFound
		ia = codes.InvalidArgument
	)
	order := []string{"root", "owner", "admin", "manager", "stranger"}
	for call, want := range map[string][5]codes.Code{
		"get":                      {ok, ok, ok, no, no},
		"members":                  {ok, ok, ok, no, no},
		"set":                      {ok, ok, ok, no, no},
		"remove nobody":            {nf, nf, nf, no, no},
		"transfer":                 {ok, ok, no, no, no},
		"transfer to nobody":       {nf, nf, no, no, no},
		"get what is not there":    {nf, no, no, no, no},
		"delete what is not there": {nf, no, no, no, no},
		"get nothing":              {nf, no, no, no, no},
		"create":                   {ia, no, no, no, no},
		"create user":              {ia, no, no, no, no},
		"key for another":          {nf, no, no, no, no},
		"another user":             {nf, no, no, no, no},
	} {
		for n, who := range order {
			if got := status.Code(calls[call](as[who].ctx)); got != want[n] {
				t.Errorf("%s by %s: %v, want %v", call, who, got, want[n])
			}
		}
	}

	members, err := s.admin.ListMembers(root.ctx, &adminv1.ListMembersRequest{Application: "app"})
	if err != nil {
		t.Fatal(err)
	}
	want := &adminv1.ListMembersResponse{Members: []*adminv1.Member{
		{User: "owner", Role: adminv1.Role_ROLE_OWNER},
		{User: "admin", Role: adminv1.Role_ROLE_ADMIN},
		{User: "manager", Role: adminv1.Role_ROLE_MANAGER},
		{Anonymous: true, Role: adminv1.Role_ROLE_READER},
	}}
	if diff := cmp.Diff(want, members, protocmp.Transform()); diff != "" {
		t.Errorf("members (-want +got)\n%s", diff)
	}
	for who, want := range map[string][]string{
		"root": {"app", "private"}, "owner": {"app"}, "admin": {"app"}, "manager": nil, "stranger": nil,
	} {
		list, err := s.admin.ListApplications(as[who].ctx, &adminv1.ListApplicationsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range list.GetApplications() {
			got = append(got, a.GetName())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("applications of %s (-want +got)\n%s", who, diff)
		}
	}
	for name, member := range map[string]*adminv1.Member{
		"no role":                {User: "stranger"},
		"ownership":              {User: "stranger", Role: adminv1.Role_ROLE_OWNER},
		"an unknown role":        {User: "stranger", Role: 42},
		"everyone as admin":      {Anonymous: true, Role: adminv1.Role_ROLE_ADMIN},
		"nobody":                 {Role: adminv1.Role_ROLE_READER},
		"a user who is everyone": {User: "stranger", Anonymous: true, Role: adminv1.Role_ROLE_READER},
	} {
		_, err := s.admin.SetMember(root.ctx, &adminv1.SetMemberRequest{Application: "app", Member: member})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("SetMember of %s: %v, want INVALID_ARGUMENT", name, err)
		}
	}
	_, err = s.admin.SetMember(root.ctx, &adminv1.SetMemberRequest{
		Application: "app", Member: &adminv1.Member{User: "owner", Role: adminv1.Role_ROLE_READER},
	})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("SetMember of the owner: %v, want FAILED_PRECONDITION", err)
	}
	if _, err = s.admin.DeleteUser(root.ctx, &adminv1.DeleteUserRequest{Name: "owner"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("DeleteUser of the owner: %v, want FAILED_PRECONDITION", err)
	}
	if _, err = s.admin.DeleteApplication(as["owner"].ctx, &adminv1.DeleteApplicationRequest{Name: "app"}); err != nil {
		t.Errorf("DeleteApplication by the owner: %v", err)
	}
}

func TestUsersPages(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	s := start(t, configFor(t, i))
	root := s.root(t, i)
	for _, name := range []string{"a", "b", "c"} {
		root.createUser(t, "", "", name)
	}
	var names []string
	request := &adminv1.ListUsersRequest{PageSize: 2}
	for {
		response, err := s.admin.ListUsers(root.ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range response.GetUsers() {
			names = append(names, u.GetName())
		}
		if request.PageToken = response.GetNextPageToken(); request.GetPageToken() == "" {
			break
		}
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "sub-root"}, names); diff != "" {
		t.Errorf("names (-want +got)\n%s", diff)
	}
	for _, bad := range []*adminv1.ListUsersRequest{{PageSize: -1}, {PageSize: 1001}, {PageToken: "!"}} {
		if _, err := s.admin.ListUsers(root.ctx, bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("ListUsers(%v): %v, want INVALID_ARGUMENT", bad, err)
		}
	}
	for name, request := range map[string]*adminv1.CreateUserRequest{
		"an unknown issuer":      {Issuer: "lost", Subject: "x", Name: "x"},
		"anonymous":              {Issuer: "anonymous", Subject: "x", Name: "x"},
		"no subject":             {Issuer: "dev", Name: "x"},
		"a local user's subject": {Subject: "x", Name: "x"},
	} {
		if _, err := s.admin.CreateUser(root.ctx, request); status.Code(err) != codes.InvalidArgument {
			t.Errorf("CreateUser of %s: %v, want INVALID_ARGUMENT", name, err)
		}
	}
	if _, err := s.admin.CreateUser(root.ctx, &adminv1.CreateUserRequest{Name: "a"}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("CreateUser with a name that is taken: %v, want ALREADY_EXISTS", err)
	}
}

func TestAPIKeys(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	s := start(t, configFor(t, i))
	root := s.root(t, i)
	root.createUser(t, "dev", "sub-demo", "demo")
	demo := &adminClient{s: s, ctx: bearer(t.Context(), testkit.Mint(t, i, map[string]any{"sub": "sub-demo"}))}
	hour := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	made := demo.createKey(t, &adminv1.CreateApiKeyRequest{
		Description: "for the pump", Applications: []string{"b", "a", "b"},
		Scopes:     []adminv1.ApiKeyScope{adminv1.ApiKeyScope_API_KEY_SCOPE_ADMIN, adminv1.ApiKeyScope_API_KEY_SCOPE_READ},
		ExpireTime: timestamppb.New(hour),
	})
	if used := s.authenticate(t, byKey("demo", made.GetKey())).GetAuthenticated().GetCredential(); used.GetExpireTime().AsTime() != hour {
		t.Errorf("credential %v, want it to end at %v", used, hour)
	}
	list, err := s.admin.ListApiKeys(demo.ctx, &adminv1.ListApiKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &adminv1.ListApiKeysResponse{ApiKeys: []*adminv1.ApiKey{{
		Id: made.GetApiKey().GetId(), User: "demo", Description: "for the pump", Applications: []string{"a", "b"},
		Scopes:     []adminv1.ApiKeyScope{adminv1.ApiKeyScope_API_KEY_SCOPE_READ, adminv1.ApiKeyScope_API_KEY_SCOPE_ADMIN},
		ExpireTime: timestamppb.New(hour),
	}}}
	if diff := cmp.Diff(want, list, protocmp.Transform(), protocmp.IgnoreFields(&adminv1.ApiKey{}, "create_time")); diff != "" {
		t.Errorf("keys (-want +got)\n%s", diff)
	}

	// A key is no way to a stronger one.
	byKeyOf := func(key *adminv1.CreateApiKeyResponse) context.Context {
		return basic(t.Context(), "demo", key.GetKey())
	}
	both := []adminv1.ApiKeyScope{adminv1.ApiKeyScope_API_KEY_SCOPE_ADMIN, adminv1.ApiKeyScope_API_KEY_SCOPE_WRITE}
	for name, tt := range map[string]struct {
		request *adminv1.CreateApiKeyRequest
		want    codes.Code
	}{
		"the same":          {&adminv1.CreateApiKeyRequest{Scopes: made.GetApiKey().GetScopes(), Applications: []string{"a", "b"}, ExpireTime: timestamppb.New(hour)}, codes.OK},
		"less":              {&adminv1.CreateApiKeyRequest{Scopes: both[:1], Applications: []string{"a"}, ExpireTime: timestamppb.New(hour.Add(-time.Minute))}, codes.OK},
		"another scope":     {&adminv1.CreateApiKeyRequest{Scopes: both, Applications: []string{"a"}, ExpireTime: timestamppb.New(hour)}, codes.PermissionDenied},
		"default scopes":    {&adminv1.CreateApiKeyRequest{Applications: []string{"a"}, ExpireTime: timestamppb.New(hour)}, codes.PermissionDenied},
		"every application": {&adminv1.CreateApiKeyRequest{Scopes: both[:1], ExpireTime: timestamppb.New(hour)}, codes.PermissionDenied},
		"another one":       {&adminv1.CreateApiKeyRequest{Scopes: both[:1], Applications: []string{"a", "c"}, ExpireTime: timestamppb.New(hour)}, codes.PermissionDenied},
		"for longer":        {&adminv1.CreateApiKeyRequest{Scopes: both[:1], Applications: []string{"a"}, ExpireTime: timestamppb.New(hour.Add(time.Minute))}, codes.PermissionDenied},
		"for ever":          {&adminv1.CreateApiKeyRequest{Scopes: both[:1], Applications: []string{"a"}}, codes.PermissionDenied},
		"for somebody else": {&adminv1.CreateApiKeyRequest{User: "sub-root", Scopes: both[:1], Applications: []string{"a"}, ExpireTime: timestamppb.New(hour)}, codes.PermissionDenied},
	} {
		if _, err := s.admin.CreateApiKey(byKeyOf(made), tt.request); status.Code(err) != tt.want {
			t.Errorf("a key creates %s: %v, want %v", name, err, tt.want)
		}
	}
	for name, request := range map[string]*adminv1.CreateApiKeyRequest{
		"a past expiry":      {ExpireTime: timestamppb.New(time.Now())},
		"an unknown scope":   {Scopes: []adminv1.ApiKeyScope{0}},
		"a bad application":  {Applications: []string{"a/b"}},
		"a long description": {Description: string(make([]byte, 257))},
	} {
		if _, err := s.admin.CreateApiKey(demo.ctx, request); status.Code(err) != codes.InvalidArgument {
			t.Errorf("CreateApiKey with %s: %v, want INVALID_ARGUMENT", name, err)
		}
	}

	theirs := root.createKey(t, &adminv1.CreateApiKeyRequest{})
	for _, id := range []string{theirs.GetApiKey().GetId(), "unknown"} {
		_, err := s.admin.RevokeApiKey(demo.ctx, &adminv1.RevokeApiKeyRequest{Id: id})
		if status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no such API key" {
			t.Errorf("RevokeApiKey of a key that is not theirs: %v, want NOT_FOUND, as for one that is nobody's", err)
		}
	}
	if _, err := s.admin.RevokeApiKey(demo.ctx, &adminv1.RevokeApiKeyRequest{Id: made.GetApiKey().GetId()}); err != nil {
		t.Errorf("RevokeApiKey: %v", err)
	}
	if got := s.authenticate(t, byKey("demo", made.GetKey())).GetDenial().GetReason(); got != authorizationv1.AuthenticationDenialReason_AUTHENTICATION_DENIAL_REASON_BAD_CREDENTIALS {
		t.Errorf("a revoked key: %v, want bad credentials", got)
	}
}

// Administrators by the issuer's name claim, for tokens alone; and users who create
// applications of their own, where that is on.
func TestAdministratorsByNameAndUsersWithApplications(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	cfg := configFor(t, i)
	cfg.Administrators = []authorization.Administrator{{Issuer: "dev", Name: "alice"}}
	cfg.UsersCreateApplications = true
	s := start(t, cfg)
	as := func(subject, name string) *adminClient {
		return &adminClient{s: s, ctx: bearer(t.Context(), testkit.Mint(t, i, map[string]any{"sub": subject, "preferred_username": name}))}
	}
	alice, bob := as("1", "alice"), as("2", "bob")
	alice.createUser(t, "", "", "robot")
	key := alice.createKey(t, &adminv1.CreateApiKeyRequest{Scopes: []adminv1.ApiKeyScope{adminv1.ApiKeyScope_API_KEY_SCOPE_ADMIN}})
	if _, err := s.admin.ListUsers(basic(t.Context(), "alice", key.GetKey()), &adminv1.ListUsersRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a key of an administrator by name: %v, want PERMISSION_DENIED", err)
	}
	if _, err := s.admin.ListUsers(as("sub-root", "root").ctx, &adminv1.ListUsersRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("somebody who is administrator elsewhere: %v, want PERMISSION_DENIED", err)
	}
	bob.createApplication(t, "bobs", "")
	bob.createApplication(t, "bobs-too", "bob")
	if _, err := s.admin.CreateApplication(bob.ctx, &adminv1.CreateApplicationRequest{Name: "x", Owner: "alice"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an application for somebody else: %v, want PERMISSION_DENIED", err)
	}
	restricted := bob.createKey(t, &adminv1.CreateApiKeyRequest{
		Scopes: []adminv1.ApiKeyScope{adminv1.ApiKeyScope_API_KEY_SCOPE_ADMIN}, Applications: []string{"bobs"},
	})
	with := basic(t.Context(), "bob", restricted.GetKey())
	if _, err := s.admin.CreateApplication(with, &adminv1.CreateApplicationRequest{Name: "y"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an application by a key for another one: %v, want PERMISSION_DENIED", err)
	}
	list, err := s.admin.ListApplications(with, &adminv1.ListApplicationsRequest{})
	if err != nil || len(list.GetApplications()) != 1 {
		t.Errorf("applications of that key: %v, %v, want one", list, err)
	}
}

// The last use is written when the service stops, at the latest.
func TestLastUse(t *testing.T) {
	t.Parallel()
	i := devIssuer(t)
	cfg := configFor(t, i)
	s := start(t, cfg)
	key := s.root(t, i).createKey(t, &adminv1.CreateApiKeyRequest{})
	before := time.Now().Truncate(time.Hour)
	s.authenticate(t, byKey(key.GetApiKey().GetUser(), key.GetKey()))
	s.stop()
	s = start(t, cfg)
	list, err := s.admin.ListApiKeys(s.root(t, i).ctx, &adminv1.ListApiKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := list.GetApiKeys()[0].GetLastUseTime().AsTime(); got.Before(before) || got.Minute() != 0 || got.Second() != 0 {
		t.Errorf("last use %v, want this hour", got)
	}
}
