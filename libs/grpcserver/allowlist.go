package grpcserver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/internal/grpcpolicy"
	"mqtt-integration/libs/tlsreload"
)

const (
	// refusalInterval lies between two log lines about the same client: one that
	// is refused comes again and again.
	refusalInterval = time.Minute
	// maxRefusals is how many clients are remembered for that.
	maxRefusals = 256
)

var errNotAllowed = status.Error(codes.PermissionDenied, "this client may not call this server")

// mutual makes the transport of a server.
func mutual(t TLS, logger *slog.Logger) (credentials.TransportCredentials, error) {
	files, err := tlsreload.New(tlsreload.Files{CertFile: t.CertFile, KeyFile: t.KeyFile, CAFile: t.ClientCAFile}, logger)
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(files.Server(grpcpolicy.TLS())), nil
}

// checkIdentity says what is wrong with an entry of the allow-list.
func checkIdentity(identity string) error {
	if strings.Contains(identity, "*") {
		return fmt.Errorf("%q has a wildcard, and identities are compared as they are", identity)
	}
	if strings.Contains(identity, "://") {
		_, err := url.Parse(identity)
		return err
	}
	if identity == "" || strings.ContainsAny(identity, "/: ") {
		return fmt.Errorf("%q is neither a DNS name nor a URI", identity)
	}
	return nil
}

// allowList lets only some clients in. It runs before all other interceptors.
type allowList struct {
	logger *slog.Logger
	// all are the identities that may call anything. A list per method will stand
	// beside it.
	all map[string]struct{}

	mu      sync.Mutex
	refused map[string]time.Time // when it was logged, by client
}

func newAllowList(identities []string, logger *slog.Logger) *allowList {
	a := &allowList{logger: logger, all: make(map[string]struct{}, len(identities)), refused: map[string]time.Time{}}
	for _, identity := range identities {
		a.all[canonical(identity)] = struct{}{}
	}
	return a
}

// canonical makes identities comparable: DNS names have no case, URIs have.
func canonical(identity string) string {
	if strings.Contains(identity, "://") {
		return identity
	}
	return strings.ToLower(identity)
}

func (a *allowList) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := a.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

func (a *allowList) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := a.check(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(server, stream)
}

// check says whether the client of a call may make it.
func (a *allowList) check(ctx context.Context, method string) error {
	names, err := identities(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	for _, name := range names {
		if _, ok := a.all[name]; ok {
			return nil
		}
	}
	client := strings.Join(names, " ")
	if a.log(client, time.Now()) {
		a.logger.LogAttrs(ctx, slog.LevelWarn, "client is not in allowed_clients",
			slog.Any("identity", names), slog.String("rpc_method", method))
	}
	return errNotAllowed
}

// log says whether a refusal is worth a line.
func (a *allowList) log(client string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if last, ok := a.refused[client]; ok && now.Sub(last) < refusalInterval {
		return false
	}
	if len(a.refused) >= maxRefusals {
		clear(a.refused)
	}
	a.refused[client] = now
	return true
}

var errNoCertificate = errors.New("the client has no verified certificate")

// identities are the names of the client of a call: the DNS names and URIs of
// its certificate.
func identities(ctx context.Context) ([]string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errNoCertificate
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return nil, errNoCertificate
	}
	return names(info.State.VerifiedChains[0][0]), nil
}

func names(certificate *x509.Certificate) []string {
	all := make([]string, 0, len(certificate.DNSNames)+len(certificate.URIs))
	for _, name := range certificate.DNSNames {
		all = append(all, canonical(name))
	}
	for _, uri := range certificate.URIs {
		all = append(all, uri.String())
	}
	return slices.Compact(all)
}
