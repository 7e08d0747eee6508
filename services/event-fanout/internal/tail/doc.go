// Package tail keeps the ends of partitions in memory, decoded and serialised
// once, for any number of readers.
//
// A [Ring] holds the newest events of a partition, from its start to its end; one
// reader of Kafka fills it while somebody is interested. All rings share one
// [Budget] in bytes: the oldest block of any ring goes when it is spent. Who is
// behind the start of a ring reads [Chunk] by [Chunk] through [CatchUp], which
// reads each chunk once for everybody who waits for it.
//
// Both ways read committed records only and decode with the same [Decoder].
// Offsets that hold no event (markers of transactions, aborted and compacted
// records, and what cannot be delivered) are gaps: never an entry, but part of
// what a ring or a chunk covers.
//
// [Tails] and [CatchUp] own their goroutines and wait for them in Close.
package tail
