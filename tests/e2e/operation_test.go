//go:build e2e

package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/embeddedkafka"
	"mqtt-integration/tests/internal/rawmqtt"
)

// A second process with the same configuration gives up and says why; the first one
// does not notice.
func TestServiceIsThereOnce(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	for service, address := range map[string]string{
		"mqtt-frontend": "mqtt", "event-fanout": "event-fanout", "command-ingress": "command-ingress", "authorization": "authorization",
	} {
		variable := strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "_"
		tests := []struct {
			name string
			env  []string
			want string
		}{
			{"administration port", nil, d.addresses[service+"/http"]},
			{"port", []string{variable + "ADMIN_ADDRESS="}, d.addresses[address]},
		}
		if service == "authorization" { // The store comes first, and is a reason of its own.
			tests[1].want = "authorization.db"
		}
		for _, tt := range tests {
			code, stdout, stderr := run(t, command{path: binary(t, service), args: []string{"--config", d.files[service]}, env: tt.env})
			if code != 1 || stdout != "" || !strings.Contains(stderr, tt.want) {
				t.Errorf("%s on a %s that is taken: exit code %d, %q, want 1 and %q", service, tt.name, code, stderr, tt.want)
			}
		}
		if err := d.ready(service); err != nil {
			t.Errorf("%s is not ready any more: %v", service, err)
		}
	}
}

// The services can be started in any order, and before Kafka. Until it is there they
// live, and say what they are waiting for.
func TestServicesWaitForKafka(t *testing.T) {
	t.Parallel()
	addresses := freePorts(t, "kafka", "event-fanout", "event-fanout/http", "command-ingress", "command-ingress/http")
	const topic = "commands"
	for _, service := range []string{"event-fanout", "command-ingress"} {
		text := fmt.Sprintf("admin: {address: %q}\ngrpc: {address: %q}\nkafka: {brokers: [%q]}\n",
			addresses[service+"/http"], addresses[service], addresses["kafka"])
		if service == "command-ingress" {
			text += "commands: {topic: " + topic + "}\n"
		}
		start(t, command{path: binary(t, service), args: []string{"--config", write(t, "config.yaml", text)}})
	}
	page := func(service, path string) (int, string, error) {
		return get("http://" + addresses[service+"/http"] + path)
	}
	for _, service := range []string{"event-fanout", "command-ingress"} {
		eventually(t, service+" answers", func() error {
			code, body, err := page(service, "/readyz")
			if err == nil && code != http.StatusServiceUnavailable {
				t.Fatalf("%s/readyz without Kafka: %d %q, want 503", service, code, body)
			}
			if err == nil && !strings.Contains(strings.ToLower(body), "kafka") {
				err = fmt.Errorf("it does not say that Kafka is missing: %q", body)
			}
			return err
		})
		if code, body, err := page(service, "/livez"); err != nil || code != http.StatusOK {
			t.Errorf("%s/livez without Kafka: %d %q, %v, want 200", service, code, body, err)
		}
	}
	kafka := testkit.EmbeddedKafka(t, embeddedkafka.Config{Address: addresses["kafka"], Topics: []embeddedkafka.Topic{{Name: topic, Partitions: 1}}})
	for _, service := range []string{"event-fanout", "command-ingress"} {
		eventually(t, service+" is ready at "+kafka.Brokers()[0], func() error {
			code, body, err := page(service, "/readyz")
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("status %d: %s", code, body)
			}
			return err
		})
	}
}

