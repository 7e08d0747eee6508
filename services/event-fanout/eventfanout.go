package eventfanout

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
	"mqtt-integration/libs/telemetry"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/event-fanout/internal/commit"
	"mqtt-integration/services/event-fanout/internal/kafka"
	"mqtt-integration/services/event-fanout/internal/share"
	"mqtt-integration/services/event-fanout/internal/stream"
	"mqtt-integration/services/event-fanout/internal/tail"
)

const scope = "mqtt-integration/services/event-fanout"

// Run serves until ctx ends, then drains for at most DrainTimeout: frontends are
// asked to move on, and positions are committed. It returns nil after an orderly
// stop, and leaves no goroutine behind. It starts without Kafka, and is not ready
// until Kafka answers.
func Run(ctx context.Context, cfg Config, env daemon.Env) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	env = env.Complete()
	meter := env.Meter.Meter(scope)
	instance, err := instanceID(cfg.InstanceID)
	if err != nil {
		return err
	}
	logger := env.Logger.With(slog.String("instance_id", instance))
	counters, err := newCounters(meter)
	if err != nil {
		return err
	}

	cluster, err := kafka.New(kafka.Config{
		Brokers: cfg.Kafka.Brokers, Sarama: cfg.Kafka.Sarama,
		Requests: cfg.Commit.Connections, Fetches: cfg.CatchUp.Concurrency,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	tailClient, err := newTailClient(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tailClient.Close()) }()

	decoder := &tail.Decoder{
		Options:  cloudevent.Options{SkipForeign: cfg.Events.NonCloudEvents == Skip},
		MaxBytes: int(cfg.Events.MaxBytes), Records: counters.records,
	}
	if telemetry.Records(env.Tracer) {
		decoder.Tracer = env.Tracer.Tracer(scope)
	}
	budget := tail.NewBudget(int64(cfg.Ring.Memory))
	tails, err := tail.New(tail.Config{
		Client: tailClient, Offsets: cluster, Decoder: decoder, Budget: budget, Linger: cfg.Ring.Linger, Logger: logger,
	})
	if err != nil {
		return fmt.Errorf("make consumer: %w", err)
	}
	defer func() { err = errors.Join(err, tails.Close()) }()
	catchUp := tail.NewCatchUp(tail.CatchUpConfig{
		Kafka: cluster, Decoder: decoder, ChunkBytes: int64(cfg.CatchUp.ChunkBytes),
		Memory: int64(cfg.CatchUp.Memory), Concurrency: cfg.CatchUp.Concurrency,
	})
	defer catchUp.Close()
	scheduler := commit.NewScheduler(commit.Config{
		Store: cluster.Group, Metadata: "instance=" + instance, Interval: cfg.Commit.Interval, Refresh: cfg.Commit.Refresh,
		Workers: 2 * cfg.Commit.Connections, Commits: counters.commits, Logger: logger,
	})
	if err := observe(meter, scheduler, budget); err != nil {
		return err
	}
	groups, err := newShare(cfg, cluster, decoder, meter, logger)
	if err != nil {
		return err
	}
	defer groups.Close()
	events, err := stream.New(stream.Config{
		Kafka: cluster, Tails: tails, CatchUp: catchUp, Scheduler: scheduler, Share: groups, InstanceID: instance,
		FrameBytes: int(cfg.Streams.FrameBytes), MaxEventBytes: int(cfg.Events.MaxBytes),
		OpenTimeout: cfg.Sessions.OpenTimeout, Grace: cfg.Sessions.Grace, RefreshInterval: cfg.Topics.RefreshInterval,
		CreateTopics: stream.CreateTopics(cfg.Topics.Create),
		MaxStreams:   cfg.Streams.Max, MaxSessions: cfg.Sessions.Max,
		MaxSubscriptions: cfg.Sessions.MaxSubscriptions, MaxWindow: cfg.Sessions.MaxWindow,
		Meter: meter, Logger: logger,
	})
	if err != nil {
		return err
	}

	ready := env.Health.Register("kafka")
	server := grpcserver.New(cfg.GRPC, env, grpc.ForceServerCodecV2(stream.Codec{}))
	eventsv1.RegisterEventsServiceServer(server.Registrar(), events)
	adminv1.RegisterSessionAdminServiceServer(server.Registrar(), adminv1.UnimplementedSessionAdminServiceServer{})

	// What commits has to live on while streams end.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var inBackground errgroup.Group
	inBackground.Go(func() error { scheduler.Run(background); return nil })
	inBackground.Go(func() error { events.Run(background); return nil })
	inBackground.Go(func() error { watchKafka(background, cluster, ready); return nil })

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Run(ctx, cfg.DrainTimeout) })
	g.Go(func() error {
		<-ctx.Done()
		events.Leave("shutting down")
		return nil
	})
	err = g.Wait()

	last, cancel := context.WithTimeout(background, lastTimeout)
	defer cancel()
	events.Close(last)
	stop()
	err = errors.Join(err, inBackground.Wait())
	// Not last, which hangs on what was just stopped.
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
	defer cancel()
	scheduler.Flush(flush)
	return err
}

