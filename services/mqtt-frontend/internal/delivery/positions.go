package delivery

import (
	"slices"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

// offsetRange is a range of offsets, both ends included.
type offsetRange struct{ first, last int64 }

// positions is where a subscription stands in each partition of its topic. Not
// safe for concurrent use.
type positions struct {
	// unordered is for share subscriptions: what one is given need not ascend, since
	// it may have been another one's before.
	unordered  bool
	partitions []partition // by id
}

// forget forgets all partitions.
func (p *positions) forget() { p.partitions = nil }

// partition is where a subscription stands in a partition.
type partition struct {
	id   int32
	next int64 // offset of the first event that was not received

	// outstanding has the offsets that were received and have not left it, in
	// their order, each shifted left by one; the lowest bit says whether it was
	// acknowledged. The first one was not: those in front of it leave.
	outstanding []int64
	head        int   // index of the first one
	left        int64 // offset of the one that left last; -1: none

	pending []offsetRange // acknowledged, and not sent to the server

	held map[int64]struct{} // unordered: what is outstanding
}

// at returns a partition, and adds it if it is new.
func (p *positions) at(id int32, next int64) *partition {
	if found := p.find(id); found != nil {
		return found
	}
	i, _ := slices.BinarySearchFunc(p.partitions, id, func(q partition, id int32) int { return int(q.id) - int(id) })
	p.partitions = slices.Insert(p.partitions, i, partition{id: id, next: next, left: -1})
	return &p.partitions[i]
}

// find returns a partition, or nil.
func (p *positions) find(id int32) *partition {
	// Partitions are numbered from 0 without gaps, so this is nearly always it.
	if id >= 0 && int(id) < len(p.partitions) && p.partitions[id].id == id {
		return &p.partitions[id]
	}
	i, ok := slices.BinarySearchFunc(p.partitions, id, func(q partition, id int32) int { return int(q.id) - int(id) })
	if !ok {
		return nil
	}
	return &p.partitions[i]
}

// start sets where the partitions begin that are not known yet.
func (p *positions) start(list []*eventsv1.Position) {
	for _, position := range list {
		p.at(position.GetPartition(), position.GetOffset())
	}
}

// receive notes that an event was received.
func (p *positions) receive(id int32, offset int64) {
	q := p.at(id, offset)
	if p.unordered {
		if q.held == nil {
			q.held = map[int64]struct{}{}
		}
		q.held[offset] = struct{}{}
		return
	}
	if offset < q.next {
		// The topic was deleted and created anew: what is outstanding belongs to
		// records that are gone.
		q.outstanding, q.head, q.left, q.pending = q.outstanding[:0], 0, -1, nil
	}
	q.next = offset + 1
	if q.head > 0 && len(q.outstanding) == cap(q.outstanding) {
		q.outstanding = q.outstanding[:copy(q.outstanding, q.outstanding[q.head:])]
		q.head = 0
	}
	q.outstanding = append(q.outstanding, offset<<1)
}

// acknowledge notes that an event was acknowledged. It is false when it was not
// outstanding.
func (p *positions) acknowledge(id int32, offset int64) bool {
	q := p.find(id)
	if q == nil {
		return false
	}
	if p.unordered {
		return q.acknowledgeHeld(offset)
	}
	waiting := q.outstanding[q.head:]
	i, before := 0, q.left
	if len(waiting) == 0 || waiting[0] != offset<<1 {
		var ok bool
		if i, ok = slices.BinarySearch(waiting, offset<<1); !ok {
			return false // unknown, or acknowledged before
		}
		if i > 0 {
			before = waiting[i-1] >> 1
		}
	}
	waiting[i] |= 1
	// A range may include offsets between two neighbours: nothing was delivered
	// there.
	if n := len(q.pending); n > 0 && q.pending[n-1].last == before {
		q.pending[n-1].last = offset
	} else {
		q.pending = append(q.pending, offsetRange{offset, offset})
	}
	if i == 0 {
		q.leave()
	}
	return true
}

// acknowledgeHeld is acknowledge where offsets are not ordered. Ranges have no gaps
// then: others may hold what lies between.
func (q *partition) acknowledgeHeld(offset int64) bool {
	if _, ok := q.held[offset]; !ok {
		return false
	}
	delete(q.held, offset)
	if n := len(q.pending); n > 0 && q.pending[n-1].last == offset-1 {
		q.pending[n-1].last = offset
	} else {
		q.pending = append(q.pending, offsetRange{offset, offset})
	}
	return true
}

// leave drops the acknowledged ones at the head.
func (q *partition) leave() {
	for q.head < len(q.outstanding) && q.outstanding[q.head]&1 == 1 {
		q.left = q.outstanding[q.head] >> 1
		q.head++
	}
	if q.head == len(q.outstanding) {
		q.outstanding, q.head = q.outstanding[:0], 0
	}
}

// pending says whether there are acknowledgements to send.
func (p *positions) pending() bool {
	for i := range p.partitions {
		if len(p.partitions[i].pending) > 0 {
			return true
		}
	}
	return false
}

// take calls f for the acknowledgements to send, which are none any more then.
func (p *positions) take(f func(id int32, ranges []offsetRange)) {
	for i := range p.partitions {
		if q := &p.partitions[i]; len(q.pending) > 0 {
			f(q.id, q.pending)
			q.pending = q.pending[:0]
		}
	}
}

// resume describes it all for a server that knows nothing of it. Acknowledgements
// that were not sent are part of the description.
func (p *positions) resume() *eventsv1.ResumePoint {
	point := &eventsv1.ResumePoint{Positions: make([]*eventsv1.ResumePosition, len(p.partitions))}
	for i := range p.partitions {
		q := &p.partitions[i]
		q.pending = q.pending[:0]
		position := &eventsv1.ResumePosition{Partition: q.id, NextOffset: q.next}
		var last *eventsv1.OffsetRange
		for _, o := range q.outstanding[q.head:] {
			if o&1 == 1 {
				continue
			}
			// Exact, not across gaps: each of these offsets has to be acknowledged.
			if offset := o >> 1; last != nil && last.GetLast() == offset-1 {
				last.Last = offset
			} else {
				last = &eventsv1.OffsetRange{First: offset, Last: offset}
				position.Unacknowledged = append(position.Unacknowledged, last)
			}
		}
		point.Positions[i] = position
	}
	return point
}
