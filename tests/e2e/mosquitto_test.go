//go:build e2e

package e2e_test

import (
	"net"
	"os"
	"os/exec"
	"testing"
)

// needMosquitto skips a test where mosquitto's clients are not installed, but for
// CI, which has to have them.
func needMosquitto(t *testing.T) {
	t.Helper()
	for _, name := range []string{"mosquitto_sub", "mosquitto_pub", "stdbuf"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed: %v", name, err)
			}
			t.Skipf("%s is not installed (packages mosquitto-clients, coreutils): %v", name, err)
		}
	}
}

// mosquitto is one of mosquitto's clients, that connects to a server.
func mosquitto(name, address string, args ...string) command {
	host, port, _ := net.SplitHostPort(address)
	path, err := exec.LookPath(name)
	if err != nil {
		path = name
	}
	return command{path: path, args: append([]string{"-h", host, "-p", port}, args...)}
}

// mosquittoSub starts a subscriber and waits until it is subscribed: what is
// produced afterwards has to arrive.
func mosquittoSub(t *testing.T, address string, args ...string) *process {
	t.Helper()
	c := mosquitto("mosquitto_sub", address, append(args, "-d")...)
	// It would keep to itself what it does until a message comes.
	p := start(t, command{path: stdbuf(), args: append([]string{"-oL", c.path}, c.args...)})
	p.line(t, "SUBACK", containing("Subscribed (mid"))
	return p
}

func stdbuf() string {
	path, _ := exec.LookPath("stdbuf")
	return path
}

// mosquittoPub publishes and requires that it succeeds.
func mosquittoPub(t *testing.T, address string, args ...string) {
	t.Helper()
	if code, stdout, stderr := run(t, mosquitto("mosquitto_pub", address, args...)); code != 0 || stderr != "" {
		t.Fatalf("mosquitto_pub: exit code %d, %q, %q, want 0 and nothing", code, stdout, stderr)
	}
}
