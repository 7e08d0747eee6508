package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"mqtt-integration/libs/kafkaclient"
	"mqtt-integration/libs/naming"
)

const (
	eventType = "io.drogue.event.v1"
	instance  = "drogue"

	minInterval = 100 * time.Millisecond
	maxInterval = time.Hour

	// rebootTime is how long the device is away after the command reboot.
	rebootTime = 2 * time.Second

	// maxQueuedCommands bounds what waits while the device reboots.
	maxQueuedCommands = 64
)

// Config says what to simulate.
type Config struct {
	Kafka         kafkaclient.Config
	Application   string
	Device        string
	CommandsTopic string
	// Interval is the time between two events of its state, until the command
	// set-interval changes it.
	Interval time.Duration
	// Ready is called once, when it can obey commands. It must not block.
	Ready  func()
	Logger *slog.Logger
}

// Run simulates the device until ctx ends, then returns nil. When Kafka cannot
// be reached, it goes on trying; what it would have sent meanwhile is lost, as
// with a real sensor.
func Run(ctx context.Context, cfg Config) error {
	sc, err := cfg.Kafka.Sarama()
	if err != nil {
		return err
	}
	sc.Producer.Return.Successes = true
	sc.Producer.Timeout = 5 * time.Second
	sc.Producer.Retry.Max = 3
	sc.Consumer.MaxWaitTime = 250 * time.Millisecond
	sc.Consumer.Return.Errors = true
	client, err := connect(ctx, cfg, sc)
	if client == nil || err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	producer, err := sarama.NewSyncProducerFromClient(client)
	if err != nil {
		return fmt.Errorf("make producer: %w", err)
	}
	defer func() { _ = producer.Close() }()

	d := &device{Config: cfg, producer: producer, commands: make(chan command, maxQueuedCommands), started: time.Now()}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.receive(ctx, sc) })
	g.Go(func() error { return d.live(ctx) })
	return g.Wait()
}

