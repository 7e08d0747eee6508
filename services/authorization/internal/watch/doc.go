// Package watch streams changes to those who keep decisions.
//
// A watch has no queue: it reads from the store at the pace of its receiver and
// waits for the store's announcement in between, so a slow receiver costs one
// goroutine and can at worst be told to start over. It runs in the goroutine of
// its caller.
package watch