// Clients that do not read, and ones that have not said anything yet, do not keep a
// frontend from stopping.
func TestFrontendStopsWithStalledClients(t *testing.T) {
	t.Parallel()
	d, acc := deployed(t)
	var clients []*rawmqtt.Client
	for range 3 {
		client, err := rawmqtt.Dial(t.Context(), d.addresses["mqtt"], rawmqtt.V5)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		clients = append(clients, client)
	}
	stalled, silent, idle := clients[0], clients[1], clients[2]
	if err := silent.Send(rawmqtt.Raw("\x10\x7f\x00\x04MQTT")); err != nil { // a part of a CONNECT
		t.Fatal(err)
	}
	for _, client := range []*rawmqtt.Client{stalled, idle} {
		connect := rawmqtt.Connect{ClientID: testkit.UniqueName(t), CleanStart: true, Username: &acc.user, Password: &acc.key}
		if connack, err := client.Exchange(connect, rawmqtt.CONNACK, patience); err != nil || connack.Code != 0 {
			t.Fatalf("%v, %v, want CONNACK 0", connack, err)
		}
	}
	subscribe := rawmqtt.Subscribe{PacketID: 1, Filters: []rawmqtt.Filter{{Filter: "app/" + acc.application, Options: 0}}}
	if suback, err := stalled.Exchange(subscribe, rawmqtt.SUBACK, patience); err != nil || suback.Codes[0] != 0 {
		t.Fatalf("%v, %v, want SUBACK 0", suback, err)
	}
	records := make([]testkit.Record, 400)
	for i := range records {
		records[i] = binaryRecord(fmt.Sprint("large-", i), "raw", "application/octet-stream", strings.Repeat("x", 64<<10))
	}
	testkit.Produce(t, d.brokers, acc.topic, records...)

	began := time.Now()
	d.stop(t, "mqtt-frontend")
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("it took %v to stop, want the drain timeout of 10 s at most", took)
	}
	if p, err := idle.Expect(rawmqtt.DISCONNECT, patience); err != nil || p.Code != 0x8b {
		t.Errorf("%v, %v, want DISCONNECT 0x8b for a client that listens", p, err)
	}
}

// A configuration with a secret is printed without it.
func TestSecretsAreNotPrinted(t *testing.T) {
	t.Parallel()
	const secret = "correct-horse-battery"
	for _, service := range []string{"event-fanout", "command-ingress"} {
		variable := strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "_KAFKA_SASL_"
		code, stdout, stderr := run(t, command{
			path: binary(t, service), args: []string{"config", "print"},
			env: []string{variable + "MECHANISM=PLAIN", variable + "USERNAME=user", variable + "PASSWORD=" + secret},
		})
		if code != 0 || strings.Contains(stdout+stderr, secret) || !strings.Contains(stdout, "[redacted]") {
			t.Errorf("%s config print: exit code %d, want the password redacted in\n%s\n%s", service, code, stdout, stderr)
		}
	}
}

// What an operator has forgotten is named before anything listens.
func TestServiceRefusesPlaintextBeyondLoopback(t *testing.T) {
	t.Parallel()
	for service, setting := range map[string]string{
		"event-fanout": "grpc", "command-ingress": "grpc", "authorization": "admin_api",
	} {
		path := binary(t, service)
		open := setting + ": {address: \"0.0.0.0:0\"}\n"
		code, _, stderr := run(t, command{path: path, args: []string{"config", "check", "--config", write(t, "config.yaml", open)}})
		if code != 1 || !strings.Contains(stderr, setting+".") || !strings.Contains(stderr, "insecure") {
			t.Errorf("%s: exit code %d, %q, want 1 and %s with insecure", service, code, stderr, setting)
		}
		allowed := setting + ": {address: \"0.0.0.0:0\", insecure: true}\n"
		if code, _, stderr := run(t, command{path: path, args: []string{"config", "check", "--config", write(t, "config.yaml", allowed)}}); code != 0 {
			t.Errorf("%s with insecure: true: exit code %d, %q, want 0", service, code, stderr)
		}
	}
}

// The store of authorization survives its process.
func TestAuthorizationIsKilled(t *testing.T) {
	t.Parallel()
	d, acc := deployed(t)
	p := d.processes["authorization"]
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.ended
	d.start(t, "authorization")
	eventually(t, "authorization is ready", func() error { return d.ready("authorization") })
	eventually(t, "a client with a key", func() error {
		client, err := rawmqtt.Dial(t.Context(), d.addresses["mqtt"], rawmqtt.V311)
		if err != nil {
			return err
		}
		defer client.Close()
		connack, err := client.Exchange(rawmqtt.Connect{CleanStart: true, Username: &acc.user, Password: &acc.key}, rawmqtt.CONNACK, patience)
		if err == nil && connack.Code != 0 {
			err = errors.New(connack.String())
		}
		return err
	})
}
