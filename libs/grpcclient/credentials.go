package grpcclient

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"

	"google.golang.org/grpc/credentials"

	"mqtt-integration/libs/internal/grpcpolicy"
	"mqtt-integration/libs/tlsreload"
)

// mutual makes the transport of a client.
func mutual(t TLS, logger *slog.Logger) (credentials.TransportCredentials, error) {
	files, err := tlsreload.New(tlsreload.Files{CertFile: t.CertFile, KeyFile: t.KeyFile, CAFile: t.CAFile}, logger)
	if err != nil {
		return nil, err
	}
	base := grpcpolicy.TLS() // gRPC takes the server's name from the resolver
	return &reloading{TransportCredentials: credentials.NewTLS(base), files: files, base: base}, nil
}

// reloading makes each handshake with what the files have by then: a TLS
// configuration by itself can renew a certificate, but not the authorities.
type reloading struct {
	credentials.TransportCredentials // for everything but the handshake

	files *tlsreload.Reloader
	base  *tls.Config
}

// ClientHandshake implements [credentials.TransportCredentials].
func (r *reloading) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(r.files.Client(ctx, r.base)).ClientHandshake(ctx, authority, raw)
}

// Clone implements [credentials.TransportCredentials].
func (r *reloading) Clone() credentials.TransportCredentials {
	clone := *r
	clone.TransportCredentials = r.TransportCredentials.Clone()
	return &clone
}
