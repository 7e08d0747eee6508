package outbound

// slot is an event that was sent and is not acknowledged.
type slot struct {
	id        uint16 // 0: the slot is free
	partition int32
	size      int
	offset    int64
	queue     *Queue
}

// window holds the events in flight by packet identifier: identifier n is in the
// slot n modulo the size of the table, which is a power of two, larger than what
// may be in flight, and grows with what is.
type window struct {
	slots []slot
	used  int
	bytes int64
	last  uint16
	limit int
}

const firstSlots = 8

func (w *window) init(limit int) { w.limit = limit }

// take puts an event into a free slot and returns its packet identifier. The
// caller has checked that there may be one more.
func (w *window) take(s slot) uint16 {
	if w.used == len(w.slots) {
		w.grow()
	}
	mask := uint16(len(w.slots) - 1) //nolint:gosec // at most 65536 slots
	for {
		w.last++
		if w.last != 0 && w.slots[w.last&mask].id == 0 {
			break
		}
	}
	s.id = w.last
	w.slots[w.last&mask] = s
	w.used++
	w.bytes += int64(s.size)
	return w.last
}

// grow doubles the table. Two identifiers that had different slots have
// different ones in the larger table.
func (w *window) grow() {
	old := w.slots
	w.slots = make([]slot, max(firstSlots, 2*len(old)))
	mask := uint16(len(w.slots) - 1) //nolint:gosec // at most 65536 slots
	for _, s := range old {
		w.slots[s.id&mask] = s
	}
}

// free returns the event with this identifier and frees its slot.
func (w *window) free(id uint16) (slot, bool) {
	if id == 0 || len(w.slots) == 0 {
		return slot{}, false
	}
	p := &w.slots[int(id)&(len(w.slots)-1)]
	if p.id != id {
		return slot{}, false
	}
	s := *p
	*p = slot{}
	w.used--
	w.bytes -= int64(s.size)
	return s, true
}
