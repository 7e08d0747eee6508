// Package grpcpolicy has what grpcserver and grpcclient must agree on.
package grpcpolicy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc/keepalive"
)

// MaxMessageSize is the size in bytes of the largest message that either side
// takes, unless an option of the service says otherwise. It is gRPC's default,
// written down because batches are cut to fit it.
const MaxMessageSize = 4 << 20

const (
	// pingInterval is how long a connection may be silent before either side
	// asks whether the other is there, and pingTimeout how long it then waits.
	// Together they bound how long a dead peer is believed in, without the
	// kernel's help: 15 s. gRPC raises a client's interval to 10 s at least.
	pingInterval = 10 * time.Second
	pingTimeout  = 5 * time.Second
	// pingMinimum is the least interval that a server puts up with; a client
	// that pings more often is sent away (ENHANCE_YOUR_CALM). Half of
	// pingInterval leaves room for jitter and for slow machines.
	pingMinimum = pingInterval / 2
)

// ClientKeepalive is how clients ask. Also without a call in progress: a
// connection that turns out dead with the first call costs that call its time.
func ClientKeepalive() keepalive.ClientParameters {
	return keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout, PermitWithoutStream: true}
}

// ServerKeepalive is how servers ask. Connections have no maximum age, because
// the streams in them are meant to live long.
func ServerKeepalive() keepalive.ServerParameters {
	return keepalive.ServerParameters{Time: pingInterval, Timeout: pingTimeout}
}

// ServerEnforcement is what servers put up with.
func ServerEnforcement() keepalive.EnforcementPolicy {
	return keepalive.EnforcementPolicy{MinTime: pingMinimum, PermitWithoutStream: true}
}

// CheckAddress says what is wrong with host:port as an endpoint: without TLS,
// only the loopback interface may be used without insecure.
func CheckAddress(address string, secure, insecure bool) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if port == "" {
		return fmt.Errorf("%q has no port", address)
	}
	if !secure && !insecure && !isLoopback(host) {
		return errors.New(address + " is not on the loopback interface, where plaintext needs insecure: true")
	}
	return nil
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// TLS is what both sides begin with: nothing but TLS 1.3, and HTTP/2 in it.
func TLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
}

// CheckFiles says which of the files of a tls section are missing, if there is
// any, by their YAML paths. authority is the path of the one with authorities.
func CheckFiles(certFile, keyFile, caFile, authority string) error {
	var errs []error
	for _, f := range []struct{ name, path string }{
		{"cert_file", certFile}, {"key_file", keyFile}, {authority, caFile},
	} {
		if f.path == "" {
			errs = append(errs, fmt.Errorf("tls.%s: is required for mutual TLS", f.name))
		}
	}
	return errors.Join(errs...)
}
