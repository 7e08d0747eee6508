// Package session is what an MQTT connection means here: who it is, what it is
// subscribed to, and which commands it sends.
//
// A [Manager] makes a session for each connection and knows all of them, by
// principal and client identifier, so that the newest connection of a session
// ends the earlier one. A session is the [wire.Handler] of its connection.
//
// # Order
//
// SUBSCRIBE and UNSUBSCRIBE are worked off one after the other, by a goroutine
// that lives while there are some. PUBLISH packets are authorized in the reading
// goroutine, and sent on without waiting for the result; their acknowledgements
// leave in the order of the packets, whatever the order of the results.
//
// # Access
//
// A session watches what concerns its principal. When something may have turned
// a decision, all of them are asked for again, and a session that has lost one
// is ended.
package session
