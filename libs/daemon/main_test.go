package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/internal/freeport"
)

// leakChecked is the test run with a look for goroutines behind it; testscript
// leaves no other place for that.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"test-service": func() {
			os.Exit(daemon.Main("test-service", defaultTestConfig, runTestService)) //nolint:forbidigo // this is the main of a process
		},
	})
}

// testConfig is the configuration of a service that does as it is told.
type testConfig struct {
	daemon.Common `yaml:",inline"`

	Do       string        `yaml:"do"`
	Store    testStore     `yaml:"store"`
	Password config.Secret `yaml:"password"`
}

type testStore struct {
	DSN string `yaml:"dsn"`
}

func defaultTestConfig() testConfig {
	return testConfig{Common: daemon.DefaultCommon(), Do: "wait", Store: testStore{DSN: "memory"}}
}

// Validate implements [daemon.Configuration].
func (c testConfig) Validate() error {
	errs := []error{c.Common.Validate()}
	if c.Store.DSN == "" {
		errs = append(errs, errors.New("store.dsn: is required"))
	}
	return errors.Join(errs...)
}

func runTestService(ctx context.Context, cfg testConfig, env daemon.Env) error {
	counter, err := env.Meter.Meter("test").Int64Counter("mqtt_integration.tests")
	if err != nil {
		return err
	}
	counter.Add(ctx, 1)
	check := env.Health.Register("store")
	switch cfg.Do {
	case "fail":
		return errors.New("open store: no such host")
	case "be unready":
		check.Set(errors.New("store is away"))
	default:
		check.Set(nil)
	}
	env.Logger.DebugContext(ctx, "service is running")
	<-ctx.Done()
	return nil
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			addresses, err := freeport.Addresses(t.Context(), 1)
			if err != nil {
				return err
			}
			env.Setenv("ADMIN", addresses[0])
			// With -race a process sleeps for a second before it exits.
			env.Setenv("GORACE", "atexit_sleep_ms=10")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// listening ADDRESS waits until somebody listens there.
			"listening": func(ts *testscript.TestScript, _ bool, args []string) {
				deadline := time.Now().Add(10 * time.Second)
				for !listens(args[0]) {
					if time.Now().After(deadline) {
						ts.Fatalf("nobody listens on %s", args[0])
					}
					time.Sleep(10 * time.Millisecond)
				}
			},
			// occupy ADDRESS listens there until the script ends.
			"occupy": func(ts *testscript.TestScript, _ bool, args []string) {
				listener, err := net.Listen("tcp", args[0])
				ts.Check(err)
				ts.Defer(func() { _ = listener.Close() })
			},
			// get STATUS URL asks for a page; stdout is its text.
			"get": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(get(ts, args[0], args[1]))
			},
		},
	})
}

func listens(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

func get(ts *testscript.TestScript, want, url string) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if got := strconv.Itoa(response.StatusCode); got != want {
		return fmt.Errorf("%s answered %s, want %s", url, got, want)
	}
	file, err := os.Create(ts.MkAbs("body"))
	if err != nil {
		return err
	}
	_, err = file.ReadFrom(response.Body)
	return errors.Join(err, file.Close())
}
