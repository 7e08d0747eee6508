//go:build e2e

package e2e_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"mqtt-integration/libs/testca"
	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/issuer"
)

// frontendIdentity is who may call the other services.
const frontendIdentity = "spiffe://example.org/mqtt-frontend"

// cluster is a deployment with two instances of event-fanout and command-ingress,
// and mutual TLS between all of them.
type cluster struct {
	*deployment

	dir string // of certificates
	ca  *testca.CA
}

// names of the processes of a cluster, which begin with the service.
var instances = []string{
	"authorization", "event-fanout", "event-fanout-2", "command-ingress", "command-ingress-2", "mqtt-frontend",
}

func serviceOf(instance string) string { return strings.TrimSuffix(instance, "-2") }

// certify makes a new authority, and certificates for everybody, over the old ones.
func (c *cluster) certify(t *testing.T) {
	t.Helper()
	var err error
	if c.ca, err = testca.New(c.dir); err != nil {
		t.Fatal(err)
	}
	for name, sans := range map[string][]string{
		"server": {"127.0.0.1"}, "mqtt-frontend": {frontendIdentity}, "guest": {"guest.example.org"},
	} {
		if _, err := c.ca.Issue(name, testca.Options{Names: sans}); err != nil {
			t.Fatal(err)
		}
	}
}

// clientTLS is a tls section of a client with that certificate.
func (c *cluster) clientTLS(name string) string {
	return fmt.Sprintf("tls: {cert_file: %q, key_file: %q, ca_file: %q}",
		filepath.Join(c.dir, name+".pem"), filepath.Join(c.dir, name+"-key.pem"), c.ca.File)
}

// frontendFile is the configuration of a frontend with that certificate.
func (c *cluster) frontendFile(t *testing.T, instance, certificate string) string {
	t.Helper()
	at := c.addresses
	tls := c.clientTLS(certificate)
	return write(t, instance+".yaml", fmt.Sprintf("admin: {address: %q}\nlisteners: [{address: %q}]\n"+
		"authorization: {addresses: [%q], %s}\nevent_fanout: {addresses: [%q, %q], %s}\ncommand_ingress: {addresses: [%q, %q], %s}\n",
		at[instance+"/http"], at[instance+"/mqtt"], at["authorization"], tls,
		at["event-fanout"], at["event-fanout-2"], tls, at["command-ingress"], at["command-ingress-2"], tls))
}

func (c *cluster) startInstance(t *testing.T, instance string) {
	t.Helper()
	c.processes[instance] = start(t, command{path: binary(t, serviceOf(instance)), args: []string{"--config", c.files[instance]}})
}

func (c *cluster) kill(t *testing.T, instance string) {
	t.Helper()
	p := c.processes[instance]
	p.signal(t, syscall.SIGKILL)
	<-p.ended
}

// logged waits until an instance has said something.
func (c *cluster) logged(t *testing.T, instance string, parts ...string) {
	t.Helper()
	eventually(t, instance+" logs "+strings.Join(parts, ", "), func() error {
		for line := range strings.Lines(c.processes[instance].stderr.text()) {
			if containing(parts...)(line) {
				return nil
			}
		}
		return errors.New("it has not")
	})
}

func deployCluster(t *testing.T) (*cluster, account) {
	t.Helper()
	return deployClusterOn(t, testkit.Kafka(t))
}

