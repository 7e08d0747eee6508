// Package cloudevent is the codec of the hot path: a Kafka record becomes an
// [Event], an Event travels between our services in its wire form, and leaves as
// the payload of an MQTT packet.
//
//	Kafka record ── Decode ──► Event ── AppendWire ──► bytes ── ParseWire ──► Event
//	                             │                                             │
//	                             └────────── AppendStructured, Binary ◄────────┘
//
// Nothing is reformatted on the way: numbers, times, the order of keys and
// attributes that we do not know survive as they were. A record that already is
// a structured CloudEvent 1.0 goes through byte for byte.
//
// # Memory
//
// Events hold views into the bytes they were made from, the record or the wire
// form, and so keep those alive. Whoever owns these bytes must not change them
// while an event that was made from them is in use. An Event is safe for
// concurrent use as long as nobody changes it; [Event.Expand] changes it.
//
// # Hostile input
//
// Records come from anyone who may write to an events topic. No record panics,
// and the cost of decoding one is linear in its size.
//
// The CloudEvents SDK is what the tests compare this package with.
package cloudevent
