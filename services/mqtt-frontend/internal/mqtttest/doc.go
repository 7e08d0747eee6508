// Package mqtttest is an MQTT client for tests that says exactly what it is told,
// legal or not, and holds every packet that it gets against the specification.
package mqtttest
