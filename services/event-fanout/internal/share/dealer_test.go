package share

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// table is a dealer with members that a test plays.
type table struct {
	t       *testing.T
	dealer  *dealer
	group   *group
	next    map[int32]int64
	claims  map[int32]*claim
	players []*player
}

// player is a subscriber.
type player struct {
	member   *Member
	notified int
	holds    []spot
}

func newTable(t *testing.T) *table {
	t.Helper()
	g := &group{dealer: newDealer()}
	return &table{t: t, dealer: &g.dealer, group: g, next: map[int32]int64{}, claims: map[int32]*claim{}}
}

func (tb *table) sit(w Window, maxEvent int) *player {
	p := &player{}
	p.member = &Member{
		group: tb.group, window: w, leave: func() {},
		subscriber: Subscriber{Notify: func() { p.notified++ }, MaxEvent: maxEvent},
	}
	tb.dealer.join(p.member)
	tb.players = append(tb.players, p)
	return p
}

func (tb *table) claim(partition int32, at int64) *claim {
	c := tb.dealer.begin(partition, at)
	tb.claims[partition], tb.next[partition] = c, at
	return c
}

// bring adds events of a key (0: none) to a claim.
func (tb *table) bring(c *claim, key uint64, n, size int) {
	records := make([]record, n)
	for i := range records {
		offset := tb.next[c.partition]
		tb.next[c.partition]++
		event := make([]byte, size)
		copy(event, fmt.Sprint(c.partition, "/", offset))
		records[i] = record{offset: offset, key: key, keyed: key != 0, event: event}
	}
	tb.dealer.add(c, records)
}

// take has a player take what it was given.
func (p *player) take(most int) []spot {
	var taken []spot
	p.member.Take(func(partition int32, offset int64, _ []byte) bool {
		if len(taken) == most {
			return false
		}
		taken = append(taken, spot{partition, offset})
		return true
	})
	p.holds = append(p.holds, taken...)
	return taken
}

func (p *player) acknowledge(at spot) {
	p.member.Acknowledge(at.partition, at.offset, at.offset)
	p.holds = slices.DeleteFunc(p.holds, func(other spot) bool { return other == at })
}

var wide = Window{Events: 1 << 20, Bytes: 1 << 40}

func TestEventsOfAKeyStayTogether(t *testing.T) {
	t.Parallel()
	tb := newTable(t)
	c := tb.claim(0, 0)
	for range 5 {
		tb.sit(wide, 1000)
	}
	for range 20 {
		for key := uint64(1); key <= 40; key++ {
			tb.bring(c, key*0x9e3779b97f4a7c15, 1, 10)
		}
	}
	owner := map[int64]*player{}
	for _, p := range tb.players {
		taken := p.take(-1)
		if len(taken) == 0 || len(taken) > 600 {
			t.Errorf("a member got %d of 800", len(taken))
		}
		for _, at := range taken {
			key := at.offset % 40
			if other := owner[key]; other != nil && other != p {
				t.Errorf("key %d went to two members", key)
			}
			owner[key] = p
		}
		if !slices.IsSortedFunc(taken, func(a, b spot) int { return int(a.offset - b.offset) }) {
			t.Error("events are not in order")
		}
	}
}

func TestEventsWithoutKeyGoToWhoeverHasRoom(t *testing.T) {
	t.Parallel()
	tb := newTable(t)
	c := tb.claim(0, 0)
	a, b := tb.sit(Window{3, 1000}, 1000), tb.sit(Window{5, 1000}, 1000)
	tb.bring(c, 0, 20, 10)
	if x, y := len(a.take(-1)), len(b.take(-1)); x != 3 || y != 5 {
		t.Errorf("got %d and %d events, want 3 and 5", x, y)
	}
	for _, at := range slices.Clone(a.holds) {
		a.acknowledge(at)
	}
	if got := a.take(-1); len(got) != 3 || got[0].offset != 8 {
		t.Errorf("got %v, want 3 events from offset 8", got)
	}
}

func TestWindowInBytesAllowsOneEvent(t *testing.T) {
	t.Parallel()
	tb := newTable(t)
	c := tb.claim(0, 0)
	a := tb.sit(Window{10, 100}, 1000)
	tb.bring(c, 1, 3, 500)
	tb.bring(c, 1, 5, 40)
	for _, want := range []int{1, 1, 1, 2, 1} {
		got := a.take(-1)
		if len(got) != want {
			t.Fatalf("got %d events at once, want %d", len(got), want)
		}
		a.acknowledge(got[0])
	}
}

