package eventfanout_test

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"mqtt-integration/libs/testkit"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	eventfanout "mqtt-integration/services/event-fanout"
)

// The benchmarks drive an instance with a frontend that looks only at what it has
// to acknowledge. CPU time is that of the process: instance, that frontend and,
// unless TEST_KAFKA_BROKERS is set, the emulated Kafka.

// counted is a frame of which only the deliveries are looked at.
type counted struct {
	deliveries int // to subscriptions
	events     int
	// acks has the offsets per subscription, as long as they are in one piece.
	acks []*eventsv1.Acknowledgement
	open map[[2]uint64]*eventsv1.Acknowledgement
}

func (c *counted) add(subscription, partition uint64, offset int64) {
	c.deliveries++
	a := c.open[[2]uint64{subscription, partition}]
	if a == nil {
		a = &eventsv1.Acknowledgement{Subscription: subscription, Partition: int32(partition), Ranges: []*eventsv1.OffsetRange{{First: offset}}}
		c.open[[2]uint64{subscription, partition}] = a
		c.acks = append(c.acks, a)
	}
	a.Ranges[0].Last = offset
}

type countingCodec struct{ encoding.CodecV2 }

func (c countingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	into, ok := v.(*counted)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	into.deliveries, into.events, into.acks = 0, 0, nil
	into.open = map[[2]uint64]*eventsv1.Acknowledgement{}
	field, _, n := protowire.ConsumeTag(buf.ReadOnlyData())
	if field != 5 {
		return nil
	}
	batch, _ := protowire.ConsumeBytes(buf.ReadOnlyData()[n:])
	for len(batch) > 0 {
		_, _, n := protowire.ConsumeTag(batch)
		delivery, m := protowire.ConsumeBytes(batch[n:])
		batch = batch[n+m:]
		into.events++
		var subscriptions []byte
		var partition, offset uint64
		for len(delivery) > 0 {
			field, _, n := protowire.ConsumeTag(delivery)
			delivery = delivery[n:]
			var bytes []byte
			var number uint64
			if field <= 2 {
				bytes, n = protowire.ConsumeBytes(delivery)
			} else {
				number, n = protowire.ConsumeVarint(delivery)
			}
			delivery = delivery[n:]
			switch field { //nolint:exhaustive // field numbers are no enum
			case 2:
				subscriptions = bytes
			case 3:
				partition = number
			case 4:
				offset = number
			}
		}
		for len(subscriptions) > 0 {
			handle, n := protowire.ConsumeVarint(subscriptions)
			subscriptions = subscriptions[n:]
			into.add(handle, partition, int64(offset))
		}
	}
	return nil
}

func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// drain has subscribers that stand before a backlog take all of it, and reports
// what a delivery costs.
func drain(b *testing.B, brokers []string, i *instance, app, topic string, events uint32, subscribers, backlog int) {
	b.Helper()
	b.StopTimer()
	f := connect(b, i)
	f.close()
	conn, err := grpc.NewClient(i.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		eventsv1.EventsService_Deliver_FullMethodName, grpc.ForceCodecV2(countingCodec{encoding.GetCodecV2(proto.Name)}))
	if err != nil {
		b.Fatal(err)
	}
	send := func(request *eventsv1.DeliverRequest) {
		if err := stream.SendMsg(request); err != nil {
			b.Fatal(err)
		}
	}
	answer := func() *eventsv1.DeliverResponse {
		response := new(eventsv1.DeliverResponse)
		if err := stream.RecvMsg(response); err != nil {
			b.Fatal(err)
		}
		return response
	}
	send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Hello{Hello: &eventsv1.ClientHello{FrontendId: "f"}}})
	answer()
	for n := range uint64(subscribers) {
		id := newIdentity(b)
		send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Attach{Attach: &eventsv1.Attach{
			Session: n + 1, Key: id.key, Epoch: &eventsv1.Epoch{TimeMicros: id.epoch}, ConnectionId: id.connection,
		}}})
		answer()
		send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Open{Open: &eventsv1.Open{
			Subscription: n + 1, Session: n + 1, Application: app, Window: &eventsv1.Window{Events: 1, Bytes: 1},
		}}})
		if opened := answer().GetOpened(); opened == nil {
			b.Fatal("not opened")
		}
	}
	records := make([]testkit.Record, backlog)
	for n := range records {
		records[n] = benchEvent(n)
	}
	for p := range int32(4) {
		testkit.ProduceTo(b, brokers, topic, p, records[int(p)*backlog/4:int(p+1)*backlog/4]...)
	}
	received, target := 0, subscribers*backlog
	frame := &counted{}
	b.StartTimer()
	began, used, frames := time.Now(), cpu(), 0
	for n := range uint64(subscribers) {
		send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Credit{Credit: &eventsv1.Credit{
			Subscription: n + 1, Window: window(events),
		}}})
	}
	for received < target {
		if err := stream.RecvMsg(frame); err != nil {
			b.Fatal(err)
		}
		received += frame.deliveries
		frames++
		if len(frame.acks) > 0 {
			send(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Acknowledge{Acknowledge: &eventsv1.Acknowledge{
				Acknowledgements: frame.acks,
			}}})
		}
	}
	b.ReportMetric(float64((cpu()-used).Nanoseconds())/float64(received), "cpu-ns/delivery")
	b.ReportMetric(float64(received)/time.Since(began).Seconds(), "deliveries/s")
	b.ReportMetric(float64(received)/float64(frames), "deliveries/frame")
}

// benchEvent is what a device sends, with all attributes.
func benchEvent(n int) testkit.Record {
	return testkit.Record{
		Value: []byte(`{"temperature":21.5,"humidity":48.25,"battery":3.61,"time":"2026-11-22T11:00:00Z"}`),
		Headers: testkit.Headers("ce_specversion", "1.0", "ce_id", fmt.Sprintf("a1b2c3d4-%d", n),
			"ce_source", "drogue://example%2Dapp/device1", "ce_type", "io.drogue.event.v1", "ce_subject", "state",
			"ce_time", "2026-11-22T11:00:00.123456Z", "content-type", "application/json", "ce_application", "example-app",
			"ce_device", "device1", "ce_sender", "device1", "ce_instance", "drogue", "ce_partitionkey", "example%2Dapp/device1"),
	}
}

func BenchmarkDrain(b *testing.B) {
	for _, source := range []string{"ring", "chunks"} {
		for _, window := range []uint32{256, 4096} {
			b.Run(fmt.Sprintf("%s/window=%d", source, window), func(b *testing.B) {
				brokers := testkit.Kafka(b)
				app, topic := newApplication(b, brokers, 4)
				i := startInstance(b, brokers, func(c *eventfanout.Config) {
					if source == "chunks" {
						c.Ring.Memory = 1 << 20
					}
				})
				const backlog = 100_000
				for b.Loop() {
					drain(b, brokers, i, app, topic, window, 1, backlog)
				}
			})
		}
	}
}

func BenchmarkFanOut(b *testing.B) {
	for _, subscribers := range []int{100, 1000} {
		b.Run(fmt.Sprintf("subscribers=%d", subscribers), func(b *testing.B) {
			brokers := testkit.Kafka(b)
			app, topic := newApplication(b, brokers, 4)
			i := startInstance(b, brokers, nil)
			for b.Loop() {
				drain(b, brokers, i, app, topic, 256, subscribers, 1_000_000/subscribers)
			}
		})
	}
}
