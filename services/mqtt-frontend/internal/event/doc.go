// Package event holds one CloudEvent for all the connections of this process that
// it goes to, and encodes each form of its MQTT PUBLISH packet once: only the
// packet identifier, the QoS, the subscription identifier and the note about
// skipped offsets differ per connection, and these are put in when the packet is
// appended to a connection's write buffer.
//
// Everything is safe for concurrent use. The package starts no goroutines.
package event
