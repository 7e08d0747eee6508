// Package command carries the commands of this frontend over a few streams to
// command-ingress.
//
// # Invariant
//
// Every command has exactly one result, at its deadline at the latest. Commands
// for one device go over one stream in their order; when it breaks they are sent
// again in this order, with the same id, before any later one.
package command
