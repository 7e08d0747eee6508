// Package commandingress is the service that writes the commands of MQTT clients
// to Kafka. A result OK means that Kafka has the record, with acks=all; every
// command gets one result, at latest at its delivery deadline, whatever state
// Kafka is in.
//
// [Run] owns every goroutine of the service.
package commandingress
