package mqttfrontend

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/daemon"
	"mqtt-integration/services/mqtt-frontend/internal/access"
	"mqtt-integration/services/mqtt-frontend/internal/command"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/listener"
)

// Config is the configuration of the service.
type Config struct {
	daemon.Common `yaml:",inline"`

	// Listeners are where clients connect.
	Listeners []ListenerConfig `yaml:"listeners"`
	// FrontendID identifies this process to the other services, and orders
	// simultaneous connections of a session. Empty: a new one at each start.
	FrontendID string `yaml:"frontend_id"`
	// MQTT bounds what clients may do.
	MQTT MQTTConfig `yaml:"mqtt"`
	// Commands says how PUBLISH packets become commands.
	Commands CommandsConfig `yaml:"commands"`
	// Authorization, EventFanout and CommandIngress say where the other services are.
	Authorization  access.Config   `yaml:"authorization"`
	EventFanout    delivery.Config `yaml:"event_fanout"`
	CommandIngress command.Config  `yaml:"command_ingress"`
}

// ListenerConfig is one address that clients connect to.
type ListenerConfig struct {
	// Address is host:port.
	Address string `yaml:"address"`
	// Transport is TransportTCP, also when it is empty, or TransportWebSocket.
	Transport string `yaml:"transport"`
	// Origins are the hosts of web pages that may connect to a WebSocket, beside
	// pages of the same host: host[:port] or scheme://host[:port], with * as in file
	// names.
	Origins []string `yaml:"origins"`
}

// The transports of MQTT. A WebSocket has the path /mqtt.
const (
	TransportTCP       = "tcp"
	TransportWebSocket = "websocket"
)

func (c ListenerConfig) validate(path string) error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		errs = append(errs, fmt.Errorf("%s.address: %w", path, err))
	}
	switch c.Transport {
	case "", TransportTCP:
		if len(c.Origins) > 0 {
			errs = append(errs, fmt.Errorf("%s.origins: only WebSockets have origins", path))
		}
	case TransportWebSocket:
		if err := (&listener.WebSocket{Origins: c.Origins}).Validate(); err != nil {
			errs = append(errs, fmt.Errorf("%s.origins: %w", path, err))
		}
	default:
		errs = append(errs, fmt.Errorf("%s.transport: %q is neither %s nor %s", path, c.Transport, TransportTCP, TransportWebSocket))
	}
	return errors.Join(errs...)
}

// MQTTConfig bounds what clients may do.
type MQTTConfig struct {
	// MaxConnections of this process. More get CONNACK 0x89.
	MaxConnections int `yaml:"max_connections"`
	// MaxPacketSize is what clients may send, and is announced to them; lowered to
	// what Kafka takes.
	MaxPacketSize config.ByteSize `yaml:"max_packet_size"`
	// MaxConnectSize is the largest CONNECT packet.
	MaxConnectSize config.ByteSize `yaml:"max_connect_size"`
	// ReceiveMaximum is how many PUBLISH packets of a client may be unacknowledged.
	ReceiveMaximum uint16 `yaml:"receive_maximum"`
	// TopicAliasMaximum of clients; 0 turns topic aliases off.
	TopicAliasMaximum uint16 `yaml:"topic_alias_maximum"`
	// MaxInflight is how many events a client may have unacknowledged, if its
	// Receive Maximum allows it.
	MaxInflight int `yaml:"max_inflight"`
	// MaxInflightBytes is how large they may be together. One event is always
	// allowed.
	MaxInflightBytes config.ByteSize `yaml:"max_inflight_bytes"`
	// MaxSubscriptions of one connection. More get 0x97.
	MaxSubscriptions int `yaml:"max_subscriptions"`
	// MaxKeepAlive is announced to MQTT 5 clients that ask for more, or for none.
	// Whole seconds; 0: clients have what they ask for.
	MaxKeepAlive time.Duration `yaml:"max_keep_alive"`
	// ConnectTimeout is how long a client may take to send CONNECT.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// WriteTimeout ends a connection whose client does not read.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// SubscribeTimeout is when a SUBSCRIBE is answered at the latest.
	SubscribeTimeout time.Duration `yaml:"subscribe_timeout"`
	// TokenGrace is how long a connection outlives its access token or API key.
	TokenGrace time.Duration `yaml:"token_grace"`
}

// What becomes of a command of an MQTT 3.1.1 client that will never be accepted:
// that version has no negative acknowledgement.
const (
	RejectedClose       = "close"
	RejectedAcknowledge = "acknowledge"
)

