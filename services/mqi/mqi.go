package mqi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/buildinfo"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

const description = `Administer the MQTT integration: users, applications, members and API keys.

Sign in with an access token of an OIDC provider (MQI_TOKEN or --token-file), or with a login name and an API key that has the ` +
	`admin scope (--user with MQI_API_KEY or --api-key-file). Secrets on the command line can be seen by others on the machine.

Examples:
  MQI_TOKEN=$TOKEN mqi app create example-app --owner demo
  mqi --user demo --api-key-file demo.key member set example-app reader ada
  mqi key create --for demo --scope read --app example-app --expires-in 720h
  mqi -o json user list`

// commands is the command line.
type commands struct {
	Server     string        `help:"Address of authorization's administration API." default:"127.0.0.1:7011" env:"MQI_SERVER" placeholder:"HOST:PORT"`
	Token      string        `help:"Access token. Better: MQI_TOKEN or --token-file." env:"MQI_TOKEN" placeholder:"TOKEN"`
	TokenFile  string        `help:"File with the access token." env:"MQI_TOKEN_FILE" type:"path" placeholder:"FILE"`
	User       string        `help:"Login name, to sign in with an API key: MQI_API_KEY or --api-key-file." env:"MQI_USER" placeholder:"NAME"`
	APIKeyFile string        `help:"File with the API key." name:"api-key-file" env:"MQI_API_KEY_FILE" type:"path" placeholder:"FILE"`
	Insecure   bool          `help:"Send credentials in plaintext to an address that is not loopback."`
	CertFile   string        `help:"Our certificate, for mutual TLS with the server. Goes with --key-file and --ca-file." env:"MQI_CERT_FILE" type:"path" placeholder:"FILE"`
	KeyFile    string        `help:"Its key." env:"MQI_KEY_FILE" type:"path" placeholder:"FILE"`
	CAFile     string        `help:"Authorities of the server's certificate." name:"ca-file" env:"MQI_CA_FILE" type:"path" placeholder:"FILE"`
	ServerName string        `help:"What the server's certificate must be for, if that is not the host of --server." env:"MQI_SERVER_NAME" placeholder:"NAME"`
	Timeout    time.Duration `help:"How long to wait for an answer." default:"10s"`
	Output     string        `help:"table or json." short:"o" enum:"table,json" default:"table"`

	UserCmd userCommands   `cmd:"" name:"user" help:"Users, who sign in."`
	App     appCommands    `cmd:"" help:"Applications, which have events and devices."`
	Member  memberCommands `cmd:"" help:"Members of an application and their roles."`
	Key     keyCommands    `cmd:"" help:"API keys of users."`
	Version versionCommand `cmd:"" help:"Print the version."`
}

// usageError is a mistake in the command line that kong cannot see.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// Main runs a command line and returns its exit code: 0, 1 when the command
// failed, 2 when the command line is wrong.
func Main(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var cli commands
	exited := -1 // set when kong has done all there is to do, as for --help
	parser, err := kong.New(&cli, kong.Name("mqi"), kong.Description(description), kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }), kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}))
	if err != nil {
		return fail(stderr, err)
	}
	kctx, err := parser.Parse(args)
	if exited >= 0 {
		return exited
	}
	if err != nil {
		return fail(stderr, usageError{err.Error() + " (see --help)"})
	}
	s := &session{ctx: ctx, cli: &cli, stdout: stdout, stderr: stderr, apiKey: os.Getenv("MQI_API_KEY")}
	defer s.close()
	if err := kctx.Run(s); err != nil {
		return fail(stderr, err)
	}
	return exitOK
}

func fail(stderr io.Writer, err error) int {
	_, _ = fmt.Fprintln(stderr, "mqi:", explain(err))
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailure
}

// explain is what people read of an error.
func explain(err error) string {
	// Not status.FromError, which repeats the code in the text of a wrapped error.
	carrier, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err)
	if !ok {
		return err.Error()
	}
	s := carrier.GRPCStatus()
	switch s.Code() {
	case codes.Unauthenticated:
		return "not signed in: " + s.Message()
	case codes.PermissionDenied:
		return "permission denied: " + s.Message()
	case codes.Unavailable:
		return "authorization cannot be reached: " + s.Message()
	case codes.DeadlineExceeded:
		return "no answer in time (see --timeout)"
	case codes.Unimplemented:
		return "the server cannot do this yet: " + s.Message()
	default:
		return s.Message()
	}
}

// versionCommand prints the version.
type versionCommand struct{}

// Run is called by kong.
func (versionCommand) Run(s *session) error {
	_, err := fmt.Fprintf(s.stdout, "mqi %s (%s)\n", buildinfo.Version(), buildinfo.Revision())
	return err
}

// secretFile reads a file without the line end at its end.
func secretFile(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(data))
	if secret == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return secret, nil
}
