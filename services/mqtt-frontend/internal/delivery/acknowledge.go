package delivery

import (
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

// Field numbers of the messages that are put together by hand: acknowledgements
// are as many as events, and the generated types cost three allocations each.
const (
	fieldAcknowledge     protowire.Number = 5 // DeliverRequest.acknowledge
	fieldAcknowledgement protowire.Number = 1 // Acknowledge.acknowledgements
	fieldSubscription    protowire.Number = 1 // Acknowledgement.subscription
	fieldPartition       protowire.Number = 2 // Acknowledgement.partition
	fieldRanges          protowire.Number = 3 // Acknowledgement.ranges
	fieldFirst           protowire.Number = 1 // OffsetRange.first
	fieldLast            protowire.Number = 2 // OffsetRange.last
)

// maxFrame is how large a frame of acknowledgements gets, about.
const maxFrame = 64 << 10

// acknowledgements collects acknowledgements of many subscriptions.
type acknowledgements struct {
	body     []byte // of an Acknowledge
	finished []rawFrame
}

// rawFrame is a DeliverRequest in its wire form.
type rawFrame []byte

// take takes what a subscription has to acknowledge, whose mu the caller holds.
func (a *acknowledgements) take(sub *Subscription) {
	sub.positions.take(func(id int32, ranges []offsetRange) { a.add(sub.handle, id, ranges) })
}

func (a *acknowledgements) add(handle uint64, id int32, ranges []offsetRange) {
	partition := uint64(uint32(id)) //nolint:gosec // partitions are not negative
	size := 1 + protowire.SizeVarint(handle) + 1 + protowire.SizeVarint(partition)
	for _, r := range ranges {
		size += 1 + protowire.SizeBytes(rangeSize(r))
	}
	b := a.body
	b = protowire.AppendTag(b, fieldAcknowledgement, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size)) //nolint:gosec // not negative
	b = appendVarint(b, fieldSubscription, handle)
	b = appendVarint(b, fieldPartition, partition)
	for _, r := range ranges {
		b = protowire.AppendTag(b, fieldRanges, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(rangeSize(r))) //nolint:gosec // not negative
		b = appendVarint(b, fieldFirst, uint64(r.first))    //nolint:gosec // offsets are not negative
		b = appendVarint(b, fieldLast, uint64(r.last))      //nolint:gosec // offsets are not negative
	}
	if a.body = b; len(b) >= maxFrame {
		a.cut()
	}
}

// cut begins a new frame.
func (a *acknowledgements) cut() {
	frame := make([]byte, 0, 1+protowire.SizeBytes(len(a.body)))
	frame = protowire.AppendTag(frame, fieldAcknowledge, protowire.BytesType)
	frame = protowire.AppendBytes(frame, a.body)
	a.finished = append(a.finished, frame)
	a.body = a.body[:0]
}

// finish returns the frames, and is empty then.
func (a *acknowledgements) finish() []rawFrame {
	if len(a.body) > 0 {
		a.cut()
	}
	finished := a.finished
	a.finished = nil
	return finished
}

func rangeSize(r offsetRange) int {
	return 2 + protowire.SizeVarint(uint64(r.first)) + protowire.SizeVarint(uint64(r.last)) //nolint:gosec // not negative
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func credit(handle uint64, w Window) *eventsv1.DeliverRequest {
	return &eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Credit{Credit: &eventsv1.Credit{
		Subscription: handle, Window: &eventsv1.Window{Events: w.Events, Bytes: w.Bytes},
	}}}
}

// codec sends raw frames as they are, and does everything else as gRPC does.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(protocodec.Name)} }

// Marshal encodes a message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if frame, ok := v.(rawFrame); ok {
		return mem.BufferSlice{mem.SliceBuffer(frame)}, nil
	}
	return c.CodecV2.Marshal(v)
}
