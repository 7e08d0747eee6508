package command

import (
	"errors"
	"fmt"
	"time"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/grpcclient"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
)

// Result is what became of a command.
type Result struct {
	// Status is OK only when Kafka has it.
	Status commandsv1.ResultStatus
	// Message may be shown to the client; empty when the status is OK.
	Message string
}

// Config says where command-ingress is, and what may wait for it.
type Config struct {
	grpcclient.Config `yaml:",inline"`

	// Streams to all instances together, which are spread over the instances. Devices
	// are spread over the streams.
	Streams int `yaml:"streams"`
	// Deadline is when a command without a result is given up.
	Deadline time.Duration `yaml:"deadline"`
	// MaxRecords bounds the commands without a result.
	MaxRecords int `yaml:"max_records"`
	// MaxBytes bounds their size together.
	MaxBytes config.ByteSize `yaml:"max_bytes"`
}

// DefaultConfig is one command-ingress on this machine with 4 streams, 10 s, and
// at most 50,000 commands or 64 MiB without a result.
func DefaultConfig() Config {
	return Config{
		Config:     grpcclient.Config{Addresses: []string{"127.0.0.1:7003"}},
		Streams:    4,
		Deadline:   10 * time.Second,
		MaxRecords: 50_000,
		MaxBytes:   64 << 20,
	}
}

// Validate reports every problem under its YAML path.
func (c Config) Validate() error {
	var errs []error
	if err := c.Config.Validate(); err != nil {
		errs = append(errs, err)
	}
	if c.Streams < 1 || c.Streams > 64 {
		errs = append(errs, fmt.Errorf("streams: %d is not between 1 and 64", c.Streams))
	}
	if c.Deadline <= 0 {
		errs = append(errs, fmt.Errorf("deadline: %v is not positive", c.Deadline))
	}
	if c.MaxRecords < 1 {
		errs = append(errs, fmt.Errorf("max_records: %d is not positive", c.MaxRecords))
	}
	if c.MaxBytes < 1 {
		errs = append(errs, fmt.Errorf("max_bytes: %d is not positive", c.MaxBytes))
	}
	return errors.Join(errs...)
}
