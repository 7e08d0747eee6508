package tail

import (
	"container/list"
	"sync"
)

// Budget is the memory that all rings of the process share. When it is spent, the
// oldest block of any ring goes. Locks are taken in the order budget, ring.
type Budget struct {
	mu     sync.Mutex
	limit  int64
	used   int64
	blocks list.List // of spending, oldest first
}

type spending struct {
	ring  *Ring
	block *block
}

// NewBudget returns a budget of so many bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Used is the number of bytes in use.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// spend accounts for a new block, which stays even if it is larger than the limit.
func (b *Budget) spend(ring *Ring, added *block) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += added.cost
	added.spent = b.blocks.PushBack(spending{ring, added})
	for b.used > b.limit {
		oldest, _ := b.blocks.Front().Value.(spending)
		if oldest.block == added {
			return
		}
		b.remove(oldest.block)
		oldest.ring.drop(oldest.block)
	}
}

// refund is for a block that its ring has given up.
func (b *Budget) refund(given *block) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.remove(given)
}

func (b *Budget) remove(gone *block) {
	if gone.spent == nil {
		return
	}
	b.blocks.Remove(gone.spent)
	gone.spent = nil
	b.used -= gone.cost
}
