package cli_test

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"mqtt-integration/services/standalone/internal/cli"
)

// beStandalone makes the test binary the command itself.
const beStandalone = "TEST_BE_STANDALONE"

func TestMain(m *testing.M) {
	if os.Getenv(beStandalone) != "" {
		os.Exit(cli.Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) //nolint:forbidigo // This is the main of a process.
	}
	m.Run()
}

func TestCommands(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("demo:\n  interval: 5s\n  gadget: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(t.TempDir(), "good.yaml")
	if err := os.WriteFile(good, []byte("demo:\n  interval: 5s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name           string
		args           []string
		environ        []string
		code           int
		stdout, stderr string // patterns
	}{
		{name: "help", args: []string{"--help"}, stdout: `(?s)--data-dir=DIR.*--mqtt-port=PORT.*--kafka-port=PORT`},
		{name: "version", args: []string{"version"}, stdout: `^\S+\n$`},
		{name: "defaults", args: []string{"config", "check"}, stdout: `is valid`},
		{name: "file", args: []string{"config", "print", "--config", good}, stdout: `(?s)kafka:.*demo:\n.*interval: 5s`},
		{
			name: "flags", args: []string{"config", "print", "--kafka-port", "19092", "--data-dir", "/d", "--log-level", "info"},
			stdout: `(?s)data_dir: /d\n.*level: INFO.*address: 127.0.0.1:19092`,
		},
		{
			name: "port of a listener that the file has not", environ: []string{"STANDALONE_MQTT_FRONTEND_LISTENERS=[{address: '127.0.0.1:18083', transport: websocket}]"},
			args:   []string{"config", "print", "--mqtt-port", "11883", "--websocket-port", "18084"},
			stdout: `(?s)address: 127.0.0.1:18084\n\s+transport: websocket\n.*address: 127.0.0.1:11883\n\s+transport: tcp`,
		},
		{name: "environment", args: []string{"config", "print"}, environ: []string{"STANDALONE_DEMO_DEVICE=pump"}, stdout: `device: pump`},
		{name: "XDG", args: []string{"config", "print"}, environ: []string{"XDG_DATA_HOME=/x"}, stdout: `data_dir: /x/mqtt-integration\n`},
		{name: "unknown setting", args: []string{"config", "check", "--config", file}, code: 1, stderr: `config.yaml:3: demo.gadget`},
		{name: "unknown variable", args: []string{"config", "check"}, environ: []string{"STANDALONE_DEMO_DEVIC=x"}, code: 1, stderr: `STANDALONE_DEMO_DEVIC`},
		{name: "not on loopback", args: []string{"config", "check"}, environ: []string{"STANDALONE_ISSUER_ADDRESS=0.0.0.0:1"}, code: 1, stderr: `issuer.address: .*loopback`},
		{name: "unknown flag", args: []string{"--port", "1"}, code: 1, stderr: `unknown flag --port`},
		{name: "no port", args: []string{"--mqtt-port", "70000"}, code: 1, stderr: `70000`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			if code := cli.Main(tt.args, tt.environ, &stdout, &stderr); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !regexp.MustCompile(tt.stdout).Match(stdout.Bytes()) {
				t.Errorf("standard output does not match %q:\n%s", tt.stdout, stdout.Bytes())
			}
			if !regexp.MustCompile(tt.stderr).Match(stderr.Bytes()) {
				t.Errorf("standard error does not match %q:\n%s", tt.stderr, stderr.Bytes())
			}
			if tt.stderr == "" && stderr.Len() > 0 {
				t.Errorf("standard error: %s", stderr.Bytes())
			}
		})
	}
}

// command is standalone as a process on ports of its own.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	args = append([]string{"--data-dir", filepath.Join(t.TempDir(), "it's data")}, args...)
	for _, flag := range []string{"--mqtt-port", "--websocket-port", "--kafka-port", "--issuer-port", "--admin-port"} {
		if !strings.Contains(strings.Join(args, " "), flag) {
			args = append(args, flag, "0")
		}
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), beStandalone+"=1")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// process is a running standalone.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	banner string // what it printed until it was ready
	stderr bytes.Buffer
}

