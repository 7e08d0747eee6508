//go:build e2e

package e2e_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mqtt-integration/libs/testkit"
)

// demonstration is standalone as `make run` starts it, with what it has printed.
type demonstration struct {
	*process
	dir string

	mqtt, kafka, issuer, administration string
	key, keyFile                        string
	// subscriptions are the commands that subscribe, by what stands above them;
	// commands are those that send a command, by its name.
	subscriptions map[string]string
	commands      map[string]string
	// token is the script that gets a token and subscribes with it.
	token string
	// looks are the commands that look into Kafka.
	looks []string
}

// lastLine ends what standalone prints when it is ready.
const lastLine = "Ctrl-C ends it; the next start goes on with the same data."

// demonstrate starts standalone on free ports and reads what it prints.
func demonstrate(t *testing.T, dir string, args ...string) *demonstration {
	t.Helper()
	d := &demonstration{dir: dir, subscriptions: map[string]string{}, commands: map[string]string{}}
	d.process = start(t, standaloneCommand(t, dir, args...))
	d.line(t, "end of what there is to paste", func(line string) bool { return line == lastLine })

	var label string
	lines := strings.Split(d.stdout.text(), "\n")
	for i := 0; i < len(lines); i++ {
		text, indented := strings.CutPrefix(lines[i], "  ")
		if !indented {
			if name, ok := strings.CutPrefix(lines[i], "User demo owns the application example-app and has this API key (kept in "); ok {
				d.keyFile = strings.TrimSuffix(name, "):")
			}
			continue
		}
		for strings.HasSuffix(text, "\\") {
			i++
			text += "\n" + lines[i]
		}
		fields := strings.Fields(text)
		switch {
		case strings.HasPrefix(text, "# "):
			label = strings.TrimPrefix(text, "# ")
		case fields[0] == "MQTT":
			d.mqtt = fields[1]
		case fields[0] == "Kafka":
			d.kafka = fields[1]
		case fields[0] == "sign-in":
			d.issuer = fields[2]
		case fields[0] == "administration":
			d.administration = fields[1]
		case strings.HasPrefix(text, "mqi_"):
			d.key = text
		case strings.HasPrefix(text, "TOKEN="):
			d.token = text
		case fields[0] == "mosquitto_sub" && d.token != "":
			d.token += "\n" + text
		case fields[0] == "mosquitto_sub":
			d.subscriptions[label] = text
		case fields[0] == "mosquitto_pub":
			topic := fields[slices.Index(fields, "-t")+1]
			d.commands[filepath.Base(topic)] = text
		case fields[0] == "kcat":
			d.looks = append(d.looks, text)
		}
	}
	return d
}

func standaloneCommand(t *testing.T, dir string, args ...string) command {
	t.Helper()
	all := []string{"--mqtt-port", "0", "--websocket-port", "0", "--kafka-port", "0", "--issuer-port", "0", "--admin-port", "0", "--data-dir", dir}
	return command{path: binary(t, "standalone"), args: append(all, args...)}
}

// interrupt presses Ctrl-C and requires an orderly end.
func (d *demonstration) interrupt(t *testing.T) {
	t.Helper()
	began := time.Now()
	d.signal(t, os.Interrupt)
	if code := d.wait(t, 15*time.Second); code != 0 {
		t.Errorf("exit code %d after Ctrl-C, want 0", code)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("it took %v to end, want a few seconds", took)
	}
	if d.stdout.tail(1) != "Stopped." {
		t.Errorf("the last line is %q, want Stopped.", d.stdout.tail(1))
	}
	if out := d.stderr.text(); out != "" {
		t.Errorf("it has logged warnings:\n%s", out)
	}
}

