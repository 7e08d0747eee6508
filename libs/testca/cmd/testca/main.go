// Command testca makes an authority and certificates for compose files and for
// trying mutual TLS out on one machine:
//
//	testca DIR NAME[=SAN[,SAN…]]…
//
// An authority that is in DIR already is used again. Each NAME becomes NAME.pem
// and NAME-key.pem, for the names behind it or else for NAME itself.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"mqtt-integration/libs/testca"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "testca:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: testca DIR NAME[=SAN[,SAN…]]…")
	}
	dir := args[0]
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // its keys have their own modes
		return err
	}
	ca, err := testca.Load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		ca, err = testca.New(dir)
	}
	if err != nil {
		return err
	}
	for _, arg := range args[1:] {
		name, list, ok := strings.Cut(arg, "=")
		var names []string
		if ok {
			names = strings.Split(list, ",")
		}
		if _, err := ca.Issue(name, testca.Options{Names: names}); err != nil {
			return err
		}
	}
	return nil
}
