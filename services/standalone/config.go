package standalone

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
	"mqtt-integration/libs/kafkaclient"
	"mqtt-integration/libs/naming"
	"mqtt-integration/services/authorization"
	commandingress "mqtt-integration/services/command-ingress"
	eventfanout "mqtt-integration/services/event-fanout"
	mqttfrontend "mqtt-integration/services/mqtt-frontend"
)

// Config has the four services' configurations side by side, and what standalone
// adds. Start from [DefaultConfig].
//
// Some of what the services need is filled in by [Run]: the file of the store
// and the providers of authorization get the data directory and the development
// issuer unless something else is there; the Kafka section goes to both services
// that use Kafka unless they have brokers of their own; the addresses at which mqtt-frontend finds the others
// are those that they listen on here, unless it has some. Their log, admin and drain_delay sections have
// no effect: this process has one log, and no port for metrics.
type Config struct {
	// DataDir keeps everything that survives a restart. One process at a time.
	DataDir string `yaml:"data_dir"`

	Log    daemon.LogConfig `yaml:"log"`
	Kafka  KafkaConfig      `yaml:"kafka"`
	Issuer IssuerConfig     `yaml:"issuer"`
	Demo   DemoConfig       `yaml:"demo"`

	Authorization  authorization.Config  `yaml:"authorization"`
	EventFanout    eventfanout.Config    `yaml:"event_fanout"`
	CommandIngress commandingress.Config `yaml:"command_ingress"`
	MQTTFrontend   mqttfrontend.Config   `yaml:"mqtt_frontend"`
}

// KafkaConfig is the Kafka of both services.
type KafkaConfig struct {
	// Config is a real Kafka. Without brokers the emulated one is started.
	kafkaclient.Config `yaml:",inline"`

	// Embedded is the emulated Kafka.
	Embedded EmbeddedKafkaConfig `yaml:"embedded"`
}

// EmbeddedKafkaConfig is the emulated Kafka, which is used when no brokers are
// configured.
type EmbeddedKafkaConfig struct {
	// Address is host:port on loopback, where any Kafka client can look inside.
	Address string `yaml:"address"`
	// Retention is how long records are kept at most.
	Retention time.Duration `yaml:"retention"`
	// RetentionBytes is how much of each partition is kept at most.
	RetentionBytes config.ByteSize `yaml:"retention_bytes"`
}

// IssuerConfig is the development issuer, an OpenID Connect provider for one
// machine.
type IssuerConfig struct {
	// Enabled starts it. It is needed by the demonstration; turn both off to
	// use nothing but the providers of authorization.issuers.
	Enabled bool `yaml:"enabled"`
	// Address is host:port on loopback.
	Address string `yaml:"address"`
	// TokenLifetime is how long its tokens are valid.
	TokenLifetime time.Duration `yaml:"token_lifetime"`
}

// DemoConfig is the demonstration: the user demo who owns an application that
// everyone may read, an API key, and a simulated device.
type DemoConfig struct {
	Enabled     bool   `yaml:"enabled"`
	Application string `yaml:"application"`
	Device      string `yaml:"device"`
	// Interval is the time between two events of the device.
	Interval time.Duration `yaml:"interval"`
}

