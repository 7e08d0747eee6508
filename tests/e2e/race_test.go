//go:build e2e && race

package e2e_test

// buildFlags are added where our programs are built: with the race detector where
// the tests have it.
var buildFlags = []string{"-race"}
