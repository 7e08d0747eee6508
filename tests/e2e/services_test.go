//go:build e2e

package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/issuer"
)

// services in the order in which they are stopped: who leans on another goes first.
var services = []string{"mqtt-frontend", "event-fanout", "command-ingress", "authorization"}

func TestServiceExplainsItself(t *testing.T) {
	t.Parallel()
	for _, service := range services {
		t.Run(service, func(t *testing.T) {
			t.Parallel()
			path := binary(t, service)

			code, stdout, stderr := run(t, command{path: path, args: []string{"--help"}})
			if code != 0 || stderr != "" {
				t.Errorf("--help: exit code %d, standard error %q, want 0 and nothing", code, stderr)
			}
			for _, word := range []string{"--config", "--log-level", "serve", "config check", "config print", "health", "version"} {
				if !strings.Contains(stdout, word) {
					t.Errorf("--help does not mention %q:\n%s", word, stdout)
				}
			}

			code, stdout, _ = run(t, command{path: path, args: []string{"version"}})
			if code != 0 || !strings.HasPrefix(stdout, service+" ") {
				t.Errorf("version: exit code %d, %q, want 0 and the name", code, stdout)
			}

			code, _, stderr = run(t, command{path: path, args: []string{"--no-such-flag"}})
			if code != 2 || !strings.Contains(stderr, "--no-such-flag") {
				t.Errorf("unknown flag: exit code %d, %q, want 2 and the flag", code, stderr)
			}
		})
	}
}

// What config print prints is a configuration, and the same one.
func TestServicePrintsItsConfiguration(t *testing.T) {
	t.Parallel()
	for _, service := range services {
		t.Run(service, func(t *testing.T) {
			t.Parallel()
			path := binary(t, service)
			code, printed, stderr := run(t, command{path: path, args: []string{"config", "print"}})
			if code != 0 || stderr != "" {
				t.Fatalf("config print: exit code %d, standard error %q", code, stderr)
			}
			file := write(t, "printed.yaml", printed)
			code, stdout, stderr := run(t, command{path: path, args: []string{"config", "check", "--config", file}})
			if code != 0 || stdout != "the configuration is valid" {
				t.Errorf("config check of the defaults: exit code %d, %q, %q", code, stdout, stderr)
			}
			code, again, stderr := run(t, command{path: path, args: []string{"config", "print", "--config", file}})
			if code != 0 || again != printed {
				t.Errorf("config print of what was printed: exit code %d, %q:\n%s\nwant\n%s", code, stderr, again, printed)
			}
			// The environment counts more than the file.
			variable := strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "_DRAIN_TIMEOUT=17s"
			code, again, stderr = run(t, command{path: path, args: []string{"config", "print", "--config", file}, env: []string{variable}})
			if want := strings.Replace(printed, "drain_timeout: 30s", "drain_timeout: 17s", 1); code != 0 || again != want || again == printed {
				t.Errorf("config print with %s: exit code %d, %q:\n%s", variable, code, stderr, again)
			}
		})
	}
}

func TestServiceNamesWhatIsWrongWithItsConfiguration(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		yaml string
		env  string
		want []string
	}{
		{name: "unknown setting", yaml: "no_such_setting: 1\n", want: []string{"no_such_setting"}},
		{name: "two bad values at once", yaml: "drain_timeout: -1s\nlog: {format: xml}\n", want: []string{"drain_timeout", "log.format"}},
		{name: "no duration", yaml: "drain_timeout: soon\n", want: []string{"drain_timeout", "soon"}},
		{name: "unknown variable", env: "NO_SUCH_SETTING=1", want: []string{"NO_SUCH_SETTING"}},
		{name: "bad value in a variable", env: "LOG_LEVEL=loud", want: []string{"LOG_LEVEL", "loud"}},
	}
	for _, service := range services {
		for _, tt := range tests {
			t.Run(service+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				args, env := []string{"--config", write(t, "config.yaml", tt.yaml)}, []string(nil)
				if tt.env != "" {
					env = append(env, strings.ToUpper(strings.ReplaceAll(service, "-", "_"))+"_"+tt.env)
				}
				for _, mode := range [][]string{{"config", "check"}, {"serve"}} {
					code, stdout, stderr := run(t, command{path: binary(t, service), args: append(mode, args...), env: env})
					if code != 1 || stdout != "" {
						t.Errorf("%v: exit code %d, standard output %q, want 1 and nothing", mode, code, stdout)
					}
					for _, want := range tt.want {
						if !strings.Contains(stderr, want) {
							t.Errorf("%v: standard error does not name %q:\n%s", mode, want, stderr)
						}
					}
				}
			})
		}
	}
}

