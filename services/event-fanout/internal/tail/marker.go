package tail

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/IBM/sarama"
)

var errMarker = errors.New("control record without a type")

const abortMarker = 0

// markerOf is the type of a control batch, which has one record. Its key is a
// version and a type, two bytes each.
func markerOf(batch *sarama.RecordBatch) (int16, error) {
	if len(batch.Records) == 0 || len(batch.Records[0].Key) < 4 {
		return 0, errMarker
	}
	return int16(binary.BigEndian.Uint16(batch.Records[0].Key[2:])), nil //nolint:gosec // as in the protocol
}

func sortByFirstOffset(transactions []*sarama.AbortedTransaction) {
	slices.SortFunc(transactions, func(a, b *sarama.AbortedTransaction) int {
		return cmp.Compare(a.FirstOffset, b.FirstOffset)
	})
}
