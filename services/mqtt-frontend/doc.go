// Package mqttfrontend is the service that MQTT clients connect to. It knows MQTT
// and no Kafka: who somebody is and what they may do it asks authorization, events
// come from event-fanout, and commands go to command-ingress.
package mqttfrontend
