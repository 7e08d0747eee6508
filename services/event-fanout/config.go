package eventfanout

import (
	"errors"
	"fmt"
	"time"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
	"mqtt-integration/libs/kafkaclient"
	"mqtt-integration/services/event-fanout/internal/share"
)

// What is done with records that are no CloudEvents.
const (
	// Wrap makes such a record the data of an event.
	Wrap = "wrap"
	// Skip passes it.
	Skip = "skip"
)

// Config is the configuration of the service. Start from [DefaultConfig].
type Config struct {
	daemon.Common `yaml:",inline"`

	// GRPC is where EventsService and SessionAdminService listen.
	GRPC grpcserver.Config `yaml:"grpc"`
	// Kafka is the cluster with the events.
	Kafka kafkaclient.Config `yaml:"kafka"`
	// InstanceID names this process in logs, in the metadata of committed offsets
	// and to frontends. Empty is the host name with a random suffix.
	InstanceID string `yaml:"instance_id"`

	Events   EventsConfig   `yaml:"events"`
	Topics   TopicsConfig   `yaml:"topics"`
	Ring     RingConfig     `yaml:"ring"`
	CatchUp  CatchUpConfig  `yaml:"catch_up"`
	Commit   CommitConfig   `yaml:"commit"`
	Sessions SessionsConfig `yaml:"sessions"`
	Share    ShareConfig    `yaml:"share"`
	Streams  StreamsConfig  `yaml:"streams"`
}

// EventsConfig says what is delivered, and in what form.
type EventsConfig struct {
	// NonCloudEvents is "wrap" or "skip".
	NonCloudEvents string `yaml:"non_cloudevents"`
	// MaxBytes is the largest event, in its serialised form. Larger ones are
	// undeliverable: they are counted and passed.
	MaxBytes config.ByteSize `yaml:"max_bytes"`
}

// TopicsConfig says how topics with events are found.
type TopicsConfig struct {
	// RefreshInterval is how often the partitions of topics in use are looked up.
	RefreshInterval time.Duration `yaml:"refresh_interval"`
	// Create makes the topic of an application that has none when somebody
	// subscribes to it.
	Create CreateTopicsConfig `yaml:"create"`
}

// CreateTopicsConfig says what topics are created.
type CreateTopicsConfig struct {
	// Partitions of a new topic. 0: topics are not created.
	Partitions int32 `yaml:"partitions"`
	// ReplicationFactor of a new topic. 0: the broker's default.
	ReplicationFactor int16 `yaml:"replication_factor"`
}

// RingConfig bounds the memory that keeps the ends of the topics in use.
type RingConfig struct {
	// Memory is for all partitions together.
	Memory config.ByteSize `yaml:"memory"`
	// Linger is how long a partition is read on after its last subscriber left.
	Linger time.Duration `yaml:"linger"`
	// MaxWait is how long Kafka may hold an answer back when there is nothing to read.
	MaxWait time.Duration `yaml:"max_wait"`
}

// CatchUpConfig bounds the reading for subscribers that the rings have overtaken.
type CatchUpConfig struct {
	// ChunkBytes is how much is read from Kafka at once.
	ChunkBytes config.ByteSize `yaml:"chunk_bytes"`
	// Memory is for chunks that are kept because others may want them as well.
	Memory config.ByteSize `yaml:"memory"`
	// Concurrency is how many chunks are read at the same time.
	Concurrency int `yaml:"concurrency"`
}

// CommitConfig says how positions get to Kafka.
type CommitConfig struct {
	// Interval is the time from one round of commits to the next.
	Interval time.Duration `yaml:"interval"`
	// Connections is how many requests may be in flight to one group coordinator.
	Connections int `yaml:"connections"`
	// Refresh is how often the positions of an idle session are committed again,
	// so that Kafka does not forget them: a quarter of the broker's
	// offsets.retention.minutes, at most a day.
	Refresh time.Duration `yaml:"refresh"`
}

