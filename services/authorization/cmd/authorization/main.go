// Command authorization runs the authorization service of the MQTT integration.
package main

import (
	"os"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/services/authorization"
)

func main() { os.Exit(daemon.Main("authorization", authorization.DefaultConfig, authorization.Run)) }
