package delivery

import (
	"context"
	"log/slog"
	"time"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

const (
	// settleTime is how long instances must neither have come nor gone before share
	// subscriptions go where their groups belong.
	settleTime = 10 * time.Second
	// regroupPause lies between two batches of them, of at most regroupBatch.
	regroupPause = time.Second
	regroupBatch = 100
)

// regroup moves share subscriptions to the instances of their groups, some at a
// time. It is false when there may be more. Without it, one that is on another
// instance than its group gets nothing when there are fewer partitions than
// instances.
func (c *Client) regroup(ctx context.Context) (all bool) {
	moved := 0
	for _, one := range c.instances { // only this goroutine changes them
		for _, from := range one.lanes {
			for _, a := range from.shares() {
				to := c.choose(a)
				if to == from || !to.usable() || !a.rehome(from, to) {
					continue
				}
				if moved++; moved >= regroupBatch {
					c.logRegrouped(ctx, moved)
					return false
				}
			}
		}
	}
	c.logRegrouped(ctx, moved)
	return true
}

func (c *Client) logRegrouped(ctx context.Context, moved int) {
	if moved > 0 {
		c.logger.LogAttrs(ctx, slog.LevelInfo, "share subscriptions were moved to the instances of their groups", slog.Int("subscriptions", moved))
	}
}

// shares are the attachments of share subscriptions.
func (l *lane) shares() []*attachment {
	l.mu.Lock()
	defer l.mu.Unlock()
	var shares []*attachment
	for a := range l.attachments {
		if a.share != "" {
			shares = append(shares, a)
		}
	}
	return shares
}

// rehome moves an attachment of a share subscription between two lanes that have
// streams: it is closed here and opened there.
func (a *attachment) rehome(from, to *lane) bool {
	defer lockBoth(from, to)()
	if _, here := from.attachments[a]; !here || from.link == nil || to.link == nil || to.gone {
		return false
	}
	for sub := range a.subs {
		acks := &acknowledgements{}
		sub.mu.Lock()
		handle, sent := sub.handle, sub.sent
		if sub.ready {
			acks.take(sub)
		}
		sub.disconnectLocked()
		sub.mu.Unlock()
		if handle == 0 {
			continue // it waits to be opened again
		}
		from.link.subs.remove(handle)
		if sent {
			from.putAcknowledgements(acks)
			from.putRequest(&eventsv1.DeliverRequest{Frame: &eventsv1.DeliverRequest_Close{
				Close: &eventsv1.Close{Subscription: handle},
			}})
		}
	}
	a.transfer(from, to)
	return true
}
