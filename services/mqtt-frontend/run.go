package mqttfrontend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/services/mqtt-frontend/internal/access"
	"mqtt-integration/services/mqtt-frontend/internal/command"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
	"mqtt-integration/services/mqtt-frontend/internal/listener"
	"mqtt-integration/services/mqtt-frontend/internal/session"
	"mqtt-integration/services/mqtt-frontend/internal/wire"
)

// linger is how long a client has to read our last packet.
const linger = time.Second

var errDraining = errors.New("shutting down")

// Run serves until ctx ends, then drains for at most DrainTimeout: it stops
// accepting, waits for the results of commands, and tells every client to go. It
// returns nil after an orderly stop and leaves no goroutine behind.
func Run(ctx context.Context, cfg Config, env daemon.Env) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	env = env.Complete()
	id := cfg.FrontendID
	if id == "" {
		id = uuid.NewString()
	}
	ready := env.Health.Register("mqtt")
	// First, because an address in use is the likeliest mistake.
	listeners, err := listen(ctx, cfg.Listeners, env)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			_ = l.Close() // closed already, unless something below fails
		}
	}()

	authority, err := access.New(cfg.Authorization, env)
	if err != nil {
		return err
	}
	events, err := delivery.New(cfg.EventFanout, id, env)
	if err != nil {
		return err
	}
	commands, err := command.New(cfg.CommandIngress, id, env)
	if err != nil {
		return err
	}
	sessions, err := session.NewManager(settings(&cfg), session.Deps{
		Access: authority, Commands: commands, Events: eventsOf{events}, Env: env,
	})
	if err != nil {
		return err
	}
	server, err := wire.NewServer(wire.Config{
		MaxPacketSize: int(cfg.MQTT.MaxPacketSize), MaxConnectSize: int(cfg.MQTT.MaxConnectSize),
		TopicAliasMaximum: cfg.MQTT.TopicAliasMaximum, ConnectTimeout: cfg.MQTT.ConnectTimeout,
		WriteTimeout: cfg.MQTT.WriteTimeout, Linger: linger, Logger: env.Logger,
		NewHandler: sessions.NewSession, Passed: sessions.Passed,
	})
	if err != nil {
		return err
	}

	// Clients of the other services outlive the connections that use them, and
	// connections outlive accepting.
	clients, stopClients := context.WithCancel(context.WithoutCancel(ctx))
	defer stopClients()
	connected, cut := context.WithCancel(clients)
	defer cut()
	group, clients := errgroup.WithContext(clients)
	group.Go(func() error { return authority.Run(clients) })
	group.Go(func() error { return events.Run(clients) })
	group.Go(func() error { return commands.Run(clients) })

	accepting, stopAccepting := context.WithCancel(ctx)
	defer stopAccepting()
	var connections sync.WaitGroup
	acceptors, accepting := errgroup.WithContext(accepting)
	slots := listener.NewSlots(maxSockets(cfg.MQTT.MaxConnections))
	refused, err := env.Meter.Meter("mqtt-integration/services/mqtt-frontend").
		Int64Counter("mqtt_integration.connections.refused")
	if err != nil {
		return fmt.Errorf("make instruments: %w", err)
	}
	for i, l := range listeners {
		serve := func(conn net.Conn) { server.Serve(connected, conn) }
		if cfg.Listeners[i].Transport == TransportWebSocket {
			ws := &listener.WebSocket{Origins: cfg.Listeners[i].Origins, Timeout: cfg.MQTT.ConnectTimeout, Logger: env.Logger}
			serve = func(conn net.Conn) {
				if conn, err := ws.Upgrade(accepting, conn); err == nil { // else it was answered and logged
					server.Serve(connected, conn)
				}
			}
		}
		env.Logger.LogAttrs(ctx, slog.LevelInfo, "listening for MQTT", slog.String("address", l.Addr().String()),
			slog.String("transport", cmp.Or(cfg.Listeners[i].Transport, TransportTCP)))
		acceptors.Go(func() error {
			return listener.Run(accepting, listener.Config{
				Listener: l, Slots: slots, Refused: refused, Logger: env.Logger, Serve: serve,
			}, &connections)
		})
	}
	ready.Set(nil)

	// A client of another service only ends before its time by an error.
	stop := context.AfterFunc(clients, stopAccepting)
	err = acceptors.Wait()
	stop()
	ready.Set(errDraining)
	drain(ctx, cfg.DrainTimeout, sessions, &connections, cut)
	stopClients()
	return errors.Join(err, group.Wait())
}

// maxSockets is the number of sockets for so many connections: some more, so that
// clients beyond the limit can be told so.
func maxSockets(connections int) int { return connections + connections/8 + 16 }

// drain ends the connections in an orderly way, and those that are left when the
// time is over, at once.
func drain(ctx context.Context, timeout time.Duration, sessions *session.Manager, connections *sync.WaitGroup, cut func()) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	sessions.Drain(ctx)
	ended := make(chan struct{})
	go func() {
		connections.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		cut()
		<-ended
	}
}

func listen(ctx context.Context, configs []ListenerConfig, env daemon.Env) ([]net.Listener, error) {
	var listeners []net.Listener
	for i, cfg := range configs {
		l, err := env.Listen(ctx, "tcp", cfg.Address)
		if err != nil {
			for _, l := range listeners {
				err = errors.Join(err, l.Close())
			}
			return nil, fmt.Errorf("listeners[%d]: %w", i, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func settings(cfg *Config) session.Settings {
	return session.Settings{
		MaxConnections: cfg.MQTT.MaxConnections, MaxPacketSize: int(cfg.MQTT.MaxPacketSize),
		ReceiveMaximum: cfg.MQTT.ReceiveMaximum, TopicAliasMaximum: cfg.MQTT.TopicAliasMaximum,
		MaxInflight: cfg.MQTT.MaxInflight, MaxInflightBytes: int64(cfg.MQTT.MaxInflightBytes),
		MaxSubscriptions: cfg.MQTT.MaxSubscriptions, MaxKeepAlive: uint16(cfg.MQTT.MaxKeepAlive / time.Second), //nolint:gosec // validated
		SubscribeTimeout: cfg.MQTT.SubscribeTimeout, CommandTimeout: cfg.CommandIngress.Deadline,
		WriteTimeout: cfg.MQTT.WriteTimeout, TokenGrace: cfg.MQTT.TokenGrace,
		AcknowledgeRejected: cfg.Commands.Rejected311 == RejectedAcknowledge, AuthContext: cfg.Commands.AuthContext,
		TrustRemoteSampling: cfg.Commands.TrustRemoteSampling,
	}
}

// eventsOf gives sessions the interfaces that they want.
type eventsOf struct{ client *delivery.Client }

// Session implements session.Events.
func (e eventsOf) Session(info delivery.SessionInfo, onError func(delivery.SessionError)) session.EventSession {
	return eventSession{e.client.Session(info, onError)}
}

type eventSession struct{ *delivery.Session }

// Open implements session.EventSession.
func (e eventSession) Open(ctx context.Context, request delivery.OpenRequest, sink delivery.Sink) (session.Subscription, error) {
	subscription, err := e.Session.Open(ctx, request, sink)
	if err != nil {
		return nil, err
	}
	return subscription, nil
}
