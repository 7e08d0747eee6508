// Package oidc verifies access tokens of OIDC providers and says whose they are.
//
// The claim iss, before it is verified, only chooses the provider whose keys are
// tried. go-oidc does discovery, the signature with our key set and the issuer;
// audience, times and what tells an access token from an ID token are checked
// here, because go-oidc is made for ID tokens and has other leeways.
//
// A provider that cannot be reached makes its own tokens undecidable
// (ErrUnavailable) and nothing else. [Verifier.Run] owns one goroutine per
// provider, the only one that talks to it: it discovers with back-off, refreshes
// the keys, and fetches them sooner, at a bounded rate, for a token whose key is
// not known.
package oidc
