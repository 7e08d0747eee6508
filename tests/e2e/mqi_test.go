//go:build e2e

package e2e_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"mqtt-integration/libs/naming"
	"mqtt-integration/libs/testkit"
	"mqtt-integration/tests/internal/system"
)

// What an administrator types takes effect on clients, live ones included.
func TestAdministrationByCommandLine(t *testing.T) {
	t.Parallel()
	needMosquitto(t)
	s := system.Start(t, system.Options{})
	token, err := s.AdministratorToken()
	if err != nil {
		t.Fatal(err)
	}
	mqi := func(args ...string) command {
		return command{
			path: binary(t, "mqi"), args: args,
			env: []string{"MQI_SERVER=" + s.Addresses().AuthorizationAdmin, "MQI_TOKEN=" + token},
		}
	}
	do := func(args ...string) (stdout string) {
		t.Helper()
		code, stdout, stderr := run(t, mqi(args...))
		if code != 0 {
			t.Fatalf("mqi %s: exit code %d\n%s", strings.Join(args, " "), code, stderr)
		}
		return stdout
	}
	owner, reader, application := "o-"+testkit.UniqueName(t), "r-"+testkit.UniqueName(t), testkit.UniqueName(t)
	topic := naming.EventsTopic(application)
	testkit.CreateTopic(t, s.Brokers, topic, 1)

	do("user", "create", owner, "--issuer", system.IssuerAlias, "--subject", owner)
	do("user", "create", reader)
	do("app", "create", application, "--owner", owner)
	do("member", "set", application, "reader", reader)
	ownerKey, readerKey := do("key", "create", "--for", owner), do("key", "create", "--for", reader)
	for _, key := range []string{ownerKey, readerKey} {
		if !strings.HasPrefix(key, "mqi_") || strings.ContainsAny(key, " \n") {
			t.Fatalf("key create has printed %q, want the key alone", key)
		}
	}

	// The live clients of both.
	filter := "app/" + application
	subscribers := map[string]*process{
		owner:  mosquittoSub(t, s.MQTT(), "-V", "5", "-u", owner, "-P", ownerKey, "-q", "1", "-t", filter),
		reader: mosquittoSub(t, s.MQTT(), "-V", "5", "-u", reader, "-P", readerKey, "-q", "1", "-t", filter),
	}
	testkit.Produce(t, s.Brokers, topic, binaryRecord("1", "state", "application/json", "{}"))
	for _, subscriber := range subscribers {
		subscriber.line(t, "event", containing(`"id":"1"`))
	}
	mosquittoPub(t, s.MQTT(), "-V", "5", "-u", owner, "-P", ownerKey, "-q", "1", "-t", "command/"+application+"/dev/go", "-n")
	if _, _, stderr := run(t, mosquitto("mosquitto_pub", s.MQTT(), "-V", "5", "-u", reader, "-P", readerKey, "-q", "1", "-t", "command/"+application+"/dev/go", "-n")); !strings.Contains(stderr, "Not authorized") {
		t.Errorf("a reader's command: %q, want that it is not authorized", stderr)
	}

	var keys []struct {
		ID   string `json:"id"`
		User string `json:"user"`
	}
	listed := do("-o", "json", "key", "list", "--for", reader)
	var list struct {
		Keys json.RawMessage `json:"api_keys"`
	}
	if err := json.Unmarshal([]byte(listed), &list); err != nil || json.Unmarshal(list.Keys, &keys) != nil || len(keys) != 1 || keys[0].User != reader {
		t.Fatalf("key list: %v, %s, want the one key of %s", err, listed, reader)
	}
	if strings.Contains(listed, readerKey) {
		t.Error("key list shows the secret")
	}

	// Revoking reaches the live client, which mosquitto_sub says.
	revoked := time.Now()
	do("key", "revoke", keys[0].ID)
	subscribers[reader].line(t, "DISCONNECT", containing("Received DISCONNECT (135)"))
	if took := time.Since(revoked); took > 5*time.Second {
		t.Errorf("the client was disconnected after %v, want 2 s and what the command takes", took)
	}
	testkit.Produce(t, s.Brokers, topic, binaryRecord("2", "state", "application/json", "{}"))
	subscribers[owner].line(t, "event", containing(`"id":"2"`))
	if code, _, _ := run(t, mosquitto("mosquitto_pub", s.MQTT(), "-u", reader, "-P", readerKey, "-t", "command/"+application+"/dev/go", "-n")); code != 4 {
		t.Errorf("exit code %d with a revoked key, want 4", code)
	}

	// Everyone may read, until nobody but members may.
	do("member", "set", application, "reader", "--anonymous")
	anonymous := mosquittoSub(t, s.MQTT(), "-V", "5", "-q", "1", "-t", filter)
	testkit.Produce(t, s.Brokers, topic, binaryRecord("3", "state", "application/json", "{}"))
	anonymous.line(t, "event", containing(`"id":"3"`))
	do("member", "remove", application, "--anonymous")
	anonymous.line(t, "DISCONNECT", containing("Received DISCONNECT (135)"))

	// Mistakes have their own exit codes, and nobody else may do any of that.
	if code, _, stderr := run(t, mqi("app", "create", application, "--owner", owner)); code != 1 || !strings.Contains(stderr, "exists already") {
		t.Errorf("an application that exists: exit code %d, %q, want 1 and that it exists", code, stderr)
	}
	if code, _, _ := run(t, mqi("app", "no-such-command")); code != 2 {
		t.Errorf("unknown command: exit code %d, want 2", code)
	}
	for _, credentials := range [][]string{
		{"MQI_USER=" + owner, "MQI_API_KEY=" + ownerKey},
		{"MQI_TOKEN=" + s.Token(t, system.User{Name: owner, Subject: owner}, nil)},
		{},
	} {
		c := mqi("user", "list")
		c.env = append([]string{"MQI_SERVER=" + s.Addresses().AuthorizationAdmin}, credentials...)
		if code, stdout, stderr := run(t, c); code == 0 || stdout != "" || stderr == "" {
			t.Errorf("user list with %d credentials of no administrator: exit code %d, %q, %q", len(credentials), code, stdout, stderr)
		}
	}
	if users := do("-o", "json", "user", "list"); !slices.ContainsFunc(strings.Split(users, "\n"), containing(owner)) {
		t.Errorf("user list has no %s:\n%s", owner, users)
	}
}
