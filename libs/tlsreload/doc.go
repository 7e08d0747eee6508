// Package tlsreload reads certificates, keys and authorities from files, and
// reads them again when they change, so that they are renewed without a restart.
//
// Files are looked at when a connection is made, at most once in [Interval], and
// compared by what is in them: that survives renames, the symbolic links that
// Kubernetes swaps, and file systems whose times are coarse. There is no
// goroutine and nothing to close. A set of files that cannot be used (half
// written, a key that is not the certificate's, no authority in it) leaves the
// last good one in place and is logged once. Connections that are there already
// go on with what they began with.
package tlsreload
