package producer_test

import (
	"net"
	"testing"
	"time"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/embeddedkafka"
	"mqtt-integration/services/command-ingress/internal/producer"
)

// TestRestartOfTheBroker restarts the only broker while records are written. None
// is lost or written twice when it is back in time.
func TestRestartOfTheBroker(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kafka := embeddedkafka.Config{Dir: t.TempDir(), Address: listener.Addr().String()}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	cluster, err := embeddedkafka.Start(kafka)
	if err != nil {
		t.Fatal(err)
	}
	brokers := cluster.Brokers()
	topic := newTopic(t, brokers, 3)
	cfg := testConfig(brokers, topic)
	cfg.DeliveryTimeout = 8 * time.Second
	p := run(t, cfg)
	o := newOutcomes()
	o.submit(t, p, 0, 500, "a")
	o.wait(t, 500)

	o.submit(t, p, 500, 500, "a")
	cluster.Close()
	o.submit(t, p, 1000, 500, "a")
	away := time.NewTimer(2 * time.Second)
	<-away.C
	cluster, err = embeddedkafka.Start(kafka)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	o.submit(t, p, 1500, 500, "a")
	o.wait(t, 2000)
	if got := o.count(); got[producer.Written] != 2000 {
		t.Errorf("outcomes = %v, want 2000 written", got)
	}
	checkOrder(t, testkit.ReadAll(t, brokers, topic), 2000, 2000)
	if err := p.stop(); err != nil {
		t.Errorf("Run() = %v", err)
	}
}
