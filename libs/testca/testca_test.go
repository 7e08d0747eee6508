package testca_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"mqtt-integration/libs/testca"
)

func TestCertificatesAreForTheirNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := testca.New(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := testca.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue("fanout", testca.Options{
		Names: []string{"event-fanout", "127.0.0.1", "::1", "spiffe://example.org/event-fanout"}, NotAfter: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, ca.File, pair, "event-fanout", "127.0.0.1", "::1")
	loaded, err := tls.LoadX509KeyPair(pair.CertFile, pair.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	if uris := loaded.Leaf.URIs; len(uris) != 1 || uris[0].String() != "spiffe://example.org/event-fanout" {
		t.Errorf("URIs are %v", uris)
	}
	if got := time.Until(loaded.Leaf.NotAfter); got > time.Hour {
		t.Errorf("it is good for %v, want an hour", got)
	}
	if info, err := os.Stat(pair.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key is %v, %v, want 0600", info.Mode(), err)
	}
}

func check(t *testing.T, caFile string, pair testca.Pair, names ...string) {
	t.Helper()
	data, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(data)
	loaded, err := tls.LoadX509KeyPair(pair.CertFile, pair.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			_, err := loaded.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestCommandKeepsTheAuthority(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	for _, arg := range []string{"event-fanout=event-fanout,127.0.0.1", "mqtt-frontend"} {
		if output, err := exec.CommandContext(t.Context(), "go", "run", "./cmd/testca", dir, arg).CombinedOutput(); err != nil {
			t.Fatalf("testca %s: %v\n%s", arg, err, output)
		}
	}
	for file, name := range map[string]string{"event-fanout": "127.0.0.1", "mqtt-frontend": "mqtt-frontend"} {
		check(t, filepath.Join(dir, "ca.pem"), testca.Pair{
			CertFile: filepath.Join(dir, file+".pem"), KeyFile: filepath.Join(dir, file+"-key.pem"),
		}, name)
	}
}
