// Package wire is MQTT on a connection: everything that knows the MQTT library
// (github.com/mochi-mqtt/server/v2) is in here, so that it could be exchanged.
//
// The library decodes CONNECT, SUBSCRIBE, UNSUBSCRIBE, PUBLISH and DISCONNECT,
// encodes what answers them and answers PINGREQ. It routes nothing and keeps
// nothing: the hook OnPacketRead hands each packet to the connection's [Handler]
// and gives the library one that it ignores.
//
// Between the socket and the library sits a guard. It cuts the stream into
// packets, refuses what the specification refuses (the library's codec does not,
// or panics), and keeps it all within the announced size. PUBACK, the packet that
// comes once per delivered event, it hands to the handler directly. What the
// library writes goes to the connection's [outbound.Engine], which is the only
// one that writes to the socket.
//
// # Goroutines
//
// [Server.Serve] runs a connection on the goroutine of its caller and returns
// when nothing is left of it; the library has a second one per connection until
// then. A panic ends the connection, not the process.
package wire
