// Command mqi administers the MQTT integration.
package main

import (
	"os"

	"mqtt-integration/services/mqi"
)

func main() { os.Exit(mqi.Main(os.Args[1:], os.Stdout, os.Stderr)) }