func run(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: command(t, args...)}
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(out)
	p.banner = p.readUntil("Ctrl-C ends it")
	return p
}

func (p *process) readUntil(end string) string {
	p.t.Helper()
	var read strings.Builder
	for p.lines.Scan() {
		read.WriteString(p.lines.Text() + "\n")
		if strings.Contains(p.lines.Text(), end) {
			return read.String()
		}
	}
	p.t.Fatalf("%q was not printed, but:\n%s\n%s", end, read.String(), p.stderr.String())
	return ""
}

// interrupt ends it and requires that it ends in order, in time, and silently.
func (p *process) interrupt() {
	p.t.Helper()
	began := time.Now()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
	p.readUntil("Stopped.")
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("after an interrupt: %v, want exit code 0", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		p.t.Errorf("it took %v to end, want less than 5 s", took)
	}
	if p.stderr.Len() > 0 {
		p.t.Errorf("standard error:\n%s", p.stderr.String())
	}
}

func TestBannerAndInterrupt(t *testing.T) {
	t.Parallel()
	p := run(t)
	p.interrupt()
	for _, want := range []string{
		"emulation for trying things out", "ws://127.0.0.1:", "-u demo -P mqi_", "-V 5", "content-mode binary",
		"-t command/example-app/device1/set-led", "grant_type=password", `it'\''s data/demo.password`,
	} {
		if !strings.Contains(p.banner, want) {
			t.Errorf("%q was not printed:\n%s", want, p.banner)
		}
	}
}

// What is there to paste is pasted into a shell.
func TestPrintedLinesWork(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"mosquitto_sub", "mosquitto_pub", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	p := run(t)
	defer p.interrupt()
	shell := func(line string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
		cmd.Dir = "../../../.." // the root of the repository
		// The tests may run with the workspace switched off, whoever pastes does not.
		cmd.Env = append(os.Environ(), "GOWORK=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
		return string(out)
	}
	// Lines end with a backslash where they go on.
	lines := strings.Split(strings.ReplaceAll(p.banner, "\\\n", ""), "\n")
	var token string
	tried := 0
	for _, line := range lines {
		line = strings.TrimSpace(line)
		switch program, _, _ := strings.Cut(line, " "); program {
		case "mosquitto_sub":
			if out := shell(token + line + " -C 1 -W 15"); !strings.Contains(out, `"temperature":`) {
				t.Errorf("%s: received %q, want a temperature", line, out)
			}
		case "mosquitto_pub":
			shell(line)
		case "go":
			if out := shell(line); !strings.Contains(out, "example-app") {
				t.Errorf("%s: printed %q, want the application", line, out)
			}
		default:
			if strings.HasPrefix(line, "TOKEN=") {
				token = line + "; "
			}
			continue
		}
		tried++
	}
	if tried != 9 {
		t.Errorf("%d lines were printed to subscribe, to publish and to administer, want 5, 3 and 1:\n%s", tried, p.banner)
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	_, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	out, err := command(t, "--mqtt-port", port).CombinedOutput()
	if err == nil {
		t.Fatalf("no error:\n%s", out)
	}
	if want := "127.0.0.1:" + port + " is in use"; !strings.Contains(string(out), want) || !strings.Contains(string(out), "--mqtt-port") {
		t.Errorf("printed, want %q and the flag:\n%s", want, out)
	}
}

func TestConfigurationInREADMEIsValid(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```yaml\n")
	yaml, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("README.md has no YAML")
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if code := cli.Main([]string{"config", "check", "--config", file}, nil, &stdout, &stderr); code != 0 {
		t.Errorf("exit code %d: %s", code, stderr.Bytes())
	}
}
