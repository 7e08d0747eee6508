// Package sqlite is the embedded store, for one replica: a file in WAL mode with
// one writer and a few readers, all in this process. A lock on a file beside it
// keeps other processes out, because a second replica would not hear of changes.
//
// Every change of a decision increments the revision and is written to the table
// of changes in the same transaction. The store starts no goroutines of its own.
package sqlite
