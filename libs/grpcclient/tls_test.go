package grpcclient_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcclient"
	"mqtt-integration/libs/grpcserver"
	"mqtt-integration/libs/internal/grpctest"
	"mqtt-integration/libs/testca"
)

const frontend = "spiffe://example.org/mqtt-frontend"

// authority is a CA whose files the test renews.
type authority struct {
	t   *testing.T
	dir string
	ca  *testca.CA
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.renew()
	return a
}

// renew replaces the authority.
func (a *authority) renew() {
	a.t.Helper()
	ca, err := testca.New(a.dir)
	if err != nil {
		a.t.Fatal(err)
	}
	a.ca = ca
}

func (a *authority) issue(name string, options testca.Options) testca.Pair {
	a.t.Helper()
	pair, err := a.ca.Issue(name, options)
	if err != nil {
		a.t.Fatal(err)
	}
	return pair
}

func (a *authority) server(options testca.Options) grpcserver.TLS {
	a.t.Helper()
	pair := a.issue("server", options)
	return grpcserver.TLS{CertFile: pair.CertFile, KeyFile: pair.KeyFile, ClientCAFile: a.ca.File}
}

func (a *authority) client(options testca.Options) grpcclient.TLS {
	a.t.Helper()
	pair := a.issue("client", options)
	return grpcclient.TLS{CertFile: pair.CertFile, KeyFile: pair.KeyFile, CAFile: a.ca.File}
}

// lines is a log that several goroutines write.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) env() daemon.Env { return daemon.NewEnv(slog.New(slog.NewTextHandler(l, nil))) }

func start(t *testing.T, tls grpcserver.TLS, allowed string, env daemon.Env) string {
	t.Helper()
	cfg := grpcserver.Config{TLS: tls}
	if allowed != "" {
		cfg.AllowedClients = strings.Fields(allowed)
	}
	return grpctest.StartWith(t, cfg, listen(t, "127.0.0.1:0"), named("hello"), env, time.Second).Address
}

func names(all ...string) testca.Options { return testca.Options{Names: all} }

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	own, foreign := newAuthority(t), newAuthority(t)
	expired := func(options testca.Options) testca.Options {
		options.NotAfter = time.Now().Add(-time.Minute)
		return options
	}
	trusting := foreign.client(names(frontend))
	trusting.CAFile = own.ca.File
	server := own.server(names("localhost", "127.0.0.1"))
	elsewhere := newAuthority(t)
	tests := []struct {
		name    string
		server  grpcserver.TLS
		allowed string
		client  grpcclient.TLS
		want    codes.Code
		text    string // in the error
		log     string // of the server, once
	}{
		{name: "a URI", server: server, allowed: "other " + frontend, client: own.client(names(frontend))},
		{
			name: "a DNS name among others", server: server, allowed: "MQTT-Frontend.example.org",
			client: certificate(t, own, "many", names("a", "mqtt-frontend.example.org", frontend+"/2")),
		},
		{
			name: "an identity that is not allowed", server: server, allowed: "mqtt-frontend",
			client: certificate(t, own, "guest", names("guest.example.org", "spiffe://example.org/guest")),
			want:   codes.PermissionDenied, text: "may not call", log: `identity="[guest.example.org spiffe://example.org/guest]"`,
		},
		{
			name: "a part of an identity", server: server, allowed: frontend,
			client: certificate(t, own, "part", names(frontend+"/x", "mqtt-frontend")),
			want:   codes.PermissionDenied, log: "client is not in allowed_clients",
		},
		{name: "a client of another authority", server: server, allowed: frontend, client: trusting, want: codes.Unavailable},
		{
			name: "a client whose certificate has expired", server: server, allowed: frontend,
			client: certificate(t, own, "late", expired(names(frontend))), want: codes.Unavailable,
		},
		{
			name: "a server of another authority", allowed: frontend, client: own.client(names(frontend)),
			server: elsewhere.server(names("127.0.0.1")), want: codes.Unavailable, text: "unknown authority",
		},
		{
			name: "a server whose certificate has expired", allowed: frontend, client: own.client(names(frontend)),
			server: pairOf(own, own.issue("late-server", expired(names("127.0.0.1")))), want: codes.Unavailable, text: "expired",
		},
		{
			name: "a server of another name", allowed: frontend, client: own.client(names(frontend)),
			server: pairOf(own, own.issue("other-server", names("authorization"))), want: codes.Unavailable, text: "127.0.0.1",
		},
		{
			name: "a server of the name that is asked for", allowed: frontend,
			client: withServerName(own.client(names(frontend)), "authorization"),
			server: pairOf(own, own.issue("other-server", names("authorization"))),
		},
		{name: "a client without TLS", server: server, allowed: frontend, want: codes.Unavailable},
		{name: "a server without TLS", client: own.client(names(frontend)), want: codes.Unavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var log lines
			address := start(t, tt.server, tt.allowed, log.env())
			conn := connect(t, grpcclient.Config{Addresses: []string{address}, TLS: tt.client})
			for range 3 {
				got, err := grpctest.CallUnary(t.Context(), conn)
				if status.Code(err) != tt.want || err == nil && got != "hello" || err != nil && !strings.Contains(err.Error(), tt.text) {
					t.Errorf("call = %q, %v, want %v with %q", got, err, tt.want, tt.text)
				}
			}
			if tt.want == codes.PermissionDenied {
				stream, err := grpctest.CallStream(t.Context(), conn)
				if status.Code(err) != tt.want {
					t.Errorf("stream = %v, %v, want %v", stream, err, tt.want)
				}
			}
			if n := strings.Count(log.String(), "level=WARN"); tt.log != "" && n != 1 || !strings.Contains(log.String(), tt.log) {
				t.Errorf("log is %q, want %q in one warning", log.String(), tt.log)
			}
		})
	}
}

