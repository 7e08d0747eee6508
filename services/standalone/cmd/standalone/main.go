// Command standalone runs the whole MQTT integration on one machine.
package main

import (
	"os"

	"mqtt-integration/services/standalone/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }
