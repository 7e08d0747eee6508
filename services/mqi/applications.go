package mqi

import (
	"strings"

	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
)

type appCommands struct {
	Create   appCreate   `cmd:"" help:"Create an application."`
	Get      appGet      `cmd:"" help:"Show an application."`
	List     appList     `cmd:"" help:"List the applications that you may administer."`
	Delete   appDelete   `cmd:"" help:"Delete an application and its memberships, not its Kafka topic."`
	Transfer appTransfer `cmd:"" help:"Make somebody else the owner. The former one becomes an admin."`
}

func appTable(applications ...*adminv1.Application) table {
	t := table{header: []string{"NAME", "OWNER", "CREATED"}}
	for _, a := range applications {
		t.rows = append(t.rows, []string{a.GetName(), a.GetOwner(), timeText(a.GetCreateTime())})
	}
	return t
}

type appCreate struct {
	Name  string `arg:"" help:"Name of the application."`
	Owner string `help:"Login name of the owner. Without: you." placeholder:"NAME"`
}

// Help is shown by kong.
func (appCreate) Help() string { return "Example:\n  mqi app create example-app --owner demo" }

// Run is called by kong.
func (c appCreate) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.CreateApplication(ctx, &adminv1.CreateApplicationRequest{Name: c.Name, Owner: c.Owner})
	if err != nil {
		return err
	}
	return s.show(response.GetApplication(), appTable(response.GetApplication()))
}

type appGet struct {
	Name string `arg:"" help:"Name of the application."`
}

// Run is called by kong.
func (c appGet) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.GetApplication(ctx, &adminv1.GetApplicationRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return s.show(response.GetApplication(), appTable(response.GetApplication()))
}

type appList struct{}

// Run is called by kong.
func (appList) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	all := &adminv1.ListApplicationsResponse{}
	for request := (&adminv1.ListApplicationsRequest{PageSize: pageSize}); ; {
		page, err := client.ListApplications(ctx, request)
		if err != nil {
			return err
		}
		all.Applications = append(all.Applications, page.GetApplications()...)
		if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
			return s.show(all, appTable(all.GetApplications()...))
		}
	}
}

type appDelete struct {
	Name string `arg:"" help:"Name of the application."`
}

// Run is called by kong.
func (c appDelete) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.DeleteApplication(ctx, &adminv1.DeleteApplicationRequest{Name: c.Name})
	if err != nil {
		return err
	}
	return s.done(response)
}

type appTransfer struct {
	Name  string `arg:"" help:"Name of the application."`
	Owner string `arg:"" help:"Login name of the new owner."`
}

// Run is called by kong.
func (c appTransfer) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.TransferOwnership(ctx, &adminv1.TransferOwnershipRequest{Application: c.Name, Owner: c.Owner})
	if err != nil {
		return err
	}
	return s.show(response.GetApplication(), appTable(response.GetApplication()))
}

type memberCommands struct {
	Set    memberSet    `cmd:"" help:"Give a user, or everyone, a role in the place of any that it has."`
	Remove memberRemove `cmd:"" help:"Take the role of a user, or of everyone, away."`
	List   memberList   `cmd:"" help:"List the members of an application."`
}

// everyone is how everyone is shown.
const everyone = "(everyone)"

func memberTable(members ...*adminv1.Member) table {
	t := table{header: []string{"USER", "ROLE"}}
	for _, m := range members {
		user := m.GetUser()
		if m.GetAnonymous() {
			user = everyone
		}
		t.rows = append(t.rows, []string{user, strings.ToLower(strings.TrimPrefix(m.GetRole().String(), "ROLE_"))})
	}
	return t
}

// who checks the arguments that name a member.
func who(user string, anonymous bool) error {
	if (user != "") == anonymous {
		return usageError{"exactly one of a user and --anonymous is required"}
	}
	return nil
}

type memberSet struct {
	App       string `arg:"" help:"Name of the application."`
	Role      string `arg:"" enum:"reader,publisher,manager,admin" help:"reader (events), publisher (commands), manager (both) or admin (both, and administration)."`
	Name      string `arg:"" optional:"" help:"Login name of the user."`
	Anonymous bool   `help:"Everyone, signed in or not: reader, publisher or manager."`
}

// Help is shown by kong.
func (memberSet) Help() string {
	return "Examples:\n  mqi member set example-app reader ada\n  mqi member set example-app reader --anonymous"
}

// Run is called by kong.
func (c memberSet) Run(s *session) error {
	if err := who(c.Name, c.Anonymous); err != nil {
		return err
	}
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	role := adminv1.Role(adminv1.Role_value["ROLE_"+strings.ToUpper(c.Role)])
	response, err := client.SetMember(ctx, &adminv1.SetMemberRequest{
		Application: c.App, Member: &adminv1.Member{User: c.Name, Anonymous: c.Anonymous, Role: role},
	})
	if err != nil {
		return err
	}
	return s.show(response.GetMember(), memberTable(response.GetMember()))
}

type memberRemove struct {
	App       string `arg:"" help:"Name of the application."`
	Name      string `arg:"" optional:"" help:"Login name of the user."`
	Anonymous bool   `help:"Everyone."`
}

// Run is called by kong.
func (c memberRemove) Run(s *session) error {
	if err := who(c.Name, c.Anonymous); err != nil {
		return err
	}
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.RemoveMember(ctx, &adminv1.RemoveMemberRequest{Application: c.App, User: c.Name, Anonymous: c.Anonymous})
	if err != nil {
		return err
	}
	return s.done(response)
}

type memberList struct {
	App string `arg:"" help:"Name of the application."`
}

// Run is called by kong.
func (c memberList) Run(s *session) error {
	client, ctx, err := s.client()
	if err != nil {
		return err
	}
	response, err := client.ListMembers(ctx, &adminv1.ListMembersRequest{Application: c.App})
	if err != nil {
		return err
	}
	return s.show(response, memberTable(response.GetMembers()...))
}
