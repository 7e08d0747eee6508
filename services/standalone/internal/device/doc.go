// Package device simulates a device, so that there is something to see: it
// sends its state to the events topic of its application, and obeys commands
// from the command topic by sending another event.
//
// It stands where real devices and their protocol gateways stand, on the other
// side of Kafka, and uses nothing but Kafka.
package device
