package discovery

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strings"
)

// Instance is one process of a service.
type Instance struct {
	// Address is IP address and port.
	Address string
	// Name is the host as it was configured: what certificates are for.
	Name string
}

// View is the instances that were known at a moment. It does not change, and is
// safe for concurrent use. The zero value is empty.
type View struct {
	instances []Instance // by address
	err       error
}

// NewView is a view of these instances, with the first name of each address.
func NewView(instances ...Instance) *View {
	v := &View{instances: slices.Clone(instances)}
	slices.SortStableFunc(v.instances, func(a, b Instance) int { return strings.Compare(a.Address, b.Address) })
	v.instances = slices.CompactFunc(v.instances, func(a, b Instance) bool { return a.Address == b.Address })
	return v
}

// Instances are all, ordered by address. Do not change the slice.
func (v *View) Instances() []Instance { return v.instances }

// Err says why the view is empty; nil if it is not, or if nobody has looked yet.
func (v *View) Err() error { return v.err }

// Has says whether there is an instance with the address.
func (v *View) Has(address string) bool {
	_, found := slices.BinarySearchFunc(v.instances, address, func(i Instance, a string) int {
		return strings.Compare(i.Address, a)
	})
	return found
}

// Pick is the first of Ordered; false if the view is empty.
func (v *View) Pick(key ...string) (Instance, bool) {
	var first Instance
	var highest uint64
	for i, instance := range v.instances {
		if h := Hash(instance.Address, key...); i == 0 || h > highest {
			first, highest = instance, h
		}
	}
	return first, len(v.instances) > 0
}

// Ordered is all instances in the order in which they stand for the key: if the
// first one cannot be reached the second one takes its place, and so on. The
// slice is the caller's.
func (v *View) Ordered(key ...string) []Instance {
	type weighed struct {
		Instance

		hash uint64
	}
	all := make([]weighed, len(v.instances))
	for i, instance := range v.instances {
		all[i] = weighed{instance, Hash(instance.Address, key...)}
	}
	slices.SortStableFunc(all, func(a, b weighed) int { return cmp.Compare(b.hash, a.hash) })
	ordered := make([]Instance, len(all))
	for i := range all {
		ordered[i] = all[i].Instance
	}
	return ordered
}

// Hash is the weight of the parts together, the same in every process and every
// release: instances of several releases have to agree.
func Hash(part string, more ...string) uint64 {
	h := fnv.New64a()
	for i := range 1 + len(more) {
		if i > 0 {
			part = more[i-1]
		}
		_, _ = h.Write([]byte(part)) // never fails
		_, _ = h.Write([]byte{0})
	}
	// FNV leaves the high bits of similar inputs alike: mix them.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}

func (v *View) equal(other *View) bool {
	return slices.Equal(v.instances, other.instances)
}
