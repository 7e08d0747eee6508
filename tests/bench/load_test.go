package bench_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"

	"mqtt-integration/libs/testkit"
	"mqtt-integration/libs/testkit/embeddedkafka"
	"mqtt-integration/tests/internal/rawmqtt"
)

// roleVariable makes this program one of the processes around the services.
const roleVariable = "BENCH_ROLE"

const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleVariable) {
	case "kafka":
		err = serveKafka()
	case "load":
		serveLoad()
	default:
		m.Run()
		return
	}
	if err != nil {
		panic(err)
	}
}

// stdio is the parent process.
type stdio struct {
	io.Reader
	io.Writer
}

func (stdio) Close() error { return os.Stdin.Close() }

// child starts this program in another role, until the benchmark ends.
func child(b *testing.B, role string) io.ReadWriteCloser {
	b.Helper()
	program, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close() // It ends with its input.
		if err := cmd.Wait(); err != nil {
			b.Errorf("process %s: %v", role, err)
		}
	})
	return struct {
		io.Reader
		io.WriteCloser
	}{out, in}
}

// kafka returns brokers outside of this process.
func kafka(b *testing.B) []string {
	b.Helper()
	if testkit.IsRealKafka() {
		return testkit.Kafka(b)
	}
	var line strings.Builder
	process := child(b, "kafka")
	for c := make([]byte, 1); ; {
		if _, err := io.ReadFull(process, c); err != nil {
			b.Fatalf("start the embedded Kafka: %v", err)
		}
		if c[0] == '\n' {
			return strings.Split(line.String(), ",")
		}
		line.WriteByte(c[0])
	}
}

