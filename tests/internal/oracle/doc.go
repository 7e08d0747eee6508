// Package oracle says what an event is, by the CloudEvents SDK and nothing of
// ours: what it reads in a Kafka record, and what it reads in the MQTT packet
// that was made from it.
package oracle
