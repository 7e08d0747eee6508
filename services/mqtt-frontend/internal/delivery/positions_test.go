package delivery_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
)

func TestPositions(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		receive []int64
		ack     []int64
		want    string // acknowledgements to send
		resume  string // next offset, and what is not acknowledged
	}{
		{name: "nothing", resume: "0"},
		{name: "received", receive: []int64{3, 4, 5}, resume: "6 3-5"},
		{name: "in order", receive: []int64{3, 4, 5}, ack: []int64{3, 4, 5}, want: "0:3-5", resume: "6"},
		{name: "in order over gaps", receive: []int64{3, 6, 9}, ack: []int64{3, 6}, want: "0:3-6", resume: "10 9-9"},
		{name: "not over what is not acknowledged", receive: []int64{3, 4, 5}, ack: []int64{3, 5}, want: "0:3-3 0:5-5", resume: "6 4-4"},
		{name: "backwards", receive: []int64{3, 4}, ack: []int64{4, 3}, want: "0:4-4 0:3-3", resume: "5"},
		{name: "twice", receive: []int64{3, 4}, ack: []int64{3, 3, 4, 4}, want: "0:3-4", resume: "5"},
		{name: "never received", receive: []int64{3, 5}, ack: []int64{4, 2, 99}, resume: "6 3-3 5-5"},
		{name: "the middle of a run", receive: []int64{1, 2, 3, 4}, ack: []int64{2, 3}, want: "0:2-3", resume: "5 1-1 4-4"},
		{name: "a topic that began anew", receive: []int64{100, 101, 0, 1}, ack: []int64{100, 0}, want: "0:0-0", resume: "2 1-1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var p delivery.Positions
			if len(tt.receive) == 0 {
				p.Start(&eventsv1.Position{})
			}
			for _, offset := range tt.receive {
				p.Receive(0, offset)
			}
			for _, offset := range tt.ack {
				p.Acknowledge(0, offset)
			}
			if got := strings.Join(p.Take(), " "); got != tt.want {
				t.Errorf("acknowledgements = %q, want %q", got, tt.want)
			}
			if got := p.Take(); got != nil {
				t.Errorf("acknowledgements again = %q, want none", got)
			}
			if got := describe(p.Resume().GetPositions()[0]); got != tt.resume {
				t.Errorf("resume = %q, want %q", got, tt.resume)
			}
		})
	}
}

func describe(p *eventsv1.ResumePosition) string {
	all := []string{strconv.FormatInt(p.GetNextOffset(), 10)}
	for _, r := range p.GetUnacknowledged() {
		all = append(all, fmt.Sprintf("%d-%d", r.GetFirst(), r.GetLast()))
	}
	return strings.Join(all, " ")
}

// TestPositionsAgainstAModel compares with sets of offsets.
func TestPositionsAgainstAModel(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var p delivery.Positions
		next := map[int32]int64{}
		outstanding := map[int32]map[int64]bool{} // false: acknowledged
		sent := map[int32]map[int64]bool{}
		for range 500 {
			id := int32(random.IntN(3)) * 2 // with gaps in the numbers
			switch random.IntN(5) {
			case 0, 1:
				offset := next[id] + random.Int64N(3)
				next[id] = offset + 1
				p.Receive(id, offset)
				if outstanding[id] == nil {
					outstanding[id], sent[id] = map[int64]bool{}, map[int64]bool{}
				}
				outstanding[id][offset] = true
			case 2, 3:
				if next[id] == 0 {
					continue
				}
				offset := max(0, next[id]-random.Int64N(8))
				if got, want := p.Acknowledge(id, offset), outstanding[id][offset]; got != want {
					t.Fatalf("Acknowledge(%d, %d) = %t, want %t", id, offset, got, want)
				} else if want {
					outstanding[id][offset] = false
				}
			default:
				for _, text := range p.Take() {
					var id int32
					var first, last int64
					if _, err := fmt.Sscanf(text, "%d:%d-%d", &id, &first, &last); err != nil {
						t.Fatal(err)
					}
					for offset := first; offset <= last; offset++ {
						if waiting, delivered := outstanding[id][offset]; delivered && waiting {
							t.Fatalf("%s acknowledges %d, which is not", text, offset)
						}
						sent[id][offset] = true
					}
				}
			}
		}
		for _, text := range p.Take() {
			var id int32
			var first, last int64
			if _, err := fmt.Sscanf(text, "%d:%d-%d", &id, &first, &last); err != nil {
				t.Fatal(err)
			}
			for offset := first; offset <= last; offset++ {
				sent[id][offset] = true
			}
		}
		for id, offsets := range outstanding {
			for offset, waiting := range offsets {
				if !waiting && !sent[id][offset] {
					t.Fatalf("%d of partition %d is acknowledged and was not sent", offset, id)
				}
			}
		}
		for _, position := range p.Resume().GetPositions() {
			id := position.GetPartition()
			got := map[int64]bool{}
			for _, r := range position.GetUnacknowledged() {
				for offset := r.GetFirst(); offset <= r.GetLast(); offset++ {
					got[offset] = true
				}
			}
			want := map[int64]bool{}
			for offset, waiting := range outstanding[id] {
				if waiting {
					want[offset] = true
				}
			}
			if diff := cmp.Diff(want, got); diff != "" || position.GetNextOffset() != next[id] {
				t.Fatalf("resume at %d, want %d; unacknowledged (-want +got):\n%s", position.GetNextOffset(), next[id], diff)
			}
		}
	}
}
