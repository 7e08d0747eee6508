package commandingress

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/IBM/sarama"

	"mqtt-integration/libs/cloudevent"
	"mqtt-integration/libs/config"
	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
	"mqtt-integration/libs/kafkaclient"
	"mqtt-integration/services/command-ingress/internal/producer"
)

// Names of partitioners.
const (
	// ConsistentRandom is librdkafka's default: CRC-32 of the key.
	ConsistentRandom = producer.ConsistentRandom
	// Murmur2 is that of the Java client.
	Murmur2 = producer.Murmur2
)

// Config is the configuration of the service. Start from [DefaultConfig].
type Config struct {
	daemon.Common `yaml:",inline"`

	// GRPC is where CommandsService listens.
	GRPC grpcserver.Config `yaml:"grpc"`
	// Kafka is the cluster that the commands go to.
	Kafka kafkaclient.Config `yaml:"kafka"`
	// InstanceID names this process in logs and to frontends. Empty is the host
	// name with a random suffix.
	InstanceID string `yaml:"instance_id"`

	Commands     CommandsConfig     `yaml:"commands"`
	Delivery     DeliveryConfig     `yaml:"delivery"`
	Streams      StreamsConfig      `yaml:"streams"`
	CreateTopics CreateTopicsConfig `yaml:"create_topics"`
}

// CommandsConfig says what records look like.
type CommandsConfig struct {
	// Topic is the Kafka topic.
	Topic string `yaml:"topic"`
	// Instance is the attribute of this name.
	Instance string `yaml:"instance"`
	// Partitioner is "consistent_random", as librdkafka's clients and the ancestor
	// have it, or "murmur2", as Java clients have it.
	Partitioner string `yaml:"partitioner"`
	// Compression is none, gzip, snappy, lz4 or zstd.
	Compression string `yaml:"compression"`
	// MaxRecordBytes is the largest record, key, value and headers together, even
	// where Kafka takes larger ones.
	MaxRecordBytes config.ByteSize `yaml:"max_record_bytes"`
}

// DeliveryConfig bounds what is on its way to Kafka.
type DeliveryConfig struct {
	// Timeout is how long after its arrival a command has its result at latest. It
	// has to be below the frontends' deadline for PUBACK.
	Timeout time.Duration `yaml:"timeout"`
	// MaxRecords and MaxBytes bound what waits for Kafka. Beyond them commands are
	// refused.
	MaxRecords int             `yaml:"max_records"`
	MaxBytes   config.ByteSize `yaml:"max_bytes"`
	// Window is how many records are with the Kafka client at the same time. Their
	// outcome is unknown when Kafka goes away.
	Window int `yaml:"window"`
	// CheckInterval is how often it is checked that Kafka can be reached, that the
	// topic is there, and how large its records may be.
	CheckInterval time.Duration `yaml:"check_interval"`
}

// StreamsConfig bounds the streams of frontends.
type StreamsConfig struct {
	// Max is the number of streams of all frontends.
	Max int `yaml:"max"`
	// MaxInFlight is how many commands of a stream may be without a result.
	MaxInFlight int `yaml:"max_in_flight"`
}

// CreateTopicsConfig says whether the topic is created when it does not exist.
type CreateTopicsConfig struct {
	// Partitions of the topic. 0: it is not created.
	Partitions int32 `yaml:"partitions"`
	// ReplicationFactor of the topic. 0: the broker's default.
	ReplicationFactor int16 `yaml:"replication_factor"`
}

// DefaultConfig returns the defaults: gRPC on 127.0.0.1:7003, administration on
// 127.0.0.1:9094, Kafka on 127.0.0.1:9092.
func DefaultConfig() Config {
	c := Config{
		Common: daemon.DefaultCommon(),
		GRPC:   grpcserver.Config{Address: "127.0.0.1:7003"},
		Kafka:  kafkaclient.Config{Brokers: []string{"127.0.0.1:9092"}, ClientID: "mqtt-integration-command-ingress"},
		Commands: CommandsConfig{
			Topic: "iot-commands", Instance: "drogue", Partitioner: ConsistentRandom, Compression: "none",
			MaxRecordBytes: 2 * config.MiB,
		},
		Delivery: DeliveryConfig{
			Timeout: 8 * time.Second, MaxRecords: 20_000, MaxBytes: 64 * config.MiB, Window: 1000,
			CheckInterval: 5 * time.Second,
		},
		Streams: StreamsConfig{Max: 256, MaxInFlight: 10_000},
	}
	c.Admin.Address = "127.0.0.1:9094"
	return c
}

// topicPattern is what Kafka takes as a name.
var topicPattern = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// Limits of the configuration.
const (
	minRecordBytes = 1 * config.KiB
	maxRecordBytes = 64 * config.MiB
)

// Validate reports every problem under its YAML path.
func (c Config) Validate() error {
	v := validator{}
	v.add("", c.Common.Validate())
	v.add("grpc", c.GRPC.Validate())
	v.add("kafka", c.Kafka.Validate())
	if !topicPattern.MatchString(c.Commands.Topic) || c.Commands.Topic == "." || c.Commands.Topic == ".." {
		v.fail("commands.topic: %q is no name of a Kafka topic", c.Commands.Topic)
	}
	if c.Commands.Instance == "" || !cloudevent.ValidString(c.Commands.Instance) {
		v.fail("commands.instance: %q cannot be an attribute of a CloudEvent", c.Commands.Instance)
	}
	if c.Commands.Partitioner != ConsistentRandom && c.Commands.Partitioner != Murmur2 {
		v.fail("commands.partitioner: %q is neither %s nor %s", c.Commands.Partitioner, ConsistentRandom, Murmur2)
	}
	if _, err := c.compression(); err != nil {
		v.fail("commands.compression: %q is none of none, gzip, snappy, lz4 and zstd", c.Commands.Compression)
	}
	between(&v, "commands.max_record_bytes", c.Commands.MaxRecordBytes, minRecordBytes, maxRecordBytes)
	between(&v, "delivery.timeout", c.Delivery.Timeout, 100*time.Millisecond, 5*time.Minute)
	between(&v, "delivery.max_records", c.Delivery.MaxRecords, 1, 10_000_000)
	between(&v, "delivery.max_bytes", c.Delivery.MaxBytes, 64*config.KiB, config.TiB)
	between(&v, "delivery.window", c.Delivery.Window, 1, 100_000)
	between(&v, "delivery.check_interval", c.Delivery.CheckInterval, 100*time.Millisecond, 10*time.Minute)
	between(&v, "streams.max", c.Streams.Max, 1, 100_000)
	between(&v, "streams.max_in_flight", c.Streams.MaxInFlight, 1, 1_000_000)
	between(&v, "create_topics.partitions", c.CreateTopics.Partitions, 0, 10_000)
	between(&v, "create_topics.replication_factor", c.CreateTopics.ReplicationFactor, 0, 100)
	return errors.Join(v.errs...)
}

func (c Config) compression() (sarama.CompressionCodec, error) {
	var codec sarama.CompressionCodec
	err := codec.UnmarshalText([]byte(c.Commands.Compression))
	return codec, err
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