func TestEventThatOneCannotTakeGoesToAnother(t *testing.T) {
	t.Parallel()
	tb := newTable(t)
	c := tb.claim(0, 0)
	small, large := tb.sit(wide, 50), tb.sit(wide, 500)
	for key := range uint64(20) {
		tb.bring(c, key, 1, 100)
	}
	tb.bring(c, 0, 1, 501)
	tb.bring(c, 7, 1, 501)
	if got := small.take(-1); len(got) > 0 {
		t.Errorf("a member got %v, which it cannot take", got)
	}
	got := large.take(-1)
	if len(got) != 20 {
		t.Errorf("the other got %d events, want 20", len(got))
	}
	for _, at := range got {
		large.acknowledge(at)
	}
	if _, passed := tb.dealer.counts(); passed != 2 || c.position() != 22 {
		t.Errorf("passed %d, position %d, want 2, 22", passed, c.position())
	}
}

func TestFullClaimIsWokenWhenThereIsRoom(t *testing.T) {
	t.Parallel()
	tb := newTable(t)
	c := tb.claim(0, 0)
	a := tb.sit(Window{10, 1000}, 100)
	tb.bring(c, 1, highEvents+10, 1)
	if !c.full() {
		t.Fatal("a claim is not full")
	}
	for n := 0; ; n++ {
		select {
		case <-c.wake:
			if !tb.dealer.roomy(c) {
				t.Error("it was woken and has no room")
			}
			if n < highEvents-lowEvents {
				t.Errorf("it was woken after %d acknowledgements", n)
			}
			return
		default:
		}
		if n > highEvents {
			t.Fatal("it was not woken")
		}
		a.take(-1)
		a.acknowledge(a.holds[0])
	}
}

func TestEndedClaimComesBackWithoutDuplicates(t *testing.T) {
	t.Parallel()
	tb := newTable(t)
	c := tb.claim(0, 0)
	a := tb.sit(wide, 100)
	tb.bring(c, 1, 5, 10)
	a.take(3)
	a.acknowledge(spot{0, 1})
	if held := tb.dealer.end(c); held != 2 {
		t.Errorf("%d events are held, want 2: what was not taken is dropped", held)
	}
	if at := tb.dealer.abandon(c); at != 0 {
		t.Errorf("position %d, want 0", at)
	}
	// Kafka gives it back.
	c = tb.claim(0, 0)
	tb.bring(c, 1, 5, 10)
	got := a.take(-1)
	if want := []spot{{0, 1}, {0, 3}, {0, 4}}; !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %v: the others are held", got, want)
	}
	for _, at := range slices.Clone(a.holds) {
		a.acknowledge(at)
	}
	if c.position() != 5 || len(tb.dealer.ghosts) != 0 {
		t.Errorf("position %d with %d ghosts, want 5, 0", c.position(), len(tb.dealer.ghosts))
	}
	// Or with another log.
	tb.bring(c, 1, 2, 10)
	a.take(-1)
	tb.dealer.end(c)
	tb.dealer.abandon(c)
	c = tb.claim(0, 5)
	tb.bring(c, 1, 2, 20)
	if got := a.take(-1); len(got) != 2 || a.member.events != 2 {
		t.Errorf("delivered %v of another log with %d held, want 2, 2", got, a.member.events)
	}
}

func TestExpiredMembers(t *testing.T) {
	t.Parallel()
	tb := newTable(t)
	c := tb.claim(0, 0)
	busy := tb.sit(wide, 100)
	tb.bring(c, 1, 3, 1)
	idle := tb.sit(wide, 100)
	busy.take(-1)
	if got := tb.dealer.expired(time.Now().Add(-time.Hour)); len(got) > 0 {
		t.Errorf("%d members expired at once", len(got))
	}
	got := tb.dealer.expired(time.Now().Add(time.Hour))
	if len(got) != 1 || got[0] == idle.member {
		t.Errorf("%d members expired, want the one that holds something", len(got))
	}
}

