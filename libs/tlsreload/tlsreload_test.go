package tlsreload_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mqtt-integration/libs/testca"
	"mqtt-integration/libs/tlsreload"
)

type party struct {
	dir      string
	ca       *testca.CA
	files    tlsreload.Files
	log      bytes.Buffer
	reloader *tlsreload.Reloader
}

func newParty(t *testing.T, name string) *party {
	t.Helper()
	p := &party{dir: t.TempDir()}
	p.newCA(t)
	p.issue(t, name)
	return p
}

func (p *party) newCA(t *testing.T) {
	t.Helper()
	ca, err := testca.New(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	p.ca = ca
}

func (p *party) issue(t *testing.T, name string) {
	t.Helper()
	pair, err := p.ca.Issue("own", testca.Options{Names: []string{name, "127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	p.files = tlsreload.Files{CertFile: pair.CertFile, KeyFile: pair.KeyFile, CAFile: p.ca.File}
}

func (p *party) load(t *testing.T) {
	t.Helper()
	var err error
	if p.reloader, err = tlsreload.New(p.files, slog.New(slog.NewTextHandler(&p.log, nil))); err != nil {
		t.Fatal(err)
	}
}

// handshake connects client and server, and returns what each saw of the other.
func handshake(ctx context.Context, client, server *tls.Config) (serverName, clientName string, err error) {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	s, c := tls.Server(b, server), tls.Client(a, client)
	served := make(chan error, 1)
	go func() {
		err := s.HandshakeContext(ctx)
		if err != nil {
			_ = b.Close()
		} else { // with TLS 1.3 the client hears only now whether it is welcome
			_, err = s.Write([]byte("x"))
		}
		served <- err
	}()
	err = c.HandshakeContext(ctx)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if err != nil {
		_ = a.Close()
	}
	if serverErr := <-served; serverErr != nil {
		err = errors.Join(err, serverErr)
	}
	if err != nil {
		return "", "", err
	}
	if peers := s.ConnectionState().PeerCertificates; len(peers) > 0 {
		clientName = peers[0].DNSNames[0]
	}
	return c.ConnectionState().PeerCertificates[0].DNSNames[0], clientName, nil
}

func base() *tls.Config { return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "127.0.0.1"} }

func TestBothSidesRenew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newParty(t, "first")
		p.load(t)
		server := p.reloader.Server(base())
		want := func(name string) {
			t.Helper()
			got, peer, err := handshake(t.Context(), p.reloader.Client(t.Context(), base()), server)
			if err != nil || got != name || peer != name {
				t.Errorf("server is %q, client is %q, %v, want %s", got, peer, err, name)
			}
		}
		want("first")
		p.issue(t, "second")
		want("first") // within the interval
		time.Sleep(tlsreload.Interval)
		want("second")

		// Another authority: both sides have to take it up together.
		old := p.reloader.Client(t.Context(), base())
		p.newCA(t)
		p.issue(t, "third")
		time.Sleep(tlsreload.Interval)
		want("third")
		if _, _, err := handshake(t.Context(), old, server); err == nil {
			t.Error("a client of the former authority is let in")
		}
		if got := strings.Count(p.log.String(), "were renewed"); got != 2 || strings.Contains(p.log.String(), "ERROR") {
			t.Errorf("log is %q, want two renewals", p.log.String())
		}
	})
}

func TestWhatIsBrokenIsNotUsed(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		spoil func(t *testing.T, p *party)
		log   string
	}{
		{name: "certificate cut off", spoil: truncate(func(p *party) string { return p.files.CertFile }), log: "certificate of"},
		{name: "key of another certificate", spoil: func(t *testing.T, p *party) {
			t.Helper()
			other := newParty(t, "other")
			move(t, other.files.KeyFile, p.files.KeyFile)
		}, log: "private key does not match"},
		{name: "no authority", spoil: truncate(func(p *party) string { return p.files.CAFile }), log: "has no certificate"},
		{name: "a file is gone", spoil: func(t *testing.T, p *party) {
			t.Helper()
			if err := os.Remove(p.files.CertFile); err != nil {
				t.Fatal(err)
			}
		}, log: "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newParty(t, "first")
				p.load(t)
				server := p.reloader.Server(base())
				tt.spoil(t, p)
				for range 3 {
					time.Sleep(tlsreload.Interval)
					got, _, err := handshake(t.Context(), p.reloader.Client(t.Context(), base()), server)
					if err != nil || got != "first" {
						t.Errorf("server is %q, %v, want the first one", got, err)
					}
				}
				if log := p.log.String(); strings.Count(log, "ERROR") != 1 || !strings.Contains(log, tt.log) {
					t.Errorf("log is %q, want one error with %q", log, tt.log)
				}
				if _, err := tlsreload.New(p.files, slog.New(slog.DiscardHandler)); err == nil {
					t.Error("New() with such files = nil, want an error")
				}
				p.newCA(t)
				p.issue(t, "second")
				time.Sleep(tlsreload.Interval)
				if got, _, err := handshake(t.Context(), p.reloader.Client(t.Context(), base()), server); err != nil || got != "second" {
					t.Errorf("server is %q, %v, want the second one", got, err)
				}
			})
		})
	}
}

// TestSymbolicLinkIsSwapped is how Kubernetes renews a mounted secret.
func TestSymbolicLinkIsSwapped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, first, second := t.TempDir(), newParty(t, "first"), newParty(t, "second")
		link := func(to string) {
			if err := os.Symlink(to, filepath.Join(dir, "next")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "data")); err != nil {
				t.Fatal(err)
			}
		}
		link(first.dir)
		p := &party{files: tlsreload.Files{
			CertFile: filepath.Join(dir, "data", "own.pem"), KeyFile: filepath.Join(dir, "data", "own-key.pem"),
			CAFile: filepath.Join(dir, "data", "ca.pem"),
		}}
		p.load(t)
		server := p.reloader.Server(base())
		for _, want := range []string{"first", "second"} {
			if got, _, err := handshake(t.Context(), p.reloader.Client(t.Context(), base()), server); err != nil || got != want {
				t.Errorf("server is %q, %v, want %s", got, err, want)
			}
			link(second.dir)
			time.Sleep(tlsreload.Interval)
		}
	})
}

func TestServerOnly(t *testing.T) {
	t.Parallel()
	p := newParty(t, "first")
	authority := p.files.CAFile
	p.files.CAFile = ""
	p.load(t)
	roots := x509.NewCertPool()
	data, err := os.ReadFile(authority)
	if err != nil || !roots.AppendCertsFromPEM(data) {
		t.Fatal(err)
	}
	client := base()
	client.RootCAs = roots
	server, peer, err := handshake(t.Context(), client, p.reloader.Server(base()))
	if err != nil || server != "first" || peer != "" {
		t.Errorf("server is %q, client is %q, %v, want the server's certificate only", server, peer, err)
	}
}

func truncate(file func(p *party) string) func(t *testing.T, p *party) {
	return func(t *testing.T, p *party) {
		t.Helper()
		if err := os.Truncate(file(p), 100); err != nil {
			t.Fatal(err)
		}
	}
}

func move(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, fs.FileMode(0o600)); err != nil {
		t.Fatal(err)
	}
}
