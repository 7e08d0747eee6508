package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
)

// Errors that callers tell apart.
var (
	// ErrUnavailable is wrapped by everything that may go away by itself.
	ErrUnavailable = errors.New("kafka cannot be reached")
	// ErrNoTopic says that a topic does not exist.
	ErrNoTopic = errors.New("no such topic")
)

// Earliest and Latest are times for [Cluster.Offsets]: the first record that
// Kafka has, and the end of what is committed.
const (
	Earliest = sarama.OffsetOldest
	Latest   = sarama.OffsetNewest
)

const (
	dialTimeout    = 3 * time.Second
	requestTimeout = 5 * time.Second
	firstBackoff   = 50 * time.Millisecond
	maxBackoff     = time.Second
)

// Cluster is a Kafka cluster as seen by short requests. Its methods may be used
// from several goroutines.
type Cluster struct {
	bootstrap []string
	conf      *sarama.Config
	meta      sarama.Client
	requests  *pool
	fetches   *pool
	next      atomic.Uint32 // broker to ask next
}

// Config says how to make a Cluster.
type Config struct {
	Brokers []string
	// Sarama makes a configuration for one client. Each call makes its own.
	Sarama func() (*sarama.Config, error)
	// Requests and Fetches are how many requests and chunk reads may be in flight
	// per broker.
	Requests, Fetches int
}

// New makes a cluster. It does not talk to Kafka yet.
func New(cfg Config) (*Cluster, error) {
	conf, err := cfg.Sarama()
	if err != nil {
		return nil, err
	}
	conf.Net.DialTimeout = dialTimeout
	conf.Net.ReadTimeout = requestTimeout
	conf.Net.WriteTimeout = requestTimeout
	conf.Metadata.Full = false
	conf.Metadata.AllowAutoTopicCreation = false
	conf.Metadata.Timeout = requestTimeout
	conf.Metadata.Retry.Max = 2
	conf.Metadata.Retry.Backoff = 100 * time.Millisecond
	conf.Metadata.RefreshFrequency = 0 // by Refresh
	conf.Consumer.IsolationLevel = sarama.ReadCommitted
	meta, err := sarama.NewClient(cfg.Brokers, conf)
	if err != nil {
		return nil, fmt.Errorf("make Kafka client: %w", err)
	}
	return &Cluster{
		bootstrap: cfg.Brokers, conf: conf, meta: meta,
		requests: newPool(conf, cfg.Requests), fetches: newPool(conf, cfg.Fetches),
	}, nil
}

// Close ends all connections. No method may be called after it.
func (c *Cluster) Close() error {
	c.requests.close()
	c.fetches.close()
	return c.meta.Close()
}

// Partitions returns the partitions of a topic in ascending order, from what is
// known already if it is known.
func (c *Cluster) Partitions(ctx context.Context, topic string) ([]int32, error) {
	var partitions []int32
	err := c.retry(ctx, func() error {
		found, err := c.meta.Partitions(topic)
		if err != nil {
			return classify(fmt.Errorf("look up partitions of %q: %w", topic, err))
		}
		partitions = slices.Clone(found)
		return nil
	})
	slices.Sort(partitions)
	return partitions, err
}

// Refresh looks the partitions of a topic up again.
func (c *Cluster) Refresh(topic string) error {
	if err := c.meta.RefreshMetadata(topic); err != nil {
		return classify(fmt.Errorf("look up topic %q: %w", topic, err))
	}
	return nil
}

// Ping asks Kafka for something that everything here depends on, a coordinator.
func (c *Cluster) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := c.findCoordinator(ctx, "mqtt-integration-ping")
	return err
}

// CreateTopic creates a topic. One that exists is no error.
func (c *Cluster) CreateTopic(ctx context.Context, topic string, partitions int32, replication int16) error {
	if replication == 0 {
		replication = -1
	}
	request := &sarama.CreateTopicsRequest{
		Version: 4, Timeout: requestTimeout,
		TopicDetails: map[string]*sarama.TopicDetail{
			topic: {NumPartitions: partitions, ReplicationFactor: replication},
		},
	}
	return c.retry(ctx, func() error {
		controller, err := c.meta.Controller()
		if err != nil {
			return classify(fmt.Errorf("find controller: %w", err))
		}
		err = c.requests.do(ctx, controller.Addr(), func(b *sarama.Broker) error {
			response, err := b.CreateTopics(request)
			if err != nil {
				return err
			}
			for _, e := range response.TopicErrors {
				if e.Err != sarama.ErrNoError && e.Err != sarama.ErrTopicAlreadyExists {
					return protocolError(fmt.Errorf("create topic %q: %w", topic, e.Err))
				}
			}
			return nil
		})
		if errors.Is(err, ErrUnavailable) {
			// It looks all known topics up as well, and complains when one is missing:
			// the next attempt says what matters.
			_, _ = c.meta.RefreshController()
		}
		return err
	})
}

// Offsets returns an offset of each partition: at Earliest, Latest or the first
// record of a time in milliseconds since 1970 (Latest if there is none).
func (c *Cluster) Offsets(ctx context.Context, topic string, partitions []int32, at int64) (map[int32]int64, error) {
	offsets := make(map[int32]int64, len(partitions))
	err := c.retry(ctx, func() error {
		leaders := map[string][]int32{}
		for _, p := range partitions {
			if _, ok := offsets[p]; ok {
				continue
			}
			leader, err := c.meta.Leader(topic, p)
			if err != nil {
				return classify(fmt.Errorf("find leader of %s/%d: %w", topic, p, err))
			}
			leaders[leader.Addr()] = append(leaders[leader.Addr()], p)
		}
		for address, of := range leaders {
			if err := c.offsetsFrom(ctx, address, topic, of, at, offsets); err != nil {
				return err
			}
		}
		return nil
	})
	return offsets, err
}