// connect tries until Kafka answers. It returns nothing when ctx ends first.
func connect(ctx context.Context, cfg Config, sc *sarama.Config) (sarama.Client, error) {
	for {
		client, err := sarama.NewClient(cfg.Kafka.Brokers, sc)
		if err == nil {
			return client, nil
		}
		if _, isConfig := errors.AsType[sarama.ConfigurationError](err); isConfig {
			return nil, fmt.Errorf("make Kafka client: %w", err)
		}
		cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "simulated device cannot reach Kafka", slog.Any("error", err))
		if !sleep(ctx, time.Second) {
			return nil, nil //nolint:nilnil // The end of ctx is no error, and there is no client.
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

type device struct {
	Config
	producer sarama.SyncProducer
	commands chan command
	ready    sync.Once
	started  time.Time
	led      bool
}

type command struct {
	name    string
	id      string
	payload []byte
}

// live is the device's own loop: state every Interval, a reaction to each
// command.
func (d *device) live(ctx context.Context) error {
	tick := time.NewTicker(d.Interval)
	defer tick.Stop()
	d.sendState(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			d.sendState(ctx)
		case c := <-d.commands:
			reaction := d.obey(c)
			if reaction.Outcome == outcomeDone && c.name == "set-interval" {
				tick.Reset(d.Interval)
			}
			d.send(ctx, "reaction", reaction)
			if reaction.Outcome == outcomeDone && c.name == "reboot" {
				if !sleep(ctx, rebootTime) {
					return nil
				}
				d.started, d.led = time.Now(), false
			}
			d.sendState(ctx)
		}
	}
}

// state is the data of the periodic event.
type state struct {
	Temperature float64 `json:"temperature"`
	LED         bool    `json:"led"`
	Uptime      int     `json:"uptime"`
}

func (d *device) sendState(ctx context.Context) {
	up := time.Since(d.started)
	// A slow wave, so that one can see something happen.
	temperature := 21 + 2*math.Sin(up.Seconds()/60*2*math.Pi)
	d.send(ctx, "state", state{
		Temperature: math.Round(temperature*100) / 100,
		LED:         d.led,
		Uptime:      int(up.Seconds()),
	})
}

const (
	outcomeDone    = "done"
	outcomeRefused = "refused"
)

// reaction is the data of the event that follows a command.
type reaction struct {
	Command   string `json:"command"`
	CommandID string `json:"command_id"`
	Outcome   string `json:"outcome"`
	Reason    string `json:"reason,omitempty"`
}

// obey does what a command says, and says what came of it.
func (d *device) obey(c command) reaction {
	r := reaction{Command: c.name, CommandID: c.id, Outcome: outcomeDone}
	refuse := func(reason string) reaction {
		r.Outcome, r.Reason = outcomeRefused, reason
		return r
	}
	switch c.name {
	case "set-led":
		var arg struct {
			On *bool `json:"on"`
		}
		if err := json.Unmarshal(c.payload, &arg); err != nil || arg.On == nil {
			return refuse(`the payload has to be like {"on":true}`)
		}
		d.led = *arg.On
	case "set-interval":
		var arg struct {
			Seconds float64 `json:"seconds"`
		}
		err := json.Unmarshal(c.payload, &arg)
		// Compared as seconds: a duration could overflow.
		if err != nil || arg.Seconds < minInterval.Seconds() || arg.Seconds > maxInterval.Seconds() {
			return refuse(`the payload has to be like {"seconds":5}, from 0.1 to 3600`)
		}
		d.Interval = time.Duration(arg.Seconds * float64(time.Second))
	case "reboot":
	default:
		return refuse("the commands are set-led, set-interval and reboot")
	}
	return r
}

// send appends an event to the log. A failure is logged: the next one may work.
func (d *device) send(ctx context.Context, subject string, data any) {
	payload, err := json.Marshal(data)
	if err != nil {
		d.Logger.LogAttrs(ctx, slog.LevelError, "encode event", slog.Any("error", err))
		return
	}
	now := time.Now().UTC()
	key := naming.PartitionKey(d.Application, d.Device)
	message := &sarama.ProducerMessage{
		Topic: naming.EventsTopic(d.Application), Key: sarama.StringEncoder(key), Value: sarama.ByteEncoder(payload), Timestamp: now,
	}
	for _, h := range [][2]string{
		{"ce_specversion", "1.0"},
		{"ce_id", newID()},
		{"ce_source", naming.Source(d.Application, d.Device)},
		{"ce_type", eventType},
		{"ce_subject", subject},
		{"ce_time", now.Format("2006-01-02T15:04:05.000000Z07:00")},
		{"content-type", "application/json"},
		{"ce_application", d.Application},
		{"ce_device", d.Device},
		{"ce_sender", d.Device},
		{"ce_instance", instance},
		{"ce_partitionkey", key},
	} {
		message.Headers = append(message.Headers, sarama.RecordHeader{Key: []byte(h[0]), Value: []byte(h[1])})
	}
	if _, _, err := d.producer.SendMessage(message); err != nil && ctx.Err() == nil {
		d.Logger.LogAttrs(ctx, slog.LevelWarn, "simulated device cannot send", slog.Any("error", err))
	}
}

func newID() string {
	id, err := uuid.NewV7()
	if err != nil { // Only when there is no randomness, which ends the process elsewhere.
		id = uuid.New()
	}
	return id.String()
}

// receive hands the commands for this device to live, and starts over when that
// fails. It begins at the end of the log: a device that was off does not obey
// what it missed.
func (d *device) receive(ctx context.Context, sc *sarama.Config) error {
	// A client of its own: a waiting fetch would hold the producer up.
	client, err := connect(ctx, d.Config, sc)
	if client == nil || err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	consumer, err := sarama.NewConsumerFromClient(client)
	if err != nil {
		return fmt.Errorf("make consumer: %w", err)
	}
	for {
		err := d.receiveAll(ctx, client, consumer)
		if ctx.Err() != nil {
			return nil
		}
		d.Logger.LogAttrs(ctx, slog.LevelWarn, "simulated device cannot receive commands", slog.Any("error", err))
		if !sleep(ctx, time.Second) {
			return nil
		}
	}
}

func (d *device) receiveAll(ctx context.Context, client sarama.Client, consumer sarama.Consumer) error {
	partitions, err := client.Partitions(d.CommandsTopic)
	if err != nil {
		return fmt.Errorf("partitions of %q: %w", d.CommandsTopic, err)
	}
	var open []sarama.PartitionConsumer
	defer func() {
		for _, pc := range open {
			_ = pc.Close() // It drains its channels.
		}
	}()
	for _, p := range partitions {
		pc, err := consumer.ConsumePartition(d.CommandsTopic, p, sarama.OffsetNewest)
		if err != nil {
			return fmt.Errorf("consume %q/%d: %w", d.CommandsTopic, p, err)
		}
		open = append(open, pc)
	}
	d.ready.Do(d.Ready)
	g, ctx := errgroup.WithContext(ctx)
	for _, pc := range open {
		g.Go(func() error { return d.receivePartition(ctx, pc) })
	}
	return g.Wait()
}

var errEnded = errors.New("the partition consumer has ended")

func (d *device) receivePartition(ctx context.Context, pc sarama.PartitionConsumer) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err, ok := <-pc.Errors():
			if !ok {
				return errEnded
			}
			d.Logger.LogAttrs(ctx, slog.LevelWarn, "simulated device misses commands for a while", slog.Any("error", err))
		case m, ok := <-pc.Messages():
			if !ok {
				return errEnded
			}
			c, mine := d.parse(m)
			if !mine {
				continue
			}
			select {
			case d.commands <- c:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// parse reads a command in the CloudEvents binary mode, and says whether it is
// for this device.
func (d *device) parse(m *sarama.ConsumerMessage) (command, bool) {
	attributes := make(map[string]string, len(m.Headers))
	for _, h := range m.Headers {
		attributes[string(h.Key)] = string(h.Value)
	}
	if attributes["ce_application"] != d.Application || attributes["ce_device"] != d.Device {
		return command{}, false
	}
	return command{name: attributes["ce_subject"], id: attributes["ce_id"], payload: m.Value}, true
}
