package standalone_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"go.uber.org/goleak"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/services/standalone"
	"mqtt-integration/services/standalone/internal/datadir"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(int) { http.DefaultClient.CloseIdleConnections() }))
}

// config is that of a system of its own, on an emulated Kafka of its own.
func config(t *testing.T) standalone.Config {
	t.Helper()
	cfg := standalone.DefaultConfig()
	cfg.DataDir = t.TempDir()
	cfg.AnyPorts()
	cfg.Demo.Interval = 200 * time.Millisecond
	return cfg
}

func start(t *testing.T, cfg standalone.Config) *standalone.System {
	t.Helper()
	s, err := standalone.Start(t.Context(), cfg, standalone.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

// stop ends a system and requires that it does so in order and in time.
func stop(t *testing.T, s *standalone.System) {
	t.Helper()
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Close took %v, want less than 5 s", took)
	}
}

// event is what the tests look at in a structured CloudEvent.
type event struct {
	Subject string `json:"subject"`
	Device  string `json:"device"`
	Data    struct {
		Temperature float64 `json:"temperature"`
		LED         bool    `json:"led"`
		Command     string  `json:"command"`
		Outcome     string  `json:"outcome"`
	} `json:"data"`
}

// connect connects a client that ends with the test. An empty user is anonymous.
func connect(t *testing.T, s *standalone.System, user, password string) mqtt.Client {
	t.Helper()
	return connectTo(t, "tcp://"+s.Addresses().MQTT, user, password)
}

func connectTo(t *testing.T, server, user, password string) mqtt.Client {
	t.Helper()
	opts := mqtt.NewClientOptions().AddBroker(server).SetAutoReconnect(false)
	opts.SetClientID(testkit.UniqueName(t)).SetUsername(user).SetPassword(password).SetConnectTimeout(10 * time.Second)
	client := mqtt.NewClient(opts)
	wait(t, "connect", client.Connect())
	t.Cleanup(func() { client.Disconnect(0) })
	return client
}

func wait(t *testing.T, what string, token mqtt.Token) {
	t.Helper()
	if !token.WaitTimeout(20 * time.Second) {
		t.Fatalf("%s: no answer within 20 s", what)
	}
	if err := token.Error(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func subscribe(t *testing.T, client mqtt.Client, topic string) <-chan event {
	t.Helper()
	events := make(chan event, 1000)
	wait(t, "subscribe", client.Subscribe(topic, 1, func(_ mqtt.Client, m mqtt.Message) {
		var e event
		if err := json.Unmarshal(m.Payload(), &e); err != nil {
			t.Errorf("payload %q: %v", m.Payload(), err)
		}
		events <- e
	}))
	return events
}

// next returns the next event that matches.
func next(t *testing.T, events <-chan event, what string, match func(event) bool) event {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case e := <-events:
			if match(e) {
				return e
			}
		case <-timeout:
			t.Fatalf("no %s within 20 s", what)
		}
	}
}

func isState(e event) bool { return e.Subject == "state" && e.Device == "device1" }

func TestDemonstration(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	if testkit.IsRealKafka() { // Where others may have the same topics.
		cfg.Kafka.Brokers = testkit.Kafka(t)
		cfg.Demo.Application = testkit.UniqueName(t)
		cfg.CommandIngress.Commands.Topic = cfg.Demo.Application + "-commands"
	}
	s := start(t, cfg)
	demo := s.Demonstration()
	topic := "app/" + demo.Application

	anonymous := subscribe(t, connect(t, s, "", ""), topic)
	owner := connect(t, s, demo.User, demo.APIKey)
	events := subscribe(t, owner, topic)
	for name, of := range map[string]<-chan event{"demo": events, "anonymous": anonymous} {
		if e := next(t, of, "state", isState); e.Data.Temperature < 19 || e.Data.Temperature > 23 {
			t.Errorf("%s: temperature %v, want about 21", name, e.Data.Temperature)
		}
	}

	wait(t, "publish", owner.Publish("command/"+demo.Application+"/device1/set-led", 1, false, `{"on":true}`))
	reaction := next(t, events, "reaction", func(e event) bool { return e.Subject == "reaction" })
	if reaction.Data.Command != "set-led" || reaction.Data.Outcome != "done" {
		t.Errorf("reaction %+v, want set-led done", reaction.Data)
	}
	next(t, events, "state with the LED on", func(e event) bool { return isState(e) && e.Data.LED })

	// The same over WebSocket.
	web := connectTo(t, "ws://"+s.Addresses().WebSocket+"/mqtt", demo.User, demo.APIKey)
	overWeb := subscribe(t, web, topic)
	next(t, overWeb, "state", isState)
	wait(t, "publish", web.Publish("command/"+demo.Application+"/device1/set-led", 1, false, `{"on":false}`))
	next(t, overWeb, "reaction", func(e event) bool { return e.Subject == "reaction" && e.Data.Outcome == "done" })

	// A token instead of the key, as the printed lines say.
	withToken := connect(t, s, token(t, demo), "")
	next(t, subscribe(t, withToken, topic), "state", isState)
}

func token(t *testing.T, demo standalone.Demonstration) string {
	t.Helper()
	resp, err := http.PostForm(demo.TokenURL, url.Values{
		"grant_type": {"password"}, "client_id": {demo.ClientID}, "username": {demo.User}, "password": {demo.Password},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.AccessToken == "" {
		t.Fatalf("status %s, error %v, want a token", resp.Status, err)
	}
	return answer.AccessToken
}

func TestSecondStartContinues(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	first := start(t, cfg)
	demo := first.Demonstration()
	next(t, subscribe(t, connect(t, first, demo.User, demo.APIKey), "app/example-app"), "state", isState)
	stop(t, first)

	for _, file := range []string{demo.KeyFile, demo.PasswordFile} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", file, info.Mode().Perm())
		}
	}

	cfg.Demo.Interval = time.Hour
	second := start(t, cfg)
	if again := second.Demonstration(); again.APIKey != demo.APIKey || again.Password != demo.Password {
		t.Error("the second start has another key or password")
	}
	connect(t, second, demo.User, demo.APIKey)
	records := testkit.ReadAll(t, second.Addresses().Kafka, "events-example-app")
	if len(records) < 2 { // At least one of the first run, and one of the second.
		t.Errorf("%d events in Kafka, want those of the first run too", len(records))
	}
}

func TestPortInUseIsNamed(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() }) // After the parallel subtests.
	address := taken.Addr().String()
	for flag, use := range map[string]func(*standalone.Config){
		"--mqtt-port":      func(c *standalone.Config) { c.MQTTFrontend.Listeners[0].Address = address },
		"--websocket-port": func(c *standalone.Config) { c.MQTTFrontend.Listeners[1].Address = address },
		"--kafka-port":     func(c *standalone.Config) { c.Kafka.Embedded.Address = address },
		"--issuer-port":    func(c *standalone.Config) { c.Issuer.Address = address },
		"--admin-port":     func(c *standalone.Config) { c.Authorization.AdminAPI.Address = address },
	} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			cfg := config(t)
			use(&cfg)
			_, err := standalone.Start(t.Context(), cfg, standalone.Options{})
			inUse, ok := errors.AsType[*standalone.InUseError](err)
			if !ok || inUse.Address != address || inUse.Flag != flag || !strings.Contains(err.Error(), flag) {
				t.Errorf("Start: %v, want that %s is in use and %s", err, address, flag)
			}
		})
	}
}

