// Package store has the types and errors that every store of the service shares.
// The stores are packages below it, their conformance suite is storetest, and the
// interfaces are declared by those who use them.
package store