func serveKafka() error {
	dir, err := os.MkdirTemp("", "bench-kafka-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cluster, err := embeddedkafka.Start(embeddedkafka.Config{Dir: dir})
	if err != nil {
		return err
	}
	defer cluster.Close()
	fmt.Fprintln(os.Stdout, strings.Join(cluster.Brokers(), ","))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// load is the process with producer and clients.
type load struct {
	b      *testing.B
	client *rpc.Client
}

func newLoad(b *testing.B) load {
	b.Helper()
	client := rpc.NewClient(child(b, "load"))
	b.Cleanup(func() { _ = client.Close() })
	return load{b, client}
}

func (l load) call(method string, args any) {
	l.b.Helper()
	if err := l.client.Call("Load."+method, args, new(struct{})); err != nil {
		l.b.Fatalf("%s: %v", method, err)
	}
}

func serveLoad() {
	server := rpc.NewServer()
	if err := server.Register(&Load{}); err != nil {
		panic(err)
	}
	server.ServeConn(stdio{os.Stdin, os.Stdout})
}

// Load is what the process of clients can do. Produce may be called while another
// call is under way.
type Load struct {
	producer sarama.SyncProducer
	clients  []*rawmqtt.Client
}

// ProduceArgs say what to produce.
type ProduceArgs struct {
	Brokers    []string
	Topic      string
	Partitions int
	Count      int
	// Rate is in events per second; 0 is as fast as possible.
	Rate float64
}

// Produce produces events of about 300 bytes, as devices do.
func (l *Load) Produce(args ProduceArgs, _ *struct{}) error {
	if l.producer == nil {
		cfg := testkit.Sarama()
		cfg.Producer.Partitioner = sarama.NewManualPartitioner
		producer, err := sarama.NewSyncProducer(args.Brokers, cfg)
		if err != nil {
			return err
		}
		l.producer = producer
	}
	batch := 10_000
	if args.Rate > 0 {
		batch = 1
	}
	began := time.Now()
	for done := 0; done < args.Count; done += batch {
		if args.Rate > 0 {
			due := began.Add(time.Duration(float64(done) / args.Rate * float64(time.Second)))
			<-time.After(time.Until(due))
		}
		messages := make([]*sarama.ProducerMessage, min(batch, args.Count-done))
		for i := range messages {
			messages[i] = message(args.Topic, done+i, args.Partitions)
		}
		if err := l.producer.SendMessages(messages); err != nil {
			return err
		}
	}
	return nil
}

func message(topic string, n, partitions int) *sarama.ProducerMessage {
	device := fmt.Sprint("device-", n%100)
	m := &sarama.ProducerMessage{
		Topic: topic, Partition: int32(n % partitions), Key: sarama.StringEncoder("app/" + device),
		Value: sarama.StringEncoder(`{"temperature":21.5,"humidity":43,"battery":3.61,"led":false}`),
	}
	for _, h := range [][2]string{
		{"ce_specversion", "1.0"},
		{"ce_id", fmt.Sprint("0197f0aa-0000-7000-8000-", n)},
		{"ce_source", "drogue://app/" + device},
		{"ce_type", "io.drogue.event.v1"},
		{"ce_subject", "state"},
		{"ce_time", "2026-11-22T10:11:12.123456Z"},
		{"ce_application", "app"},
		{"ce_device", device},
		{"ce_sender", device},
		{"ce_instance", "drogue"},
		{"ce_partitionkey", "app/" + device},
		{"content-type", "application/json"},
	} {
		m.Headers = append(m.Headers, sarama.RecordHeader{Key: []byte(h[0]), Value: []byte(h[1])})
	}
	return m
}

// ConnectArgs say who connects, and to what.
type ConnectArgs struct {
	Address, User, Key string
	Clients            int
	// Filter is subscribed to with QoS 1, unless it is empty.
	Filter string
}

// Connect replaces the clients by new ones, and subscribes. Nothing is read until
// Receive.
func (l *Load) Connect(args ConnectArgs, _ *struct{}) error {
	for _, c := range l.clients {
		c.Close()
	}
	l.clients = nil
	for n := range args.Clients {
		c, err := rawmqtt.Dial(context.Background(), args.Address, rawmqtt.V5)
		if err != nil {
			return err
		}
		l.clients = append(l.clients, c)
		connack, err := c.Exchange(rawmqtt.Connect{
			ClientID: fmt.Sprint("bench-", n), CleanStart: true, Username: &args.User, Password: &args.Key,
		}, rawmqtt.CONNACK, patience)
		if err != nil || connack.Code != 0 {
			return fmt.Errorf("connect client %d: %v, %w", n, connack, err)
		}
		if args.Filter == "" {
			continue
		}
		suback, err := c.Exchange(rawmqtt.Subscribe{
			PacketID: 1, Filters: []rawmqtt.Filter{{Filter: args.Filter, Options: 1}},
		}, rawmqtt.SUBACK, patience)
		if err != nil || suback.Codes[0] != 1 {
			return fmt.Errorf("subscribe client %d: %v, %w", n, suback, err)
		}
	}
	return nil
}

// Receive receives and acknowledges so many events on every client.
func (l *Load) Receive(count int, _ *struct{}) error {
	return l.each(func(c *rawmqtt.Client) error {
		var acks []rawmqtt.Outgoing
		for got := 0; got < count; {
			p, err := c.Expect(rawmqtt.PUBLISH, patience)
			if err != nil {
				return fmt.Errorf("event %d of %d: %w", got+1, count, err)
			}
			got++
			acks = append(acks, rawmqtt.Ack{PacketID: p.PacketID})
			if c.Buffered() == 0 || got == count {
				if err := c.Send(acks...); err != nil {
					return err
				}
				acks = acks[:0]
			}
		}
		return nil
	})
}

// CommandsArgs say what commands to send.
type CommandsArgs struct {
	Application string
	// Count is per client, Window how many are unacknowledged.
	Count, Window int
}

// Commands sends commands with QoS 1 on every client.
func (l *Load) Commands(args CommandsArgs, _ *struct{}) error {
	return l.each(func(c *rawmqtt.Client) error {
		sent, acknowledged := 0, 0
		var packets []rawmqtt.Outgoing
		for acknowledged < args.Count {
			for sent < args.Count && sent-acknowledged < args.Window {
				packets = append(packets, rawmqtt.Publish{
					Topic: fmt.Sprintf("command/%s/device-%d/set", args.Application, sent%100), QoS: 1,
					PacketID: uint16(sent%60_000 + 1), Payload: []byte(`{"on":true,"brightness":70}`),
				})
				sent++
			}
			if len(packets) > 0 {
				if err := c.Send(packets...); err != nil {
					return err
				}
				packets = packets[:0]
			}
			for first := true; first || c.Buffered() > 0; first = false {
				p, err := c.Expect(rawmqtt.PUBACK, patience)
				if err != nil {
					return err
				}
				if p.Code != 0 {
					return fmt.Errorf("got %v", p)
				}
				acknowledged++
			}
		}
		return nil
	})
}

// each does something with all clients at once.
func (l *Load) each(do func(*rawmqtt.Client) error) error {
	errs := make([]error, len(l.clients))
	var all sync.WaitGroup
	for i, c := range l.clients {
		all.Go(func() { errs[i] = do(c) })
	}
	all.Wait()
	return errors.Join(errs...)
}
