//go:build e2e

package e2e_test

import (
	"context"
	"fmt"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"mqtt-integration/libs/testkit"
)

// deployed is a deployment with an account.
func deployed(t *testing.T) (*deployment, account) {
	t.Helper()
	d := deploy(t)
	admin := administrate(t, d.addresses["administration"], testkit.Mint(t, d.issuer, map[string]any{"sub": administratorSubject}))
	return d, admin.account(t, d.brokers, "dev")
}

// restart stops a service in an orderly way and starts it again.
func (d *deployment) restart(t *testing.T, service string) {
	t.Helper()
	d.stop(t, service)
	d.start(t, service)
	eventually(t, service+" is ready", func() error { return d.ready(service) })
}

// subscribed5 is a Paho client for MQTT 5 that is subscribed, and what it receives.
func subscribed5(t *testing.T, d *deployment, acc account) (client *paho.Client, received <-chan *paho.Publish, ended <-chan *paho.Disconnect) {
	t.Helper()
	events, said := make(chan *paho.Publish, 10_000), make(chan *paho.Disconnect, 1)
	client = connectPaho5(t, d.addresses["mqtt"], paho.ClientConfig{
		OnPublishReceived: toChannel(events), OnServerDisconnect: func(m *paho.Disconnect) { said <- m },
	}, acc.user, acc.key)
	suback, err := client.Subscribe(t.Context(), &paho.Subscribe{
		Subscriptions: []paho.SubscribeOptions{{Topic: "app/" + acc.application, QoS: 1}},
	})
	if err != nil {
		t.Fatalf("subscribe: %v, %+v", err, suback)
	}
	return client, events, said
}

// numbered are n events in one partition, whose ids are numbers from first on.
func numbered(first, n int) []testkit.Record {
	records := make([]testkit.Record, n)
	for i := range records {
		records[i] = binaryRecord(strconv.Itoa(first+i), "state", "application/json", "{}")
	}
	return records
}

// A client notices nothing but a pause when event-fanout is restarted: no event is
// lost, and none comes twice.
func TestSubscriptionOutlivesEventFanout(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"stopped", "killed"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			d, acc := deployed(t)
			_, events, ended := subscribed5(t, d, acc)
			const batch = 200
			testkit.ProduceTo(t, d.brokers, acc.topic, 0, numbered(0, batch)...)
			if how == "stopped" {
				d.stop(t, "event-fanout")
			} else {
				p := d.processes["event-fanout"]
				p.signal(t, syscall.SIGKILL)
				<-p.ended
			}
			testkit.ProduceTo(t, d.brokers, acc.topic, 0, numbered(batch, batch)...)
			d.start(t, "event-fanout")
			eventually(t, "event-fanout is ready", func() error { return d.ready("event-fanout") })
			testkit.ProduceTo(t, d.brokers, acc.topic, 0, numbered(2*batch, batch)...)
			for i := range 3 * batch {
				select {
				case p := <-events:
					if id := ofJSON(t, p.Payload)["id"]; id != strconv.Itoa(i) {
						t.Fatalf("event %s, want %d: lost, twice or out of order", id, i)
					}
				case m := <-ended:
					t.Fatalf("DISCONNECT 0x%02x %q before event %d", m.ReasonCode, m.Properties.ReasonString, i)
				case <-time.After(patience):
					t.Fatalf("event %d has not arrived within %v", i, patience)
				}
			}
		})
	}
}

// What is acknowledged is in Kafka, whatever is restarted meanwhile; what was not
// acknowledged may be there.
func TestAcknowledgedCommandsOutliveRestarts(t *testing.T) {
	t.Parallel()
	for _, service := range []string{"command-ingress", "mqtt-frontend"} {
		t.Run(service, func(t *testing.T) {
			t.Parallel()
			d, acc := deployed(t)
			acknowledged := make(chan []string)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			begun := make(chan struct{}, 1)
			go func() {
				var ids []string
				defer func() { acknowledged <- ids }()
				for ctx.Err() == nil { // a connection
					<-time.After(20 * time.Millisecond)
					client, _, err := tryPaho5(t, d.addresses["mqtt"], paho.ClientConfig{
						PacketTimeout: 3 * time.Second, // The client does not notice that nobody answers any more.
					}, acc.user, acc.key)
					for err == nil && ctx.Err() == nil { // a command
						id := strconv.Itoa(len(ids))
						var response *paho.PublishResponse
						response, err = client.Publish(ctx, &paho.Publish{
							Topic: "command/" + acc.application + "/dev/" + id, QoS: 1, Payload: []byte(id),
						})
						if response != nil && response.ReasonCode == 0 && err == nil {
							ids = append(ids, id)
							if len(ids) == 50 {
								begun <- struct{}{}
							}
						}
						if response != nil && response.ReasonCode == 0x83 {
							err = nil // refused, and may be tried again
						}
					}
				}
			}()
			receive(t, begun)
			d.restart(t, service)
			// Some more, afterwards.
			before := len(testkit.ReadAll(t, d.brokers, d.commands))
			eventually(t, "commands after the restart", func() error {
				if now := len(testkit.ReadAll(t, d.brokers, d.commands)); now < before+20 {
					return fmt.Errorf("%d in Kafka, after %d", now, before)
				}
				return nil
			})
			stop()
			ids := receive(t, acknowledged)
			inKafka := map[string]int{}
			for _, record := range testkit.ReadAll(t, d.brokers, d.commands) {
				inKafka[string(record.Value)]++
			}
			for _, id := range ids {
				if inKafka[id] == 0 {
					t.Errorf("command %s was acknowledged and is not in Kafka", id)
				}
			}
			t.Logf("%d commands acknowledged", len(ids))
		})
	}
}
