package testkit

import (
	"testing"

	"mqtt-integration/libs/internal/freeport"
)

// FreeAddresses returns n addresses of loopback on which nobody listens now, for
// what has to be configured with an address before it listens. No other test of
// the process gets them.
func FreeAddresses(tb testing.TB, n int) []string {
	tb.Helper()
	addresses, err := freeport.Addresses(tb.Context(), n)
	if err != nil {
		tb.Fatal(err)
	}
	return addresses
}
