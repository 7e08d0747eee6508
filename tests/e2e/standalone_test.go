//go:build e2e

package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/issuer"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
)

// With a Kafka and a sign-in provider that are there already, as its README shows,
// standalone starts none of its own.
func TestStandaloneWithOtherKafkaAndProvider(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	brokers, provider := testkit.Kafka(t), testkit.Issuer(t, issuer.Config{Audience: "somebody"})
	commands := testkit.UniqueName(t)
	file := write(t, "standalone.yaml", fmt.Sprintf(`
kafka:
  brokers: [%s]
issuer: {enabled: false}
demo: {enabled: false}
authorization:
  issuers:
    - alias: acme
      url: %q
      audiences: [somebody]
      roles_claim: realm_access.roles
      administrator_roles: [boss]
  administrators:
    - {issuer: acme, name: ada}
  anonymous: {enabled: false}
command_ingress:
  commands: {topic: %s}
`, strings.Join(brokers, ", "), provider.URL(), commands))
	p := start(t, command{path: binary(t, "standalone"), args: []string{
		"--config", file, "--data-dir", t.TempDir(), "--mqtt-port", "0", "--websocket-port", "0", "--admin-port", "0",
	}})
	p.line(t, "end of what there is to know", func(line string) bool { return line == lastLine })
	addresses := map[string]string{}
	for line := range strings.Lines(p.stdout.text()) {
		if fields := strings.Fields(line); strings.HasPrefix(line, "  ") && len(fields) == 2 {
			addresses[fields[0]] = fields[1]
		}
	}
	if addresses["Kafka"] != strings.Join(brokers, ",") || strings.Contains(p.stdout.text(), "emulation") || strings.Contains(p.stdout.text(), "sign-in") {
		t.Errorf("it does not say that it uses the other Kafka and provider:\n%s", p.stdout.text())
	}

	// An administrator by name and one by role; what users have.
	admin := administrate(t, addresses["administration"], testkit.Mint(t, provider, map[string]any{"sub": "1", "preferred_username": "ada"}))
	byRole := administrate(t, addresses["administration"], testkit.Mint(t, provider, map[string]any{
		"sub": "2", "preferred_username": "bob", "realm_access": map[string]any{"roles": []string{"boss"}},
	}))
	if _, err := byRole.ListUsers(byRole.context(t), &adminv1.ListUsersRequest{}); err != nil {
		t.Errorf("administrator by role: %v", err)
	}
	acc := admin.account(t, brokers, "acme")
	token := testkit.Mint(t, provider, map[string]any{"sub": acc.user, "preferred_username": "of-no-interest"})
	subscriber := mosquittoSub(t, addresses["MQTT"], "-V", "5", "-P", token, "-q", "1", "-t", "app/"+acc.application)
	testkit.Produce(t, brokers, acc.topic, binaryRecord("1", "state", "application/json", `{"n":1}`))
	subscriber.line(t, "event", containing(`"id":"1"`))
	mosquittoPub(t, addresses["MQTT"], "-u", acc.user, "-P", acc.key, "-q", "1", "-t", "command/"+acc.application+"/dev/go", "-m", "{}")
	if records := testkit.ReadAll(t, brokers, commands); len(records) != 1 {
		t.Errorf("%d commands in Kafka, want one", len(records))
	}
	if code, _, stderr := run(t, mosquitto("mosquitto_sub", addresses["MQTT"], "-t", "app/"+acc.application)); code != 5 {
		t.Errorf("anonymous: exit code %d, %q, want 5: not authorized", code, stderr)
	}
}

// Settings come from the environment, too, and mistakes are named.
func TestStandaloneConfiguration(t *testing.T) {
	t.Parallel()
	path := binary(t, "standalone")
	code, stdout, stderr := run(t, command{path: path, args: []string{"config", "print"}, env: []string{"STANDALONE_DEMO_INTERVAL=42s"}})
	if code != 0 || !strings.Contains(stdout, "interval: 42s") {
		t.Errorf("config print: exit code %d, %q, want the interval of the environment in\n%s", code, stderr, stdout)
	}
	code, stdout, stderr = run(t, command{path: path, args: []string{"config", "check", "--config", write(t, "printed.yaml", stdout)}})
	if code != 0 || stdout != "the configuration is valid" {
		t.Errorf("config check of what was printed: exit code %d, %q, %q", code, stdout, stderr)
	}
	for _, tt := range []struct{ yaml, want string }{
		{"no_such_setting: 1\n", "no_such_setting"},
		{"kafka: {embedded: {address: \"0.0.0.0:9092\"}}\n", "kafka.embedded.address"},
		{"mqtt_frontend: {listeners: [{address: \":1883\"}]}\n", "mqtt_frontend.listeners[0].address"},
		{"demo: {interval: -1s}\n", "demo.interval"},
		{"issuer: {enabled: false}\n", "demo.enabled"},
	} {
		code, _, stderr := run(t, command{path: path, args: []string{"config", "check", "--config", write(t, "bad.yaml", tt.yaml)}})
		if code != 1 || !strings.Contains(stderr, tt.want) {
			t.Errorf("config check of %q: exit code %d, %q, want 1 and %s", tt.yaml, code, stderr, tt.want)
		}
	}
	if code, stdout, _ := run(t, command{path: path, args: []string{"--help"}}); code != 0 || !strings.Contains(stdout, "--mqtt-port") {
		t.Errorf("--help: exit code %d:\n%s", code, stdout)
	}
}
