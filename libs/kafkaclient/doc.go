// Package kafkaclient turns our Kafka settings into a sarama configuration.
//
// It makes no client, because each role of a process (tail reading, catching up,
// coordinator requests, producing, administration) needs one of its own: sarama
// holds a broker's lock for a whole round trip, so that a fetch that waits for
// records holds up every commit of the same client.
package kafkaclient