// The documented configurations say what the defaults are.
func TestDocumentedConfigurationHasTheDefaults(t *testing.T) {
	t.Parallel()
	for _, service := range services {
		t.Run(service, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join("..", "..", "deploy", "config", service+".yaml")
			code, stdout, stderr := run(t, command{path: binary(t, service), args: []string{"config", "check", "--config", file}})
			if code != 0 || stdout != "the configuration is valid" {
				t.Errorf("config check of %s: exit code %d, %q, %q", file, code, stdout, stderr)
			}
			_, defaults, _ := run(t, command{path: binary(t, service), args: []string{"config", "print"}})
			_, documented, _ := run(t, command{path: binary(t, service), args: []string{"config", "print", "--config", file}})
			if diff := cmp.Diff(defaults, documented); diff != "" {
				t.Errorf("%s (-defaults +documented):\n%s", file, diff)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(settings(defaults), settings(string(text))); diff != "" {
				t.Errorf("settings in %s (-all +documented):\n%s", file, diff)
			}
		})
	}
}

// settings are the paths of all settings in a configuration, sorted.
func settings(yaml string) []string {
	var paths []string
	var parents []string // by depth, of which each has two spaces
	for line := range strings.Lines(yaml) {
		text := strings.TrimPrefix(strings.TrimLeft(line, " "), "- ")
		name, _, found := strings.Cut(text, ":")
		if !found || strings.HasPrefix(text, "#") || strings.ContainsAny(name, ". ") {
			continue // a comment, or an address in a list
		}
		depth := (len(line) - len(text)) / 2
		parents = append(parents[:min(depth, len(parents))], name)
		paths = append(paths, strings.Join(parents, "."))
	}
	slices.Sort(paths)
	return paths
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// deployment is the four services as processes of their own.
type deployment struct {
	brokers   []string
	issuer    *issuer.Issuer
	addresses map[string]string
	processes map[string]*process
	files     map[string]string
	commands  string // the topic
}

// administratorSubject is the administrator by the deployment's configuration.
const administratorSubject = "root"

func deploy(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{
		brokers: testkit.Kafka(t), issuer: testkit.Issuer(t, issuer.Config{}), commands: testkit.UniqueName(t),
		addresses: freePorts(t, "mqtt", "authorization", "administration", "event-fanout", "command-ingress",
			"mqtt-frontend/http", "authorization/http", "event-fanout/http", "command-ingress/http"),
		processes: map[string]*process{}, files: map[string]string{},
	}
	testkit.CreateTopic(t, d.brokers, d.commands, 3)
	kafka := "kafka: {brokers: [" + strings.Join(d.brokers, ", ") + "]}\n"
	for service, text := range map[string]string{
		"mqtt-frontend": fmt.Sprintf("listeners: [{address: %q}]\nauthorization: {addresses: [%q]}\nevent_fanout: {addresses: [%q]}\n"+
			"command_ingress: {addresses: [%q]}\n", d.addresses["mqtt"], d.addresses["authorization"], d.addresses["event-fanout"],
			d.addresses["command-ingress"]),
		"event-fanout":    fmt.Sprintf("grpc: {address: %q}\n", d.addresses["event-fanout"]) + kafka,
		"command-ingress": fmt.Sprintf("grpc: {address: %q}\ncommands: {topic: %s}\n", d.addresses["command-ingress"], d.commands) + kafka,
		"authorization": fmt.Sprintf("grpc: {address: %q}\nadmin_api: {address: %q}\nstore: {sqlite: {path: %q}}\nanonymous: {enabled: true}\n"+
			"issuers: [{alias: dev, url: %q, audiences: [%q]}]\nadministrators: [{issuer: dev, subject: %s}]\n",
			d.addresses["authorization"], d.addresses["administration"], filepath.Join(t.TempDir(), "authorization.db"),
			d.issuer.URL(), d.issuer.Audience(), administratorSubject),
	} {
		d.files[service] = write(t, service+".yaml",
			fmt.Sprintf("admin: {address: %q}\ndrain_timeout: 10s\n", d.addresses[service+"/http"])+text)
		d.start(t, service)
	}
	for _, service := range services {
		eventually(t, service+" is ready", func() error { return d.ready(service) })
	}
	return d
}

func (d *deployment) start(t *testing.T, service string) {
	t.Helper()
	d.processes[service] = start(t, command{path: binary(t, service), args: []string{"--config", d.files[service]}})
}

func (d *deployment) ready(service string) error {
	code, body, err := get("http://" + d.addresses[service+"/http"] + "/readyz")
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return fmt.Errorf("status %d: %s", code, body)
	}
	return nil
}

// stop stops a service as an operator would, and requires that it takes it well.
func (d *deployment) stop(t *testing.T, service string) {
	t.Helper()
	p := d.processes[service]
	p.signal(t, syscall.SIGTERM)
	began := time.Now()
	if code := p.wait(t, 15*time.Second); code != 0 {
		t.Errorf("%s: exit code %d after SIGTERM, want 0\n%s", service, code, p.stderr.tail(20))
	}
	t.Logf("%s stopped after %v", service, time.Since(began).Round(time.Millisecond))
	if out := p.stdout.text(); out != "" {
		t.Errorf("%s has written to standard output:\n%s", service, out)
	}
}

// get reads a page.
func get(url string) (code int, body string, err error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, string(content), err
}

