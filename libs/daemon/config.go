package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// Common is the part of the configuration that every service has. Embed it with
// the tag `yaml:",inline"`: its keys are at the top level, and DaemonConfig is
// inherited. Validate has to be called by the Validate of the embedding struct.
type Common struct {
	Log   LogConfig   `yaml:"log"`
	Admin AdminConfig `yaml:"admin"`
	// DrainTimeout bounds what a service does after it was told to stop:
	// finishing what is in flight, committing, closing. The process ends 5 s
	// later at the latest, with an error.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// DrainDelay is how long the service goes on as before after it stopped
	// being ready, so that load balancers notice. Main waits for it before it
	// ends the context of Run; a service does not have to look at it.
	DrainDelay time.Duration `yaml:"drain_delay"`
}

// LogConfig says what is logged, on standard error.
type LogConfig struct {
	// Level is debug, info, warn or error; the zero value is info.
	Level slog.Level `yaml:"level"`
	// Format is "json" or "text".
	Format string `yaml:"format"`
}

// AdminConfig is the HTTP server for /livez, /readyz and /metrics. It has no
// access control and is not for the public.
type AdminConfig struct {
	// Address is host:port. Empty means that there is no such server.
	Address string `yaml:"address"`
	// PProf adds /debug/pprof/, which can slow the process down and shows what
	// is in its memory.
	PProf bool `yaml:"pprof"`
}

// DefaultCommon returns the defaults: JSON from level info on, the
// administration port 127.0.0.1:9091 (each service sets its own, so that several
// of them run on one machine), 30 s to drain and no delay.
func DefaultCommon() Common {
	return Common{
		Log:          LogConfig{Level: slog.LevelInfo, Format: "json"},
		Admin:        AdminConfig{Address: "127.0.0.1:9091"},
		DrainTimeout: 30 * time.Second,
	}
}

// DaemonConfig makes a struct that embeds Common a [Configuration].
func (c Common) DaemonConfig() Common { return c }

// Validate reports every problem under its YAML path.
func (c Common) Validate() error {
	var errs []error
	if c.Log.Format != "json" && c.Log.Format != "text" {
		errs = append(errs, fmt.Errorf("log.format: %q is neither json nor text", c.Log.Format))
	}
	if c.Admin.Address != "" {
		if _, _, err := net.SplitHostPort(c.Admin.Address); err != nil {
			errs = append(errs, fmt.Errorf("admin.address: %w", err))
		}
	}
	if c.Admin.PProf && c.Admin.Address == "" {
		errs = append(errs, errors.New("admin.pprof: needs admin.address"))
	}
	if c.DrainTimeout <= 0 {
		errs = append(errs, fmt.Errorf("drain_timeout: %v is not positive", c.DrainTimeout))
	}
	if c.DrainDelay < 0 {
		errs = append(errs, fmt.Errorf("drain_delay: %v is negative", c.DrainDelay))
	}
	return errors.Join(errs...)
}

// Configuration is what the configuration of a service can do. Validate reports
// every problem, joined, each under its YAML path.
type Configuration interface {
	Validate() error
	DaemonConfig() Common
}
