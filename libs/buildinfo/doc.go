// Package buildinfo says which build is running.
//
// Release builds stamp the version with
//
//	-ldflags "-X mqtt-integration/libs/buildinfo.version=v1.2.3"
//
// because a tag at the root of the repository does not version the modules
// below it. Without the stamp the answer comes from what the Go toolchain
// recorded in the binary.
package buildinfo
