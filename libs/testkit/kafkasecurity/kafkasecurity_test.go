// Package kafkasecurity_test proves libs/kafkaclient against a broker that wants
// TLS, client certificates and passwords. It is here and not there because libs
// does not depend on the emulated broker.
package kafkasecurity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/kafkaclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const password = "hunter2"

// authority signs certificates for one test.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	file        string
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{certificate: certificate, key: key, file: writePEM(t, "ca.pem", "CERTIFICATE", der)}
}

func writePEM(t *testing.T, name, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// issue returns the files of a certificate for 127.0.0.1 and of its key.
func (a authority) issue(t *testing.T, usage x509.ExtKeyUsage) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{usage}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, "cert.pem", "CERTIFICATE", der), writePEM(t, "key.pem", "PRIVATE KEY", private)
}

// secured starts a broker that wants TLS, a client certificate if mutual, and a
// password.
func secured(t *testing.T, ca authority, mutual bool) []string {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(ca.issue(t, x509.ExtKeyUsageServerAuth))
	if err != nil {
		t.Fatal(err)
	}
	server := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}}
	if mutual {
		server.ClientCAs = x509.NewCertPool()
		server.ClientCAs.AddCert(ca.certificate)
		server.ClientAuth = tls.RequireAndVerifyClientCert
	}
	options := []kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(1, "events"), kfake.TLS(server), kfake.EnableSASL()}
	for _, mechanism := range []string{kafkaclient.Plain, kafkaclient.SCRAMSHA256, kafkaclient.SCRAMSHA512} {
		options = append(options, kfake.Superuser(mechanism, "user-"+mechanism, password))
	}
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster.ListenAddrs()
}

// produce produces one record, and is quick to give up.
func produce(cfg kafkaclient.Config) error {
	s, err := cfg.Sarama()
	if err != nil {
		return err
	}
	s.Producer.Return.Successes = true
	s.Metadata.Retry.Max = 0
	s.Metadata.Timeout = 3 * time.Second
	producer, err := sarama.NewSyncProducer(cfg.Brokers, s)
	if err != nil {
		return err
	}
	_, _, err = producer.SendMessage(&sarama.ProducerMessage{Topic: "events", Value: sarama.StringEncoder("x")})
	if closeErr := producer.Close(); err == nil {
		err = closeErr
	}
	return err
}

func TestSASLOverTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	brokers := secured(t, ca, false)
	for _, mechanism := range []string{kafkaclient.Plain, kafkaclient.SCRAMSHA256, kafkaclient.SCRAMSHA512} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			cfg := kafkaclient.Config{
				Brokers: brokers, TLS: kafkaclient.TLS{Enabled: true, CAFile: ca.file},
				SASL: kafkaclient.SASL{Mechanism: mechanism, Username: "user-" + mechanism, Password: config.Secret(password)},
			}
			if err := produce(cfg); err != nil {
				t.Errorf("with the right password: %v", err)
			}
			cfg.SASL.Password = "wrong"
			if err := produce(cfg); err == nil {
				t.Error("with a wrong password: no error")
			}
		})
	}
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	ca, stranger := newAuthority(t), newAuthority(t)
	brokers := secured(t, ca, true)
	right := kafkaclient.TLS{Enabled: true, CAFile: ca.file}
	right.CertFile, right.KeyFile = ca.issue(t, x509.ExtKeyUsageClientAuth)
	strangers := right
	strangers.CertFile, strangers.KeyFile = stranger.issue(t, x509.ExtKeyUsageClientAuth)
	tests := []struct {
		name string
		tls  kafkaclient.TLS
		ok   bool
	}{
		{name: "all in order", tls: right, ok: true},
		{name: "no client certificate", tls: kafkaclient.TLS{Enabled: true, CAFile: ca.file}},
		{name: "a stranger's client certificate", tls: strangers},
		{
			name: "a broker that we do not trust",
			tls:  kafkaclient.TLS{Enabled: true, CAFile: stranger.file, CertFile: right.CertFile, KeyFile: right.KeyFile},
		},
		{
			name: "a broker with another name",
			tls:  kafkaclient.TLS{Enabled: true, CAFile: ca.file, CertFile: right.CertFile, KeyFile: right.KeyFile, ServerName: "kafka.example.com"},
		},
		{name: "plaintext", tls: kafkaclient.TLS{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := produce(kafkaclient.Config{
				Brokers: brokers, TLS: tt.tls,
				SASL: kafkaclient.SASL{Mechanism: kafkaclient.Plain, Username: "user-" + kafkaclient.Plain, Password: config.Secret(password)},
			})
			if (err == nil) != tt.ok {
				t.Errorf("producing gave %v, want success: %v", err, tt.ok)
			}
		})
	}
}
