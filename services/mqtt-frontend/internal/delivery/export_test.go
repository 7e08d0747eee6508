package delivery

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"mqtt-integration/libs/daemon"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

// Positions is a subscription's book of what it received and acknowledged.
type Positions struct{ p positions }

// Receive notes an event.
func (p *Positions) Receive(partition int32, offset int64) { p.p.receive(partition, offset) }

// Start sets where partitions begin.
func (p *Positions) Start(list ...*eventsv1.Position) { p.p.start(list) }

// Acknowledge acknowledges an event.
func (p *Positions) Acknowledge(partition int32, offset int64) bool {
	return p.p.acknowledge(partition, offset)
}

// Take returns the acknowledgements to send as "partition:first-last".
func (p *Positions) Take() []string {
	var all []string
	p.p.take(func(id int32, ranges []offsetRange) {
		for _, r := range ranges {
			all = append(all, fmt.Sprintf("%d:%d-%d", id, r.first, r.last))
		}
	})
	return all
}

// Resume is the description for another stream.
func (p *Positions) Resume() *eventsv1.ResumePoint { return p.p.resume() }

// NewReceiver returns what handles the frames of a stream that never was, with
// so many subscriptions whose handles are 1 and up.
func NewReceiver(subscriptions int, sink Sink) (frame func([]byte) error, subs []*Subscription, err error) {
	instruments, err := newMetrics(daemon.NewEnv(nil).Meter)
	if err != nil {
		return nil, nil, err
	}
	l := newLane(newClient(Config{}, instruments), nil, "")
	on := l.connect()
	for range subscriptions {
		a := &attachment{}
		a.lane.Store(l)
		sub := &Subscription{attachment: a, sink: sink, link: on}
		sub.handle = on.subs.add(sub)
		subs = append(subs, sub)
	}
	g := &grouping{lane: l, on: on}
	return func(wire []byte) error {
		var response eventsv1.DeliverResponse
		if err := proto.Unmarshal(wire, &response); err != nil {
			return err
		}
		g.deliver(context.Background(), response.GetDeliveries().GetDeliveries())
		return nil
	}, subs, nil
}

// Settle sets how long instances have to be the same before share subscriptions
// move. Call it before Run.
func Settle(c *Client, after time.Duration) { c.settle = after }
