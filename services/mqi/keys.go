package mqi

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
)

type keyCommands struct {
	Create keyCreate `cmd:"" help:"Create an API key and print it, this once."`
	List   keyList   `cmd:"" help:"List API keys, without their secrets."`
	Revoke keyRevoke `cmd:"" help:"End an API key at once, on live connections too."`
}

func keyTable(keys ...*adminv1.ApiKey) table {
	t := table{header: []string{"ID", "USER", "SCOPES", "APPLICATIONS", "EXPIRES", "LAST USE", "CREATED", "DESCRIPTION"}}
	for _, k := range keys {
		var scopes []string
		for _, scope := range k.GetScopes() {
			scopes = append(scopes, strings.ToLower(strings.TrimPrefix(scope.String(), "API_KEY_SCOPE_")))
		}
		applications := "(all)"
		if len(k.GetApplications()) > 0 {
			applications = strings.Join(k.GetApplications(), ",")
		}
		t.rows = append(t.rows, []string{
			k.GetId(), k.GetUser(), strings.Join(scopes, ","), applications, timeText(k.GetExpireTime()),
			timeText(k.GetLastUseTime()), timeText(k.GetCreateTime()), k.GetDescription(),
		})
	}
	return t
}

type keyCreate struct {
	For         string        `help:"Login name of the owner. Without: you." placeholder:"NAME"`
	Description string        `help:"What it is for."`
	Scope       []string      `help:"read, write, admin; with commas. Without: read and write." enum:"read,write,admin" placeholder:"SCOPE"`
	App         []string      `help:"Applications that it may be used for. Without: all of the owner's." placeholder:"NAME"`
	ExpiresIn   time.Duration `help:"For how long it is valid. Without: until it is revoked." xor:"expiry" placeholder:"DURATION"`
	ExpiresAt   time.Time     `help:"Until when it is valid, as RFC 3339." xor:"expiry" placeholder:"TIME"`
}

// Help is shown by kong.
func (keyCreate) Help() string {
	return "The key alone goes to standard output.\n\nExamples:\n  mqi key create --for demo > demo.key\n" +
		"  mqi key create --scope read --app example-app --expires-in 720h --description dashboard"
}

// Run is called by kong.
func (c keyCreate) Run(s *session) error {
	request := &adminv1.CreateApiKeyRequest{User: c.For, Description: c.Description, Applications: c.App}
	for _, scope := range c.Scope {
		request.Scopes = append(request.Scopes, adminv1.ApiKeyScope(adminv1.ApiKeyScope_value["API_KEY_SCOPE_"+strings.ToUpper(scope)]))
	}
	switch {
	case c.ExpiresIn < 0:
		return usageError{"--expires-in: is negative"}
	case c.ExpiresIn > 0:
		request.ExpireTime = timestamppb.New(time.Now().Add(c.ExpiresIn))
	case !c.ExpiresAt.IsZero():
		request.ExpireTime = timestamppb.New(c.ExpiresAt)
	}
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.CreateApiKey(ctx, request)
	if err != nil {
		return err
	}
	if s.cli.Output == "json" {
		return s.showJSON(response)
	}
	_, _ = fmt.Fprintf(s.stderr, "API key %s of user %s. It is not shown again:\n", response.GetApiKey().GetId(), printable(response.GetApiKey().GetUser()))
	_, err = fmt.Fprintln(s.stdout, response.GetKey())
	return err
}

type keyList struct {
	For string `help:"Login name of the owner. Without: you." placeholder:"NAME"`
}

// Run is called by kong.
func (c keyList) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.ListApiKeys(ctx, &adminv1.ListApiKeysRequest{User: c.For})
	if err != nil {
		return err
	}
	return s.show(response, keyTable(response.GetApiKeys()...))
}

type keyRevoke struct {
	ID string `arg:"" help:"Public id of the key: what is between mqi_ and the next _."`
}

// Run is called by kong.
func (c keyRevoke) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.RevokeApiKey(ctx, &adminv1.RevokeApiKeyRequest{Id: c.ID})
	if err != nil {
		return err
	}
	return s.done(response)
}
