// Package testkit helps the tests of every module: a Kafka to test against,
// helpers to fill it and to look into it, and a proxy that can cut a client off
// from it.
//
// Kafka(t) is the entry: brokers of a real Kafka when TEST_KAFKA_BROKERS names
// some, else of an emulated one (package embeddedkafka) that lives as long as
// the test. A real Kafka is shared between tests and between runs, so names of
// topics, groups and applications come from UniqueName.
//
// NewProxy stands between a client and its brokers and can be cut, stalled and
// restored; it follows what brokers advertise, so it works for the emulated and
// for a real Kafka. Package issuer is an OIDC provider.
//
// Everything that a test starts here ends with the test; helpers call
// t.Fatal, so they belong to the test's own goroutine.
package testkit