// SessionsConfig bounds sessions and subscriptions.
type SessionsConfig struct {
	// OpenTimeout bounds the opening of a subscription. It has to be below the
	// frontends' deadline for SUBSCRIBE.
	OpenTimeout time.Duration `yaml:"open_timeout"`
	// Grace is how long a session is kept when the stream to its frontend broke.
	Grace time.Duration `yaml:"grace"`
	// Max is the number of sessions, and MaxSubscriptions that of subscriptions.
	Max              int `yaml:"max"`
	MaxSubscriptions int `yaml:"max_subscriptions"`
	// MaxWindow is the largest number of events that a subscription may have
	// outstanding, whatever a frontend asks for.
	MaxWindow int `yaml:"max_window"`
}

// ShareConfig is about shared subscriptions.
type ShareConfig struct {
	// Group is the name of the Kafka consumer group of a share group, with
	// {application} and {group} once each; what they stand for is percent-encoded.
	Group string `yaml:"group"`
	// AckTimeout is how long a session may have events outstanding in a share group
	// and acknowledge none of them. Then it is ended, so that others get them.
	AckTimeout time.Duration `yaml:"ack_timeout"`
	// SessionTimeout is after what silence of an instance Kafka gives its partitions
	// to others: within the broker's group.min.session.timeout.ms and group.max.…
	SessionTimeout time.Duration `yaml:"session_timeout"`
	// MaxGroups is the number of share groups with subscribers on this instance, each
	// of which takes connections of its own, and MaxGroupsPerApplication how many of
	// them may be of one application.
	MaxGroups               int `yaml:"max_groups"`
	MaxGroupsPerApplication int `yaml:"max_groups_per_application"`
}

// StreamsConfig bounds streams.
type StreamsConfig struct {
	// Max is the number of streams of all frontends.
	Max int `yaml:"max"`
	// FrameBytes is when a frame is full. One with a single larger event may be larger.
	FrameBytes config.ByteSize `yaml:"frame_bytes"`
}

// DefaultConfig returns the defaults: gRPC on 127.0.0.1:7002, administration on
// 127.0.0.1:9093, Kafka on 127.0.0.1:9092.
func DefaultConfig() Config {
	c := Config{
		Common: daemon.DefaultCommon(),
		GRPC:   grpcserver.Config{Address: "127.0.0.1:7002"},
		Kafka:  kafkaclient.Config{Brokers: []string{"127.0.0.1:9092"}, ClientID: "mqtt-integration-event-fanout"},
		Events: EventsConfig{NonCloudEvents: Wrap, MaxBytes: 2 * config.MiB},
		Topics: TopicsConfig{RefreshInterval: 15 * time.Second},
		Ring:   RingConfig{Memory: 256 * config.MiB, Linger: 10 * time.Second, MaxWait: 250 * time.Millisecond},
		CatchUp: CatchUpConfig{
			ChunkBytes: config.MiB, Memory: 32 * config.MiB, Concurrency: 4,
		},
		Commit: CommitConfig{Interval: time.Second, Connections: 4, Refresh: 24 * time.Hour},
		Sessions: SessionsConfig{
			OpenTimeout: 12 * time.Second, Grace: 30 * time.Second,
			Max: 100_000, MaxSubscriptions: 200_000, MaxWindow: 65_535,
		},
		Share: ShareConfig{
			Group: share.DefaultTemplate, AckTimeout: time.Minute, SessionTimeout: 10 * time.Second,
			MaxGroups: 256, MaxGroupsPerApplication: 32,
		},
		Streams: StreamsConfig{Max: 256, FrameBytes: 64 * config.KiB},
	}
	c.Admin.Address = "127.0.0.1:9093"
	return c
}

// Limits of the configuration. A frame has to fit into what gRPC carries.
const (
	minEventBytes  = config.KiB
	maxEventBytes  = 3 * config.MiB
	minFrameBytes  = 4 * config.KiB
	maxFrameBytes  = config.MiB
	minChunkBytes  = 64 * config.KiB
	minRingMemory  = config.MiB
	maxConcurrency = 64
)

