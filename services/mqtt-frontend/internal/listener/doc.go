// Package listener accepts connections and never stops doing so because of an
// error: one that does not mean the end of the listener is waited out. [WebSocket]
// makes connections of WebSockets, without a goroutine of its own.
package listener
