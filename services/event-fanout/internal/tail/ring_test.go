package tail

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeEvent serialises to its offset and padding.
type fakeEvent struct {
	offset int64
	size   int
}

func (e fakeEvent) WireSize() int { return e.size }

func (e fakeEvent) AppendWire(dst []byte) []byte {
	event := make([]byte, e.size)
	binary.BigEndian.PutUint64(event, uint64(e.offset))
	return append(dst, event...)
}

func (r *Ring) put(offset int64, size int) { r.add(offset, fakeEvent{offset, size}, size) }

func TestRingAgainstAModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 2))
		budget := NewBudget(100_000)
		first := int64(random.IntN(100))
		ring, other := NewRing(budget, first), NewRing(budget, 0)
		var written []int64
		next, otherNext := first, int64(0)
		for range 500 {
			for range random.IntN(20) {
				if random.IntN(5) == 0 {
					next += int64(random.IntN(4))
					ring.pass(next)
				} else {
					ring.put(next, 8+random.IntN(2000))
					written = append(written, next)
					next++
				}
			}
			ring.publish()
			if random.IntN(4) == 0 {
				for range random.IntN(50) {
					other.put(otherNext, 1000)
					otherNext++
				}
				other.publish()
			}
			// Walk from a random place to the end: every written offset from there, in order.
			at := first + int64(random.IntN(int(next-first+1)))
			var got []int64
			begun := at
			for {
				entries, following, where := ring.Read(at)
				if where == Behind {
					if at != begun {
						t.Fatalf("seed %d: behind in the middle", seed)
					}
					break
				}
				if where == AtEnd {
					var want []int64
					for _, offset := range written {
						if offset >= begun {
							want = append(want, offset)
						}
					}
					if len(want) != len(got) {
						t.Fatalf("seed %d: from %d: %d events, want %d", seed, begun, len(got), len(want))
					}
					if following != next {
						t.Fatalf("seed %d: the end is %d, want %d", seed, following, next)
					}
					break
				}
				for _, e := range entries {
					if int64(binary.BigEndian.Uint64(e.Event)) != e.Offset || e.Offset < at || len(got) > 0 && e.Offset <= got[len(got)-1] {
						t.Fatalf("seed %d: entry %d after %v", seed, e.Offset, got)
					}
					got = append(got, e.Offset)
				}
				if following <= at {
					t.Fatalf("seed %d: no progress at %d", seed, at)
				}
				at = following
			}
			if used := budget.Used(); used > 100_000+maxSlab+maxSlab/128*entrySize+blockSize {
				t.Fatalf("seed %d: %d bytes in use", seed, used)
			}
		}
		ring.reset(next, 0, false)
		other.reset(otherNext, 0, false)
		if used := budget.Used(); used != 0 {
			t.Fatalf("seed %d: %d bytes in use by empty rings", seed, used)
		}
	}
}

func TestRingIsReadWhileItIsWritten(t *testing.T) {
	t.Parallel()
	budget := NewBudget(200_000)
	ring := NewRing(budget, 0)
	grown := make(chan struct{}, 1)
	ring.Watch(&Watcher{Notify: func() {
		select {
		case grown <- struct{}{}:
		default:
		}
	}})
	const n = 20_000
	var readers sync.WaitGroup
	readers.Go(func() {
		at, lost := int64(0), 0
		for at < n {
			entries, next, where := ring.Read(at)
			switch where {
			case AtEnd:
				<-grown
			case Behind:
				lost++
				at = next
			case Inside:
				for _, e := range entries {
					if int64(binary.BigEndian.Uint64(e.Event)) != e.Offset {
						t.Errorf("entry %d holds %d", e.Offset, binary.BigEndian.Uint64(e.Event))
						return
					}
				}
				at = next
			}
		}
	})
	for offset := range int64(n) {
		ring.put(offset, 100)
		if offset%7 == 0 {
			ring.publish()
			ring.notify()
		}
	}
	ring.publish()
	ring.notify()
	readers.Wait()
}

func TestRingThatIsAnotherLog(t *testing.T) {
	t.Parallel()
	ring := NewRing(NewBudget(1<<20), 100)
	ring.put(100, 10)
	ring.publish()
	before, _, _ := ring.Generation()
	ring.reset(0, 7, true)
	after, start, end := ring.Generation()
	if after == before || start != 0 || end != 7 {
		t.Errorf("Generation() = %d (was %d), %d, %d, want another one, 0, 7", after, before, start, end)
	}
	if _, _, where := ring.Read(0); where != AtEnd {
		t.Errorf("Read(0) = %v, want AtEnd", where)
	}
}

func BenchmarkRing(b *testing.B) {
	b.Run("add", func(b *testing.B) {
		ring := NewRing(NewBudget(64<<20), 0)
		event := preparedEvent(make([]byte, 350))
		b.ReportAllocs()
		offset := int64(0)
		for b.Loop() {
			ring.add(offset, event, len(event))
			if offset++; offset%64 == 0 {
				ring.publish()
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		ring := NewRing(NewBudget(64<<20), 0)
		for offset := range int64(100_000) {
			ring.put(offset, 350)
		}
		ring.publish()
		b.ReportAllocs()
		at := int64(0)
		for b.Loop() {
			_, next, where := ring.Read(at)
			if at = next; where != Inside {
				at = 0
			}
		}
	})
}

type preparedEvent []byte

func (e preparedEvent) WireSize() int { return len(e) }

func (e preparedEvent) AppendWire(dst []byte) []byte { return append(dst, e...) }
