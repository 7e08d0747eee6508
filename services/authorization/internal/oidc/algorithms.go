package oidc

import "slices"

// algorithms are all that a token may ever be signed with: no symmetric one,
// and not none.
var algorithms = []string{
	"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
}

// Algorithms returns the names of the signature algorithms that can be allowed.
func Algorithms() []string { return slices.Clone(algorithms) }
