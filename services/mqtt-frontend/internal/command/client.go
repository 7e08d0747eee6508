package command

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/discovery"
	"mqtt-integration/libs/grpcclient"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
)

// maxCommand is the largest command in bytes that fits a gRPC message together
// with what is around it.
const maxCommand = grpcclient.MaxMessageSize - 1024

// Field numbers of the messages that are put together by hand.
const (
	fieldCommands protowire.Number = 2 // PublishRequest.commands
	fieldCommand  protowire.Number = 1 // CommandBatch.commands
)

// Client holds the streams. All methods are safe for concurrent use.
type Client struct {
	cfg        Config
	frontendID string
	logger     *slog.Logger
	env        daemon.Env
	opts       []grpc.DialOption
	poller     *discovery.Poller
	lanes      []*lane
	seed       maphash.Seed
	results    metric.Int64Counter
	byStatus   map[commandsv1.ResultStatus]metric.AddOption // attributes of results

	correlation atomic.Uint64
	records     atomic.Int64 // without a result
	bytes       atomic.Int64 // of those

	mu        sync.Mutex
	view      *discovery.View
	instances map[string]*instance // of the view, by address
	changed   chan struct{}        // closed with the next view
}

// New makes a client. frontendID names this process in the logs of the servers.
// Run has to be called once; it closes the connections.
func New(cfg Config, frontendID string, env daemon.Env, opts ...grpc.DialOption) (*Client, error) {
	env = env.Complete()
	results, err := env.Meter.Meter("mqtt-frontend/command").Int64Counter("mqtt_integration.command.results",
		metric.WithUnit("{command}"), metric.WithDescription("What became of commands."))
	if err != nil {
		return nil, fmt.Errorf("make instruments: %w", err)
	}
	poller, err := cfg.Discovery(env)
	if err != nil {
		return nil, fmt.Errorf("find command-ingress: %w", err)
	}
	c := &Client{
		cfg: cfg, frontendID: frontendID, logger: env.Logger, env: env, opts: opts, poller: poller, seed: maphash.MakeSeed(),
		view: poller.View(), instances: map[string]*instance{}, changed: make(chan struct{}),
		results: results, byStatus: map[commandsv1.ResultStatus]metric.AddOption{},
	}
	for number, name := range commandsv1.ResultStatus_name {
		c.byStatus[commandsv1.ResultStatus(number)] = metric.WithAttributeSet(attribute.NewSet(attribute.String("status", name)))
	}
	for _, at := range c.view.Instances() {
		one, err := c.newInstance(at)
		if err != nil {
			return nil, errors.Join(err, c.closeInstances())
		}
		c.instances[at.Address] = one
	}
	for i := range cfg.Streams {
		c.lanes = append(c.lanes, newLane(c, i))
	}
	return c, nil
}

// Run keeps the streams until ctx ends, and returns nil then. Before that it
// waits for the results of what was published, at most until their deadlines;
// nothing more is taken meanwhile.
func (c *Client) Run(ctx context.Context) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var lanes sync.WaitGroup
	lanes.Go(func() { c.follow(running) })
	lanes.Go(func() {
		// It returns when running ends, and never an error.
		_ = c.poller.Run(running)
	})
	for _, l := range c.lanes {
		lanes.Go(func() { l.run(running) })
		lanes.Go(func() { l.expire(running) })
	}
	<-ctx.Done()
	drained := make([]<-chan struct{}, len(c.lanes))
	for i, l := range c.lanes {
		drained[i] = l.drain()
	}
	for _, d := range drained {
		<-d // at the deadline of the last command at the latest
	}
	stop()
	lanes.Wait()
	for _, l := range c.lanes {
		l.abandon(running)
	}
	return c.closeInstances()
}

// Publish sends a command and never blocks. It sets the command's correlation
// and does not use cmd after it returned. done is called exactly once, from
// another goroutine, at the deadline at the latest, as long as Run runs; it must
// not block.
func (c *Client) Publish(cmd *commandsv1.Command, done func(Result)) {
	l := c.lane(cmd.GetApplication(), cmd.GetDevice())
	cmd.Correlation = c.correlation.Add(1)
	size := proto.Size(cmd)
	if limit := l.maxRecord.Load(); size > maxCommand || limit > 0 && int64(len(cmd.GetPayload())) > limit {
		l.refuse(done, Result{commandsv1.ResultStatus_RESULT_STATUS_TOO_LARGE, "larger than Kafka takes"})
		return
	}
	if !c.reserve(int64(size)) {
		l.refuse(done, Result{commandsv1.ResultStatus_RESULT_STATUS_RESOURCE_EXHAUSTED, "too many commands are waiting"})
		return
	}
	// In its wire form at once: the caller may use the command again, it is not
	// encoded again when it is sent again, and what cannot be encoded does not
	// break the stream for others.
	wire := make([]byte, 0, 1+protowire.SizeBytes(size))
	wire = protowire.AppendTag(wire, fieldCommand, protowire.BytesType)
	wire = protowire.AppendVarint(wire, uint64(size)) //nolint:gosec // not negative
	wire, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(wire, cmd)
	if err != nil {
		c.release(int64(size))
		l.refuse(done, Result{commandsv1.ResultStatus_RESULT_STATUS_INVALID, "it has text that is not UTF-8"})
		return
	}
	e := &entry{correlation: cmd.GetCorrelation(), wire: wire, size: int64(size), done: done, deadline: time.Now().Add(c.cfg.Deadline)}
	if !l.push(e) {
		c.release(e.size)
		l.refuse(done, Result{commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE, "shutting down"})
	}
}

// MaxRecordBytes is the largest record that gets to Kafka: key, value and headers
// together; 0: not known (yet).
func (c *Client) MaxRecordBytes() int64 {
	var smallest int64
	for _, l := range c.lanes {
		limit := min(l.maxRecord.Load(), maxCommand) // larger ones do not get there
		if limit > 0 && (smallest == 0 || limit < smallest) {
			smallest = limit
		}
	}
	return smallest
}

// lane chooses the stream of a device, always the same one.
func (c *Client) lane(application, device string) *lane {
	if len(c.lanes) == 1 {
		return c.lanes[0]
	}
	hash := maphash.Comparable(c.seed, [2]string{application, device})
	return c.lanes[hash%uint64(len(c.lanes))]
}

// reserve takes room for a command, unless there is none.
func (c *Client) reserve(size int64) bool {
	records, bytes := c.records.Add(1), c.bytes.Add(size)
	if records <= int64(c.cfg.MaxRecords) && bytes <= int64(c.cfg.MaxBytes) {
		return true
	}
	c.release(size)
	return false
}

func (c *Client) release(size int64) {
	c.records.Add(-1)
	c.bytes.Add(-size)
}

// finish gives a command its result. It is called once per command, without locks.
func (c *Client) finish(ctx context.Context, done func(Result), result Result) {
	if option, ok := c.byStatus[result.Status]; ok {
		c.results.Add(ctx, 1, option)
	}
	done(result)
}
