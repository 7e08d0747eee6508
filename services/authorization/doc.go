// Package authorization answers who somebody is and what they may do: it turns
// credentials (OIDC access tokens, API keys, none) into principals, decides about
// permissions on applications, streams changes that turn decisions, and has an
// administration API on a listener of its own.
//
// Invariants: a denial is an answer, and what could not be decided is an error
// with the status UNAVAILABLE, never a denial. Every change of the store has a
// revision, every answer names the one that it rests on, and both are read and
// written in one transaction.
//
// [Run] owns all goroutines of the service and waits for them.
package authorization
