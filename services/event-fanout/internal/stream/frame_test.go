package stream

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

func handles(of ...uint64) []byte {
	var b []byte
	for _, h := range of {
		b = protowire.AppendVarint(b, h)
	}
	return b
}

func TestFrameIsADeliverResponse(t *testing.T) {
	t.Parallel()
	pool := &frames{target: 1000}
	for _, size := range []int{0, 1, 100, 130, 20_000, 3_000_000} {
		f := pool.begin()
		large := bytes.Repeat([]byte("e"), size)
		f.add(large, handles(1, 300, 1<<40), 3, 0, 0)
		f.add([]byte("second"), handles(7), 1, 1000, 1<<50)
		message := f.finish()
		data, err := Codec{}.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		got := new(eventsv1.DeliverResponse)
		if err := (Codec{}).Unmarshal(data, got); err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		want := &eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Deliveries{Deliveries: &eventsv1.DeliveryBatch{
			Deliveries: []*eventsv1.Delivery{
				{Event: large, Subscriptions: []uint64{1, 300, 1 << 40}},
				{Event: []byte("second"), Subscriptions: []uint64{7}, Partition: 1000, Offset: 1 << 50},
			},
		}}}
		if !proto.Equal(got, want) {
			t.Errorf("size %d: got another message", size)
		}
		data.Free()
	}
}

func TestFrameFits(t *testing.T) {
	t.Parallel()
	f := (&frames{target: 1000}).begin()
	if !f.fits(1<<20, 1) {
		t.Error("an empty frame has no room for a large event")
	}
	f.add(make([]byte, 100), handles(1), 1, 0, 0)
	if f.fits(1000, 1) {
		t.Error("a frame takes more than its target")
	}
	if !f.fits(500, 1) {
		t.Error("a frame with room takes nothing")
	}
}

func TestQueue(t *testing.T) {
	t.Parallel()
	var q queue[int]
	in, out := 0, 0
	for step := range 10_000 {
		for range step % 7 {
			q.push(in)
			in++
		}
		for range min(step%6, q.len()) {
			if got := q.pop(); got != out {
				t.Fatalf("pop() = %d, want %d", got, out)
			}
			out++
		}
	}
	if q.len() != in-out {
		t.Errorf("len() = %d, want %d", q.len(), in-out)
	}
}
