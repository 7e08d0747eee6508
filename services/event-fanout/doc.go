// Package eventfanout is the service that takes events from Kafka to MQTT
// frontends. It reads each partition once however many subscribe to it, keeps
// for every subscription what was delivered and what was acknowledged, and
// commits only the latter, to a consumer group per session.
//
// [Run] owns every goroutine of the service.
package eventfanout
