// Package cli is the command line of standalone: flags and configuration, what
// it says while it starts, and what there is to paste once it runs. What is for
// people goes to standard output, the log to standard error.
package cli
