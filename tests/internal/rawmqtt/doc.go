// Package rawmqtt is an MQTT client for tests that no library client can
// replace: it sends any bytes, reads packets one by one with their properties,
// and acknowledges only what it is told to.
//
// Packets are values: Connect, Publish, Subscribe and so on append their bytes
// for a protocol version, [Client.Send] writes them, [Client.Read] returns what
// the server sends as a [Packet]. Nothing is checked on the way out, so that a
// test can break any rule; what comes in is checked, since a malformed packet of
// the server is a fault.
//
// There are no goroutines here. One goroutine may read while another writes.
package rawmqtt
