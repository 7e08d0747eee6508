package mqttfrontend_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/config"
	mqttfrontend "mqtt-integration/services/mqtt-frontend"
)

func TestDocumentedConfigurationIsTheDefault(t *testing.T) {
	t.Parallel()
	// Over an empty one, so that a setting that is not documented is missed.
	var documented mqttfrontend.Config
	if err := config.Load(&documented, "../../deploy/config/mqtt-frontend.yaml", nil, "MQTT_FRONTEND"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(printed(t, mqttfrontend.DefaultConfig()), printed(t, documented)); diff != "" {
		t.Errorf("documented configuration (-default +documented):\n%s", diff)
	}
	if err := documented.Validate(); err != nil {
		t.Error(err)
	}
}

func printed(t *testing.T, c mqttfrontend.Config) string {
	t.Helper()
	var b bytes.Buffer
	if err := config.Print(&b, c); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestValidateNamesEveryProblem(t *testing.T) {
	t.Parallel()
	c := mqttfrontend.DefaultConfig()
	c.DrainTimeout = 0
	c.Listeners = []mqttfrontend.ListenerConfig{{Address: "1883"}}
	c.MQTT = mqttfrontend.MQTTConfig{MaxKeepAlive: time.Millisecond, TokenGrace: -1}
	c.Commands.Rejected311 = "drop"
	c.Authorization.Addresses = nil
	c.EventFanout.Addresses = []string{"fanout:7002"}
	c.CommandIngress.MaxRecords = 0
	err := c.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, path := range []string{
		"drain_timeout: ", "listeners[0].address: ", "mqtt.max_connections: ", "mqtt.max_packet_size: ", "mqtt.max_connect_size: ",
		"mqtt.receive_maximum: ", "mqtt.max_inflight: ", "mqtt.max_inflight_bytes: ", "mqtt.max_subscriptions: ",
		"mqtt.max_keep_alive: ", "mqtt.connect_timeout: ", "mqtt.write_timeout: ", "mqtt.subscribe_timeout: ", "mqtt.token_grace: ",
		"commands.rejected_311: ", "authorization.addresses: ", "event_fanout.addresses[0]: ", "command_ingress.max_records: ",
	} {
		if !strings.Contains("\n"+err.Error(), "\n"+path) {
			t.Errorf("no problem of %s", path)
		}
	}
	c.Listeners = []mqttfrontend.ListenerConfig{
		{Address: "127.0.0.1:1", Transport: "udp"},
		{Address: "127.0.0.1:2", Origins: []string{"example.com"}},
		{Address: "127.0.0.1:3", Transport: "websocket", Origins: []string{"https://example.com/"}},
	}
	for _, path := range []string{"listeners[0].transport: ", "listeners[1].origins: ", "listeners[2].origins: "} {
		if !strings.Contains("\n"+c.Validate().Error(), "\n"+path) {
			t.Errorf("no problem of %s", path)
		}
	}
	c.Listeners = nil
	if err := c.Validate(); !strings.Contains(err.Error(), "listeners: at least one") {
		t.Errorf("no listener: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	c := mqttfrontend.DefaultConfig()
	environ := []string{
		"MQTT_FRONTEND_LISTENERS=[{address: '127.0.0.1:1884'}, {address: '[::1]:1884', transport: websocket, origins: [example.com]}]",
		"MQTT_FRONTEND_EVENT_FANOUT_ADDRESSES=127.0.0.1:1,127.0.0.1:2",
		"MQTT_FRONTEND_MQTT_MAX_INFLIGHT=3",
	}
	if err := config.Load(&c, "", environ, "MQTT_FRONTEND"); err != nil {
		t.Fatal(err)
	}
	if len(c.Listeners) != 2 || c.Listeners[1].Address != "[::1]:1884" || c.Listeners[1].Transport != "websocket" || len(c.Listeners[1].Origins) != 1 || len(c.EventFanout.Addresses) != 2 || c.MQTT.MaxInflight != 3 {
		t.Errorf("%+v", c)
	}
}