func deployClusterOn(t *testing.T, brokers []string) (*cluster, account) {
	t.Helper()
	c := &cluster{dir: t.TempDir(), deployment: &deployment{
		brokers: brokers, issuer: testkit.Issuer(t, issuer.Config{}), commands: testkit.UniqueName(t),
		processes: map[string]*process{}, files: map[string]string{},
	}}
	names := []string{"administration", "mqtt-frontend/mqtt", "mqtt-frontend-2/mqtt", "mqtt-frontend-2/http"}
	for _, instance := range instances {
		names = append(names, instance, instance+"/http")
	}
	c.addresses = freePorts(t, names...)
	c.addresses["mqtt"] = c.addresses["mqtt-frontend/mqtt"]
	c.certify(t)
	testkit.CreateTopic(t, c.brokers, c.commands, 3)
	for _, instance := range instances {
		listen := fmt.Sprintf("{address: %q, tls: {cert_file: %q, key_file: %q, client_ca_file: %q}, allowed_clients: [%q]}",
			c.addresses[instance], filepath.Join(c.dir, "server.pem"), filepath.Join(c.dir, "server-key.pem"), c.ca.File, frontendIdentity)
		text := fmt.Sprintf("admin: {address: %q}\ngrpc: %s\n", c.addresses[instance+"/http"], listen)
		kafka := "kafka: {brokers: [" + strings.Join(c.brokers, ", ") + "]}\n"
		switch serviceOf(instance) {
		case "event-fanout": // Kafka gives up a killed instance soon.
			text += kafka + "share: {session_timeout: 6s}\n"
		case "command-ingress":
			text += kafka + "commands: {topic: " + c.commands + "}\n"
		case "authorization":
			text += fmt.Sprintf("admin_api: {address: %q}\nstore: {sqlite: {path: %q}}\n"+
				"issuers: [{alias: dev, url: %q, audiences: [%q]}]\nadministrators: [{issuer: dev, subject: %s}]\n",
				c.addresses["administration"], filepath.Join(t.TempDir(), "authorization.db"),
				c.issuer.URL(), c.issuer.Audience(), administratorSubject)
		}
		if c.files[instance] = write(t, instance+".yaml", text); instance == "mqtt-frontend" {
			c.files[instance] = c.frontendFile(t, instance, instance)
		}
		c.startInstance(t, instance)
	}
	for _, instance := range instances {
		eventually(t, instance+" is ready", func() error { return c.ready(instance) })
	}
	admin := administrate(t, c.addresses["administration"], testkit.Mint(t, c.issuer, map[string]any{"sub": administratorSubject}))
	return c, admin.account(t, c.brokers, "dev")
}

// Certificates and their authority are replaced below processes that go on.
func TestCertificatesAreRenewedWithoutRestart(t *testing.T) {
	t.Parallel()
	c, acc := deployCluster(t)
	client, events, _ := subscribed5(t, c.deployment, acc)
	next := 0
	works := func(what string) {
		t.Helper()
		testkit.ProduceTo(t, c.brokers, acc.topic, 0, numbered(next, 1)...)
		if id := ofJSON(t, receive(t, events).Payload)["id"]; id != strconv.Itoa(next) {
			t.Errorf("%s: event %s, want %d", what, id, next)
		}
		next++
		eventually(t, "a command is accepted: "+what, func() error {
			response, err := client.Publish(t.Context(), &paho.Publish{Topic: "command/" + acc.application + "/dev/go", QoS: 1})
			if err == nil && response.ReasonCode != 0 {
				err = fmt.Errorf("reason code %#x", response.ReasonCode)
			}
			return err
		})
	}
	works("at first")
	c.certify(t)
	<-time.After(1100 * time.Millisecond) // files are looked at once a second
	works("with connections from before")
	for _, instance := range []string{"event-fanout", "event-fanout-2", "command-ingress", "command-ingress-2"} {
		c.kill(t, instance)
		c.startInstance(t, instance)
		eventually(t, instance+" is ready", func() error { return c.ready(instance) })
	}
	works("with new connections")
	c.logged(t, "mqtt-frontend", "certificates were renewed")

	// A certificate of the same authority does not suffice.
	c.files["mqtt-frontend-2"] = c.frontendFile(t, "mqtt-frontend-2", "guest")
	c.startInstance(t, "mqtt-frontend-2")
	for _, instance := range []string{"authorization", "event-fanout", "event-fanout-2", "command-ingress"} {
		c.logged(t, instance, "client is not in allowed_clients", "guest.example.org")
	}
	eventually(t, "the guest refuses connections", func() error {
		_, connack, err := tryPaho5(t, c.addresses["mqtt-frontend-2/mqtt"], paho.ClientConfig{PacketTimeout: 3 * time.Second}, acc.user, acc.key)
		switch {
		case err == nil:
			return errors.New("it accepts one")
		case connack != nil && connack.ReasonCode != 0x88:
			return fmt.Errorf("CONNACK %#x, want 0x88", connack.ReasonCode)
		default:
			return nil
		}
	})
}