// DefaultConfig returns the defaults but for the data directory: MQTT on
// 127.0.0.1:1883 and over WebSocket on 127.0.0.1:8083, the emulated Kafka on
// 127.0.0.1:9092, the development issuer on 127.0.0.1:8180, administration on
// 127.0.0.1:7011, everything else on any free port of 127.0.0.1; anonymous clients
// are let in.
func DefaultConfig() Config {
	c := Config{
		Log: daemon.LogConfig{Level: slog.LevelWarn, Format: "text"},
		Kafka: KafkaConfig{Embedded: EmbeddedKafkaConfig{
			Address: "127.0.0.1:9092", Retention: 7 * 24 * time.Hour, RetentionBytes: 256 * config.MiB,
		}},
		Issuer:         IssuerConfig{Enabled: true, Address: "127.0.0.1:8180", TokenLifetime: time.Hour},
		Demo:           DemoConfig{Enabled: true, Application: "example-app", Device: "device1", Interval: time.Second},
		Authorization:  authorization.DefaultConfig(),
		EventFanout:    eventfanout.DefaultConfig(),
		CommandIngress: commandingress.DefaultConfig(),
		MQTTFrontend:   mqttfrontend.DefaultConfig(),
	}
	c.Authorization.GRPC.Address = anyPort
	c.Authorization.AdminAPI.Address = "127.0.0.1:7011"
	c.Authorization.Store.SQLite.Path = ""
	c.Authorization.Anonymous.Enabled = true
	c.Authorization.UsersCreateApplications = true
	c.Authorization.DrainTimeout = drainTimeout
	c.EventFanout.GRPC.Address = anyPort
	c.EventFanout.Kafka.Brokers = nil
	c.EventFanout.Ring.Memory = 64 * config.MiB
	c.EventFanout.Topics.Create.Partitions = 4
	c.EventFanout.DrainTimeout = drainTimeout
	c.CommandIngress.GRPC.Address = anyPort
	c.CommandIngress.Kafka.Brokers = nil
	c.CommandIngress.DrainTimeout = drainTimeout
	c.MQTTFrontend.Authorization.Addresses = nil
	c.MQTTFrontend.EventFanout.Addresses = nil
	c.MQTTFrontend.CommandIngress.Addresses = nil
	c.MQTTFrontend.DrainTimeout = drainTimeout
	c.MQTTFrontend.Listeners = append(c.MQTTFrontend.Listeners,
		mqttfrontend.ListenerConfig{Address: "127.0.0.1:8083", Transport: mqttfrontend.TransportWebSocket})
	return c
}

const (
	anyPort = "127.0.0.1:0"

	// drainTimeout is short: the services go one after the other, and who
	// presses Ctrl-C waits.
	drainTimeout = 3 * time.Second

	// minSegmentBytes keeps the emulated Kafka from making a file per batch.
	minSegmentBytes = config.MiB
)

// AnyPorts makes everything listen on a free port.
func (c *Config) AnyPorts() {
	c.Kafka.Embedded.Address = anyPort
	c.Issuer.Address = anyPort
	c.Authorization.AdminAPI.Address = anyPort
	c.MQTTFrontend.Listeners = []mqttfrontend.ListenerConfig{
		{Address: anyPort, Transport: mqttfrontend.TransportTCP}, {Address: anyPort, Transport: mqttfrontend.TransportWebSocket},
	}
}

// Validate reports every problem under its YAML path.
func (c Config) Validate() error {
	var errs []error
	if c.DataDir == "" {
		errs = append(errs, errors.New("data_dir: is required"))
	}
	if c.Log.Format != "json" && c.Log.Format != "text" {
		errs = append(errs, fmt.Errorf("log.format: %q is neither json nor text", c.Log.Format))
	}
	if c.EmbedsKafka() {
		errs = append(errs, c.Kafka.Embedded.validate())
	} else {
		errs = append(errs, config.Under("kafka", c.Kafka.Config.Validate()))
	}
	if c.Issuer.Enabled {
		errs = append(errs, loopback("issuer.address", c.Issuer.Address))
		if c.Issuer.TokenLifetime <= 0 {
			errs = append(errs, fmt.Errorf("issuer.token_lifetime: %v is not positive", c.Issuer.TokenLifetime))
		}
	}
	if c.Demo.Enabled {
		errs = append(errs, c.validateDemo())
	}
	errs = append(errs,
		loopback("authorization.grpc.address", c.Authorization.GRPC.Address),
		loopback("authorization.admin_api.address", c.Authorization.AdminAPI.Address),
		loopback("event_fanout.grpc.address", c.EventFanout.GRPC.Address),
		loopback("command_ingress.grpc.address", c.CommandIngress.GRPC.Address),
	)
	for i, l := range c.MQTTFrontend.Listeners {
		errs = append(errs, loopback(fmt.Sprintf("mqtt_frontend.listeners[%d].address", i), l.Address))
	}
	// As they will be, with stand-ins for addresses that are not known yet.
	complete := c.complete(Addresses{
		Kafka: []string{"127.0.0.1:1"}, Issuer: "http://127.0.0.1:1",
		Authorization: "127.0.0.1:1", EventFanout: "127.0.0.1:1", CommandIngress: "127.0.0.1:1",
	})
	errs = append(errs,
		config.Under("authorization", complete.Authorization.Validate()),
		config.Under("event_fanout", complete.EventFanout.Validate()),
		config.Under("command_ingress", complete.CommandIngress.Validate()),
		config.Under("mqtt_frontend", complete.MQTTFrontend.Validate()),
	)
	return errors.Join(errs...)
}

