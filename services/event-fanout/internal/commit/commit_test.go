package commit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"mqtt-integration/services/event-fanout/internal/kafka"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStore is a consumer group in memory.
type fakeStore struct {
	mu       sync.Mutex
	offsets  map[kafka.Place]kafka.Committed
	requests int
	err      error
	takes    time.Duration // how long a commit takes
	deleted  bool
}

func (f *fakeStore) Name() string { return "group" }

func (f *fakeStore) Commit(_ context.Context, offsets map[kafka.Place]int64, metadata string) error {
	time.Sleep(f.takes)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests++
	if f.err != nil && !errors.As(f.err, new(kafka.PartitionsError)) {
		return f.err
	}
	for place, offset := range offsets {
		f.offsets[place] = kafka.Committed{Offset: offset, Metadata: metadata}
	}
	return f.err
}

func (f *fakeStore) Offsets(context.Context) (map[kafka.Place]kafka.Committed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.offsets), f.err
}

func (f *fakeStore) Forget(_ context.Context, topic string, partitions []int32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range partitions {
		delete(f.offsets, kafka.Place{Topic: topic, Partition: p})
	}
	return nil
}

func (f *fakeStore) Delete(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	f.deleted = true
	f.offsets = map[kafka.Place]kafka.Committed{}
	return nil
}

func (f *fakeStore) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeStore) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests
}

func (f *fakeStore) at(p int32) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.offsets[place(p)]
	if !ok {
		return -1
	}
	return c.Offset
}

func place(p int32) kafka.Place { return kafka.Place{Topic: "t", Partition: p} }

func always() bool { return true }

// inBubble runs a test with a running scheduler and one group, in fake time.
func inBubble(t *testing.T, test func(t *testing.T, s *Scheduler, g *Group, store *fakeStore)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := NewScheduler(Config{
			Metadata: "me", Interval: time.Second, Refresh: time.Hour, Workers: 3, Logger: slog.New(slog.DiscardHandler),
		})
		store := &fakeStore{offsets: map[kafka.Place]kafka.Committed{}}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.Run(ctx) })
		test(t, s, s.group(store), store)
		cancel()
		running.Wait()
	})
}

func TestOnlyWhatMovedIsCommitted(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *Scheduler, g *Group, store *fakeStore) {
		t.Helper()
		positions, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 5, place(1): 7}, always)
		if err != nil {
			t.Fatal(err)
		}
		if store.at(0) != 5 || store.at(1) != 7 {
			t.Fatalf("start positions are not committed: %v", store.offsets)
		}
		time.Sleep(10 * time.Second)
		if n := store.count(); n != 1 {
			t.Errorf("%d requests while nothing moved, want 1", n)
		}
		for offset := int64(6); offset < 20; offset++ {
			positions[place(0)].Move(offset)
		}
		if age := s.Age(); age != 0 {
			t.Errorf("Age() = %v", age)
		}
		time.Sleep(time.Second + time.Millisecond)
		if store.at(0) != 19 || store.count() != 2 {
			t.Errorf("committed %d in %d requests, want 19 in 2", store.at(0), store.count())
		}
	})
}

func TestOutageKeepsPositions(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *Scheduler, g *Group, store *fakeStore) {
		t.Helper()
		positions, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 0}, always)
		if err != nil {
			t.Fatal(err)
		}
		store.fail(fmt.Errorf("%w: refused", kafka.ErrUnavailable))
		positions[place(0)].Move(3)
		time.Sleep(10 * time.Second)
		if age := s.Age(); age < 9*time.Second {
			t.Errorf("Age() = %v after an outage of 10 s", age)
		}
		store.fail(nil)
		time.Sleep(time.Second + time.Millisecond)
		if got := store.at(0); got != 3 {
			t.Errorf("committed %d after the outage, want 3", got)
		}
		if age := s.Age(); age != 0 {
			t.Errorf("Age() = %v after the outage", age)
		}
	})
}

