// Package grpcclient makes the gRPC connections between our services: keep-alive
// that fits package grpcserver, quick reconnection, calls spread over several
// servers, traces and metrics.
//
// A connection is lazy: it is made with the first call. Whether a call waits for
// it (grpc.WaitForReady) is for each call to say; without it a call fails with
// Unavailable while no server can be reached.
package grpcclient
