// Command event-fanout delivers the events of Kafka topics to MQTT frontends.
package main

import (
	"os"

	"mqtt-integration/libs/daemon"
	eventfanout "mqtt-integration/services/event-fanout"
)

func main() {
	os.Exit(daemon.Main("event-fanout", eventfanout.DefaultConfig, eventfanout.Run))
}
