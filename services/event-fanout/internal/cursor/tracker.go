package cursor

import "sort"

// Tracker holds the unacknowledged events of one subscription in one partition.
// The zero value is empty. It takes 16 bytes for each event, and up to as much
// again for acknowledged ones among them. Not safe for concurrent use.
type Tracker struct {
	slots []slot // by offset; those before head are gone
	head  int
	live  int // slots that are not acknowledged
}

type slot struct {
	offset int64
	size   uint32
	acked  bool
}

// minSlots is the first capacity, keepSlots the largest that an empty tracker keeps.
const (
	minSlots  = 16
	keepSlots = 64
)

// Len is the number of unacknowledged events.
func (t *Tracker) Len() int { return t.live }

// First is the smallest unacknowledged offset, and false if there is none.
func (t *Tracker) First() (offset int64, ok bool) {
	if t.live == 0 {
		return 0, false
	}
	return t.slots[t.head].offset, true
}

// Add notes the delivery of an event. Offsets must ascend from call to call.
func (t *Tracker) Add(offset int64, size int) {
	if len(t.slots) == cap(t.slots) {
		t.compact()
	}
	t.slots = append(t.slots, slot{offset: offset, size: uint32(size)}) //nolint:gosec // events are a few MiB at most
	t.live++
}

// compact makes room by dropping what is acknowledged, if that is at least half.
// So the work for it is paid for by the acknowledgements.
func (t *Tracker) compact() {
	if len(t.slots) == 0 {
		t.slots = make([]slot, 0, minSlots)
		return
	}
	if t.live > len(t.slots)/2 {
		return
	}
	kept := t.slots[:0]
	for _, s := range t.slots[t.head:] {
		if !s.acked {
			kept = append(kept, s)
		}
	}
	t.slots, t.head = kept, 0
}

// Ack acknowledges the events from first to last, both inclusive. It returns how
// many of them were unacknowledged, and their bytes. Offsets that were not
// delivered, or acknowledged before, do not count.
func (t *Tracker) Ack(first, last int64) (events int, bytes int64) {
	for i := t.find(first); i < len(t.slots) && t.slots[i].offset <= last; i++ {
		if s := &t.slots[i]; !s.acked {
			s.acked = true
			events++
			bytes += int64(s.size)
		}
	}
	t.live -= events
	if t.live == 0 {
		t.Reset()
		return events, bytes
	}
	for t.slots[t.head].acked {
		t.head++
	}
	return events, bytes
}

// find returns the index of the first slot at or after an offset.
func (t *Tracker) find(offset int64) int {
	if t.head == len(t.slots) {
		return t.head
	}
	// Without gaps, and that is nearly always, it is where it has to be.
	if guess := offset - t.slots[t.head].offset + int64(t.head); guess >= int64(t.head) && guess < int64(len(t.slots)) &&
		t.slots[guess].offset == offset {
		return int(guess)
	}
	rest := t.slots[t.head:]
	return t.head + sort.Search(len(rest), func(i int) bool { return rest[i].offset >= offset })
}

// Reset forgets everything. It returns how many events were unacknowledged, and
// their bytes.
func (t *Tracker) Reset() (events int, bytes int64) {
	for _, s := range t.slots[t.head:] {
		if !s.acked {
			events++
			bytes += int64(s.size)
		}
	}
	t.slots, t.head, t.live = t.slots[:0], 0, 0
	if cap(t.slots) > keepSlots {
		t.slots = nil
	}
	return events, bytes
}