// The four programs together do what the product is for.
func TestServicesAsProcesses(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	d := deploy(t)
	admin := administrate(t, d.addresses["administration"], testkit.Mint(t, d.issuer, map[string]any{"sub": administratorSubject}))
	acc := admin.account(t, d.brokers, "dev")

	for _, service := range services {
		for page, want := range map[string]string{"/livez": "ok", "/readyz": "ok", "/metrics": "target_info"} {
			code, body, err := get("http://" + d.addresses[service+"/http"] + page)
			if err != nil || code != http.StatusOK || !strings.Contains(body, want) {
				t.Errorf("%s%s: %d, %v, %q, want 200 and %q", service, page, code, err, body, want)
			}
		}
		if code, _, err := get("http://" + d.addresses[service+"/http"] + "/debug/pprof/"); err != nil || code != http.StatusNotFound {
			t.Errorf("%s/debug/pprof/: %d, %v, want 404: it is off", service, code, err)
		}
		code, _, stderr := run(t, command{path: binary(t, service), args: []string{"health", "--config", d.files[service]}})
		if code != 0 {
			t.Errorf("%s health: exit code %d, %q, want 0", service, code, stderr)
		}
	}

	subscriber := mosquittoSub(t, d.addresses["mqtt"], "-V", "5", "-u", acc.user, "-P", acc.key, "-q", "1", "-t", "app/"+acc.application)
	testkit.Produce(t, d.brokers, acc.topic, binaryRecord("first", "state", "application/json", `{"n":1}`))
	subscriber.line(t, "event", containing(`"id":"first"`, `"data":{"n":1}`))

	mosquittoPub(t, d.addresses["mqtt"], "-u", acc.user, "-P", acc.key, "-q", "1", "-t", "command/"+acc.application+"/dev/go", "-m", `{"on":true}`)
	records := testkit.ReadAll(t, d.brokers, d.commands)
	if len(records) != 1 || string(records[0].Value) != `{"on":true}` || string(records[0].Key) != partitionKey(acc.application, "dev") {
		t.Errorf("commands in Kafka: %+v, want the one that was sent", records)
	}

	_, metrics, err := get("http://" + d.addresses["mqtt-frontend/http"] + "/metrics")
	if err != nil || !strings.Contains(metrics, "mqtt_integration_connections") || !strings.Contains(metrics, "mqtt_integration_publishes") {
		t.Errorf("metrics of mqtt-frontend: %v, want connections and publishes in\n%s", err, metrics)
	}

	// A client of MQTT 5 is told why it has to go elsewhere.
	said := make(chan *paho.Disconnect, 1)
	connectPaho5(t, d.addresses["mqtt"], paho.ClientConfig{OnServerDisconnect: func(m *paho.Disconnect) { said <- m }}, acc.user, acc.key)
	for _, service := range services {
		d.stop(t, service)
	}
	select {
	case m := <-said:
		if m.ReasonCode != 0x8b {
			t.Errorf("DISCONNECT %#x when the frontend stops, want 0x8b", m.ReasonCode)
		}
	case <-time.After(patience):
		t.Error("no DISCONNECT when the frontend stopped")
	}
}

// When a service comes back, everything goes on without a restart of the others.
func TestServicesComeBack(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	d := deploy(t)
	admin := administrate(t, d.addresses["administration"], testkit.Mint(t, d.issuer, map[string]any{"sub": administratorSubject}))
	acc := admin.account(t, d.brokers, "dev")
	as := []string{"-V", "5", "-u", acc.user, "-P", acc.key, "-q", "1"}

	subscriber := mosquittoSub(t, d.addresses["mqtt"], append(as, "-t", "app/"+acc.application)...)
	testkit.Produce(t, d.brokers, acc.topic, binaryRecord("before", "state", "application/json", `{"n":1}`))
	subscriber.line(t, "event", containing(`"id":"before"`))

	for _, service := range []string{"event-fanout", "command-ingress", "authorization"} {
		d.stop(t, service)
		testkit.Produce(t, d.brokers, acc.topic, binaryRecord("without-"+service, "state", "application/json", `{"n":2}`))
		d.start(t, service)
		eventually(t, service+" is ready", func() error { return d.ready(service) })
		// A client that reconnects by itself, as this one does, may have to; what
		// is produced after that arrives.
		eventually(t, "a command after the restart of "+service, func() error {
			code, _, stderr := run(t, mosquitto("mosquitto_pub", d.addresses["mqtt"],
				append(as, "-t", "command/"+acc.application+"/dev/"+service, "-n")...))
			if code != 0 || stderr != "" {
				return fmt.Errorf("exit code %d: %s", code, stderr)
			}
			return nil
		})
		eventually(t, "an event after the restart of "+service, func() error {
			testkit.Produce(t, d.brokers, acc.topic, binaryRecord("after-"+service, "state", "application/json", `{"n":3}`))
			if _, ok := subscriber.maybeLine(t.Context(), time.Second, containing(`"id":"after-`+service+`"`)); !ok {
				return errors.New("it has not arrived")
			}
			return nil
		})
	}
}