// Validate reports every problem under its YAML path.
func (c Config) Validate() error {
	v := validator{}
	v.add("", c.Common.Validate())
	v.add("grpc", c.GRPC.Validate())
	v.add("kafka", c.Kafka.Validate())
	if c.Events.NonCloudEvents != Wrap && c.Events.NonCloudEvents != Skip {
		v.fail("events.non_cloudevents: %q is neither %s nor %s", c.Events.NonCloudEvents, Wrap, Skip)
	}
	between(&v, "events.max_bytes", c.Events.MaxBytes, minEventBytes, maxEventBytes)
	between(&v, "topics.refresh_interval", c.Topics.RefreshInterval, 100*time.Millisecond, 30*time.Second)
	between(&v, "topics.create.partitions", c.Topics.Create.Partitions, 0, 10_000)
	between(&v, "topics.create.replication_factor", c.Topics.Create.ReplicationFactor, 0, 100)
	between(&v, "ring.memory", c.Ring.Memory, minRingMemory, config.TiB)
	between(&v, "ring.linger", c.Ring.Linger, 0, time.Hour)
	between(&v, "ring.max_wait", c.Ring.MaxWait, 10*time.Millisecond, 5*time.Second)
	between(&v, "catch_up.chunk_bytes", c.CatchUp.ChunkBytes, minChunkBytes, 64*config.MiB)
	between(&v, "catch_up.memory", c.CatchUp.Memory, 0, config.TiB)
	between(&v, "catch_up.concurrency", c.CatchUp.Concurrency, 1, maxConcurrency)
	between(&v, "commit.interval", c.Commit.Interval, 10*time.Millisecond, time.Minute)
	between(&v, "commit.connections", c.Commit.Connections, 1, maxConcurrency)
	between(&v, "commit.refresh", c.Commit.Refresh, time.Second, 24*time.Hour)
	between(&v, "sessions.open_timeout", c.Sessions.OpenTimeout, 100*time.Millisecond, 5*time.Minute)
	between(&v, "sessions.grace", c.Sessions.Grace, 0, time.Hour)
	between(&v, "sessions.max", c.Sessions.Max, 1, 10_000_000)
	between(&v, "sessions.max_subscriptions", c.Sessions.MaxSubscriptions, 1, 10_000_000)
	between(&v, "sessions.max_window", c.Sessions.MaxWindow, 1, 65_535)
	if _, err := share.ParseTemplate(c.Share.Group); err != nil {
		v.fail("share.group: %q: %w", c.Share.Group, err)
	}
	between(&v, "share.ack_timeout", c.Share.AckTimeout, 100*time.Millisecond, time.Hour)
	between(&v, "share.session_timeout", c.Share.SessionTimeout, 6*time.Second, 5*time.Minute)
	between(&v, "share.max_groups", c.Share.MaxGroups, 0, 10_000)
	between(&v, "share.max_groups_per_application", c.Share.MaxGroupsPerApplication, 0, 10_000)
	between(&v, "streams.max", c.Streams.Max, 1, 100_000)
	between(&v, "streams.frame_bytes", c.Streams.FrameBytes, minFrameBytes, maxFrameBytes)
	return errors.Join(v.errs...)
}

type validator struct {
	errs []error
}

func (v *validator) add(path string, err error) {
	if path != "" {
		err = config.Under(path, err)
	}
	if err != nil {
		v.errs = append(v.errs, err)
	}
}

func (v *validator) fail(format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf(format, args...))
}

type ordered interface {
	~int | ~int16 | ~int32 | ~int64
}

func between[T ordered](v *validator, path string, value, low, high T) {
	if value < low || value > high {
		v.fail("%s: %v is not from %v to %v", path, value, low, high)
	}
}
