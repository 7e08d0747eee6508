// Package kafka asks Kafka what sarama's consumers do not: where logs begin and
// end, chunks of a log, and the offsets of groups without members. Requests go
// over pooled connections, those for chunks over connections of their own, since
// a broker answers the requests of one connection one after the other.
//
// No request waits for records. Each ends after a few seconds, and what is
// worth repeating (a coordinator that moved, a broker that is gone) is repeated
// until the caller's context ends. The package starts no goroutine of its own
// besides sarama's, which Close ends.
package kafka