// lastTimeout bounds each of the two steps after the last stream has ended: the
// end of what is under way for sessions, and the last commits.
const lastTimeout = 3 * time.Second

// instanceID is what the configuration says, or the host name and something random.
func instanceID(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("name the instance: %w", err)
	}
	return host + "-" + strings.ToLower(rand.Text()[:8]), nil
}

// newTailClient is for the consumers alone: each of its fetches waits for records.
func newTailClient(cfg Config) (sarama.Client, error) {
	conf, err := cfg.Kafka.Sarama()
	if err != nil {
		return nil, err
	}
	conf.Consumer.IsolationLevel = sarama.ReadCommitted
	conf.Consumer.MaxWaitTime = cfg.Ring.MaxWait
	conf.Consumer.Retry.Backoff = 250 * time.Millisecond
	conf.Consumer.Return.Errors = true
	conf.Net.DialTimeout = 3 * time.Second
	conf.Net.ReadTimeout = cfg.Ring.MaxWait + 10*time.Second
	conf.Metadata.Retry.Max = 1
	conf.Metadata.Timeout = 5 * time.Second
	client, err := sarama.NewClient(cfg.Kafka.Brokers, conf)
	if err != nil {
		return nil, fmt.Errorf("make Kafka client: %w", err)
	}
	return client, nil
}

func newShare(cfg Config, cluster *kafka.Cluster, decoder *tail.Decoder, meter metric.Meter, logger *slog.Logger) (*share.Hub, error) {
	template, err := share.ParseTemplate(cfg.Share.Group)
	if err != nil {
		return nil, fmt.Errorf("share.group: %w", err)
	}
	return share.New(share.Config{
		Brokers: cfg.Kafka.Brokers, Sarama: cfg.Kafka.Sarama, Kafka: cluster, Decoder: decoder, Template: template,
		AckTimeout: cfg.Share.AckTimeout, SessionTimeout: cfg.Share.SessionTimeout, CommitInterval: cfg.Commit.Interval,
		RefreshInterval: cfg.Topics.RefreshInterval, MaxWait: cfg.Ring.MaxWait,
		MaxGroups: cfg.Share.MaxGroups, MaxGroupsPerApplication: cfg.Share.MaxGroupsPerApplication,
		Meter: meter, Logger: logger,
	})
}

// How often Kafka is asked whether it answers.
const (
	askWhenUp   = 5 * time.Second
	askWhenDown = time.Second
)

// watchKafka keeps the readiness check until ctx ends.
func watchKafka(ctx context.Context, cluster *kafka.Cluster, check *daemon.Check) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := cluster.Ping(ctx)
		if ctx.Err() != nil {
			return
		}
		check.Set(err)
		if err == nil {
			timer.Reset(askWhenUp)
		} else {
			timer.Reset(askWhenDown)
		}
	}
}

// counters are the instruments that are not those of streams.
type counters struct {
	records, commits metric.Int64Counter
}

func newCounters(meter metric.Meter) (counters, error) {
	records, err1 := meter.Int64Counter("mqtt_integration.fanout.records", metric.WithUnit("{record}"),
		metric.WithDescription("Records decoded, by outcome: deliver, wrapped, skipped, tombstone, undeliverable, too_large."))
	commits, err2 := meter.Int64Counter("mqtt_integration.fanout.commits", metric.WithUnit("{request}"),
		metric.WithDescription("Requests that commit positions, by outcome: committed, failed."))
	if err := errors.Join(err1, err2); err != nil {
		return counters{}, fmt.Errorf("make metrics: %w", err)
	}
	return counters{records, commits}, nil
}

// observe registers what is looked up when metrics are collected. It lives as
// long as the meter.
func observe(meter metric.Meter, scheduler *commit.Scheduler, budget *tail.Budget) error {
	_, err1 := meter.Float64ObservableGauge("mqtt_integration.fanout.commit.age", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest acknowledgement that is not committed."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			o.Observe(scheduler.Age().Seconds())
			return nil
		}))
	_, err2 := meter.Int64ObservableGauge("mqtt_integration.fanout.groups", metric.WithUnit("{group}"),
		metric.WithDescription("Consumer groups that are kept."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(scheduler.Groups()))
			return nil
		}))
	_, err3 := meter.Int64ObservableGauge("mqtt_integration.fanout.ring.usage", metric.WithUnit("By"),
		metric.WithDescription("Memory of all rings."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(budget.Used())
			return nil
		}))
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("make metrics: %w", err)
	}
	return nil
}
