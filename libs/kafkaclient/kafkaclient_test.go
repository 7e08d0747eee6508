package kafkaclient_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/rcrowley/go-metrics"
	"github.com/xdg-go/scram"

	"mqtt-integration/libs/kafkaclient"
)

func valid() kafkaclient.Config { return kafkaclient.Config{Brokers: []string{"localhost:9092"}} }

func TestValidate(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		set  func(*kafkaclient.Config)
		want string
	}{
		{name: "only brokers", set: func(*kafkaclient.Config) {}},
		{name: "no brokers", set: func(c *kafkaclient.Config) { c.Brokers = nil }, want: "brokers: at least one is required"},
		{
			name: "brokers that are none",
			set:  func(c *kafkaclient.Config) { c.Brokers = []string{"a:1", "b", ":2", "c:"} },
			want: "brokers[1]: \"b\" is no host:port\nbrokers[2]: \":2\" is no host:port\nbrokers[3]: \"c:\" is no host:port",
		},
		{name: "a version", set: func(c *kafkaclient.Config) { c.Version = "3.9.0" }},
		{name: "no version", set: func(c *kafkaclient.Config) { c.Version = "new" }, want: `version: "new" is no version of Kafka`},
		{name: "an old version", set: func(c *kafkaclient.Config) { c.Version = "2.0.0" }, want: "version: 2.0.0 is older than 2.1.0"},
		{
			name: "TLS that is off",
			set:  func(c *kafkaclient.Config) { c.TLS.CAFile = "ca.pem" },
			want: "tls.enabled: is false, but there are other settings for TLS",
		},
		{
			name: "half a certificate",
			set:  func(c *kafkaclient.Config) { c.TLS = kafkaclient.TLS{Enabled: true, CertFile: "c"} },
			want: "tls.cert_file: goes with key_file, and one of them is missing",
		},
		{
			name: "SASL",
			set: func(c *kafkaclient.Config) {
				c.SASL = kafkaclient.SASL{Mechanism: kafkaclient.SCRAMSHA512, Username: "u", PasswordFile: "p"}
			},
		},
		{
			name: "SASL without a mechanism",
			set:  func(c *kafkaclient.Config) { c.SASL.Username = "u" },
			want: "sasl.mechanism: is required with the other settings for SASL",
		},
		{
			name: "everything wrong with SASL",
			set:  func(c *kafkaclient.Config) { c.SASL.Mechanism = "scram" },
			want: "sasl.mechanism: \"scram\" is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512\n" +
				"sasl.username: is required\nsasl.password_file: either this or password is required",
		},
		{
			name: "two passwords",
			set: func(c *kafkaclient.Config) {
				c.SASL = kafkaclient.SASL{Mechanism: kafkaclient.Plain, Username: "u", Password: "hunter2", PasswordFile: "p"}
			},
			want: "sasl.password_file: either this or password is required",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := valid()
			tt.set(&cfg)
			err := cfg.Validate()
			if fmt.Sprint(err) != tt.want && (err != nil || tt.want != "") {
				t.Errorf("Validate() = %v, want %q", err, tt.want)
			}
			if err != nil {
				if s, saramaErr := cfg.Sarama(); saramaErr == nil || s != nil {
					t.Error("Sarama() accepts what Validate() refuses")
				}
			}
		})
	}
}

func TestSarama(t *testing.T) {
	t.Parallel()
	s, err := valid().Sarama()
	if err != nil {
		t.Fatal(err)
	}
	if s.Version != sarama.V4_1_0_0 || s.ClientID != "mqtt-integration" {
		t.Errorf("version and client id are %v and %q", s.Version, s.ClientID)
	}
	if s.Metadata.AllowAutoTopicCreation || s.Metadata.Full || s.Consumer.Offsets.AutoCommit.Enable {
		t.Error("creates topics, knows all topics or commits by itself")
	}
	if s.Consumer.IsolationLevel != sarama.ReadCommitted || s.Consumer.Offsets.Initial != sarama.OffsetOldest || s.Producer.RequiredAcks != sarama.WaitForAll {
		t.Error("reads uncommitted records, starts at the newest or does not wait for replicas")
	}
	if s.MetricRegistry == nil {
		t.Error("has no metric registry, which sarama dereferences")
	}
	if !metrics.UseNilMetrics {
		t.Error("sarama's metrics are on")
	}

	// A copy of one's own: what one role sets does not reach another.
	other, err := valid().Sarama()
	if err != nil {
		t.Fatal(err)
	}
	s.Net.MaxOpenRequests = 1
	if other == s || other.Net.MaxOpenRequests == 1 || other.MetricRegistry == s.MetricRegistry {
		t.Error("two calls of Sarama share something")
	}

	cfg := valid()
	cfg.Version, cfg.ClientID = "3.9.0", "event-fanout"
	if s, err = cfg.Sarama(); err != nil || s.Version != sarama.V3_9_0_0 || s.ClientID != "event-fanout" {
		t.Errorf("Sarama() = version %v, client id %q, %v", s.Version, s.ClientID, err)
	}
}

