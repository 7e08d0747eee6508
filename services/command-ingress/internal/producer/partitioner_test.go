package producer

import (
	"testing"

	"github.com/IBM/sarama"
)

func TestMurmur2IsThatOfTheJavaClient(t *testing.T) {
	t.Parallel()
	// The vectors of Kafka's own UtilsTest.
	tests := map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	}
	for key, want := range tests {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
	}
}

func TestPartitionersAgreeWithOtherClients(t *testing.T) {
	t.Parallel()
	tests := []struct {
		partitioner, key string
		partitions, want int32
	}{
		// CRC-32 of "123456789" is 0xcbf43926, of which librdkafka takes the remainder.
		{ConsistentRandom, "123456789", 1000, int32(0xcbf43926 % 1000)},
		{ConsistentRandom, "123456789", 7, int32(0xcbf43926 % 7)},
		{Murmur2, "foobar", 1000, (-790332482 & 0x7fffffff) % 1000},
		{Murmur2, "21", 3, (-973932308 & 0x7fffffff) % 3},
	}
	for _, tt := range tests {
		p := newPartitioner(tt.partitioner)("t")
		got, err := p.Partition(&sarama.ProducerMessage{Key: sarama.StringEncoder(tt.key)}, tt.partitions)
		if err != nil || got != tt.want {
			t.Errorf("%s of %q over %d = %d, %v; want %d", tt.partitioner, tt.key, tt.partitions, got, err, tt.want)
		}
	}
}

func TestRecordsWithoutKeyGoAnywhere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{ConsistentRandom, Murmur2} {
		for _, key := range []sarama.Encoder{nil, sarama.StringEncoder("")} {
			p := newPartitioner(name)("t")
			seen := map[int32]bool{}
			for range 1000 {
				n, err := p.Partition(&sarama.ProducerMessage{Key: key}, 4)
				if err != nil || n < 0 || n > 3 {
					t.Fatalf("%s without a key = %d, %v", name, n, err)
				}
				seen[n] = true
			}
			if len(seen) != 4 {
				t.Errorf("%s without a key chose only %v", name, seen)
			}
		}
	}
}
