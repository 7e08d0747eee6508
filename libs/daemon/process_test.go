package daemon //nolint:testpackage // signals and time are injected below Main

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

type quietConfig struct {
	Common `yaml:",inline"`
}

// quiet has no administration port, so that it runs in a synctest bubble.
func quiet() quietConfig {
	cfg := quietConfig{DefaultCommon()}
	cfg.Admin.Address = ""
	cfg.DrainDelay = 10 * time.Second
	return cfg
}

// supervised runs a service in a bubble, sends it SIGTERM at the given times and
// tells its exit code, when it ended, and what it logged.
func supervised(t *testing.T, signalsAt []time.Duration, run func(ctx context.Context, start time.Time, env Env) error) (code int, ended time.Duration, log string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Helper()
		start := time.Now()
		var stderr strings.Builder
		signals := make(chan os.Signal, len(signalsAt))
		for _, at := range signalsAt {
			time.AfterFunc(at, func() { signals <- syscall.SIGTERM })
		}
		p := process{name: "test-service", stdout: &stderr, stderr: &stderr, signals: signals}
		code = mainOf(p, quiet, func(ctx context.Context, _ quietConfig, env Env) error { return run(ctx, start, env) })
		ended, log = time.Since(start), stderr.String()
		time.Sleep(2 * time.Hour) // so that a service that was given up ends within the bubble
	})
	return code, ended, log
}

func TestOrderlyStop(t *testing.T) {
	t.Parallel()
	code, ended, log := supervised(t, []time.Duration{time.Minute}, func(ctx context.Context, start time.Time, env Env) error {
		if err := env.Health.Ready(); err != nil {
			t.Errorf("Ready() = %v at the start, want nil", err)
		}
		time.Sleep(time.Minute + time.Second)
		if err := env.Health.Ready(); err == nil || !strings.Contains(err.Error(), "lifecycle: stopping") {
			t.Errorf("Ready() = %v after the signal, want that it is stopping", err)
		}
		if ctx.Err() != nil {
			t.Error("the context ended before drain_delay was over")
		}
		<-ctx.Done()
		if got, want := time.Since(start), time.Minute+10*time.Second; got != want {
			t.Errorf("the context ended after %v, want %v", got, want)
		}
		time.Sleep(34 * time.Second)
		return nil
	})
	if code != 0 || ended != time.Minute+44*time.Second {
		t.Errorf("exit code %d after %v, want 0 after 1m44s; log:\n%s", code, ended, log)
	}
}

func TestStopThatFails(t *testing.T) {
	t.Parallel()
	code, _, log := supervised(t, []time.Duration{time.Minute}, func(ctx context.Context, _ time.Time, _ Env) error {
		<-ctx.Done()
		return errors.New("commit positions: no broker")
	})
	if code != 1 || !strings.Contains(log, "commit positions: no broker") {
		t.Errorf("exit code %d, want 1 and the error in the log:\n%s", code, log)
	}
}

func TestServiceThatEndsByItself(t *testing.T) {
	t.Parallel()
	for _, err := range []error{nil, errors.New("store is gone")} {
		want := 0
		if err != nil {
			want = 1
		}
		code, ended, _ := supervised(t, nil, func(context.Context, time.Time, Env) error { return err })
		if code != want || ended != 0 {
			t.Errorf("exit code %d after %v for %v, want %d at once", code, ended, err, want)
		}
	}
}

func TestServiceThatEndsDuringTheDelay(t *testing.T) {
	t.Parallel()
	code, ended, _ := supervised(t, []time.Duration{time.Second}, func(context.Context, time.Time, Env) error {
		time.Sleep(3 * time.Second)
		return nil
	})
	if code != 0 || ended != 3*time.Second {
		t.Errorf("exit code %d after %v, want 0 after 3s", code, ended)
	}
}

func TestServiceThatDoesNotStop(t *testing.T) {
	t.Parallel()
	stuck := func(context.Context, time.Time, Env) error { time.Sleep(time.Hour); return nil }
	tests := []struct {
		name    string
		signals []time.Duration
		code    int
		ended   time.Duration
		log     string
	}{
		{
			name: "is given up", signals: []time.Duration{time.Minute},
			code: 1, ended: time.Minute + (10+30+5)*time.Second, log: "not stopped 5s after drain_timeout (30s)",
		},
		{
			name: "ends with a second signal in the delay", signals: []time.Duration{time.Minute, time.Minute + 2*time.Second},
			code: 128 + 15, ended: time.Minute + 2*time.Second, log: "second signal",
		},
		{
			name: "ends with a second signal in the drain", signals: []time.Duration{time.Minute, time.Minute + 20*time.Second},
			code: 128 + 15, ended: time.Minute + 20*time.Second, log: "second signal",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			code, ended, log := supervised(t, tt.signals, stuck)
			if code != tt.code || ended != tt.ended || !strings.Contains(log, tt.log) {
				t.Errorf("exit code %d after %v, want %d after %v and %q in the log:\n%s", code, ended, tt.code, tt.ended, tt.log, log)
			}
		})
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var h Health
	if err := h.Ready(); err != nil {
		t.Errorf("Ready() = %v without checks, want nil", err)
	}
	kafka, store := h.Register("kafka"), h.Register("store")
	if got, want := h.Ready(), "kafka: not ready yet\nstore: not ready yet"; got == nil || got.Error() != want {
		t.Errorf("Ready() = %v, want %q", got, want)
	}
	cause := errors.New("no broker")
	store.Set(nil)
	kafka.Set(cause)
	if err := h.Ready(); !errors.Is(err, cause) || err.Error() != "kafka: no broker" {
		t.Errorf("Ready() = %v, want that of kafka", err)
	}
	kafka.Set(nil)
	if err := h.Ready(); err != nil {
		t.Errorf("Ready() = %v, want nil", err)
	}
}
