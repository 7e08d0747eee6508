package stream

import (
	"encoding/binary"
	"fmt"
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of DeliverResponse, DeliveryBatch and Delivery.
const (
	fieldDeliveries    protowire.Number = 5 // of DeliverResponse
	fieldDelivery      protowire.Number = 1 // of DeliveryBatch
	fieldEvent         protowire.Number = 1 // of Delivery
	fieldSubscriptions protowire.Number = 2
	fieldPartition     protowire.Number = 3
	fieldOffset        protowire.Number = 4
)

const (
	// headroom is for the tag and the length in front of the deliveries.
	headroom = 1 + binary.MaxVarintLen32
	// deliveryOverhead is what a delivery takes besides its event and its
	// recipients, at most.
	deliveryOverhead = 40
	// maxRecipients is how many subscriptions a stream has at most, and with that
	// how many recipients an event.
	maxRecipients = 1 << 16
	// reservedBytes is what they take in a frame at most, besides the event.
	reservedBytes = maxRecipients*binary.MaxVarintLen64 + 1<<16
)

// frames are buffers for frames. gRPC gives one back when it is on the wire.
type frames struct {
	pool   sync.Pool
	target int
}

// frame is a DeliverResponse with deliveries, serialised as it is built. The
// generated types would cost an allocation per event and recipient list.
type frame struct {
	frames *frames
	buf    []byte
	data   []byte // what is sent of buf
	events int
	sent   int // deliveries to recipients
}

var _ mem.BufferPool = (*frame)(nil)

// begin returns an empty frame.
func (p *frames) begin() *frame {
	f, _ := p.pool.Get().(*frame)
	if f == nil {
		f = &frame{frames: p, buf: make([]byte, headroom, headroom+p.target)}
	}
	f.buf = f.buf[:headroom]
	f.events, f.sent = 0, 0
	return f
}

// Get is there for mem.BufferPool, and not called.
func (f *frame) Get(length int) *[]byte {
	b := make([]byte, length)
	return &b
}

// Put takes the frame back. One that grew for a large event is not kept.
func (f *frame) Put(*[]byte) {
	if cap(f.buf) <= 2*(headroom+f.frames.target) {
		f.frames.pool.Put(f)
	}
}

// discard takes a frame back that is not sent.
func (f *frame) discard() { f.Put(nil) }

func (f *frame) empty() bool { return f.events == 0 }

// fits says whether there is room for an event with so many recipients. An empty
// frame has room for any.
func (f *frame) fits(event, recipients int) bool {
	return f.events == 0 || len(f.buf)+event+deliveryOverhead+recipients*2 <= f.frames.target
}

// add adds an event. recipients are the handles as varints, n of them.
func (f *frame) add(event, recipients []byte, n int, partition int32, offset int64) {
	size := 1 + protowire.SizeBytes(len(event)) + 1 + protowire.SizeBytes(len(recipients))
	if partition != 0 {
		size += 1 + protowire.SizeVarint(uint64(partition)) //nolint:gosec // not negative
	}
	if offset != 0 {
		size += 1 + protowire.SizeVarint(uint64(offset)) //nolint:gosec // not negative
	}
	b := f.buf
	b = protowire.AppendTag(b, fieldDelivery, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size)) //nolint:gosec // not negative
	b = protowire.AppendTag(b, fieldEvent, protowire.BytesType)
	b = protowire.AppendBytes(b, event)
	b = protowire.AppendTag(b, fieldSubscriptions, protowire.BytesType)
	b = protowire.AppendBytes(b, recipients)
	if partition != 0 {
		b = protowire.AppendTag(b, fieldPartition, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(partition)) //nolint:gosec // not negative
	}
	if offset != 0 {
		b = protowire.AppendTag(b, fieldOffset, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(offset)) //nolint:gosec // not negative
	}
	f.buf = b
	f.events++
	f.sent += n
}

// finish returns the serialised DeliverResponse, which frees the frame.
func (f *frame) finish() *serialised {
	length := uint64(len(f.buf) - headroom) //nolint:gosec // not negative
	from := headroom - 1 - protowire.SizeVarint(length)
	head := protowire.AppendTag(f.buf[from:from], fieldDeliveries, protowire.BytesType)
	protowire.AppendVarint(head, length)
	f.data = f.buf[from:]
	return &serialised{mem.NewBuffer(&f.data, f)}
}

// serialised is a message that needs no codec any more.
type serialised struct {
	buffer mem.Buffer
}

// Codec is the codec of protobuf, but for messages that are serialised already.
// The server of EventsService needs it.
type Codec struct{}

var _ encoding.CodecV2 = Codec{}

// Marshal serialises a message.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	if s, ok := v.(*serialised); ok {
		return mem.BufferSlice{s.buffer}, nil
	}
	return plain().Marshal(v)
}

// Unmarshal parses a message.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error { return plain().Unmarshal(data, v) }

// Name is that of protobuf: nobody can tell the difference.
func (Codec) Name() string { return proto.Name }

func plain() encoding.CodecV2 {
	codec := encoding.GetCodecV2(proto.Name)
	if codec == nil {
		panic(fmt.Sprintf("gRPC has no codec %q", proto.Name))
	}
	return codec
}
