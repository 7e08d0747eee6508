// Package discovery knows where the instances of a service are, and says in
// which order they stand for a key.
//
// A [Poller] takes host:port: an IP address is an instance, a name stands for
// all addresses that it has, IPv4 ones where there are any (an instance with an
// address of each kind would count twice otherwise). Names are looked up every
// interval. An empty or failed answer changes nothing, and an address
// that is missing leaves with the second answer without it: one that is missing
// for once has lost nobody their instance.
//
// A [View] is what was known at a moment. [View.Ordered] is rendezvous hashing:
// everybody with the same view finds the same order for a key, and when an
// instance comes or goes only the keys that it is first for move. Hashing is for
// affinity: nothing may depend on two views being the same.
//
// [Poller.Run] is the only goroutine, the caller's.
package discovery
