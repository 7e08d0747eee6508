package delivery

const pageBits = 10

// handles finds subscriptions by their handles on a stream. Handles count up and
// are never used again; they are small numbers because every event names its
// recipients by them. What is looked up per recipient is two indexings; a page
// goes with its last subscription. Not safe for concurrent use.
type handles struct {
	last  uint64
	pages []*page
}

type page struct {
	count int
	subs  [1 << pageBits]*Subscription
}

// add gives a subscription its handle.
func (h *handles) add(sub *Subscription) uint64 {
	h.last++
	n := h.last >> pageBits
	for uint64(len(h.pages)) <= n {
		h.pages = append(h.pages, nil)
	}
	if h.pages[n] == nil {
		h.pages[n] = &page{}
	}
	h.pages[n].count++
	h.pages[n].subs[h.last&(1<<pageBits-1)] = sub
	return h.last
}

// get returns the subscription with a handle, or nil.
func (h *handles) get(handle uint64) *Subscription {
	n := handle >> pageBits
	if n >= uint64(len(h.pages)) || h.pages[n] == nil {
		return nil
	}
	return h.pages[n].subs[handle&(1<<pageBits-1)]
}

// remove forgets a handle.
func (h *handles) remove(handle uint64) {
	if h.get(handle) == nil {
		return
	}
	n := handle >> pageBits
	p := h.pages[n]
	p.subs[handle&(1<<pageBits-1)] = nil
	if p.count--; p.count == 0 {
		h.pages[n] = nil
	}
}
