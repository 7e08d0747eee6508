// Package share serves shared subscriptions: each event of an application to one
// subscriber of a group, whatever instance the subscriber is on.
//
// # Invariant
//
// An offset is committed only when every event below it was acknowledged, or
// cannot be delivered. A group is positioned before its first subscriber is told
// so: where nothing was committed, the end of the log is, and it is read back.
//
// # How it is built
//
// A group is a Kafka consumer group. This instance is one member of it, through a
// sarama.ConsumerGroup with a client of its own, while it has subscribers. What the
// member's claims bring is dealt to the subscribers: all events with the same record
// key to the same one, as long as nobody comes or goes. A claim never waits for a
// subscriber; it pauses its fetching when too much is waiting.
//
// A [Hub] owns the goroutines of its groups; each group ends after its last
// subscriber left, and Close waits for all of them.
//
// Locks: that of the hub and that of a group's dealer are never held together.
// [Subscriber.Notify] is called under the dealer's.
package share