func pairOf(a *authority, pair testca.Pair) grpcserver.TLS {
	return grpcserver.TLS{CertFile: pair.CertFile, KeyFile: pair.KeyFile, ClientCAFile: a.ca.File}
}

// certificate is a client's certificate in files of its own.
func certificate(t *testing.T, a *authority, file string, options testca.Options) grpcclient.TLS {
	t.Helper()
	pair := a.issue(file, options)
	return grpcclient.TLS{CertFile: pair.CertFile, KeyFile: pair.KeyFile, CAFile: a.ca.File}
}

func withServerName(tls grpcclient.TLS, name string) grpcclient.TLS {
	tls.ServerName = name
	return tls
}

// TestRenewalWithoutRestart replaces certificates and then the authority below
// a server and a client that go on.
func TestRenewalWithoutRestart(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	issue := func() (grpcserver.TLS, grpcclient.TLS) {
		return a.server(names("127.0.0.1")), a.client(names("mqtt-frontend"))
	}
	server, client := issue()
	var log lines
	address := start(t, server, "mqtt-frontend", log.env())
	conn := connect(t, grpcclient.Config{Addresses: []string{address}, TLS: client})
	call := func(on *grpc.ClientConn) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := grpctest.CallUnary(ctx, on, grpc.WaitForReady(true))
		return err
	}
	if err := call(conn); err != nil {
		t.Fatal(err)
	}
	stale := connect(t, grpcclient.Config{Addresses: []string{address}, TLS: client})
	a.renew()
	issue()
	time.Sleep(1100 * time.Millisecond) // longer than tlsreload.Interval

	// A connection goes on with what it began with, new ones have the new one.
	if err := call(conn); err != nil {
		t.Errorf("an old connection: %v", err)
	}
	if err := call(stale); err != nil {
		t.Errorf("a new connection of an old client: %v", err)
	}
	if err := call(connect(t, grpcclient.Config{Addresses: []string{address}, TLS: client})); err != nil {
		t.Errorf("a new client: %v", err)
	}
	if !strings.Contains(log.String(), "certificates were renewed") {
		t.Errorf("log is %q, want the renewal", log.String())
	}
}

// answers is a resolver.
type answers struct {
	mu  sync.Mutex
	all []netip.Addr
}

func (a *answers) set(all ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = nil
	for _, address := range all {
		a.all = append(a.all, netip.MustParseAddr(address))
	}
}

func (a *answers) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if host != "authorization" || network != "ip4" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return append([]netip.Addr(nil), a.all...), nil
}

