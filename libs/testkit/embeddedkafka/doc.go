// Package embeddedkafka runs an emulated Kafka in this process, for tests and
// for trying things out. It wraps kfake, which speaks the Kafka protocol well
// enough for ordinary clients (idempotent producers, consumer groups,
// transactions) and can keep its log and its groups in a directory.
//
// It is not for production: one process, one copy of the data, no
// authentication. It listens on loopback only, and says so with an error when
// asked for anything else.
//
// Start returns a Cluster that serves until Close. Its goroutines end with
// Close, except Run, which belongs to its caller.
package embeddedkafka
