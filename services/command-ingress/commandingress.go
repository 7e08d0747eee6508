package commandingress

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/command-ingress/internal/producer"
	"mqtt-integration/services/command-ingress/internal/server"
)

// Run serves until ctx ends. Then frontends are asked to go elsewhere, what is in
// flight gets its results, and the Kafka client is closed, all in at most
// DrainTimeout. It returns nil after an orderly stop, and leaves no goroutine
// behind.
func Run(ctx context.Context, cfg Config, env daemon.Env) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	env = env.Complete()
	compression, err := cfg.compression()
	if err != nil {
		return err
	}
	writer, err := producer.New(producer.Config{
		Kafka:             cfg.Kafka,
		Topic:             cfg.Commands.Topic,
		Partitioner:       cfg.Commands.Partitioner,
		Compression:       compression,
		DeliveryTimeout:   cfg.Delivery.Timeout,
		MaxRecords:        cfg.Delivery.MaxRecords,
		MaxBytes:          int64(cfg.Delivery.MaxBytes),
		Window:            cfg.Delivery.Window,
		MaxRecordBytes:    int(cfg.Commands.MaxRecordBytes),
		CreatePartitions:  cfg.CreateTopics.Partitions,
		CreateReplication: cfg.CreateTopics.ReplicationFactor,
		CheckInterval:     cfg.Delivery.CheckInterval,
	}, env)
	if err != nil {
		return err
	}
	service, err := server.New(server.Config{
		InstanceID:  instanceID(cfg.InstanceID),
		Instance:    cfg.Commands.Instance,
		Topic:       cfg.Commands.Topic,
		MaxStreams:  cfg.Streams.Max,
		MaxInFlight: cfg.Streams.MaxInFlight,
	}, writer, env)
	if err != nil {
		return err
	}
	// A command is one record and has to fit into a frame.
	frame := max(grpcserver.MaxMessageSize, int(cfg.Commands.MaxRecordBytes+256*config.KiB))
	transport := grpcserver.New(cfg.GRPC, env, grpc.MaxRecvMsgSize(frame))
	commandsv1.RegisterCommandsServiceServer(transport.Registrar(), service)

	writing, stopWriting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWriting()
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, service.Drain)()
	g.Go(func() error {
		defer stopWriting() // only now nobody waits for a result any more
		return transport.Run(ctx, transportDrain(cfg))
	})
	g.Go(func() error { return writer.Run(writing) })
	return g.Wait()
}

// transportDrain leaves enough of the time to stop for what frontends were cut off
// from before it was written.
func transportDrain(cfg Config) time.Duration {
	return max(cfg.DrainTimeout-cfg.Delivery.Timeout, cfg.DrainTimeout/2)
}

func instanceID(configured string) string {
	if configured != "" {
		return configured
	}
	host, err := os.Hostname()
	if err != nil {
		host = "command-ingress"
	}
	return host + "-" + strings.ToLower(rand.Text()[:6])
}
