package device_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"go.uber.org/goleak"

	"mqtt-integration/libs/kafkaclient"
	"mqtt-integration/libs/naming"
	"mqtt-integration/libs/testkit"
	"mqtt-integration/services/standalone/internal/device"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a device until the test ends and returns a reader of its events.
func start(t *testing.T, interval time.Duration) (brokers []string, commands, application string, events *testkit.Reader) {
	t.Helper()
	brokers = testkit.Kafka(t)
	application = testkit.UniqueName(t)
	commands = application + "-commands"
	testkit.CreateTopic(t, brokers, commands, 3)
	testkit.CreateTopic(t, brokers, naming.EventsTopic(application), 2)
	events = testkit.NewReader(t, brokers, naming.EventsTopic(application), sarama.OffsetNewest)

	ctx, cancel := context.WithCancel(t.Context())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- device.Run(ctx, device.Config{
			Kafka: kafkaclient.Config{Brokers: brokers}, Application: application, Device: "d 1", CommandsTopic: commands,
			Interval: interval, Ready: func() { close(ready) }, Logger: slog.New(slog.DiscardHandler),
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		t.Fatal("not ready after 20 s")
	}
	return brokers, commands, application, events
}

func data(t *testing.T, r testkit.Record) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(r.Value, &m); err != nil {
		t.Fatalf("data %q: %v", r.Value, err)
	}
	return m
}

func TestSendsItsStateAsCloudEvents(t *testing.T) {
	t.Parallel()
	_, _, application, events := start(t, 150*time.Millisecond)
	got := events.Read(3, 10*time.Second)
	key := naming.PartitionKey(application, "d 1")
	ids := map[string]bool{}
	for _, r := range got {
		if string(r.Key) != key || r.Partition != got[0].Partition {
			t.Errorf("key %q in partition %d, want %q, always in the same", r.Key, r.Partition, key)
		}
		for name, want := range map[string]string{
			"ce_specversion": "1.0", "ce_type": "io.drogue.event.v1", "ce_subject": "state",
			"ce_source": "drogue://" + key, "content-type": "application/json",
			"ce_application": application, "ce_device": "d 1", "ce_sender": "d 1", "ce_partitionkey": key, "ce_instance": "drogue",
		} {
			if v, _ := r.Header(name); v != want {
				t.Errorf("%s = %q, want %q", name, v, want)
			}
		}
		id, _ := r.Header("ce_id")
		at, _ := r.Header("ce_time")
		if _, err := time.Parse(time.RFC3339, at); err != nil || ids[id] {
			t.Errorf("id %q, time %q: not unique or not RFC 3339", id, at)
		}
		ids[id] = true
		if v, ok := data(t, r)["temperature"].(float64); !ok || v < 19 || v > 23 {
			t.Errorf("data %s, want a temperature around 21", r.Value)
		}
	}
}

func TestObeysCommands(t *testing.T) {
	t.Parallel()
	brokers, commands, application, events := start(t, time.Hour)
	events.Read(1, 10*time.Second) // Its state at the start; the next ones follow commands.
	tests := []struct {
		command, payload string
		outcome          string
		led              any
	}{
		{"set-led", `{"on":true}`, "done", true},
		{"set-led", `on`, "refused", true},
		{"set-interval", `{"seconds":0.01}`, "refused", true},
		{"set-interval", `{"seconds":1e300}`, "refused", true},
		{"dance", ``, "refused", true},
		{"reboot", ``, "done", false},
		{"set-interval", `{"seconds":0.1}`, "done", false},
	}
	for _, tt := range tests {
		testkit.Produce(t, brokers, commands,
			command(application, "another device", "x", tt.command, tt.payload),
			command("another-application", "d 1", "x", tt.command, tt.payload),
			command(application, "d 1", "c-1", tt.command, tt.payload))
		got := events.Read(2, 10*time.Second)
		r := data(t, got[0])
		if subject, _ := got[0].Header("ce_subject"); subject != "reaction" || r["command"] != tt.command || r["outcome"] != tt.outcome || r["command_id"] != "c-1" {
			t.Errorf("%s %s: %s %s, want the reaction %q to c-1", tt.command, tt.payload, subject, got[0].Value, tt.outcome)
		}
		if s := data(t, got[1]); s["led"] != tt.led {
			t.Errorf("%s %s: state %s, want led %v", tt.command, tt.payload, got[1].Value, tt.led)
		}
	}
	events.Read(5, 5*time.Second) // The interval of an hour is one of 100 ms now.
}

func command(application, dev, id, name, payload string) testkit.Record {
	return testkit.Record{
		Key: []byte(naming.PartitionKey(application, dev)), Value: []byte(payload),
		Headers: testkit.Headers("ce_specversion", "1.0", "ce_id", id, "ce_application", application, "ce_device", dev, "ce_subject", name),
	}
}

func TestStopsWhileKafkaIsAway(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := device.Run(ctx, device.Config{
		Kafka: kafkaclient.Config{Brokers: []string{"127.0.0.1:1"}}, Application: "a", Device: "d", CommandsTopic: "c",
		Interval: time.Second, Ready: func() {}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("Run: %v after %v, want nil soon", err, time.Since(began))
	}
}
