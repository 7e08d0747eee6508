// Package e2e has the end-to-end tests: the programs as users start them, and
// clients that we did not write: mosquitto's, the Paho clients for MQTT 3.1.1 and
// 5, and the CloudEvents SDK, which says what the events are. The tests have the
// build tag e2e.
//
// Tests that need mosquitto are skipped where it is not installed, except with
// CI=true.
package e2e
