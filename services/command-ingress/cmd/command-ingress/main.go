// Command command-ingress writes commands of MQTT clients to Kafka.
package main

import (
	"os"

	"mqtt-integration/libs/daemon"
	commandingress "mqtt-integration/services/command-ingress"
)

func main() {
	os.Exit(daemon.Main("command-ingress", commandingress.DefaultConfig, commandingress.Run))
}
