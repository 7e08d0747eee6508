package standalone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"google.golang.org/grpc"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcclient"
	"mqtt-integration/libs/kafkaclient"
	"mqtt-integration/libs/naming"
	"mqtt-integration/libs/testkit/embeddedkafka"
	"mqtt-integration/libs/testkit/issuer"
	"mqtt-integration/services/authorization"
	commandingress "mqtt-integration/services/command-ingress"
	eventfanout "mqtt-integration/services/event-fanout"
	mqttfrontend "mqtt-integration/services/mqtt-frontend"
	"mqtt-integration/services/standalone/internal/datadir"
	"mqtt-integration/services/standalone/internal/demo"
	"mqtt-integration/services/standalone/internal/device"
)

const (
	// sessionsTopic carries no records: stored sessions keep their record as
	// the metadata of an offset in it.
	sessionsTopic = "mqtt-sessions"

	setUpTimeout = 30 * time.Second
)

// Run runs everything until ctx ends, or until a part of it fails, and then
// stops it part by part. It returns nil after an orderly end. The error is an
// *InUseError when a port is taken, and wraps datadir.ErrInUse when another
// process has the data directory.
func Run(ctx context.Context, cfg Config, opts Options) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Progress == nil {
		opts.Progress = func(string) {}
	}
	dir, err := datadir.Open(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	cfg.DataDir = dir.Path()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run{cfg: cfg, opts: opts, dir: dir, supervisor: supervisor{ctx: ctx, fail: cancel}, system: &System{}}
	defer r.listeners.close()
	defer r.stopAll()

	startErr := r.start(ctx)
	if startErr == nil {
		if opts.Ready != nil {
			opts.Ready(r.system)
		}
		<-ctx.Done()
	}
	r.stopAll()
	switch cause := context.Cause(ctx); {
	case startErr != nil && ctx.Err() == nil:
		return errors.Join(startErr, r.stopErrors())
	case errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded):
		return r.stopErrors() // As the caller wished, also while it was starting.
	default:
		return errors.Join(cause, r.stopErrors())
	}
}

// run is one run of everything.
type run struct {
	supervisor

	cfg       Config
	opts      Options
	dir       *datadir.Dir
	listeners listeners
	system    *System
	stops     []func()
}

// later remembers what has to be stopped, before everything that it leans on.
func (r *run) later(stop func()) { r.stops = append(r.stops, stop) }

func (r *run) stopAll() {
	for _, stop := range slices.Backward(r.stops) {
		stop()
	}
	r.stops = nil
}

func (r *run) start(ctx context.Context) error {
	if err := r.bind(ctx); err != nil {
		return err
	}
	if err := r.startKafka(ctx); err != nil {
		return err
	}
	if err := r.startIssuer(); err != nil { //nolint:contextcheck // It ends with Close, in its turn.
		return err
	}
	r.cfg = r.cfg.complete(r.system.addresses)
	if err := r.startServices(ctx); err != nil {
		return err
	}
	if r.cfg.Demo.Enabled {
		return r.startDevice(ctx)
	}
	return nil
}

