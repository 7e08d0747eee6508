// Package command carries the commands of this frontend over a few streams to
// command-ingress.
//
// # Invariant
//
// Every command has exactly one result, at its deadline at the latest. Commands
// for one device go over one stream in their order; when it breaks they are sent
// again in this order, with the same id, before any later one.
//
// # What a result is worth
//
// A command that was on a stream that broke may be in Kafka. If the attempt after
// it does not succeed, its outcome is unknown, whatever that attempt says; only
// what was never sent is reported as unavailable.
//
// # Instances
//
// Addresses are a polled view. Each lane, which is the commands of some devices,
// has a stream to one instance and tries them in an order of its own: another
// one at once when a stream breaks or its instance asks for it, and the first one
// again when that can be reached. On purpose a stream is left only after its last
// result, so that nothing is overtaken.
//
// [Client.Run] owns all goroutines: per lane one that connects and receives, one
// that sends, and one that ends what is overdue; and one that follows the view.
package command
