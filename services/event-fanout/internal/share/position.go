package share

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"mqtt-integration/services/event-fanout/internal/kafka"
)

// metadataPrefix begins the metadata of offsets that are committed here. What
// follows is how many partitions the topic had when the group was positioned.
const metadataPrefix = "partitions="

// origin is what the committed offsets of a group say about its beginning.
type origin struct {
	known      bool  // something is committed
	partitions int32 // of the topic when the group was positioned; 0: somebody else positioned it
}

func originOf(committed map[int32]kafka.Committed) origin {
	o := origin{known: len(committed) > 0}
	for _, c := range committed {
		text, ok := strings.CutPrefix(c.Metadata, metadataPrefix)
		if n, err := strconv.ParseInt(text, 10, 32); ok && err == nil {
			o.partitions = max(o.partitions, int32(n))
		}
	}
	return o
}

// metadata is what is committed with each offset. It stays as it was at the
// beginning, so that a partition that came later can be told from one whose
// position was never committed.
func (o origin) metadata(partitions int) string {
	if !o.known {
		return fmt.Sprint(metadataPrefix, partitions)
	}
	return fmt.Sprint(metadataPrefix, o.partitions)
}

// unplaced are those of the partitions in which the group has no position: which
// of them begin at the end of the log, and which have come later and begin at
// its start.
func unplaced(partitions []int32, committed map[int32]kafka.Committed) (atEnd, atStart []int32) {
	o := originOf(committed)
	for _, p := range partitions {
		if _, ok := committed[p]; ok {
			continue
		}
		if !o.known || p < o.partitions {
			atEnd = append(atEnd, p)
		} else {
			atStart = append(atStart, p)
		}
	}
	slices.Sort(atEnd)
	slices.Sort(atStart)
	return atEnd, atStart
}
