// Package outbound is the sending half of an MQTT connection.
//
// An [Engine] writes for one connection, one batch at a time: first the control
// packets in the order in which they were given, then PUBLISH packets, taken from
// the queues of the connection's subscriptions in rotation while the window has
// room. The window is the session's: at most so many events and bytes may be
// unacknowledged on the connection, whichever subscription they belong to.
//
// # Goroutines
//
// An idle engine has none. Whoever gives it work starts one, which ends when
// there is nothing left that may be sent. A client that does not read costs the
// write timeout once; then the engine has failed and says so to its owner.
//
// # Locks
//
// The engine's mutex guards its queues too. It is not held across a write, nor
// when an event is acknowledged.
package outbound