// A commit that waits for Kafka does not make what it waits for look committed.
func TestAgeWhileACommitIsUnderWay(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *Scheduler, g *Group, store *fakeStore) {
		t.Helper()
		positions, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 0}, always)
		if err != nil {
			t.Fatal(err)
		}
		store.fail(fmt.Errorf("%w: timed out", kafka.ErrUnavailable))
		store.takes = 4 * time.Second
		positions[place(0)].Move(3)
		began := time.Now()
		for time.Since(began) < 20*time.Second {
			time.Sleep(300 * time.Millisecond)
			if age, want := s.Age(), time.Since(began); age != want {
				t.Fatalf("Age() = %v after an outage of %v", age, want)
			}
		}
		store.fail(nil)
		time.Sleep(10 * time.Second)
		if age := s.Age(); age != 0 || store.at(0) != 3 {
			t.Errorf("after the outage: Age() = %v, committed %d, want 0, 3", age, store.at(0))
		}
	})
}

func TestRefusedPartitionIsNotTriedAgainUntilItMoves(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, _ *Scheduler, g *Group, store *fakeStore) {
		t.Helper()
		positions, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 0}, always)
		if err != nil {
			t.Fatal(err)
		}
		store.fail(kafka.PartitionsError{place(0): errors.New("no such topic")})
		positions[place(0)].Move(3)
		time.Sleep(10 * time.Second)
		if n := store.count(); n != 2 {
			t.Errorf("%d requests, want 2", n)
		}
	})
}

func TestIdleGroupIsCommittedAgain(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, _ *Scheduler, g *Group, store *fakeStore) {
		t.Helper()
		if _, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 4}, always); err != nil {
			t.Fatal(err)
		}
		store.mu.Lock()
		clear(store.offsets) // expired
		store.mu.Unlock()
		time.Sleep(time.Hour + 2*time.Minute)
		if got := store.at(0); got != 4 {
			t.Errorf("committed %d after the time of Refresh, want 4", got)
		}
	})
}

func TestDeletedGroupIsNotCommittedTo(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *Scheduler, g *Group, store *fakeStore) {
		t.Helper()
		positions, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 0}, always)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
		positions[place(0)].Move(3)
		time.Sleep(10 * time.Second)
		if n := store.count(); n != 1 || !store.deleted {
			t.Errorf("%d requests, deleted %v, want 1, true", n, store.deleted)
		}
		if _, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 0}, always); !errors.Is(err, ErrGone) {
			t.Errorf("Start after Delete: %v, want %v", err, ErrGone)
		}
		if s.Groups() != 0 {
			t.Errorf("%d groups are kept", s.Groups())
		}
	})
}

func TestGroupThatWentElsewhereIsNotDeleted(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, _ *Scheduler, g *Group, store *fakeStore) {
		t.Helper()
		if _, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 0}, always); err != nil {
			t.Fatal(err)
		}
		store.mu.Lock()
		store.offsets[place(0)] = kafka.Committed{Offset: 9, Metadata: "somebody else"}
		store.mu.Unlock()
		if err := g.DeleteUnlessTaken(t.Context()); err != nil {
			t.Fatal(err)
		}
		if store.deleted {
			t.Error("it was deleted")
		}
		if err := g.Flush(t.Context()); err != nil || store.at(0) != 9 {
			t.Errorf("Flush: %v, committed %d, want 9", err, store.at(0))
		}
	})
}

func TestForgetAndStartAgain(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, _ *Scheduler, g *Group, store *fakeStore) {
		t.Helper()
		former, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 0, place(1): 0}, always)
		if err != nil {
			t.Fatal(err)
		}
		former[place(0)].Move(3)
		if diff := cmp.Diff(map[int32]int64{0: 3, 1: 0}, g.Known("t")); diff != "" {
			t.Errorf("Known (-want +got):\n%s", diff)
		}
		if err := g.Forget(t.Context(), "t"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if len(store.offsets) != 0 {
			t.Errorf("offsets are left: %v", store.offsets)
		}
		if got, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 8}, func() bool { return false }); got != nil || err != nil {
			t.Errorf("Start of what is not wanted = %v, %v", got, err)
		}
		if _, err := g.Start(t.Context(), map[kafka.Place]int64{place(0): 8}, always); err != nil {
			t.Fatal(err)
		}
		former[place(0)].Move(4) // of the subscription that was closed
		time.Sleep(2 * time.Second)
		if got := store.at(0); got != 8 {
			t.Errorf("committed %d, want 8", got)
		}
	})
}
