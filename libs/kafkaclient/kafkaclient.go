package kafkaclient

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/rcrowley/go-metrics"

	"mqtt-integration/libs/config"
)

// defaultVersion is the protocol that is spoken at most. sarama agrees on less
// with a broker that knows less.
var defaultVersion = sarama.V4_1_0_0

// metricsOff has sarama's own metrics do nothing. They take 170 KiB of heap per
// client, and we count for ourselves. It has to happen before the first client
// is made, anywhere in the process, because sarama reads the switch unguarded:
// hence here and not in Sarama.
var _ = metricsOff()

func metricsOff() struct{} {
	metrics.UseNilMetrics = true
	return struct{}{}
}

// Config is how to reach a Kafka cluster, and as whom.
type Config struct {
	// Brokers are host:port of some brokers, from which the others are learnt.
	Brokers []string `yaml:"brokers"`
	// ClientID names us in the broker's logs and quotas. Empty is
	// "mqtt-integration".
	ClientID string `yaml:"client_id"`
	// Version is the newest protocol to be used, such as "3.9.0". Empty is 4.1.0,
	// which also suits other brokers from 2.1 on.
	Version string `yaml:"version"`
	TLS     TLS    `yaml:"tls"`
	SASL    SASL   `yaml:"sasl"`
}

// TLS says how the connections are protected.
type TLS struct {
	Enabled bool `yaml:"enabled"`
	// CAFile has the authorities, in PEM, that the brokers' certificates must be
	// from. Empty means those of the system.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are our certificate, in PEM, for brokers that want
	// one. They are read again with each connection.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ServerName is what the brokers' certificates must be for. Empty means the
	// host name of each.
	ServerName string `yaml:"server_name"`
}

// SASL says who we are. Without TLS, PLAIN shows the password to the network.
type SASL struct {
	// Mechanism is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. Empty means no SASL.
	Mechanism string `yaml:"mechanism"`
	Username  string `yaml:"username"`
	// Password or PasswordFile is required; the file is read once.
	Password     config.Secret `yaml:"password"`
	PasswordFile string        `yaml:"password_file"`
}

// The mechanisms of SASL.
const (
	Plain       = sarama.SASLTypePlaintext
	SCRAMSHA256 = sarama.SASLTypeSCRAMSHA256
	SCRAMSHA512 = sarama.SASLTypeSCRAMSHA512
)

// Validate reports every problem under its YAML path. It reads no files.
func (c Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("brokers: at least one is required"))
	}
	for i, broker := range c.Brokers {
		if host, port, err := net.SplitHostPort(broker); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("brokers[%d]: %q is no host:port", i, broker))
		}
	}
	if _, err := c.version(); err != nil {
		errs = append(errs, fmt.Errorf("version: %w", err))
	}
	return errors.Join(append(errs, config.Under("tls", c.TLS.validate()), config.Under("sasl", c.SASL.validate()))...)
}

func (c Config) version() (sarama.KafkaVersion, error) {
	if c.Version == "" {
		return defaultVersion, nil
	}
	v, err := sarama.ParseKafkaVersion(c.Version)
	if err != nil {
		return v, fmt.Errorf("%q is no version of Kafka", c.Version)
	}
	if !v.IsAtLeast(sarama.V2_1_0_0) {
		return v, fmt.Errorf("%s is older than 2.1.0", c.Version)
	}
	return v, nil
}

func (t TLS) validate() error {
	var errs []error
	if (t.CertFile == "") != (t.KeyFile == "") {
		errs = append(errs, errors.New("cert_file: goes with key_file, and one of them is missing"))
	}
	if !t.Enabled && t != (TLS{}) {
		errs = append(errs, errors.New("enabled: is false, but there are other settings for TLS"))
	}
	return errors.Join(errs...)
}

func (s SASL) validate() error {
	if s.Mechanism == "" {
		if s != (SASL{}) {
			return errors.New("mechanism: is required with the other settings for SASL")
		}
		return nil
	}
	var errs []error
	mechanisms := []string{Plain, SCRAMSHA256, SCRAMSHA512}
	if !slices.Contains(mechanisms, s.Mechanism) {
		errs = append(errs, fmt.Errorf("mechanism: %q is none of %s", s.Mechanism, strings.Join(mechanisms, ", ")))
	}
	if s.Username == "" {
		errs = append(errs, errors.New("username: is required"))
	}
	if (s.Password == "") == (s.PasswordFile == "") {
		errs = append(errs, errors.New("password_file: either this or password is required"))
	}
	return errors.Join(errs...)
}

// Sarama returns a new sarama configuration, which the caller owns and completes
// for one role. It reads the files that are configured.
//
// It is safe rather than fast in what it leaves to the roles: no topics are
// created by asking for them, metadata is kept only for topics in use and
// refreshed every 30 s, consumers read committed records only and commit
// nothing by themselves, groups start at the oldest record, producers wait for
// all replicas. A broker may keep an answer for up to 30 s (Net.ReadTimeout): a
// role whose group may take longer to rebalance has to raise that.
func (c Config) Sarama() (*sarama.Config, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	s := sarama.NewConfig()
	s.Version, _ = c.version() // Validate has seen it
	s.ClientID = c.ClientID
	if s.ClientID == "" {
		s.ClientID = "mqtt-integration"
	}

	// A broker that is gone without a word costs 10 s, not 30 s; answers may
	// take longer, as those to a group member that waits for the others do.
	s.Net.DialTimeout = 10 * time.Second
	s.Net.WriteTimeout = 10 * time.Second
	s.Net.ReadTimeout = 30 * time.Second
	s.Metadata.Full = false
	s.Metadata.AllowAutoTopicCreation = false
	s.Metadata.RefreshFrequency = 30 * time.Second
	s.Metadata.Timeout = 15 * time.Second
	s.Consumer.IsolationLevel = sarama.ReadCommitted
	s.Consumer.Offsets.AutoCommit.Enable = false
	s.Consumer.Offsets.Initial = sarama.OffsetOldest
	s.Producer.RequiredAcks = sarama.WaitForAll

	if err := c.TLS.apply(s); err != nil {
		return nil, fmt.Errorf("kafka: tls: %w", err)
	}
	if err := c.SASL.apply(s); err != nil {
		return nil, fmt.Errorf("kafka: sasl: %w", err)
	}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return s, nil
}

func (t TLS) apply(s *sarama.Config) error {
	if !t.Enabled {
		return nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return fmt.Errorf("ca_file: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("ca_file: %s has no certificate in PEM", t.CAFile)
		}
	}
	if t.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
			return fmt.Errorf("cert_file: %w", err)
		}
		// With each handshake, so that a renewed certificate needs no restart.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificate, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			return &certificate, err
		}
	}
	s.Net.TLS.Enable, s.Net.TLS.Config = true, cfg
	return nil
}

func (s SASL) apply(out *sarama.Config) error {
	if s.Mechanism == "" {
		return nil
	}
	password, err := config.ReadSecret(s.Password, s.PasswordFile)
	if err != nil {
		return fmt.Errorf("password_file: %w", err)
	}
	out.Net.SASL.Enable = true
	out.Net.SASL.Mechanism = sarama.SASLMechanism(s.Mechanism)
	out.Net.SASL.User = s.Username
	out.Net.SASL.Password = password.Reveal()
	out.Net.SASL.SCRAMClientGeneratorFunc = scramGenerator(s.Mechanism)
	return nil
}
