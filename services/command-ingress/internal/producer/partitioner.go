package producer

import (
	"hash/crc32"
	"math/rand/v2"

	"github.com/IBM/sarama"
)

// Names of partitioners in the configuration.
const (
	// ConsistentRandom is librdkafka's default: CRC-32 of the key, a random partition
	// without a key.
	ConsistentRandom = "consistent_random"
	// Murmur2 is that of the Java client, and also has a random partition without a
	// key.
	Murmur2 = "murmur2"
)

// partitioner chooses partitions as other clients of Kafka do, so that the
// commands of a device are in one partition whoever wrote them.
type partitioner struct {
	hash func(key []byte) uint32
}

// newPartitioner returns nil for an unknown name.
func newPartitioner(name string) sarama.PartitionerConstructor {
	var hash func(key []byte) uint32
	switch name {
	case ConsistentRandom:
		hash = crc32.ChecksumIEEE
	case Murmur2:
		hash = func(key []byte) uint32 { return murmur2(key) & 0x7fffffff }
	default:
		return nil
	}
	return func(string) sarama.Partitioner { return partitioner{hash: hash} }
}

// Partition implements sarama.Partitioner.
func (p partitioner) Partition(message *sarama.ProducerMessage, partitions int32) (int32, error) {
	if message.Key == nil || message.Key.Length() == 0 {
		return rand.Int32N(partitions), nil //nolint:gosec // nothing depends on it being hard to guess
	}
	key, err := message.Key.Encode()
	if err != nil {
		return 0, err
	}
	return int32(p.hash(key) % uint32(partitions)), nil //nolint:gosec // below partitions, which is positive
}

// RequiresConsistency implements sarama.Partitioner: a partition without a leader
// still gets the records of its keys, later.
func (partitioner) RequiresConsistency() bool { return true }

// MessageRequiresConsistency implements sarama.DynamicConsistencyPartitioner.
func (partitioner) MessageRequiresConsistency(message *sarama.ProducerMessage) bool {
	return message.Key != nil && message.Key.Length() > 0
}

// murmur2 is the hash of Kafka's Java client.
func murmur2(data []byte) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	h := seed ^ uint32(len(data)) //nolint:gosec // as in Java, where a length is an int
	for ; len(data) >= 4; data = data[4:] {
		k := uint32(data[0]) | uint32(data[1])<<8 | uint32(data[2])<<16 | uint32(data[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
	}
	switch len(data) {
	case 3:
		h ^= uint32(data[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(data[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(data[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}
