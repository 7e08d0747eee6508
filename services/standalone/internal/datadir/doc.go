// Package datadir is the directory that standalone keeps its data in: one
// process at a time, readable for its owner only, with secrets in files of
// their own.
package datadir
