package session

import "sync"

// maxWork is how many SUBSCRIBE and UNSUBSCRIBE packets of a connection may wait
// before nothing more is read from it.
const maxWork = 16

// work runs what it is given one after the other.
type work struct {
	mu      sync.Mutex
	changed sync.Cond // less is waiting, or closed
	waiting []func()
	running bool
	closed  bool
}

func (w *work) init() { w.changed.L = &w.mu }

// add queues f, and blocks while the queue is full. start is called, with the
// function that works the queue off, when nobody does so.
func (w *work) add(f func(), start func(func()) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.waiting) >= maxWork && !w.closed {
		w.changed.Wait()
	}
	if w.closed {
		return
	}
	w.waiting = append(w.waiting, f)
	if !w.running {
		w.running = start(w.loop)
	}
}

func (w *work) loop() {
	for {
		w.mu.Lock()
		if len(w.waiting) == 0 || w.closed {
			w.running = false
			w.waiting = nil
			w.mu.Unlock()
			return
		}
		f := w.waiting[0]
		w.waiting = w.waiting[1:]
		w.changed.Signal()
		w.mu.Unlock()
		f()
	}
}

// close drops what has not begun.
func (w *work) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.waiting = nil
	w.changed.Broadcast()
}
