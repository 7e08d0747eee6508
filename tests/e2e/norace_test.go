//go:build e2e && !race

package e2e_test

// buildFlags are added where our programs are built.
var buildFlags []string
