// Package server is AuthorizationService on gRPC: it checks requests, asks packages
// credential, policy and watch, and translates. The one place that makes status
// codes is statusOf.
package server
