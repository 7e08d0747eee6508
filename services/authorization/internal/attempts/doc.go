// Package attempts bounds failed authentications from a network address, and with
// a login name from an address. A name alone is never limited, so that nobody can
// lock another out.
package attempts
