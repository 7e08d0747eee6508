//go:build e2e

package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mqtt-integration/libs/testkit"
)

// patience is how long anything may take that should not take long, on a machine
// that is busy with other tests.
const patience = time.Minute

// binaries are built once for all tests of the package, in a directory of their
// own.
var binaries = struct {
	dir  func() (string, error)
	mu   sync.Mutex
	made map[string]func() (string, error)
}{
	dir:  sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "mqtt-integration-e2e-") }),
	made: map[string]func() (string, error){},
}

func removeBinaries() {
	if len(binaries.made) == 0 {
		return
	}
	if dir, err := binaries.dir(); err == nil {
		_ = os.RemoveAll(dir)
	}
}

// binary builds a service as make does, but for version and race detector, and returns its path.
func binary(t *testing.T, service string) string {
	t.Helper()
	binaries.mu.Lock()
	build, ok := binaries.made[service]
	if !ok {
		build = sync.OnceValues(func() (string, error) {
			dir, err := binaries.dir()
			if err != nil {
				return "", err
			}
			path := filepath.Join(dir, service)
			args := append(append([]string{"build"}, buildFlags...), "-o", path, "./cmd/"+service)
			cmd := exec.Command("go", args...)
			cmd.Dir = filepath.Join("..", "..", "services", service)
			if output, err := cmd.CombinedOutput(); err != nil {
				return "", errors.Join(err, errors.New(string(output)))
			}
			return path, nil
		})
		binaries.made[service] = build
	}
	binaries.mu.Unlock()
	path, err := build()
	if err != nil {
		t.Fatalf("build %s: %v", service, err)
	}
	return path
}

// command says what to run.
type command struct {
	// path and args are what exec takes.
	path string
	args []string
	// env is added to a small environment in which nobody's own settings count.
	env []string
}

// shell runs a script as somebody would who pastes it into a terminal.
func shell(script string) command { return command{path: "/bin/sh", args: []string{"-c", script}} }

// process is a running command.
type process struct {
	name           string
	cmd            *exec.Cmd
	stdout, stderr output
	ended          chan struct{}
	err            error // to be read when ended is closed
}

// start starts a command that ends with the test at the latest. It has a process
// group of its own, so that what a shell starts ends with it.
func start(t *testing.T, c command) *process {
	t.Helper()
	home := t.TempDir()
	cmd := exec.Command(c.path, c.args...)
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_DATA_HOME=" + home, "LC_ALL=C.UTF-8",
	}, c.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	p := &process{name: filepath.Base(c.path), cmd: cmd, ended: make(chan struct{})}
	outPipe, outWriter := io.Pipe()
	errPipe, errWriter := io.Pipe()
	cmd.Stdout, cmd.Stderr = outWriter, errWriter
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", c.path, err)
	}
	var reading sync.WaitGroup
	reading.Go(func() { p.stdout.read(outPipe) })
	reading.Go(func() { p.stderr.read(errPipe) })
	go func() {
		p.err = cmd.Wait()
		_ = outWriter.Close()
		_ = errWriter.Close()
		reading.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-p.ended
		if t.Failed() {
			t.Logf("%.2000s\nstdout:\n%s\nstderr:\n%s", c.path+" "+strings.Join(c.args, " "), p.stdout.tail(40), p.stderr.tail(40))
		}
	})
	return p
}

// run runs a command to its end and returns its exit code.
func run(t *testing.T, c command) (code int, stdout, stderr string) {
	t.Helper()
	p := start(t, c)
	code = p.wait(t, patience)
	return code, p.stdout.text(), p.stderr.text()
}

// signal sends a signal to the process alone, not to its group.
func (p *process) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatalf("signal %v to %s: %v", signal, p.name, err)
	}
}

// wait waits for the end and returns the exit code.
func (p *process) wait(t *testing.T, timeout time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(timeout):
		t.Fatalf("%s has not ended within %v", p.name, timeout)
	}
	if exit, ok := errors.AsType[*exec.ExitError](p.err); ok {
		return exit.ExitCode()
	}
	if p.err != nil {
		t.Fatalf("%s: %v", p.name, p.err)
	}
	return 0
}

// line waits for the next line on standard output that matches, and fails the test
// when none comes or the process ends. Lines before it are passed.
func (p *process) line(t *testing.T, what string, match func(string) bool) string {
	t.Helper()
	line, ok := p.maybeLine(t.Context(), patience, match)
	if !ok {
		t.Fatalf("%s: no %s on standard output within %v\nstdout:\n%s\nstderr:\n%s",
			p.name, what, patience, p.stdout.tail(20), p.stderr.tail(20))
	}
	return line
}

func (p *process) maybeLine(ctx context.Context, timeout time.Duration, match func(string) bool) (string, bool) {
	return p.stdout.next(ctx, timeout, p.ended, match)
}

// output is what a process has written so far, by lines.
type output struct {
	mu      sync.Mutex
	lines   []string
	seen    int           // lines that next has looked at
	changed chan struct{} // closed when a line is added; nil when nobody waits
}

const maxLine = 4 << 20

func (o *output) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		o.mu.Lock()
		o.lines = append(o.lines, lines.Text())
		if o.changed != nil {
			close(o.changed)
			o.changed = nil
		}
		o.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, r) // after a line that is too long
}

func (o *output) next(ctx context.Context, timeout time.Duration, ended <-chan struct{}, match func(string) bool) (string, bool) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for over := false; ; {
		o.mu.Lock()
		for o.seen < len(o.lines) {
			line := o.lines[o.seen]
			o.seen++
			if match(line) {
				o.mu.Unlock()
				return line, true
			}
		}
		if o.changed == nil {
			o.changed = make(chan struct{})
		}
		changed := o.changed
		o.mu.Unlock()
		if over {
			return "", false
		}
		select {
		case <-changed:
		case <-ended:
			over = true // and look a last time
		case <-timer.C:
			over = true
		case <-ctx.Done():
			return "", false
		}
	}
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.lines, "\n")
}

func (o *output) tail(n int) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.lines[max(0, len(o.lines)-n):], "\n")
}

func containing(parts ...string) func(string) bool {
	return func(line string) bool {
		return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) })
	}
}

// freePorts returns addresses of loopback on which nobody listens.
func freePorts(t *testing.T, names ...string) map[string]string {
	t.Helper()
	free := make(map[string]string, len(names))
	for i, address := range testkit.FreeAddresses(t, len(names)) {
		free[names[i]] = address
	}
	return free
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
		<-tick.C
	}
}