// CommandsConfig says how PUBLISH packets become commands.
type CommandsConfig struct {
	// Rejected311 is RejectedClose or RejectedAcknowledge.
	Rejected311 string `yaml:"rejected_311"`
	// AuthContext adds to the commands who sent them (CloudEvents Auth Context).
	AuthContext bool `yaml:"auth_context"`
	// TrustRemoteSampling lets the sampled flag of a client's traceparent decide
	// whether its command is recorded as a trace. Without, which is the default,
	// the sampler of this process does: clients could have everything recorded.
	TrustRemoteSampling bool `yaml:"trust_remote_sampling"`
}

// DefaultConfig returns the defaults: MQTT on 127.0.0.1:1883, the other services
// on this machine.
func DefaultConfig() Config {
	common := daemon.DefaultCommon()
	common.Admin.Address = "127.0.0.1:9090"
	return Config{
		Common:    common,
		Listeners: []ListenerConfig{{Address: "127.0.0.1:1883", Transport: TransportTCP}},
		MQTT: MQTTConfig{
			MaxConnections: 10_000, MaxPacketSize: config.MiB, MaxConnectSize: 256 * config.KiB,
			ReceiveMaximum: 100, TopicAliasMaximum: 32,
			MaxInflight: 256, MaxInflightBytes: 4 * config.MiB, MaxSubscriptions: 100,
			ConnectTimeout: 10 * time.Second, WriteTimeout: 5 * time.Second, SubscribeTimeout: 15 * time.Second,
		},
		Commands:       CommandsConfig{Rejected311: RejectedClose, AuthContext: true},
		Authorization:  access.DefaultConfig(),
		EventFanout:    delivery.DefaultConfig(),
		CommandIngress: command.DefaultConfig(),
	}
}

// Validate reports every problem under its YAML path.
func (c Config) Validate() error {
	errs := []error{c.Common.Validate()}
	if len(c.Listeners) == 0 {
		errs = append(errs, errors.New("listeners: at least one is required"))
	}
	for i, l := range c.Listeners {
		errs = append(errs, l.validate(fmt.Sprintf("listeners[%d]", i)))
	}
	errs = append(errs, c.MQTT.validate(),
		under("authorization", c.Authorization.Validate()),
		under("event_fanout", c.EventFanout.Validate()),
		under("command_ingress", c.CommandIngress.Validate()))
	if r := c.Commands.Rejected311; r != RejectedClose && r != RejectedAcknowledge {
		errs = append(errs, fmt.Errorf("commands.rejected_311: %q is neither %s nor %s", r, RejectedClose, RejectedAcknowledge))
	}
	return errors.Join(errs...)
}

func (c MQTTConfig) validate() error {
	var errs []error
	between := func(name string, value, low, high int64) {
		if value < low || value > high {
			errs = append(errs, fmt.Errorf("mqtt.%s: %d is not between %d and %d", name, value, low, high))
		}
	}
	positive := func(name string, d time.Duration) {
		if d <= 0 {
			errs = append(errs, fmt.Errorf("mqtt.%s: %v is not positive", name, d))
		}
	}
	const maxPacket = 256 << 20
	between("max_connections", int64(c.MaxConnections), 1, 10_000_000)
	between("max_packet_size", int64(c.MaxPacketSize), 1<<10, maxPacket)
	between("max_connect_size", int64(c.MaxConnectSize), 1<<10, maxPacket)
	between("receive_maximum", int64(c.ReceiveMaximum), 1, 65535)
	between("max_inflight", int64(c.MaxInflight), 1, 65535)
	between("max_inflight_bytes", int64(c.MaxInflightBytes), 1, 1<<40)
	between("max_subscriptions", int64(c.MaxSubscriptions), 1, 1_000_000)
	if c.MaxKeepAlive != c.MaxKeepAlive.Truncate(time.Second) || c.MaxKeepAlive < 0 || c.MaxKeepAlive > 65535*time.Second {
		errs = append(errs, fmt.Errorf("mqtt.max_keep_alive: %v is no number of whole seconds up to 65535s", c.MaxKeepAlive))
	}
	positive("connect_timeout", c.ConnectTimeout)
	positive("write_timeout", c.WriteTimeout)
	positive("subscribe_timeout", c.SubscribeTimeout)
	if c.TokenGrace < 0 {
		errs = append(errs, fmt.Errorf("mqtt.token_grace: %v is negative", c.TokenGrace))
	}
	return errors.Join(errs...)
}

// under puts the YAML path of a section in front of each of its problems.
func under(path string, err error) error {
	if err == nil {
		return nil
	}
	var errs []error
	for line := range strings.SplitSeq(err.Error(), "\n") {
		errs = append(errs, errors.New(path+"."+line))
	}
	return errors.Join(errs...)
}
