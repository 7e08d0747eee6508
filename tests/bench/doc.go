// Package bench measures the whole system: how fast a backlog drains, what an
// event costs that many receive, and what a command costs.
//
// The services run in the process of the benchmark, alone, so that its processor
// time is theirs: clients, producer and the embedded Kafka (unless
// TEST_KAFKA_BROKERS names a real one) run in processes of their own, which are
// this program once more. All of them share the machine, so the rates are lower
// bounds; cpu-us/event and cpu-us/delivery are what to compare.
package bench
