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
// A share subscription gets what its group gives it, in any order; when the stream
// breaks, what it has not acknowledged comes again, to it or to another one.
//
// # Instances
//
// Addresses are a polled view. A session goes to the instance that rendezvous
// hashing finds for it, which is the same for all frontends, and stays there when
// instances are added. It moves when its instance leaves the view, asks for it or
// has had no stream for half a second, while another one has.
// Share subscriptions go to the instance of their group, and when instances have
// neither come nor gone for ten seconds, those that are elsewhere are moved there.
//
// # How it is built
//
// A [Client] has a few lanes per event-fanout, each with at most one stream. A
// session is on one lane at a time; it is attached with its first subscription,
// and again on each new stream. Subscriptions have handles that are good for one
// stream only, so that what an old one still says concerns nobody.
//
// A lane has one goroutine that connects and receives and one that sends; they
// and the one that moves sessions are owned by [Client.Run]. Receiving turns a
// frame, which lists recipients per event, into one call per recipient; sending
// collects acknowledgements into ranges. What the caller does only changes books
// and queues.
package delivery
