package mqi_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"mqtt-integration/libs/testkit/issuer"
	"mqtt-integration/services/mqi"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mqi": func() { os.Exit(mqi.Main(os.Args[1:], os.Stdout, os.Stderr)) }, //nolint:forbidigo // the main function of a script,
	})
}

// TestScripts runs the scripts against the real authorization, each against one of
// its own. It is a process: no service imports another.
func TestScripts(t *testing.T) {
	t.Parallel()
	binary := buildAuthorization(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup:               func(env *testscript.Env) error { return setup(env, binary) },
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"export": export,
		},
	})
}

func buildAuthorization(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "authorization")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/authorization")
	build.Dir = filepath.Join("..", "authorization")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build authorization: %v\n%s", err, output)
	}
	return binary
}

// export NAME FILE PATTERN sets a variable to the first group of a pattern in a
// file.
func export(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: export NAME FILE PATTERN")
	}
	match := regexp.MustCompile(args[2]).FindStringSubmatch(ts.ReadFile(args[1]))
	if len(match) < 2 {
		ts.Fatalf("%s has no %s", args[1], args[2])
	}
	ts.Setenv(args[0], match[1])
}

// setup starts an authorization and its issuer for a script.
func setup(env *testscript.Env, binary string) error {
	i, err := issuer.Start(issuer.Config{})
	if err != nil {
		return err
	}
	env.Defer(i.Close)
	for variable, subject := range map[string]string{"ROOT_TOKEN": "sub-root", "DEMO_TOKEN": "sub-demo"} {
		token, err := i.Mint(map[string]any{"sub": subject, "preferred_username": strings.TrimPrefix(subject, "sub-")})
		if err != nil {
			return err
		}
		env.Setenv(variable, token)
	}
	addresses, err := freeAddresses(3)
	if err != nil {
		return err
	}
	env.Setenv("MQI_SERVER", addresses[1])
	log, err := os.Create(filepath.Join(env.WorkDir, "authorization.log"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	process := exec.CommandContext(ctx, binary)
	process.Cancel = func() error { return process.Process.Signal(syscall.SIGTERM) }
	process.WaitDelay = 20 * time.Second
	process.Stderr = log
	process.Env = []string{
		"AUTHORIZATION_GRPC_ADDRESS=" + addresses[0],
		"AUTHORIZATION_ADMIN_API_ADDRESS=" + addresses[1],
		"AUTHORIZATION_ADMIN_ADDRESS=" + addresses[2],
		"AUTHORIZATION_STORE_SQLITE_PATH=" + filepath.Join(env.WorkDir, "data", "authorization.db"),
		fmt.Sprintf("AUTHORIZATION_ISSUERS=[{alias: dev, url: %q, audiences: [%q]}]", i.URL(), i.Audience()),
		"AUTHORIZATION_ADMINISTRATORS=[{issuer: dev, subject: sub-root}]",
	}
	if err := process.Start(); err != nil {
		cancel()
		return err
	}
	env.Defer(func() {
		cancel()
		_ = process.Wait()
		_ = log.Close()
	})
	return ready("http://" + addresses[2] + "/readyz")
}

func freeAddresses(n int) ([]string, error) {
	var addresses []string
	for range n {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

func ready(url string) error {
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		response, err := http.Get(url)
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		<-time.After(20 * time.Millisecond)
	}
	return errors.New("authorization is not ready after 30 s")
}
