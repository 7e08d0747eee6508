package event

import "testing"

// An event that is too large is not made here: with the race detector it would
// take gigabytes.
func TestSizesOfLengths(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]int{
		0: 1, 1: 1, 127: 1, 128: 2, 16_383: 2, 16_384: 3, 2_097_151: 3, 2_097_152: 4, maxPacket: 4,
	} {
		if got := varintSize(n); got != want || len(appendVarint(nil, n)) != want {
			t.Errorf("%d takes %d bytes, is counted as %d, want %d", n, len(appendVarint(nil, n)), got, want)
		}
	}
}