func (c *Cluster) offsetsFrom(ctx context.Context, address, topic string, partitions []int32, at int64, into map[int32]int64) error {
	request := sarama.NewOffsetRequest(c.conf.Version)
	request.IsolationLevel = sarama.ReadCommitted
	for _, p := range partitions {
		request.AddBlock(topic, p, at, 1)
	}
	err := c.requests.do(ctx, address, func(b *sarama.Broker) error {
		response, err := b.GetAvailableOffsets(request)
		if err != nil {
			return err
		}
		for _, p := range partitions {
			block := response.GetBlock(topic, p)
			if block == nil {
				return fmt.Errorf("list offsets of %s/%d: %w", topic, p, sarama.ErrIncompleteResponse)
			}
			if block.Err != sarama.ErrNoError {
				return protocolError(fmt.Errorf("list offsets of %s/%d: %w", topic, p, block.Err))
			}
			if block.Offset >= 0 {
				into[p] = block.Offset
			}
		}
		return nil
	})
	if err != nil {
		c.refreshQuietly(topic)
		return err
	}
	if at >= 0 {
		// There is no record of that time or later.
		var missing []int32
		for _, p := range partitions {
			if _, ok := into[p]; !ok {
				missing = append(missing, p)
			}
		}
		if len(missing) > 0 {
			return c.offsetsFrom(ctx, address, topic, missing, Latest, into)
		}
	}
	return nil
}

// refreshQuietly is for after an error of a leader, which may have moved.
func (c *Cluster) refreshQuietly(topic string) {
	if err := c.meta.RefreshMetadata(topic); err != nil {
		return // the next attempt says what is wrong
	}
}

// Fetch reads at most about maxBytes from an offset on, at least one batch if
// there is one, and does not wait for records. ErrOffsetOutOfRange of sarama is
// returned as it is.
func (c *Cluster) Fetch(ctx context.Context, topic string, partition int32, offset int64, maxBytes int32) (*sarama.FetchResponseBlock, error) {
	leader, err := c.meta.Leader(topic, partition)
	if err != nil {
		return nil, classify(fmt.Errorf("find leader of %s/%d: %w", topic, partition, err))
	}
	const noLeaderEpoch = -1
	request := &sarama.FetchRequest{
		Version: fetchVersion(c.conf.Version), MaxBytes: maxBytes, MinBytes: 0, MaxWaitTime: 0,
		Isolation: sarama.ReadCommitted, SessionEpoch: -1, RackID: c.conf.RackID,
	}
	request.AddBlock(topic, partition, offset, maxBytes, noLeaderEpoch)
	var block *sarama.FetchResponseBlock
	err = c.fetches.do(ctx, leader.Addr(), func(b *sarama.Broker) error {
		response, err := b.Fetch(request)
		if err != nil {
			return err
		}
		if block = response.GetBlock(topic, partition); block == nil {
			return sarama.ErrIncompleteResponse
		}
		if block.Err != sarama.ErrNoError {
			return protocolError(block.Err)
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("fetch %s/%d at %d: %w", topic, partition, offset, err)
		if !errors.Is(err, sarama.ErrOffsetOutOfRange) {
			c.refreshQuietly(topic)
			err = classify(err)
		}
		return nil, err
	}
	return block, nil
}

// fetchVersion is the newest version without topic ids and flexible fields that
// the cluster may know.
func fetchVersion(v sarama.KafkaVersion) int16 {
	if v.IsAtLeast(sarama.V2_3_0_0) {
		return 11
	}
	return 10
}

// retry calls f until it succeeds, fails for good, or ctx ends.
func (c *Cluster) retry(ctx context.Context, f func() error) error {
	backoff := firstBackoff
	for {
		err := f()
		if err == nil || !errors.Is(err, ErrUnavailable) {
			return err
		}
		timer := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// brokerError is an error that a broker put into an answer: the connection is fine.
type brokerError struct{ error }

func (f brokerError) Unwrap() error { return f.error }

func protocolError(err error) error { return brokerError{err} }

// classify marks what may go away by itself, and what is no topic.
func classify(err error) error {
	var code sarama.KError
	switch {
	case err == nil, errors.Is(err, ErrUnavailable), errors.Is(err, ErrNoTopic):
		return err
	case errors.As(err, &code):
		switch code {
		case sarama.ErrUnknownTopicOrPartition, sarama.ErrInvalidTopic:
			return fmt.Errorf("%w: %w", ErrNoTopic, err)
		case sarama.ErrConsumerCoordinatorNotAvailable, sarama.ErrNotCoordinatorForConsumer, sarama.ErrOffsetsLoadInProgress,
			sarama.ErrLeaderNotAvailable, sarama.ErrNotLeaderForPartition, sarama.ErrRequestTimedOut, sarama.ErrBrokerNotAvailable,
			sarama.ErrReplicaNotAvailable, sarama.ErrNetworkException, sarama.ErrFencedLeaderEpoch, sarama.ErrUnknownLeaderEpoch,
			sarama.ErrOffsetNotAvailable, sarama.ErrNotController, sarama.ErrKafkaStorageError, sarama.ErrNotEnoughReplicas,
			sarama.ErrNotEnoughReplicasAfterAppend, sarama.ErrUnknown, sarama.ErrThrottlingQuotaExceeded:
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		default:
			return err
		}
	case errors.As(err, new(sarama.PacketEncodingError)), errors.As(err, new(sarama.ConfigurationError)):
		return err
	default: // refused, EOF, timeout, out of brokers, closed
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}
