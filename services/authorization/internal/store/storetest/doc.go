// Package storetest is the conformance suite of the stores: what package sqlite
// passes today, every other store has to pass as it is.
package storetest
