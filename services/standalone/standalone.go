package standalone

import (
	"context"
	"errors"
	"log/slog"

	"go.opentelemetry.io/otel/trace"

	"mqtt-integration/libs/testkit/issuer"
)

const (
	// issuerAlias is the development issuer in principals and group names.
	issuerAlias = "dev"
	audience    = issuer.DefaultAudience
	// administratorSubject is who standalone is when it sets things up.
	administratorSubject = "standalone"

	demoUser = "demo"

	// clientID is for the password grant at the development issuer.
	clientID = "mqtt-integration"
)

// Files and directories in the data directory.
const (
	storeFile    = "authorization.db"
	keyFile      = "demo.key"
	passwordFile = "demo.password"
	kafkaDir     = "kafka"
	issuerDir    = "issuer"
)

// Options are what is not configuration. The zero value is usable.
type Options struct {
	// Logger gets what the services log. Nil discards it.
	Logger *slog.Logger
	// Tracer makes the tracers of a service. Nil: nothing is traced.
	Tracer func(service string) trace.TracerProvider
	// Progress is told, in words for people, what is being done. It must not
	// block.
	Progress func(text string)
	// Ready is called once when everything works. It must not block.
	Ready func(*System)
}

// Addresses are where everything listens, as host:port. What was not started has
// none.
type Addresses struct {
	// MQTT is for MQTT clients. WebSocket is for those that use MQTT over WebSocket,
	// with the path /mqtt.
	MQTT, WebSocket string
	// Kafka are the brokers, emulated or real.
	Kafka []string
	// Issuer is the URL of the development issuer.
	Issuer string
	// AuthorizationAdmin is AdminService; the others are for the services
	// themselves.
	AuthorizationAdmin, Authorization, EventFanout, CommandIngress string
}

// Demonstration is what the demonstration consists of.
type Demonstration struct {
	User, Application, Device string
	// APIKey and Password are the user's, for MQTT and for the issuer.
	APIKey, Password string
	// KeyFile and PasswordFile are where they are kept.
	KeyFile, PasswordFile string
	// TokenURL and ClientID are how tokens are asked for.
	TokenURL, ClientID string
}

// System is a running system.
type System struct {
	addresses Addresses
	demo      Demonstration
	issuer    *issuer.Issuer

	stop context.CancelFunc
	end  *ending
}

// ending is how a run ended.
type ending struct {
	ended chan struct{}
	err   error // to be read when ended is closed
}

// Addresses returns where everything listens.
func (s *System) Addresses() Addresses { return s.addresses }

// Demonstration returns what to sign in with, or nothing when it is off.
func (s *System) Demonstration() Demonstration { return s.demo }

// Issuer returns the development issuer, or nil when it is off.
func (s *System) Issuer() *issuer.Issuer { return s.issuer }

// AdministratorToken returns an access token for the administration API. It
// needs the development issuer.
func (s *System) AdministratorToken() (string, error) {
	if s.issuer == nil {
		return "", errors.New("there is no development issuer")
	}
	return s.issuer.Mint(map[string]any{"sub": administratorSubject, "preferred_username": administratorSubject})
}

// Start starts a system and returns it once everything works. It ends with ctx,
// by itself when a part of it fails, or with Close, which has to be called in
// any case.
func Start(ctx context.Context, cfg Config, opts Options) (*System, error) {
	ctx, stop := context.WithCancel(ctx)
	started := make(chan *System, 1)
	ready := opts.Ready
	opts.Ready = func(s *System) {
		started <- s
		if ready != nil {
			ready(s)
		}
	}
	end := &ending{ended: make(chan struct{})}
	go func() {
		defer close(end.ended)
		end.err = Run(ctx, cfg, opts)
	}()
	select {
	case s := <-started:
		s.stop, s.end = stop, end
		return s, nil
	case <-end.ended:
		stop()
		if end.err == nil {
			return nil, context.Cause(ctx)
		}
		return nil, end.err
	}
}

// Close ends the system in order and returns why it ended: nil unless a part of
// it failed, before or now. It may be called more than once.
func (s *System) Close() error {
	s.stop()
	<-s.end.ended
	return s.end.err
}

// Ended is closed when the system has ended, by Close or by itself.
func (s *System) Ended() <-chan struct{} { return s.end.ended }
