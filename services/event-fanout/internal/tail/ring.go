package tail

import (
	"container/list"
	"sort"
	"sync"
)

// Entry is an event in a ring or chunk. It never changes.
type Entry struct {
	Offset int64
	// Event is a serialised mqttintegration.events.v1.Event.
	Event []byte
}

// Where says how a position is placed in a ring.
type Where uint8

const (
	// Inside is a position with an event at it or after it.
	Inside Where = iota
	// AtEnd is a position after which there is no event yet.
	AtEnd
	// Behind is a position that the ring no longer holds, or never did.
	Behind
)

const (
	minSlab   = 4 << 10
	maxSlab   = 128 << 10
	entrySize = 32
	blockSize = 128 // what a block and its place in the budget take besides
)

// block is a run of entries. Only the writer of the ring looks beyond published.
type block struct {
	entries   []Entry // as long as its capacity
	published int
	slab      []byte // what is left of it is for further events
	cost      int64
	dropped   bool // by the budget; guarded by the ring's mu
	spent     *list.Element
	first     int64 // smallest offset that it can hold
}

// Ring holds the newest events of a partition. One goroutine writes; any number
// read.
type Ring struct {
	budget *Budget

	// The writer's alone.
	current *block
	count   int // entries in current, published or not
	next    int64
	slab    int

	mu         sync.Mutex
	start, end int64
	blocks     []*block
	generation uint64
	logEnd     int64 // where the log ended at the beginning of this generation
	watchers   []*Watcher
}

// Watcher is told that there is something new.
type Watcher struct {
	// Notify must not block, nor call the ring.
	Notify func()
}

// NewRing returns an empty ring that begins at an offset.
func NewRing(budget *Budget, start int64) *Ring {
	return &Ring{budget: budget, start: start, end: start, next: start, slab: minSlab, logEnd: start}
}

// Read returns the events from an offset on as far as they are in one piece, and
// the offset that follows them, gaps included. Entries are never empty when the
// position is Inside.
func (r *Ring) Read(from int64) (entries []Entry, next int64, where Where) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if from < r.start {
		return nil, r.start, Behind
	}
	if from >= r.end {
		return nil, from, AtEnd
	}
	// The last block that begins at or before from, or an earlier block's rest.
	i := max(sort.Search(len(r.blocks), func(i int) bool { return r.blocks[i].first > from })-1, 0)
	for ; i < len(r.blocks); i++ {
		b := r.blocks[i]
		held := b.entries[:b.published]
		at := sort.Search(len(held), func(i int) bool { return held[i].Offset >= from })
		if at == len(held) {
			continue
		}
		next = r.end
		if i+1 < len(r.blocks) {
			next = r.blocks[i+1].first
		}
		return held[at:], next, Inside
	}
	return nil, r.end, AtEnd
}

// End is the offset after the last record that the ring knows.
func (r *Ring) End() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.end
}

// Generation is a number that changes when the log was found to be another one:
// re-created or cut at its end. Then start is where it begins, and positions
// above end are void.
func (r *Ring) Generation() (generation uint64, start, logEnd int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.generation, r.start, r.logEnd
}

// Watch has a watcher notified from now on.
func (r *Ring) Watch(w *Watcher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watchers = append(append([]*Watcher(nil), r.watchers...), w)
}

// Unwatch ends it. A notification that is under way may still come.
func (r *Ring) Unwatch(w *Watcher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rest := make([]*Watcher, 0, len(r.watchers))
	for _, other := range r.watchers {
		if other != w {
			rest = append(rest, other)
		}
	}
	r.watchers = rest
}

func (r *Ring) notify() {
	r.mu.Lock()
	watchers := r.watchers
	r.mu.Unlock()
	for _, w := range watchers {
		w.Notify()
	}
}

// appendable is an event that knows its serialised form.
type appendable interface {
	WireSize() int
	AppendWire(dst []byte) []byte
}

// add adds an event, which readers see after publish. size is its WireSize.
func (r *Ring) add(offset int64, event appendable, size int) {
	b := r.current
	if b == nil || r.count == len(b.entries) || size > cap(b.slab)-len(b.slab) {
		b = r.newBlock(offset, size)
	}
	from := len(b.slab)
	b.slab = event.AppendWire(b.slab)
	b.entries[r.count] = Entry{Offset: offset, Event: b.slab[from:len(b.slab):len(b.slab)]}
	r.count++
	r.next = offset + 1
}

// pass notes that everything below offset is known to hold no further event.
func (r *Ring) pass(offset int64) { r.next = max(r.next, offset) }

// newBlock makes room. Slabs grow with the traffic of the partition, so that
// thousands of quiet ones stay small.
func (r *Ring) newBlock(offset int64, size int) *block {
	r.publish()
	slab := max(r.slab, size)
	r.slab = min(2*r.slab, maxSlab)
	b := &block{entries: make([]Entry, max(slab/128, 8)), slab: make([]byte, 0, slab), first: offset}
	b.cost = int64(cap(b.slab)) + int64(len(b.entries))*entrySize + blockSize
	r.current, r.count = b, 0
	r.mu.Lock()
	if len(r.blocks) == 0 {
		b.first = min(b.first, r.end)
	}
	r.blocks = append(r.blocks, b)
	r.mu.Unlock()
	r.budget.spend(r, b)
	return b
}

// publish shows readers what was added.
func (r *Ring) publish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end = max(r.end, r.next)
	if r.current == nil {
		return
	}
	if r.current.dropped {
		// What was added to it meanwhile is lost as well.
		r.start, r.current, r.count = r.end, nil, 0
		return
	}
	r.current.published = r.count
}

// drop forgets the first block if it is still b.
func (r *Ring) drop(b *block) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.blocks) == 0 || r.blocks[0] != b {
		return
	}
	b.dropped = true
	r.blocks[0] = nil
	r.blocks = r.blocks[1:]
	if len(r.blocks) > 0 {
		r.start = r.blocks[0].first
	} else {
		r.start = r.end
	}
}

// reset empties the ring and lets it begin anew at start. voided says that the
// log ends at logEnd, below what the ring had.
func (r *Ring) reset(start, logEnd int64, voided bool) {
	r.mu.Lock()
	blocks := r.blocks
	r.blocks = nil
	r.start, r.end = start, start
	if voided {
		r.generation++
		r.logEnd = logEnd
	}
	r.mu.Unlock()
	r.current, r.count, r.next = nil, 0, start
	for _, b := range blocks {
		r.budget.refund(b)
	}
}
