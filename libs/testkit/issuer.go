package testkit

import (
	"testing"

	"mqtt-integration/libs/testkit/issuer"
)

// Issuer starts an OpenID Connect provider that ends with the test.
func Issuer(t testing.TB, cfg issuer.Config) *issuer.Issuer {
	t.Helper()
	i, err := issuer.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	return i
}

// Mint returns an access token of an issuer with these claims over its default
// ones; a nil value leaves a claim out.
func Mint(t testing.TB, i *issuer.Issuer, claims map[string]any) string {
	t.Helper()
	token, err := i.Mint(claims)
	if err != nil {
		t.Fatal(err)
	}
	return token
}