// What standalone prints is pasted as it is, and does what it says.
func TestDemonstration(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	d := demonstrate(t, t.TempDir())

	if out := d.stdout.text(); !strings.Contains(out, "emulation for trying things out") {
		t.Errorf("it does not say that its Kafka is an emulation:\n%s", out)
	}
	info, err := os.Stat(d.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(d.keyFile)
	if err != nil || strings.TrimSpace(string(kept)) != d.key || !strings.HasPrefix(d.key, "mqi_") || info.Mode().Perm() != 0o600 {
		t.Errorf("the key in %s with mode %v, %v, is not the one that is printed, or not for its owner alone", d.keyFile, info.Mode(), err)
	}

	structured := containing(`"specversion":"1.0"`, `"subject":"state"`, `"device":"device1"`, `"temperature":`)
	subscribers := map[string]*process{}
	for _, tt := range []struct {
		label string
		want  []func(string) bool
	}{
		{"MQTT 3.1.1", []func(string) bool{structured}},
		{"MQTT 5", []func(string) bool{structured}},
		{
			"MQTT 5, binary mode: the payload is the data, the attributes are user properties",
			[]func(string) bool{
				containing("specversion:1.0", "type:io.drogue.event.v1", "subject:state", "device:device1", "application:example-app"),
				func(line string) bool {
					return regexp.MustCompile(`^\{"temperature":[0-9.]+,"led":(true|false),"uptime":[0-9]+\}$`).MatchString(line)
				},
			},
		},
		{"anonymous: everyone may read this application", []func(string) bool{structured}},
	} {
		script, ok := d.subscriptions[tt.label]
		if !ok {
			t.Fatalf("nothing is printed for %q:\n%s", tt.label, d.stdout.text())
		}
		subscriber := start(t, shell(script))
		subscribers[tt.label] = subscriber
		for _, want := range tt.want {
			subscriber.line(t, "event for "+tt.label, want)
		}
	}

	t.Run("commands", func(t *testing.T) {
		watcher := subscribers["MQTT 3.1.1"]
		for _, tt := range []struct {
			command string
			effect  func(string) bool
		}{
			{"set-led", containing(`"subject":"state"`, `"led":true`)},
			{"set-interval", containing(`"subject":"state"`)},
			{"reboot", containing(`"subject":"state"`, `"led":false`, `"uptime":0`)},
		} {
			script, ok := d.commands[tt.command]
			if !ok {
				t.Fatalf("nothing is printed for the command %s:\n%s", tt.command, d.stdout.text())
			}
			if code, stdout, stderr := run(t, shell(script)); code != 0 || stdout != "" || stderr != "" {
				t.Fatalf("%s: exit code %d, %q, %q, want 0 and nothing", script, code, stdout, stderr)
			}
			watcher.line(t, "reaction to "+tt.command, containing(`"subject":"reaction"`, `"command":"`+tt.command+`"`, `"outcome":"done"`))
			watcher.line(t, "effect of "+tt.command, tt.effect)
		}
	})

	t.Run("token", func(t *testing.T) {
		if _, err := exec.LookPath("curl"); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip("curl is not installed")
		}
		withToken := start(t, shell(d.token))
		// The device has become slow by the command set-interval; this is quick.
		mosquittoPub(t, d.mqtt, "-u", "demo", "-P", d.key, "-q", "1", "-t", "command/example-app/device1/set-interval", "-m", `{"seconds":0.2}`)
		withToken.line(t, "event with a token", structured)
	})

	t.Run("looking into Kafka", func(t *testing.T) {
		if len(d.looks) == 0 {
			t.Fatal("nothing is printed about it")
		}
		for _, look := range d.looks {
			fields := strings.Fields(look)
			if topic := fields[slices.Index(fields, "-t")+1]; len(testkit.ReadAll(t, []string{d.kafka}, topic)) == 0 {
				t.Errorf("topic %s is empty", topic)
			}
			if _, err := exec.LookPath("kcat"); err == nil { // It is one of many.
				start(t, shell("stdbuf -oL "+look)).line(t, "record of "+look, containing("ce_specversion=1.0"))
			}
		}
	})

	onlyLoopback(t, d.cmd.Process.Pid)
	d.interrupt(t)
}

