package system

import (
	"context"
	"encoding/base64"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"mqtt-integration/libs/naming"
	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/standalone"
)

// IssuerAlias is the alias of the issuer that [System.Token] uses.
const IssuerAlias = "dev"

const adminTimeout = 20 * time.Second

// Options are what a test may change. The zero value is usable.
type Options struct {
	// Brokers are the Kafka that the test itself talks to. None: testkit.Kafka.
	Brokers []string
	// Configure changes the configuration of everything. Kafka, the topic of
	// commands and the ports are set before.
	Configure func(*standalone.Config)
	// Tracer makes the tracers of a service. Nil: nothing is traced.
	Tracer func(service string) trace.TracerProvider
}

// System is a running system. Its methods may be used from several goroutines,
// those with a testing.TB from the goroutine of that test.
type System struct {
	*standalone.System

	// Brokers are the Kafka that the test itself talks to, whatever stands
	// between it and the services.
	Brokers []string
	// CommandsTopic is where commands go. It has CommandsPartitions partitions.
	CommandsTopic string
	// Admin is the administration API; calls need a context of
	// AdministratorContext or KeyContext.
	Admin adminv1.AdminServiceClient

	token string
}

// CommandsPartitions is the number of partitions of the topic of commands.
const CommandsPartitions = 8

// Start starts a system without the demonstration. Positions are committed
// within 50 ms, so that tests need not wait for them.
func Start(tb testing.TB, opts Options) *System {
	tb.Helper()
	if len(opts.Brokers) == 0 {
		opts.Brokers = testkit.Kafka(tb)
	}
	s := &System{Brokers: opts.Brokers, CommandsTopic: "commands-" + testkit.UniqueName(tb)}
	testkit.CreateTopic(tb, s.Brokers, s.CommandsTopic, CommandsPartitions)

	cfg := standalone.DefaultConfig()
	cfg.DataDir = tb.TempDir()
	cfg.AnyPorts()
	cfg.Demo.Enabled = false
	cfg.Kafka.Brokers = s.Brokers
	cfg.EventFanout.Commit.Interval = 50 * time.Millisecond
	cfg.CommandIngress.Commands.Topic = s.CommandsTopic
	if opts.Configure != nil {
		opts.Configure(&cfg)
	}

	// It is stopped by the clean-up, not by the end of the test's context, which
	// comes before.
	running, err := standalone.Start(context.WithoutCancel(tb.Context()), cfg, standalone.Options{Logger: logger(tb), Tracer: opts.Tracer})
	if err != nil {
		tb.Fatalf("start the system: %v", err)
	}
	s.System = running
	tb.Cleanup(func() {
		if err := running.Close(); err != nil {
			tb.Errorf("stop the system: %v", err)
		}
	})
	if s.token, err = running.AdministratorToken(); err != nil {
		tb.Fatal(err)
	}
	conn, err := grpc.NewClient(s.Addresses().AuthorizationAdmin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	s.Admin = adminv1.NewAdminServiceClient(conn)
	return s
}

// FreeAddress returns an address on loopback where nobody listens now.
func FreeAddress(tb testing.TB) string {
	tb.Helper()
	return testkit.FreeAddresses(tb, 1)[0]
}

// MQTT is host:port of the MQTT listener.
func (s *System) MQTT() string { return s.Addresses().MQTT }

// AdministratorContext signs calls of Admin in as an administrator.
func (s *System) AdministratorContext(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+s.token)
}

// KeyContext signs calls of Admin in with an API key.
func KeyContext(ctx context.Context, u User) context.Context {
	basic := base64.StdEncoding.EncodeToString([]byte(u.Name + ":" + u.Key))
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Basic "+basic)
}

// administer makes a call as administrator.
func administer[Request, Response any](tb testing.TB, s *System,
	call func(context.Context, Request, ...grpc.CallOption) (Response, error), request Request,
) Response {
	tb.Helper()
	ctx, cancel := context.WithTimeout(s.AdministratorContext(tb.Context()), adminTimeout)
	defer cancel()
	response, err := call(ctx, request)
	if err != nil {
		tb.Fatalf("administration, %T: %v", request, err)
	}
	return response
}

// User is a user with an API key.
type User struct {
	// Name is the login name, Key the API key.
	Name, Key string
	// KeyID is the public id of the key.
	KeyID string
	// Issuer is the alias of the issuer; with Subject it is the principal.
	Issuer, Subject string
}