// bind opens the listeners of the services.
func (r *run) bind(ctx context.Context) (err error) {
	at := &r.system.addresses
	r.cfg.MQTTFrontend.Listeners = slices.Clone(r.cfg.MQTTFrontend.Listeners)
	for i := range r.cfg.MQTTFrontend.Listeners {
		l := &r.cfg.MQTTFrontend.Listeners[i]
		place, address := placeMQTT, &at.MQTT
		if l.Transport == mqttfrontend.TransportWebSocket {
			place, address = placeWeb, &at.WebSocket
		}
		if l.Address, err = r.listeners.bind(ctx, place, l.Address); err != nil {
			return err
		}
		if *address == "" { // the first of its kind
			*address = l.Address
		}
	}
	for _, b := range []struct {
		place   place
		address string
		bound   *string
	}{
		{placeAdmin, r.cfg.Authorization.AdminAPI.Address, &at.AuthorizationAdmin},
		{place{"authorization", "authorization.grpc.address", "port 0"}, r.cfg.Authorization.GRPC.Address, &at.Authorization},
		{place{"event-fanout", "event_fanout.grpc.address", "port 0"}, r.cfg.EventFanout.GRPC.Address, &at.EventFanout},
		{place{"command-ingress", "command_ingress.grpc.address", "port 0"}, r.cfg.CommandIngress.GRPC.Address, &at.CommandIngress},
	} {
		if *b.bound, err = r.listeners.bind(ctx, b.place, b.address); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) startKafka(ctx context.Context) error {
	if !r.cfg.EmbedsKafka() {
		r.system.addresses.Kafka = r.cfg.Kafka.Brokers
		r.opts.Progress("looking for Kafka at " + strings.Join(r.cfg.Kafka.Brokers, ", "))
		return r.createTopics(ctx, r.cfg.Kafka.Config)
	}
	r.opts.Progress("starting the embedded Kafka")
	embedded := r.cfg.Kafka.Embedded
	bytes := int64(embedded.RetentionBytes)
	kafka, err := embeddedkafka.Start(embeddedkafka.Config{ //nolint:contextcheck // It ends with Close, in its turn.
		Dir:     r.dir.Path(kafkaDir),
		Address: embedded.Address,
		Settings: map[string]string{
			"log.retention.ms":    strconv.FormatInt(embedded.Retention.Milliseconds(), 10),
			"log.retention.bytes": strconv.FormatInt(bytes, 10),
			// Disk space comes back a segment at a time.
			"log.segment.bytes": strconv.FormatInt(max(bytes/8, int64(minSegmentBytes)), 10),
		},
		Logger: r.opts.Logger,
	})
	if err != nil {
		return placeKafka.inUse(embedded.Address, err)
	}
	r.later(kafka.Close)
	r.later(r.supervisor.start(ctx, "embedded Kafka", kafka.Run))
	r.system.addresses.Kafka = kafka.Brokers()
	return r.createTopics(ctx, kafkaclient.Config{Brokers: kafka.Brokers()})
}

// createTopics creates what the services expect to be there, with the broker's
// numbers of partitions and replicas.
func (r *run) createTopics(ctx context.Context, cfg kafkaclient.Config) error {
	sc, err := cfg.Sarama()
	if err != nil {
		return err
	}
	sc.Metadata.Full = true // Without, sarama's admin client does not find the controller.
	admin, err := sarama.NewClusterAdmin(r.system.addresses.Kafka, sc)
	if err != nil {
		return fmt.Errorf("connect to Kafka at %s: %w", strings.Join(r.system.addresses.Kafka, ", "), err)
	}
	defer func() {
		if err := admin.Close(); err != nil {
			r.opts.Logger.LogAttrs(ctx, slog.LevelWarn, "close Kafka admin client", slog.Any("error", err))
		}
	}()
	topics := []string{sessionsTopic, r.cfg.CommandIngress.Commands.Topic}
	if r.cfg.Demo.Enabled {
		topics = append(topics, naming.EventsTopic(r.cfg.Demo.Application))
	}
	for _, topic := range topics {
		err := admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: -1, ReplicationFactor: -1}, false)
		if err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
			return fmt.Errorf("create topic %q: %w", topic, err)
		}
	}
	return nil
}

func (r *run) startIssuer() error {
	if !r.cfg.Issuer.Enabled {
		return nil
	}
	r.opts.Progress("starting the development issuer")
	cfg := issuer.Config{
		Dir:           r.dir.Path(issuerDir),
		Address:       r.cfg.Issuer.Address,
		Audience:      audience,
		TokenLifetime: r.cfg.Issuer.TokenLifetime,
		Clients:       []issuer.Client{{ID: clientID}},
		Logger:        r.opts.Logger,
	}
	if r.cfg.Demo.Enabled {
		password, err := r.dir.RandomSecret(passwordFile)
		if err != nil {
			return err
		}
		r.system.demo.Password, r.system.demo.PasswordFile = password, r.dir.Path(passwordFile)
		cfg.Users = []issuer.User{{Subject: demoUser, Name: demoUser, Password: password}}
	}
	i, err := issuer.Start(cfg)
	if err != nil {
		return placeIssuer.inUse(cfg.Address, err)
	}
	r.later(i.Close)
	r.system.issuer = i
	r.system.addresses.Issuer = i.URL()
	return nil
}

