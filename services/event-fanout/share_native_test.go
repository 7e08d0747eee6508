package eventfanout_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"

	"mqtt-integration/libs/testkit"
)

// nativeConsumer is a consumer that knows nothing of us.
type nativeConsumer struct {
	mu  sync.Mutex
	got map[string]int
}

var _ sarama.ConsumerGroupHandler = (*nativeConsumer)(nil)

func (*nativeConsumer) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (*nativeConsumer) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (n *nativeConsumer) ConsumeClaim(s sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for m := range claim.Messages() {
		n.mu.Lock()
		n.got[fmt.Sprintf("%d/%d", m.Partition, m.Offset)]++
		n.mu.Unlock()
		s.MarkMessage(m, "")
	}
	return nil
}

func (n *nativeConsumer) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.got)
}

// A Kafka-native consumer that offers cooperative-sticky shares the work of a share
// group.
func TestNativeConsumerSharesTheGroup(t *testing.T) {
	t.Parallel()
	brokers := testkit.Kafka(t)
	app, topic := newApplication(t, brokers, 2)
	f := connect(t, startInstance(t, brokers, nil))
	sub := f.openShare(app, "g", 1000)
	group := shareGroup(app, "g")

	cfg := testkit.Sarama()
	cfg.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategyCooperativeSticky()}
	cfg.Consumer.Group.Heartbeat.Interval = 500 * time.Millisecond
	consumer, err := sarama.NewConsumerGroup(brokers, group, cfg)
	if err != nil {
		t.Fatal(err)
	}
	native := &nativeConsumer{got: map[string]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for range consumer.Errors() {
		}
	})
	running.Go(func() {
		for ctx.Err() == nil {
			if err := consumer.Consume(ctx, []string{topic}, native); err != nil {
				t.Errorf("Consume: %v", err)
				return
			}
		}
	})
	stop := sync.OnceFunc(func() {
		cancel()
		_ = consumer.Close()
		running.Wait()
	})
	t.Cleanup(stop)
	eventually(t, "each member has a partition", func() bool { return partitionsOf(t, brokers, group) == [2]int{1, 1} })

	for p := range int32(2) {
		testkit.ProduceTo(t, brokers, topic, p, keyed("e", 100, 10)...)
	}
	ours := map[string]bool{}
	collect := func() {
		for _, d := range f.takeSome(sub, 20*time.Millisecond) {
			ours[d.String()] = true
			f.ack(sub, d)
		}
	}
	eventually(t, "both have their partition", func() bool {
		collect()
		return len(ours) == 100 && native.count() == 100
	})
	native.mu.Lock()
	for at := range native.got {
		if ours[at] {
			t.Errorf("%s came to both", at)
		}
	}
	native.mu.Unlock()
	// It leaves, and we have it all.
	stop()
	for p := range int32(2) {
		testkit.ProduceTo(t, brokers, topic, p, keyed("f", 50, 10)...)
	}
	eventually(t, "everything comes to us", func() bool {
		collect()
		return len(ours) == 200
	})
}
