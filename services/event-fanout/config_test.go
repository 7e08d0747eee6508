package eventfanout_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mqtt-integration/libs/config"
	eventfanout "mqtt-integration/services/event-fanout"
)

func TestDocumentedConfigurationIsTheDefault(t *testing.T) {
	t.Parallel()
	// Over an empty one, so that a setting that is not documented is missed.
	documented := eventfanout.Config{}
	if err := config.Load(&documented, "../../deploy/config/event-fanout.yaml", nil, "EVENT_FANOUT"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(printed(t, eventfanout.DefaultConfig()), printed(t, documented)); diff != "" {
		t.Errorf("documented configuration (-default +documented):\n%s", diff)
	}
	if err := documented.Validate(); err != nil {
		t.Error(err)
	}
}

func printed(t *testing.T, c eventfanout.Config) string {
	t.Helper()
	var b bytes.Buffer
	if err := config.Print(&b, c); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestValidateNamesEveryProblem(t *testing.T) {
	t.Parallel()
	c := eventfanout.DefaultConfig()
	c.GRPC.Address = ""
	c.Kafka.Brokers = nil
	c.Events.NonCloudEvents = "drop"
	c.Events.MaxBytes = 4 * config.MiB
	c.Topics.RefreshInterval = 0
	c.Ring.Memory = 1
	c.CatchUp.Concurrency = 0
	c.Commit.Interval = 0
	c.Sessions.OpenTimeout = 0
	c.Sessions.MaxWindow = 1 << 16
	c.Streams.FrameBytes = 1
	c.Share.Group = "{group}"
	c.Share.SessionTimeout = 0
	err := c.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, path := range []string{
		"grpc.address: ", "kafka.brokers: ", "events.non_cloudevents: ", "events.max_bytes: ", "topics.refresh_interval: ",
		"ring.memory: ", "catch_up.concurrency: ", "commit.interval: ", "sessions.open_timeout: ", "sessions.max_window: ",
		"streams.frame_bytes: ", "share.group: ", "share.session_timeout: ",
	} {
		if !strings.Contains(err.Error(), path) {
			t.Errorf("nothing about %q in:\n%v", path, err)
		}
	}
}
