// Command freeports prints TCP ports of 127.0.0.1 that are free now, one a line.
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
)

func main() {
	count := 1
	if len(os.Args) > 1 {
		n, err := strconv.Atoi(os.Args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, "usage: freeports [count]")
			os.Exit(2)
		}
		count = n
	}
	// All are held until the last is found, so that no port is given twice.
	for range count {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			fmt.Fprintln(os.Stderr, "freeports:", err)
			os.Exit(1)
		}
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			fmt.Fprintln(os.Stderr, "freeports:", err)
			os.Exit(1)
		}
		fmt.Fprintln(os.Stdout, port)
	}
}
