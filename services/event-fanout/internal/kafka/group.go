package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/IBM/sarama"
)

// Place is a partition of a topic.
type Place struct {
	Topic     string
	Partition int32
}

// String returns topic/partition.
func (p Place) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.Partition) }

// Group is a consumer group without members. Its methods may be used from
// several goroutines, but the order of concurrent commits is undefined.
type Group struct {
	cluster     *Cluster
	name        string
	coordinator atomic.Pointer[string] // its address as far as known
}

// Group returns a group by its name. It need not exist.
func (c *Cluster) Group(name string) *Group { return &Group{cluster: c, name: name} }

// Name is the name of the group.
func (g *Group) Name() string { return g.name }

// Committed is an offset that a group has in a partition.
type Committed struct {
	Offset   int64
	Metadata string
}

// PartitionsError are the partitions whose offsets were not committed by a
// request whose other partitions were.
type PartitionsError map[Place]error

func (e PartitionsError) Error() string {
	for place, err := range e {
		return fmt.Sprintf("%d partitions not committed, one is %s: %v", len(e), place, err)
	}
	return "no error"
}

// Unwrap returns the errors.
func (e PartitionsError) Unwrap() []error {
	errs := make([]error, 0, len(e))
	for _, err := range e {
		errs = append(errs, err)
	}
	return errs
}

// Versions of requests that suit every Kafka from 2.1 on.
const (
	findCoordinatorVersion = 2
	offsetCommitVersion    = 6
	offsetFetchVersion     = 5
	deleteGroupsVersion    = 1
	deleteOffsetsVersion   = 0
)

// Commit commits offsets, and returns nil once Kafka has all of them. An offset
// that Kafka refuses is in a PartitionsError; the others are committed then.
func (g *Group) Commit(ctx context.Context, offsets map[Place]int64, metadata string) error {
	if len(offsets) == 0 {
		return nil
	}
	request := &sarama.OffsetCommitRequest{
		Version: offsetCommitVersion, ConsumerGroup: g.name,
		ConsumerGroupGeneration: sarama.GroupGenerationUndefined,
	}
	for place, offset := range offsets {
		// AddBlock would claim leader epoch 0.
		request.AddBlockWithLeaderEpoch(place.Topic, place.Partition, offset, -1, 0, metadata)
	}
	return g.do(ctx, func(b *sarama.Broker) error {
		response, err := b.CommitOffset(request)
		if err != nil {
			return err
		}
		var failed PartitionsError
		for place := range offsets {
			code, ok := response.Errors[place.Topic][place.Partition]
			if !ok {
				return fmt.Errorf("commit offsets of group %q: %w", g.name, sarama.ErrIncompleteResponse)
			}
			if code == sarama.ErrNoError {
				continue
			}
			if isCoordinatorError(code) {
				return protocolError(fmt.Errorf("commit offsets of group %q: %w", g.name, code))
			}
			if failed == nil {
				failed = PartitionsError{}
			}
			failed[place] = code
		}
		if failed != nil {
			return protocolError(failed)
		}
		return nil
	})
}

func isCoordinatorError(code sarama.KError) bool {
	return code == sarama.ErrOffsetsLoadInProgress || code == sarama.ErrConsumerCoordinatorNotAvailable ||
		code == sarama.ErrNotCoordinatorForConsumer
}

// Offsets returns what the group has committed, nothing for a group that does
// not exist.
func (g *Group) Offsets(ctx context.Context) (map[Place]Committed, error) {
	request := &sarama.OffsetFetchRequest{Version: offsetFetchVersion, ConsumerGroup: g.name}
	offsets := map[Place]Committed{}
	err := g.do(ctx, func(b *sarama.Broker) error {
		response, err := b.FetchOffset(request)
		if err != nil {
			return err
		}
		switch response.Err {
		case sarama.ErrNoError:
		case sarama.ErrGroupIDNotFound: // the emulated Kafka says so, a real one has no error
			return nil
		default:
			return protocolError(fmt.Errorf("fetch offsets of group %q: %w", g.name, response.Err))
		}
		for topic, partitions := range response.Blocks {
			for partition, block := range partitions {
				if block.Err != sarama.ErrNoError {
					return protocolError(fmt.Errorf("fetch offsets of group %q: %w", g.name, block.Err))
				}
				if block.Offset >= 0 {
					offsets[Place{topic, partition}] = Committed{Offset: block.Offset, Metadata: block.Metadata}
				}
			}
		}
		return nil
	})
	return offsets, err
}