// CreateUser makes a user that can sign in with an API key for reading and
// writing, and with tokens of the subject of the same name.
func (s *System) CreateUser(tb testing.TB) User {
	tb.Helper()
	name := testkit.UniqueName(tb)
	made := administer(tb, s, s.Admin.CreateUser,
		&adminv1.CreateUserRequest{Issuer: IssuerAlias, Subject: "subject-of-" + name, Name: name}).GetUser()
	u := User{Name: name, Issuer: made.GetIssuer(), Subject: made.GetSubject()}
	u.KeyID, u.Key = s.CreateKey(tb, name)
	return u
}

// CreateKey makes an API key for a user, with these scopes, or for reading and
// writing.
func (s *System) CreateKey(tb testing.TB, user string, scopes ...adminv1.ApiKeyScope) (id, key string) {
	tb.Helper()
	made := administer(tb, s, s.Admin.CreateApiKey, &adminv1.CreateApiKeyRequest{User: user, Scopes: scopes})
	return made.GetApiKey().GetId(), made.GetKey()
}

// Token returns an access token of a user that CreateUser made, with further
// claims.
func (s *System) Token(tb testing.TB, u User, claims map[string]any) string {
	tb.Helper()
	all := map[string]any{"sub": u.Subject, "preferred_username": u.Name}
	maps.Copy(all, claims)
	return testkit.Mint(tb, s.Issuer(), all)
}

// Application is an application with a topic for its events.
type Application struct {
	Name, Topic string
	Owner       User
}

// CreateApplication makes an application, its owner, and its topic with so many
// partitions.
func (s *System) CreateApplication(tb testing.TB, partitions int32) Application {
	tb.Helper()
	return s.CreateApplicationOf(tb, s.CreateUser(tb), partitions)
}

// CreateApplicationOf makes an application of a user, and its topic. With 0
// partitions there is no topic.
func (s *System) CreateApplicationOf(tb testing.TB, owner User, partitions int32) Application {
	tb.Helper()
	return s.CreateNamedApplication(tb, owner, testkit.UniqueName(tb), partitions)
}

// CreateNamedApplication is CreateApplicationOf for a name that counts.
func (s *System) CreateNamedApplication(tb testing.TB, owner User, name string, partitions int32) Application {
	tb.Helper()
	administer(tb, s, s.Admin.CreateApplication, &adminv1.CreateApplicationRequest{Name: name, Owner: owner.Name})
	topic := naming.EventsTopic(name)
	if partitions > 0 {
		testkit.CreateTopic(tb, s.Brokers, topic, partitions)
	}
	return Application{Name: name, Topic: topic, Owner: owner}
}

// SetMember gives a user a role in an application; an empty name is everyone.
func (s *System) SetMember(tb testing.TB, application, user string, role adminv1.Role) {
	tb.Helper()
	administer(tb, s, s.Admin.SetMember, &adminv1.SetMemberRequest{
		Application: application,
		Member:      &adminv1.Member{User: user, Anonymous: user == "", Role: role},
	})
}

// TransientGroups returns the consumer groups of the connections of a client.
func (s *System) TransientGroups(tb testing.TB, u User, clientID string) []string {
	tb.Helper()
	return testkit.ListGroups(tb, s.Brokers, naming.TransientGroup(u.Issuer, u.Subject, clientID, ""))
}

// TransientGroup returns the consumer group of the one connection of a client.
func (s *System) TransientGroup(tb testing.TB, u User, clientID string) string {
	tb.Helper()
	groups := s.TransientGroups(tb, u, clientID)
	if len(groups) != 1 {
		tb.Fatalf("client %q has the groups %q, want one", clientID, groups)
	}
	return groups[0]
}

// logger keeps the end of the log, and shows it when the test has failed.
func logger(tb testing.TB) *slog.Logger {
	tb.Helper()
	log := &tail{}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("the end of the system's log:\n%s", log)
		}
	})
	return slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

const tailLines = 100

// tail keeps the last lines that were written.
type tail struct {
	mu    sync.Mutex
	lines [tailLines]string
	next  int
}

func (t *tail) Write(line []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines[t.next%tailLines] = string(line)
	t.next++
	return len(line), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for i := max(0, t.next-tailLines); i < t.next; i++ {
		b.WriteString(t.lines[i%tailLines])
	}
	return b.String()
}
