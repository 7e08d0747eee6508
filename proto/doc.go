// Package proto is the root of the module that holds the gRPC interfaces between the services: sources in
// mqttintegration, generated code in gen. It depends on gRPC and Protocol Buffers and nothing else.
package proto
