// Package producer writes records to one Kafka topic, idempotent and with
// acks=all, and says of every record what became of it.
//
// Its invariant: every record that Submit accepts gets exactly one outcome, at
// latest at its delivery deadline, and what is accepted is bounded in number and
// bytes until Kafka or sarama has let go of it, retries included.
//
// Records wait in a queue of our own and only a window of them is in sarama's
// hands. What waits in the queue is surely not in Kafka; what sarama has may be.
// A sarama producer that stops making progress is thrown away with its
// connections, and the next one begins when it has let go of everything, so that
// the records of one key keep their order. That also gets rid of what sarama
// remembers of an outage: its circuit breakers refuse records for 10 s after
// Kafka has come back.
//
// Producer.Run owns all goroutines.
package producer
