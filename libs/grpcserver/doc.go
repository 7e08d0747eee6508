// Package grpcserver is a gRPC server as all our services run it: health
// service, keep-alive that fits package grpcclient, traces and metrics, and
// interceptors that keep a panic to its call and an internal error inside.
//
// Messages are at most [MaxMessageSize] bytes (4 MiB) in either direction,
// because package grpcclient takes no larger ones; a service that needs another
// limit passes grpc.MaxRecvMsgSize, and its clients the corresponding call option.
//
// [Server.Run] owns all goroutines of the server, those of handlers included. A
// handler of a long-lived stream has to end it by itself when the service stops:
// Run's drain waits for it and cuts it off at the end.
package grpcserver