// The second start goes on with users, keys, password and events of the first.
func TestDemonstrationContinues(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	dir := filepath.Join(t.TempDir(), "data")
	first := demonstrate(t, dir)
	watcher := mosquittoSub(t, first.mqtt, "-u", "demo", "-P", first.key, "-q", "1", "-t", "app/example-app")
	watcher.line(t, "event", containing(`"subject":"state"`))
	password, err := os.ReadFile(filepath.Join(dir, "demo.password"))
	if err != nil {
		t.Fatal(err)
	}
	records := len(testkit.ReadAll(t, []string{first.kafka}, "events-example-app"))
	first.interrupt(t)

	second := demonstrate(t, dir)
	if second.key != first.key {
		t.Error("the second start has another API key")
	}
	if again, err := os.ReadFile(filepath.Join(dir, "demo.password")); err != nil || string(again) != string(password) {
		t.Errorf("the second start has another password: %v", err)
	}
	if now := testkit.ReadAll(t, []string{second.kafka}, "events-example-app"); len(now) < records {
		t.Errorf("%d events after the second start, want the %d of the first at least", len(now), records)
	}
	again := mosquittoSub(t, second.mqtt, "-u", "demo", "-P", first.key, "-q", "1", "-t", "app/example-app")
	again.line(t, "event", containing(`"subject":"state"`))

	// While it runs, the directory is its own.
	code, _, stderr := run(t, standaloneCommand(t, dir))
	if code != 1 || !strings.Contains(stderr, "--data-dir") {
		t.Errorf("another process on the same directory: exit code %d, %q, want 1 and what to do", code, stderr)
	}
	second.interrupt(t)
}

// An end that nobody asked for in an orderly way loses nothing either.
func TestDemonstrationIsKilled(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	dir := t.TempDir()
	first := demonstrate(t, dir)
	mosquittoPub(t, first.mqtt, "-u", "demo", "-P", first.key, "-q", "1", "-t", "command/example-app/device2/keep", "-m", `{"kept":true}`)
	first.signal(t, os.Kill)
	<-first.ended

	second := demonstrate(t, dir)
	var kept int
	for _, record := range testkit.ReadAll(t, []string{second.kafka}, "iot-commands") {
		if string(record.Value) == `{"kept":true}` {
			kept++
		}
	}
	if kept != 1 {
		t.Errorf("the acknowledged command is in Kafka %d times after the process was killed, want once", kept)
	}
	if second.key != first.key {
		t.Error("the second start has another API key")
	}
	second.interrupt(t)
}

func TestDemonstrationNamesAPortInUse(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	for _, flag := range []string{"--mqtt-port", "--websocket-port", "--kafka-port", "--issuer-port", "--admin-port"} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			code, _, stderr := run(t, standaloneCommand(t, t.TempDir(), flag, port))
			if code != 1 || !strings.Contains(stderr, "127.0.0.1:"+port) || !strings.Contains(stderr, flag) || !strings.Contains(stderr, "in use") {
				t.Errorf("exit code %d, %q, want 1, that port %s is in use, and %s", code, stderr, port, flag)
			}
		})
	}
}

func TestDemonstrationEndsAtOnceWhileItStarts(t *testing.T) {
	t.Parallel()
	p := start(t, standaloneCommand(t, t.TempDir()))
	p.line(t, "first line", containing("The MQTT integration"))
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t, 15*time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// onlyLoopback requires that a process listens on loopback only.
func onlyLoopback(t *testing.T, pid int) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return
	}
	sockets := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "socket:[") {
			sockets[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] = true
		}
	}
	listening := 0
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			continue // without IPv6
		}
		for line := range strings.Lines(string(content)) {
			fields := strings.Fields(line)
			const listen, stateless = "0A", "07"
			if len(fields) < 10 || !sockets[fields[9]] || (fields[3] != listen && fields[3] != stateless) {
				continue
			}
			listening++
			if address := procAddress(t, fields[1]); !address.IsLoopback() {
				t.Errorf("it listens on %v (%s), which is not loopback", address, table)
			}
		}
	}
	if listening < 4 {
		t.Errorf("%d listening sockets found, want those of MQTT, Kafka, sign-in and administration at least", listening)
	}
}

// procAddress reads an address in /proc/net/tcp: words in the machine's order.
func procAddress(t *testing.T, field string) netip.Addr {
	t.Helper()
	text, _, _ := strings.Cut(field, ":")
	var bytes []byte
	for word := range slices.Chunk([]byte(text), 8) {
		n, err := strconv.ParseUint(string(word), 16, 32)
		if err != nil {
			t.Fatalf("address %q: %v", field, err)
		}
		bytes = append(bytes, byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
	}
	address, ok := netip.AddrFromSlice(bytes)
	if !ok {
		t.Fatalf("address %q", field)
	}
	return address.Unmap()
}
