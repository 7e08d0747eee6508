// Package delivery carries the subscriptions of this frontend over a few streams
// to event-fanout.
//
// # Invariant
//
// A sink gets each event of its subscription once and in the order of offsets
// per partition, however often the stream below breaks: a new stream continues
// with the next offset of each partition and what is not acknowledged yet.
// Nothing of an old stream reaches a sink.
//
// # How it is built
//
// A [Client] has a few lanes per event-fanout, each with at most one stream. A
// session is on one lane; it is attached with its first subscription, and again
// on each new stream. Subscriptions have handles that are good for one stream
// only, so that what an old one still says concerns nobody.
//
// A lane has one goroutine that connects and receives and one that sends, both
// owned by [Client.Run]. Receiving turns a frame, which lists recipients per
// event, into one call per recipient; sending collects acknowledgements into
// ranges. What the caller does only changes books and queues.
package delivery
