package delivery_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
)

// discard is a sink that acknowledges nothing and keeps nothing.
type discard struct{}

func (discard) Deliver([]delivery.Delivery) {}
func (discard) Skipped(int32, int64)        {}
func (discard) Failed(*delivery.OpenError)  {}

// BenchmarkReceive is a frame of 50 events, each for all subscriptions: decoding,
// grouping, the books of the subscriptions, and their acknowledgements. Reported
// per event, and per event and recipient.
func BenchmarkReceive(b *testing.B) {
	for _, recipients := range []int{1, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("recipients=%d", recipients), func(b *testing.B) {
			const events = 50
			handle, subs, err := delivery.NewReceiver(recipients, discard{})
			if err != nil {
				b.Fatal(err)
			}
			handles := make([]uint64, recipients)
			for i := range handles {
				handles[i] = uint64(i + 1)
			}
			var frames [][]byte
			for n := range 20 {
				var deliveries []*eventsv1.Delivery
				for i := range events {
					deliveries = append(deliveries, oneDelivery(0, int64(n*events+i), handles...))
				}
				wire, err := proto.Marshal(frame(deliveries...))
				if err != nil {
					b.Fatal(err)
				}
				frames = append(frames, wire)
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if err := handle(frames[n%len(frames)]); err != nil {
					b.Fatal(err)
				}
				for _, sub := range subs {
					for i := range events {
						sub.Acknowledge(0, int64(n%len(frames)*events+i))
					}
				}
				n++
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*events), "ns/event")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*events*recipients), "ns/delivery")
		})
	}
}
