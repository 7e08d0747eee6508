// Package server is CommandsService: it takes commands from the streams of
// frontends, hands their records to a publisher and returns one result for each.
//
// Its invariants: a stream holds at most a bounded number of commands and results,
// and when its frontend does not read results, its commands are not read either.
// Commands of one stream reach the publisher in their order.
//
// The handler of a stream owns the stream's goroutines; the one that reads ends
// as soon as gRPC has taken the stream down.
package server