// When an event-fanout is killed under load, its subscriptions go on at the other
// one: nothing is lost and nothing comes twice.
func TestSubscriptionsGoToAnotherEventFanout(t *testing.T) {
	t.Parallel()
	c, acc := deployCluster(t)
	const subscribers, batch, kills = 8, 200, 4
	var received []<-chan *paho.Publish
	for range subscribers {
		_, events, _ := subscribed5(t, c.deployment, acc)
		received = append(received, events)
	}
	victims := [2]string{"event-fanout", "event-fanout-2"}
	for i := range kills {
		victim := victims[i%2]
		first := 3 * i * batch
		testkit.ProduceTo(t, c.brokers, acc.topic, 0, numbered(first, batch)...)
		c.kill(t, victim)
		testkit.ProduceTo(t, c.brokers, acc.topic, 0, numbered(first+batch, batch)...)
		began := time.Now()
		for n, events := range received {
			for id := range 2 * batch {
				if got := ofJSON(t, receive(t, events).Payload)["id"]; got != strconv.Itoa(first+id) {
					t.Fatalf("subscriber %d, kill %d: event %s, want %d", n, i, got, first+id)
				}
			}
		}
		t.Logf("kill %d: everything was there after %v, without %s", i, time.Since(began).Round(time.Millisecond), victim)
		c.startInstance(t, victim)
		eventually(t, victim+" is ready", func() error { return c.ready(victim) })
		testkit.ProduceTo(t, c.brokers, acc.topic, 0, numbered(first+2*batch, batch)...)
		for n, events := range received {
			for id := range batch {
				if got := ofJSON(t, receive(t, events).Payload)["id"]; got != strconv.Itoa(first+2*batch+id) {
					t.Fatalf("subscriber %d, after kill %d: event %s, want %d", n, i, got, first+2*batch+id)
				}
			}
		}
	}
}

// When a command-ingress is killed under load, what it had goes to the other one:
// every command is acknowledged, and the first copies keep their order.
func TestCommandsGoToAnotherCommandIngress(t *testing.T) {
	t.Parallel()
	c, acc := deployCluster(t)
	client := connectPaho5(t, c.addresses["mqtt"], paho.ClientConfig{}, acc.user, acc.key)
	const commands, devices = 3000, 4
	var answered atomic.Int64
	refused := make(chan string, commands)
	publish := func(device int) {
		for i := range commands / devices {
			response, err := client.Publish(t.Context(), &paho.Publish{
				Topic: "command/" + acc.application + "/" + strconv.Itoa(device) + "/go", QoS: 1, Payload: []byte(strconv.Itoa(i)),
			})
			if err != nil || response.ReasonCode != 0 {
				refused <- fmt.Sprintf("device %d, command %d: %v, %+v", device, i, err, response)
				return
			}
			answered.Add(1)
		}
	}
	done := make(chan struct{}, devices)
	for device := range devices {
		go func() {
			publish(device)
			done <- struct{}{}
		}()
	}
	for _, victim := range []string{"command-ingress", "command-ingress-2"} {
		before := answered.Load()
		eventually(t, "commands flow", func() error {
			if n := answered.Load(); n < before+200 && n < commands {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		c.kill(t, victim)
		c.startInstance(t, victim)
		eventually(t, victim+" is ready", func() error { return c.ready(victim) })
	}
	for range devices {
		receive(t, done)
	}
	close(refused)
	for text := range refused {
		t.Error(text)
	}
	next := map[string]int{}
	copies := 0
	for _, record := range testkit.ReadAll(t, c.brokers, c.commands) {
		n, err := strconv.Atoi(string(record.Value))
		if err != nil {
			t.Fatalf("record %+v", record)
		}
		switch key := string(record.Key); {
		case n < next[key]:
			copies++
		case n == next[key]:
			next[key]++
		default:
			t.Fatalf("device %s: command %d, want %d", key, n, next[key])
		}
	}
	for device := range devices {
		if n := next[partitionKey(acc.application, strconv.Itoa(device))]; n != commands/devices {
			t.Errorf("device %d: %d commands in Kafka, want %d", device, n, commands/devices)
		}
	}
	t.Logf("%d commands, and %d copies", commands, copies)
}
