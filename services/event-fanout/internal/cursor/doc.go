// Package cursor keeps what a subscription has received from a partition and not
// acknowledged.
//
// Its invariant is the product's: the position of a partition is the first
// unacknowledged event, and moves over nothing else.
package cursor