func TestSaramaSASL(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := valid()
	cfg.SASL = kafkaclient.SASL{Mechanism: kafkaclient.Plain, Username: "u", PasswordFile: file}
	s, err := cfg.Sarama()
	if err != nil {
		t.Fatal(err)
	}
	if sasl := s.Net.SASL; !sasl.Enable || sasl.Mechanism != sarama.SASLTypePlaintext || sasl.User != "u" || sasl.Password != "hunter2" {
		t.Errorf("SASL is enabled %v, %s, user %q", sasl.Enable, sasl.Mechanism, sasl.User)
	}
	cfg.SASL.PasswordFile = file + "x"
	if _, err := cfg.Sarama(); err == nil || !strings.Contains(err.Error(), "kafka: sasl: password_file: open "+file+"x") {
		t.Errorf("Sarama() = %v, want an error that names setting and file", err)
	}
}

// TestSCRAM has a conversation with the server side of the library.
func TestSCRAM(t *testing.T) {
	t.Parallel()
	for mechanism, hash := range map[string]scram.HashGeneratorFcn{
		kafkaclient.SCRAMSHA256: scram.SHA256, kafkaclient.SCRAMSHA512: scram.SHA512,
	} {
		cfg := valid()
		cfg.SASL = kafkaclient.SASL{Mechanism: mechanism, Username: "u", Password: "hunter2"}
		s, err := cfg.Sarama()
		if err != nil {
			t.Fatal(err)
		}
		user, err := hash.NewClient("u", "hunter2", "")
		if err != nil {
			t.Fatal(err)
		}
		server, err := hash.NewServer(func(string) (scram.StoredCredentials, error) {
			return user.GetStoredCredentialsWithError(scram.KeyFactors{Salt: "salt", Iters: 4096})
		})
		if err != nil {
			t.Fatal(err)
		}
		for password, want := range map[string]bool{"hunter2": true, "hunter3": false} {
			if got := converse(t, s.Net.SASL.SCRAMClientGeneratorFunc(), server.NewConversation(), password); got != want {
				t.Errorf("%s with %q succeeds: %v, want %v", mechanism, password, got, want)
			}
		}
	}
}

func converse(t *testing.T, client sarama.SCRAMClient, server *scram.ServerConversation, password string) bool {
	t.Helper()
	if err := client.Begin("u", password, ""); err != nil {
		t.Fatal(err)
	}
	challenge := ""
	for !client.Done() {
		response, err := client.Step(challenge)
		if err != nil {
			return false
		}
		if client.Done() {
			break
		}
		if challenge, err = server.Step(response); err != nil {
			return false
		}
	}
	return server.Valid()
}

// writeCertificate makes a self-signed certificate and returns the paths of it
// and of its key.
func writeCertificate(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: certificate}, keyFile: {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestSaramaTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := writeCertificate(t, dir, "first")
	cfg := valid()
	cfg.TLS = kafkaclient.TLS{Enabled: true, CAFile: certFile, CertFile: certFile, KeyFile: keyFile, ServerName: "kafka"}
	s, err := cfg.Sarama()
	if err != nil {
		t.Fatal(err)
	}
	got := s.Net.TLS.Config
	if !s.Net.TLS.Enable || got.ServerName != "kafka" || got.MinVersion != tls.VersionTLS12 || got.InsecureSkipVerify || got.RootCAs == nil {
		t.Errorf("TLS is enabled %v, %+v", s.Net.TLS.Enable, got)
	}
	// A renewed certificate is used without asking for the configuration again.
	for _, name := range []string{"first", "renewed"} {
		writeCertificate(t, dir, name)
		certificate, err := got.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if names := certificate.Leaf.DNSNames; len(names) != 1 || names[0] != name {
			t.Errorf("the certificate is for %v, want %s", names, name)
		}
	}

	errorsOf := map[string]kafkaclient.TLS{
		"kafka: tls: ca_file: open nowhere: no such file":      {Enabled: true, CAFile: "nowhere"},
		"kafka: tls: ca_file: " + keyFile + " has no certific": {Enabled: true, CAFile: keyFile},
		"kafka: tls: cert_file: open nowhere: no such file":    {Enabled: true, CertFile: "nowhere", KeyFile: keyFile},
	}
	for want, settings := range errorsOf {
		cfg.TLS = settings
		if _, err := cfg.Sarama(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Sarama() = %v, want %q", err, want)
		}
	}
}
