package cursor_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"mqtt-integration/services/event-fanout/internal/cursor"
)

func TestTrackerAgainstAModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		var tracker cursor.Tracker
		model := map[int64]int{} // unacknowledged
		var delivered []int64
		next := int64(random.IntN(1000))
		for range 2000 {
			if random.IntN(3) > 0 && len(model) < 300 {
				next += int64(1 + random.IntN(3)*random.IntN(2)) // gaps
				tracker.Add(next, random.IntN(100))
				model[next] = -1
				delivered = append(delivered, next)
			} else if len(delivered) > 0 {
				first := delivered[max(0, len(delivered)-1-random.IntN(400))] - int64(random.IntN(3))
				last := first + int64(random.IntN(20))
				want := 0
				for offset := range model {
					if first <= offset && offset <= last {
						want++
						delete(model, offset)
					}
				}
				if got, _ := tracker.Ack(first, last); got != want {
					t.Fatalf("seed %d: Ack(%d, %d) = %d, want %d", seed, first, last, got, want)
				}
			}
			if tracker.Len() != len(model) {
				t.Fatalf("seed %d: Len() = %d, want %d", seed, tracker.Len(), len(model))
			}
			got, ok := tracker.First()
			if ok != (len(model) > 0) {
				t.Fatalf("seed %d: First() = %v, want %v", seed, ok, !ok)
			}
			if want := smallest(model); ok && got != want {
				t.Fatalf("seed %d: First() = %d, want %d", seed, got, want)
			}
		}
	}
}

func smallest(m map[int64]int) int64 {
	var all []int64
	for offset := range m {
		all = append(all, offset)
	}
	if len(all) == 0 {
		return 0
	}
	return slices.Min(all)
}

func TestTrackerReturnsBytesOnce(t *testing.T) {
	t.Parallel()
	var tracker cursor.Tracker
	for offset := range int64(4) {
		tracker.Add(offset, 10)
	}
	if events, bytes := tracker.Ack(1, 2); events != 2 || bytes != 20 {
		t.Errorf("Ack(1, 2) = %d, %d, want 2, 20", events, bytes)
	}
	if events, bytes := tracker.Ack(0, 2); events != 1 || bytes != 10 {
		t.Errorf("Ack(0, 2) = %d, %d, want 1, 10", events, bytes)
	}
	if events, bytes := tracker.Reset(); events != 1 || bytes != 10 {
		t.Errorf("Reset() = %d, %d, want 1, 10", events, bytes)
	}
	if events, _ := tracker.Ack(0, 10); events != 0 {
		t.Errorf("Ack after Reset = %d, want 0", events)
	}
}

// A client may keep back one acknowledgement for ever.
func TestTrackerStaysSmallBehindAnUnacknowledgedEvent(t *testing.T) {
	var tracker cursor.Tracker
	tracker.Add(0, 1)
	step := func() {
		for offset := int64(1); offset < 1000; offset++ {
			tracker.Add(offset, 1)
			tracker.Ack(offset, offset)
		}
	}
	step()
	if allocs := testing.AllocsPerRun(10, step); allocs > 0 {
		t.Errorf("%v allocations per 1000 events while one is unacknowledged", allocs)
	}
}

func BenchmarkTracker(b *testing.B) {
	var tracker cursor.Tracker
	const window = 256
	offset := int64(0)
	for ; offset < window; offset++ {
		tracker.Add(offset, 100)
	}
	b.ReportAllocs()
	for b.Loop() {
		tracker.Ack(offset-window, offset-window)
		tracker.Add(offset, 100)
		offset++
	}
}
