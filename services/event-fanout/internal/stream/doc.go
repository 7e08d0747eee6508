// Package stream serves EventsService: it takes events from rings and chunks to
// frontends, and acknowledgements back.
//
// # How events move
//
// Nothing is pushed. Each stream has one goroutine that sends; whenever it is
// free it looks for what can be delivered, fills a frame and sends it. So a
// frontend that does not read stops its own stream, and holds no memory besides
// one frame.
//
// A subscription has a [cursor] per partition. The cursors of a stream on one
// partition form a lane. Those that stand at its head are live: an event is
// serialised once for all of them. The others are ready (there is something to
// read and room in the window), stalled (the window is full) or fetching (a chunk
// is being read for them). Live lanes and ready ones take turns, and so do ready
// lanes among each other.
//
// # Locks
//
// A stream has one mutex for its sessions, subscriptions, lanes and cursors. Under
// it rings, tails, kept chunks and positions are used, which have locks of their
// own and never call back under them. The mutex of the owners of sessions is never
// held together with that of a stream.
package stream
