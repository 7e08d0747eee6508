package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"mqtt-integration/libs/config"
	"mqtt-integration/libs/daemon"
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

	// Streams per address. Devices are spread over them.
	Streams int `yaml:"streams"`
	// Deadline is when a command without a result is given up.
	Deadline time.Duration `yaml:"deadline"`
	// MaxRecords bounds the commands without a result.
	MaxRecords int `yaml:"max_records"`
	// MaxBytes bounds their size together.
	MaxBytes config.ByteSize `yaml:"max_bytes"`
}

// DefaultConfig is one command-ingress on this machine with 2 streams, 10 s, and
// at most 50,000 commands or 64 MiB without a result.
func DefaultConfig() Config {
	return Config{
		Config:     grpcclient.Config{Addresses: []string{"127.0.0.1:7003"}},
		Streams:    2,
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

// Client holds the streams. All methods are safe for concurrent use.
type Client struct{}

// New makes a client. Run has to be called once; it closes the connections.
func New(cfg Config, frontendID string, env daemon.Env, opts ...grpc.DialOption) (*Client, error) {
	return &Client{}, nil
}

// Run keeps the streams until ctx ends, and returns nil then. Before that it
// waits for the results of what was published, at most until their deadlines.
func (c *Client) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Publish sends a command and never blocks. It sets the command's correlation
// and does not use cmd after it returned. done is called exactly once, from
// another goroutine, at the deadline at the latest; it must not block.
func (c *Client) Publish(cmd *commandsv1.Command, done func(Result)) {}

// MaxRecordBytes is the largest record that Kafka takes: key, value and headers
// together; 0: not known (yet).
func (c *Client) MaxRecordBytes() int64 { return 0 }