func (r *run) startServices(ctx context.Context) error {
	r.opts.Progress("starting authorization")
	authorizationEnv := r.env("authorization")
	r.later(r.supervisor.start(ctx, "authorization", func(ctx context.Context) error {
		return authorization.Run(ctx, r.cfg.Authorization, authorizationEnv)
	}))
	if err := r.waitReady(authorizationEnv.Health); err != nil {
		return fmt.Errorf("authorization: %w", err)
	}
	if r.cfg.Demo.Enabled {
		if err := r.setUpDemo(ctx); err != nil {
			return err
		}
	}

	parts := []part{
		{"event-fanout", r.env("event-fanout"), func(ctx context.Context, env daemon.Env) error {
			return eventfanout.Run(ctx, r.cfg.EventFanout, env)
		}},
		{"command-ingress", r.env("command-ingress"), func(ctx context.Context, env daemon.Env) error {
			return commandingress.Run(ctx, r.cfg.CommandIngress, env)
		}},
		{"mqtt-frontend", r.env("mqtt-frontend"), func(ctx context.Context, env daemon.Env) error {
			return mqttfrontend.Run(ctx, r.cfg.MQTTFrontend, env)
		}},
	}
	for _, p := range parts {
		r.opts.Progress("starting " + p.name)
		r.later(r.supervisor.start(ctx, p.name, func(ctx context.Context) error { return p.run(ctx, p.env) }))
	}
	for _, p := range parts {
		if err := r.waitReady(p.env.Health); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// part is a service of ours.
type part struct {
	name string
	env  daemon.Env
	run  func(context.Context, daemon.Env) error
}

func (r *run) env(service string) daemon.Env {
	env := daemon.NewEnv(r.opts.Logger.With(slog.String("service", service)))
	env.Listen = r.listeners.listen
	if r.opts.Tracer != nil {
		env.Tracer = r.opts.Tracer(service)
	}
	return env
}

func (r *run) setUpDemo(ctx context.Context) error {
	r.opts.Progress("setting up user " + demoUser + " and application " + r.cfg.Demo.Application)
	ctx, cancel := context.WithTimeout(ctx, setUpTimeout)
	defer cancel()
	token, err := r.system.AdministratorToken()
	if err != nil {
		return err
	}
	conn, err := grpcclient.New(grpcclient.Config{Addresses: []string{r.system.addresses.AuthorizationAdmin}},
		r.env("standalone"), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	key, err := demo.SetUp(ctx, demo.Config{
		Admin: conn, Token: token, Issuer: issuerAlias, Subject: demoUser, User: demoUser,
		Application: r.cfg.Demo.Application, Secrets: r.dir, KeyName: keyFile,
	})
	if err != nil {
		return fmt.Errorf("set up the demonstration: %w", err)
	}
	d := &r.system.demo
	d.User, d.Application, d.Device = demoUser, r.cfg.Demo.Application, r.cfg.Demo.Device
	d.APIKey, d.KeyFile = key, r.dir.Path(keyFile)
	d.TokenURL, d.ClientID = r.system.issuer.TokenURL(), clientID
	return nil
}

func (r *run) startDevice(ctx context.Context) error {
	r.opts.Progress("starting the simulated device " + r.cfg.Demo.Device)
	ready := make(chan struct{})
	kafka := r.cfg.Kafka.Config
	kafka.Brokers, kafka.ClientID = r.system.addresses.Kafka, "simulated-"+r.cfg.Demo.Device
	r.later(r.supervisor.start(ctx, "simulated device", func(ctx context.Context) error {
		return device.Run(ctx, device.Config{
			Kafka: kafka, Application: r.cfg.Demo.Application, Device: r.cfg.Demo.Device,
			CommandsTopic: r.cfg.CommandIngress.Commands.Topic, Interval: r.cfg.Demo.Interval,
			Ready: func() { close(ready) }, Logger: r.opts.Logger,
		})
	}))
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timeout.C:
		return fmt.Errorf("the simulated device is not ready after %v", startTimeout)
	}
}
