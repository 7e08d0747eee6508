package share

// fifo is a queue of entries.
type fifo struct {
	items []*entry
	head  int
}

func (q *fifo) len() int { return len(q.items) - q.head }

func (q *fifo) first() *entry { return q.items[q.head] }

func (q *fifo) push(e *entry) {
	if q.head > 32 && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, e)
}

func (q *fifo) pop() *entry {
	e := q.items[q.head]
	q.items[q.head] = nil
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return e
}

// takeAll empties the queue into a list.
func (q *fifo) takeAll(into []*entry) []*entry {
	into = append(into, q.items[q.head:]...)
	*q = fifo{}
	return into
}

// drop removes what f says, and keeps the order of the rest.
func (q *fifo) drop(f func(*entry) bool) {
	kept := q.items[:0]
	for _, e := range q.items[q.head:] {
		if !f(e) {
			kept = append(kept, e)
		}
	}
	clear(q.items[len(kept):])
	q.items, q.head = kept, 0
}
