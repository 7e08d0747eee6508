package mqi_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
	"mqtt-integration/libs/testca"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	"mqtt-integration/services/mqi"
)

// users answers one call.
type users struct {
	adminv1.UnimplementedAdminServiceServer
}

func (users) ListUsers(context.Context, *adminv1.ListUsersRequest) (*adminv1.ListUsersResponse, error) {
	return &adminv1.ListUsersResponse{Users: []*adminv1.User{{Name: "ada"}}}, nil
}

func TestMutualTLS(t *testing.T) {
	ca, err := testca.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	issue := func(name string) testca.Pair {
		pair, err := ca.Issue(name, testca.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	own, admin, guest := issue("authorization"), issue("admin"), issue("guest")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	env := daemon.NewEnv(slog.New(slog.DiscardHandler))
	env.Listen = func(context.Context, string, string) (net.Listener, error) { return listener, nil }
	server := grpcserver.New(grpcserver.Config{
		Address: listener.Addr().String(), AllowedClients: []string{"admin"},
		TLS: grpcserver.TLS{CertFile: own.CertFile, KeyFile: own.KeyFile, ClientCAFile: ca.File},
	}, env)
	adminv1.RegisterAdminServiceServer(server.Registrar(), users{})
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx, time.Second) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	tests := []struct {
		name string
		args []string
		code int
		text string // in the output or the error
	}{
		{
			name: "allowed", text: "ada",
			args: []string{"--cert-file", admin.CertFile, "--key-file", admin.KeyFile, "--ca-file", ca.File, "--server-name", "authorization"},
		},
		{
			name: "another identity", code: 1, text: "may not call",
			args: []string{"--cert-file", guest.CertFile, "--key-file", guest.KeyFile, "--ca-file", ca.File, "--server-name", "authorization"},
		},
		{
			name: "the server is another", code: 1, text: "127.0.0.1",
			args: []string{"--cert-file", admin.CertFile, "--key-file", admin.KeyFile, "--ca-file", ca.File},
		},
		{name: "plaintext", code: 1, text: "cannot be reached"},
		{name: "not all files", code: 2, text: "tls.key_file", args: []string{"--cert-file", admin.CertFile, "--ca-file", ca.File}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append([]string{"--server", listener.Addr().String(), "--token", "x"}, tt.args...)
			code := mqi.Main(append(args, "user", "list"), &stdout, &stderr)
			if text := stdout.String() + stderr.String(); code != tt.code || !strings.Contains(text, tt.text) {
				t.Errorf("exit code %d, %q, want %d with %q", code, text, tt.code, tt.text)
			}
		})
	}
}