// TestNameOfSeveralInstances follows a name whose instances are on several
// addresses of the loopback network, with certificates for the name.
func TestNameOfSeveralInstances(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	server := a.server(names("authorization"))
	first := listen(t, "127.0.0.1:0")
	_, port, err := net.SplitHostPort(first.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cfg := grpcserver.Config{TLS: server, AllowedClients: []string{"mqtt-frontend"}}
	second := listen(t, "127.0.0.2:"+port)
	grpctest.StartWith(t, cfg, first, named("first"), grpctest.Env(t), time.Second)
	grpctest.StartWith(t, cfg, second, named("second"), grpctest.Env(t), time.Second)
	dns := &answers{}
	conn := connect(t, grpcclient.Config{
		Addresses: []string{"authorization:" + port}, PollInterval: 50 * time.Millisecond, Resolver: dns,
		TLS: a.client(names("mqtt-frontend")),
	})
	// Nobody there: whoever does not wait hears so at once.
	if _, err := grpctest.CallUnary(t.Context(), conn); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "look up authorization") {
		t.Errorf("call without instances = %v, want Unavailable", err)
	}
	until := func(want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var seen string
		for seen != want {
			seen = ""
			for range 10 {
				got, err := grpctest.CallUnary(ctx, conn, grpc.WaitForReady(true))
				if err != nil {
					t.Fatalf("answers from %q, %v, want %q", seen, err, want)
				}
				if !strings.Contains(seen, got) {
					seen = min(seen, got) + max(seen, got)
				}
			}
		}
	}
	dns.set("127.0.0.1")
	until("first")
	dns.set("127.0.0.1", "127.0.0.2")
	until("firstsecond")
	dns.set("127.0.0.2")
	until("second")
	dns.set()
	until("second")
}

func TestFilesThatAreNotThere(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	client := a.client(names("x"))
	client.CertFile += ".not"
	cfg := grpcclient.Config{Addresses: []string{"127.0.0.1:1"}, TLS: client}
	if conn, err := grpcclient.New(cfg, grpctest.Env(t)); err == nil || !strings.Contains(err.Error(), client.CertFile) {
		t.Errorf("New() = %v, %v, want an error with the file's name", conn, err)
	}
	server := a.server(names("x"))
	server.KeyFile += ".not"
	s := grpcserver.New(grpcserver.Config{Address: "127.0.0.1:0", TLS: server, AllowedClients: []string{"x"}}, grpctest.Env(t))
	if err := s.Run(t.Context(), 0); err == nil || !strings.Contains(err.Error(), server.KeyFile) {
		t.Errorf("Run() = %v, want an error with the file's name", err)
	}
}

func TestValidateTLS(t *testing.T) {
	t.Parallel()
	full := grpcclient.TLS{CertFile: "c", KeyFile: "k", CAFile: "a"}
	tests := []struct {
		cfg  interface{ Validate() error }
		want string
	}{
		{cfg: grpcclient.Config{Addresses: []string{"authorization:1"}, TLS: full}},
		{
			cfg: grpcclient.Config{Addresses: []string{"authorization:1"}, TLS: grpcclient.TLS{ServerName: "x"}, Insecure: true, PollInterval: -1},
			want: "poll_interval: -1ns is negative\ninsecure: is true, and there is tls\n" +
				"tls.cert_file: is required for mutual TLS\ntls.key_file: is required for mutual TLS\ntls.ca_file: is required for mutual TLS",
		},
		{cfg: grpcserver.Config{Address: ":1", TLS: grpcserver.TLS{CertFile: "c", KeyFile: "k", ClientCAFile: "a"}, AllowedClients: []string{"a", frontend}}},
		{
			cfg: grpcserver.Config{Address: ":1", TLS: grpcserver.TLS{CertFile: "c"}, Insecure: true},
			want: "insecure: is true, and there is tls\n" +
				"tls.key_file: is required for mutual TLS\ntls.client_ca_file: is required for mutual TLS\n" +
				"allowed_clients: at least one is required with tls",
		},
		{
			cfg: grpcserver.Config{
				Address: ":1", TLS: grpcserver.TLS{CertFile: "c", KeyFile: "k", ClientCAFile: "a"},
				AllowedClients: []string{"", "*.example.org", "a", "spiffe:/x"},
			},
			want: "allowed_clients[0]: \"\" is neither a DNS name nor a URI\n" +
				"allowed_clients[1]: \"*.example.org\" has a wildcard, and identities are compared as they are\n" +
				"allowed_clients[3]: \"spiffe:/x\" is neither a DNS name nor a URI",
		},
		{
			cfg:  grpcserver.Config{Address: "127.0.0.1:1", AllowedClients: []string{"a"}},
			want: "allowed_clients: without tls, clients have no identity",
		},
	}
	for _, tt := range tests {
		got := ""
		if err := tt.cfg.Validate(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("Validate(%+v) =\n%s\nwant\n%s", tt.cfg, got, tt.want)
		}
	}
}
