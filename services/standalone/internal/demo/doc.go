// Package demo makes what the demonstration needs in authorization: a user who
// owns an application, everyone's right to read it, and an API key. It goes
// through the administration API as any administrator would, so that nothing
// about them is special, and can be repeated: what exists stays as it is.
package demo
