// Package delivery carries the subscriptions of this frontend over a few streams
// to event-fanout.
//
// # Invariant
//
// A sink gets each event of its subscription once and in the order of offsets
// per partition, however often the stream below breaks: a new stream continues
// with the next offset of each partition and what is not acknowledged yet.
// Nothing of an old stream reaches a sink.
package delivery