func (c EmbeddedKafkaConfig) validate() error {
	errs := []error{loopback("kafka.embedded.address", c.Address)}
	if c.Retention < time.Second {
		errs = append(errs, fmt.Errorf("kafka.embedded.retention: %v is less than a second", c.Retention))
	}
	if c.RetentionBytes < minSegmentBytes {
		errs = append(errs, fmt.Errorf("kafka.embedded.retention_bytes: %v is less than %v", c.RetentionBytes, minSegmentBytes))
	}
	return errors.Join(errs...)
}

func (c Config) validateDemo() error {
	var errs []error
	if !c.Issuer.Enabled {
		errs = append(errs, errors.New("demo.enabled: needs issuer.enabled"))
	}
	if err := naming.ValidateApplication(c.Demo.Application); err != nil {
		errs = append(errs, fmt.Errorf("demo.application: %w", err))
	}
	if err := naming.ValidateApplication(c.Demo.Device); err != nil {
		errs = append(errs, fmt.Errorf("demo.device: %q is not possible in an MQTT topic", c.Demo.Device))
	}
	if c.Demo.Interval < time.Millisecond {
		errs = append(errs, fmt.Errorf("demo.interval: %v is less than 1ms", c.Demo.Interval))
	}
	return errors.Join(errs...)
}

func loopback(path, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%s: standalone listens on loopback only, not on %q", path, host)
	}
	return nil
}

// EmbedsKafka says whether the emulated Kafka is used, not a real one.
func (c Config) EmbedsKafka() bool { return len(c.Kafka.Brokers) == 0 }

// complete fills in what follows from the rest, see [Config].
func (c Config) complete(at Addresses) Config {
	if c.Authorization.Store.SQLite.Path == "" {
		c.Authorization.Store.SQLite.Path = filepath.Join(c.DataDir, storeFile)
	}
	if c.Issuer.Enabled {
		c.Authorization.Issuers = append([]authorization.Issuer{{
			Alias: issuerAlias, URL: at.Issuer, Audiences: []string{audience},
		}}, c.Authorization.Issuers...)
		c.Authorization.Administrators = append([]authorization.Administrator{{
			Issuer: issuerAlias, Subject: administratorSubject,
		}}, c.Authorization.Administrators...)
	}
	for _, own := range []*kafkaclient.Config{&c.EventFanout.Kafka, &c.CommandIngress.Kafka} {
		if len(own.Brokers) > 0 {
			continue
		}
		name := own.ClientID
		*own = c.Kafka.Config
		own.Brokers = at.Kafka
		if own.ClientID == "" {
			own.ClientID = name
		}
	}
	listen := func(server *grpcserver.Config, address string) {
		if address != "" {
			server.Address = address
		}
	}
	listen(&c.Authorization.GRPC, at.Authorization)
	listen(&c.Authorization.AdminAPI, at.AuthorizationAdmin)
	listen(&c.EventFanout.GRPC, at.EventFanout)
	listen(&c.CommandIngress.GRPC, at.CommandIngress)
	for _, client := range []struct {
		addresses *[]string
		at        string
	}{
		{&c.MQTTFrontend.Authorization.Addresses, at.Authorization},
		{&c.MQTTFrontend.EventFanout.Addresses, at.EventFanout},
		{&c.MQTTFrontend.CommandIngress.Addresses, at.CommandIngress},
	} {
		if len(*client.addresses) == 0 {
			*client.addresses = []string{client.at}
		}
	}
	return c
}
