package share

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"mqtt-integration/services/event-fanout/internal/kafka"
)

func TestWherePartitionsWithoutPositionBegin(t *testing.T) {
	t.Parallel()
	of := func(metadata string, partitions ...int32) map[int32]kafka.Committed {
		committed := map[int32]kafka.Committed{}
		for _, p := range partitions {
			committed[p] = kafka.Committed{Offset: 1, Metadata: metadata}
		}
		return committed
	}
	for _, tt := range []struct {
		name           string
		committed      map[int32]kafka.Committed
		partitions     []int32
		atEnd, atStart []int32
	}{
		{"new group", nil, []int32{0, 1}, []int32{0, 1}, nil},
		{"positioned", of("partitions=2", 0, 1), []int32{0, 1}, nil, nil},
		{"another member positions it", of("partitions=4", 0, 1), []int32{3, 2}, []int32{2, 3}, nil},
		{"the topic has grown", of("partitions=2", 0, 1), []int32{0, 1, 2, 3}, nil, []int32{2, 3}},
		{"it grew while a member was lost", of("partitions=2", 0), []int32{1, 2}, []int32{1}, []int32{2}},
		{"reset by hand", of("", 0), []int32{0, 1}, nil, []int32{1}},
	} {
		atEnd, atStart := unplaced(tt.partitions, tt.committed)
		if diff := cmp.Diff([][]int32{tt.atEnd, tt.atStart}, [][]int32{atEnd, atStart}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		// What is committed then says the same to others.
		if m := originOf(tt.committed).metadata(4); len(tt.committed) > 0 && tt.committed[0].Metadata != "" && m != tt.committed[0].Metadata {
			t.Errorf("%s: metadata %q, want that of the others", tt.name, m)
		}
	}
}