// Forget deletes the group's offsets of a topic. A group or topic that does not
// exist is no error.
func (g *Group) Forget(ctx context.Context, topic string, partitions []int32) error {
	request := &sarama.DeleteOffsetsRequest{Version: deleteOffsetsVersion, Group: g.name}
	for _, p := range partitions {
		request.AddPartition(topic, p)
	}
	return g.do(ctx, func(b *sarama.Broker) error {
		response, err := b.DeleteOffsets(request)
		if err != nil {
			return err
		}
		switch response.ErrorCode {
		case sarama.ErrNoError, sarama.ErrGroupIDNotFound:
			return nil
		default:
			return protocolError(fmt.Errorf("delete offsets of group %q: %w", g.name, response.ErrorCode))
		}
	})
}

// Delete deletes the group. One that does not exist is no error.
func (g *Group) Delete(ctx context.Context) error {
	request := &sarama.DeleteGroupsRequest{Version: deleteGroupsVersion}
	request.AddGroup(g.name)
	return g.do(ctx, func(b *sarama.Broker) error {
		response, err := b.DeleteGroups(request)
		if err != nil {
			return err
		}
		switch code := response.GroupErrorCodes[g.name]; code {
		case sarama.ErrNoError, sarama.ErrGroupIDNotFound:
			return nil
		default:
			return protocolError(fmt.Errorf("delete group %q: %w", g.name, code))
		}
	})
}

// do calls f with a connection to the group's coordinator, and again while the
// coordinator cannot be reached or says that it is not the one.
func (g *Group) do(ctx context.Context, f func(*sarama.Broker) error) error {
	return g.cluster.retry(ctx, func() error {
		address := g.coordinator.Load()
		if address == nil {
			found, err := g.cluster.findCoordinator(ctx, g.name)
			if err != nil {
				return err
			}
			address = &found
			g.coordinator.Store(address)
		}
		err := g.cluster.requests.do(ctx, *address, f)
		// A coordinator that loads its offsets stays what it is.
		if errors.Is(err, ErrUnavailable) && !errors.Is(err, sarama.ErrOffsetsLoadInProgress) {
			g.coordinator.Store(nil)
		}
		return err
	})
}

// findCoordinator asks any broker, one after the other.
func (c *Cluster) findCoordinator(ctx context.Context, group string) (string, error) {
	addresses := make([]string, 0, len(c.bootstrap)+4)
	for _, b := range c.meta.Brokers() {
		addresses = append(addresses, b.Addr())
	}
	addresses = append(addresses, c.bootstrap...)
	request := &sarama.FindCoordinatorRequest{
		Version: findCoordinatorVersion, CoordinatorKey: group, CoordinatorType: sarama.CoordinatorGroup,
	}
	var last error
	first := int(c.next.Add(1) % uint32(len(addresses))) //nolint:gosec // a handful of addresses
	for i := range addresses {
		var found string
		last = c.requests.do(ctx, addresses[(first+i)%len(addresses)], func(b *sarama.Broker) error {
			response, err := b.FindCoordinator(request)
			if err != nil {
				return err
			}
			if response.Err != sarama.ErrNoError {
				return protocolError(response.Err)
			}
			found = response.Coordinator.Addr()
			return nil
		})
		if last == nil {
			return found, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return "", fmt.Errorf("find coordinator of group %q: %w", group, last)
}
