// Package kafkatrace carries trace context in the headers of Kafka records,
// under the names of W3C ("traceparent", "tracestate", "baggage").
//
// These headers are about the transport. The CloudEvents extensions of the same
// name ("ce_traceparent") belong to the producer and are never touched here.
package kafkatrace
