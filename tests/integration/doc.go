// Package integration has the integration tests: the whole system in one
// process, on the emulated Kafka and on a real one, with clients that follow the
// protocol and clients that do not. They show the promises of the system. The
// tests have the build tag integration.
package integration