// Whatever happens, each event is held by one member or waits, windows are kept,
// and a position never passes what is not acknowledged.
func TestDealerAgainstAModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 7))
		tb := newTable(t)
		acknowledged := map[spot]bool{}
		start := map[int32]int64{}
		for p := range int32(3) {
			tb.claim(p, 0)
		}
		tb.sit(Window{5, 500}, 100)
		for range 400 {
			var someone *player
			if len(tb.players) > 0 {
				someone = tb.players[random.IntN(len(tb.players))]
			}
			c := tb.claims[random.Int32N(3)]
			switch action := random.IntN(20); {
			case action < 6:
				tb.bring(c, uint64(random.IntN(6))*0x9e3779b97f4a7c15, random.IntN(20), 1+random.IntN(99))
			case action < 10 && someone != nil:
				someone.take(random.IntN(20))
			case action < 15 && someone != nil && len(someone.holds) > 0:
				at := someone.holds[random.IntN(len(someone.holds))]
				someone.acknowledge(at)
				acknowledged[at] = true
			case action == 15 && len(tb.players) < 5:
				tb.sit(Window{int64(1 + random.IntN(10)), int64(50 + random.IntN(500))}, 100)
			case action == 16 && someone != nil && len(tb.players) > 1:
				someone.member.Leave()
				tb.players = slices.DeleteFunc(tb.players, func(p *player) bool { return p == someone })
			case action == 17 && someone != nil:
				someone.member.SetWindow(Window{int64(1 + random.IntN(10)), int64(50 + random.IntN(500))})
			case action == 18:
				tb.dealer.end(c)
				at := tb.dealer.abandon(c)
				tb.claim(c.partition, at)
				start[c.partition] = at
			}
			tb.check(seed, acknowledged)
		}
		// All that was brought is delivered in the end.
		for round := 0; ; round++ {
			left := 0
			for _, p := range tb.players {
				p.take(-1)
				left += len(p.holds)
				for _, at := range slices.Clone(p.holds) {
					p.acknowledge(at)
					acknowledged[at] = true
				}
			}
			if left == 0 {
				break
			}
			if round > 10_000 {
				t.Fatalf("seed %d: it does not end", seed)
			}
		}
		for p, c := range tb.claims {
			if c.position() != tb.next[p] || c.queued != 0 || c.bytes != 0 || c.held != 0 {
				t.Fatalf("seed %d: partition %d ends at %d of %d with %d queued (%d bytes), %d held",
					seed, p, c.position(), tb.next[p], c.queued, c.bytes, c.held)
			}
		}
	}
}

func (tb *table) check(seed uint64, acknowledged map[spot]bool) {
	tb.t.Helper()
	held := map[spot]bool{}
	for _, p := range tb.players {
		m := p.member
		var bytes int64
		for at, e := range m.held {
			bytes += int64(len(e.event))
			if e.claim != nil && held[at] {
				tb.t.Fatalf("seed %d: %v is held twice", seed, at)
			}
			held[at] = held[at] || e.claim != nil
		}
		if int64(len(m.held)) != m.events || bytes != m.bytes {
			tb.t.Fatalf("seed %d: a member holds %d (%d bytes) and counts %d (%d)", seed, len(m.held), bytes, m.events, m.bytes)
		}
	}
	for p, c := range tb.claims {
		if c.queued < 0 || c.bytes < 0 || c.held < 0 {
			tb.t.Fatalf("seed %d: partition %d has %d queued (%d bytes), %d held", seed, p, c.queued, c.bytes, c.held)
		}
		for offset := range c.position() {
			if !acknowledged[spot{p, offset}] {
				tb.t.Fatalf("seed %d: position %d of partition %d passes %d", seed, c.position(), p, offset)
			}
		}
	}
}

// What dealing one event costs: to be chosen, given, taken and acknowledged.
func BenchmarkDeal(b *testing.B) {
	for _, members := range []int{1, 10, 100} {
		for _, keyed := range []bool{false, true} {
			b.Run(fmt.Sprintf("members=%d/keyed=%v", members, keyed), func(b *testing.B) {
				g := &group{dealer: newDealer()}
				for range members {
					m := &Member{group: g, window: Window{256, 1 << 30}, subscriber: Subscriber{Notify: func() {}, MaxEvent: 1 << 20}}
					g.dealer.join(m)
				}
				c := g.dealer.begin(0, 0)
				event := make([]byte, 300)
				records := make([]record, batch)
				next := int64(0)
				b.ReportAllocs()
				for n := 0; b.Loop(); n++ {
					if n%batch != 0 {
						continue
					}
					for i := range records {
						records[i] = record{offset: next, key: mix(uint64(next % 1000)), keyed: keyed, event: event}
						next++
					}
					g.dealer.add(c, records)
					for _, m := range g.dealer.members {
						for m.events > 0 {
							var taken []spot
							m.Take(func(partition int32, offset int64, _ []byte) bool {
								taken = append(taken, spot{partition, offset})
								return true
							})
							for _, at := range taken {
								m.Acknowledge(at.partition, at.offset, at.offset)
							}
						}
					}
				}
			})
		}
	}
}