func TestDataDirectoryIsForOne(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Demo.Enabled = false
	start(t, cfg)
	if _, err := standalone.Start(t.Context(), cfg, standalone.Options{}); !errors.Is(err, datadir.ErrInUse) {
		t.Errorf("second Start: %v, want ErrInUse", err)
	}
}

func TestWithoutDemonstration(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Kafka.Brokers = testkit.Kafka(t)
	cfg.Demo.Enabled, cfg.Issuer.Enabled = false, false
	s := start(t, cfg)
	if got := s.Addresses(); !slices.Equal(got.Kafka, cfg.Kafka.Brokers) || got.Issuer != "" {
		t.Errorf("addresses %+v, want the given Kafka and no issuer", got)
	}
	if s.Demonstration() != (standalone.Demonstration{}) {
		t.Errorf("demonstration %+v, want none", s.Demonstration())
	}
	if _, err := s.AdministratorToken(); err == nil {
		t.Error("there is an administrator's token without an issuer")
	}
}

func TestEndsWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cfg := config(t)
	s, err := standalone.Start(ctx, cfg, standalone.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-s.Ended():
	case <-time.After(5 * time.Second):
		t.Error("still running 5 s after the end of its context")
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestEverythingIsOnLoopback(t *testing.T) {
	t.Parallel()
	for i, address := range []string{"0.0.0.0:0", ":0", "192.0.2.1:0"} {
		for name, use := range map[string]func(*standalone.Config){
			"mqtt_frontend":             func(c *standalone.Config) { c.MQTTFrontend.Listeners[0].Address = address },
			"kafka.embedded.address":    func(c *standalone.Config) { c.Kafka.Embedded.Address = address },
			"issuer.address":            func(c *standalone.Config) { c.Issuer.Address = address },
			"authorization.admin_api":   func(c *standalone.Config) { c.Authorization.AdminAPI.Address = address },
			"event_fanout.grpc.address": func(c *standalone.Config) { c.EventFanout.GRPC.Address = address },
		} {
			t.Run(fmt.Sprint(name, i), func(t *testing.T) {
				t.Parallel()
				cfg := config(t)
				use(&cfg)
				if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), name) {
					t.Errorf("Validate with %s: %v, want an error about %s", address, err, name)
				}
			})
		}
	}
}

func TestDefaultsAreValid(t *testing.T) {
	t.Parallel()
	cfg := standalone.DefaultConfig()
	cfg.DataDir = "somewhere"
	if err := cfg.Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
}
