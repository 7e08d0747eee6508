// Command mqtt-frontend runs the service that MQTT clients connect to.
package main

import (
	"os"

	"mqtt-integration/libs/daemon"
	mqttfrontend "mqtt-integration/services/mqtt-frontend"
)

func main() {
	os.Exit(daemon.Main("mqtt-frontend", mqttfrontend.DefaultConfig, mqttfrontend.Run))
}
