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
// [Client.Run] owns all goroutines: per stream one that connects and sends, one
// that receives, and one that ends what is overdue.
package command
