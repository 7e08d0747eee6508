package embeddedkafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

const (
	// DefaultMaxMessageBytes is what Kafka itself has as message.max.bytes.
	DefaultMaxMessageBytes = 1048588

	// DefaultPartitions is the number of partitions of a topic that was
	// created without saying how many.
	DefaultPartitions = 4

	defaultRetentionInterval = 30 * time.Second

	// groupsLogLimit keeps kfake from rewriting its whole groups log at every
	// commit: its own limit is 10 MiB, which 5000 stored sessions exceed.
	groupsLogLimit = "268435456"

	// maxSessionTimeout is that of a real broker; kfake's own is 5 minutes.
	maxSessionTimeout = 30 * time.Minute
)

// Config says how to start a Cluster. The zero value is an in-memory broker on
// a free port.
type Config struct {
	// Dir keeps the log, the topics and the groups; it is created when
	// missing. Empty keeps everything in memory, where it grows without
	// bound: fine for a test, wrong for anything that runs on.
	Dir string

	// Address is host:port on a loopback interface. Empty means a free port
	// of 127.0.0.1.
	Address string

	// Brokers is the number of brokers, each with a port of its own. Zero
	// means one. More than one needs an Address with port 0.
	Brokers int

	// Topics are created when they do not exist yet. Existing ones are left
	// as they are.
	Topics []Topic

	// Settings are further settings of the brokers by their Kafka names, such
	// as log.retention.bytes.
	Settings map[string]string

	// MaxMessageBytes is the largest record batch that the cluster accepts.
	// Zero means DefaultMaxMessageBytes.
	MaxMessageBytes int

	// RetentionInterval is how often Run drops what is over the retention of
	// its topic. Zero means 30 seconds.
	RetentionInterval time.Duration

	// Logger gets what the emulation has to say. Nil discards it.
	Logger *slog.Logger
}

// Topic is a topic to be created.
type Topic struct {
	Name string
	// Partitions is the number of partitions; zero means DefaultPartitions.
	Partitions int32
	// Settings are topic settings by their Kafka names, such as retention.ms.
	Settings map[string]string
}

// Cluster is a running emulation of Kafka. Its methods may be used from
// several goroutines.
type Cluster struct {
	kafka     *kfake.Cluster
	brokers   []string
	interval  time.Duration
	maxBytes  int
	closeOnce sync.Once
}

// Start starts a cluster that serves until Close. When the port is taken, the
// error wraps syscall.EADDRINUSE.
func Start(cfg Config) (*Cluster, error) {
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	if err := requireLoopback(cfg.Address); err != nil {
		return nil, err
	}
	if cfg.Brokers == 0 {
		cfg.Brokers = 1
	}
	if _, port, err := net.SplitHostPort(cfg.Address); err == nil && port != "0" && cfg.Brokers > 1 {
		return nil, fmt.Errorf("start embedded Kafka: %d brokers need an address with port 0, not %s", cfg.Brokers, cfg.Address)
	}
	if cfg.MaxMessageBytes == 0 {
		cfg.MaxMessageBytes = DefaultMaxMessageBytes
	}
	if cfg.RetentionInterval == 0 {
		cfg.RetentionInterval = defaultRetentionInterval
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}

	opts := []kfake.Opt{
		kfake.NumBrokers(cfg.Brokers),
		kfake.ClusterID("embedded-kafka"),
		kfake.DefaultNumPartitions(DefaultPartitions),
		kfake.GroupMaxSessionTimeout(maxSessionTimeout),
		kfake.WithLogger(logger{cfg.Logger}),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			listener, err := (&net.ListenConfig{}).Listen(context.Background(), network, cfg.Address)
			if err != nil {
				return nil, err //nolint:wrapcheck // It is wrapped below.
			}
			return guardedListener{listener}, nil
		}),
		kfake.BrokerConfigs(map[string]string{
			"state.log.compact.bytes": groupsLogLimit,
			"message.max.bytes":       strconv.Itoa(cfg.MaxMessageBytes),
		}),
		kfake.BrokerConfigs(cfg.Settings),
	}
	if cfg.Dir != "" {
		opts = append(opts, kfake.DataDir(cfg.Dir))
	}
	kafka, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, fmt.Errorf("start embedded Kafka: %w", err)
	}
	c := &Cluster{
		kafka:    kafka,
		brokers:  kafka.ListenAddrs(),
		interval: cfg.RetentionInterval,
		maxBytes: cfg.MaxMessageBytes,
	}
	for _, topic := range cfg.Topics {
		if err := c.EnsureTopic(topic); err != nil {
			c.Close()
			return nil, fmt.Errorf("start embedded Kafka: %w", err)
		}
	}
	return c, nil
}

// Brokers returns the addresses, host:port, to bootstrap a client with.
func (c *Cluster) Brokers() []string { return slices.Clone(c.brokers) }

// MaxMessageBytes is the largest record batch that the cluster accepts.
func (c *Cluster) MaxMessageBytes() int { return c.maxBytes }

// EnsureTopic creates a topic when there is none of that name. An existing one
// is left as it is, even if its settings differ.
func (c *Cluster) EnsureTopic(topic Topic) error {
	if c.kafka.TopicInfo(topic.Name) != nil {
		return nil
	}
	if err := c.kafka.CreateTopic(topic.Name, topic.Partitions, maps.Clone(topic.Settings)); err != nil {
		return fmt.Errorf("create topic %q: %w", topic.Name, err)
	}
	return nil
}

// Run applies the retention of each topic every RetentionInterval until ctx
// ends, then returns nil. The emulation does not do so by itself: without Run
// the log grows for ever.
func (c *Cluster) Run(ctx context.Context) error {
	tick := time.NewTicker(c.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			c.kafka.ApplyRetention()
		}
	}
}

// Close stops serving and, with a data directory, writes what is not on disk
// yet. It may be called more than once. Run must have returned before.
func (c *Cluster) Close() {
	c.closeOnce.Do(c.kafka.Close)
}

func requireLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("start embedded Kafka: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return errors.New("start embedded Kafka: it listens on loopback only, not on " + strconv.Quote(host))
	}
	return nil
}

// logger hands kfake's lines to slog. Its text is free-form, so the message is
// constant and the text an attribute.
type logger struct{ log *slog.Logger }

func (l logger) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
		to = slog.LevelWarn
	default: // Its info level is one line per request.
	}
	ctx := context.Background()
	if l.log.Enabled(ctx, to) {
		l.log.LogAttrs(ctx, to, "embedded Kafka", slog.String("text", fmt.Sprintf(format, args...)))
	}
}
