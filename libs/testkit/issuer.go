package testkit

import (
	"testing"

	"mqtt-integration/libs/testkit/issuer"
)

// Issuer starts an OpenID Connect provider that ends with the test.
func Issuer(tb testing.TB, cfg issuer.Config) *issuer.Issuer {
	tb.Helper()
	i, err := issuer.Start(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(i.Close)
	return i
}

// Mint returns an access token of an issuer with these claims over its default
// ones; a nil value leaves a claim out.
func Mint(tb testing.TB, i *issuer.Issuer, claims map[string]any) string {
	tb.Helper()
	token, err := i.Mint(claims)
	if err != nil {
		tb.Fatal(err)
	}
	return token
}
