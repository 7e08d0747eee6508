package access

import (
	"time"

	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
)

// maxChanges bounds how many changes are remembered one by one.
const maxChanges = 10_000

// denialLifetime is how long a denial is kept: long enough that a client which
// repeats its question in a loop does not become a load of authorization, short
// enough that nobody notices.
const denialLifetime = time.Second

// principal is who somebody is.
type principal struct{ issuer, subject string }

// question is what decisions are kept by.
type question struct {
	identity               Identity // without the name, which decides nothing
	permission             authorizationv1.Permission
	application, shareName string
}

// answer is a decision and what it rests on.
type answer struct {
	decision   Decision
	revision   int64
	lifetime   time.Duration
	at         time.Time // when it was asked for
	generation uint64    // of everything known, when it was asked for
}

// changes remembers, for whatever decisions may depend on, the revision of the
// last change of it. A change is remembered under the most specific thing that it
// names: that drops a few decisions too many, never one too few, and dropping
// needs no walk over the decisions. Not safe for concurrent use.
type changes struct {
	floor        int64 // last change of anything
	principals   map[principal]int64
	credentials  map[string]int64
	applications map[string]int64
}

func newChanges(floor int64) changes {
	return changes{
		floor:        floor,
		principals:   map[principal]int64{},
		credentials:  map[string]int64{},
		applications: map[string]int64{},
	}
}

// add remembers a change.
func (c *changes) add(change *authorizationv1.Change) {
	revision := change.GetRevision()
	who, named := changedPrincipal(change)
	switch {
	case change.GetCredentialId() != "":
		c.credentials[change.GetCredentialId()] = max(revision, c.credentials[change.GetCredentialId()])
	case named:
		c.principals[who] = max(revision, c.principals[who])
	case change.GetApplication() != "":
		c.applications[change.GetApplication()] = max(revision, c.applications[change.GetApplication()])
	default:
		c.floor = max(c.floor, revision)
	}
	if len(c.principals)+len(c.credentials)+len(c.applications) > maxChanges {
		*c = newChanges(max(c.floor, revision))
	}
}

// last returns the revision of the last change that may have turned the answer to
// q; answers with a lower one are void.
func (c *changes) last(q *question) int64 {
	last := max(c.floor, c.principals[principal{q.identity.Issuer, q.identity.Subject}])
	if q.identity.CredentialID != "" {
		last = max(last, c.credentials[q.identity.CredentialID])
	}
	if q.application != "" {
		last = max(last, c.applications[q.application])
	}
	return last
}

// changedPrincipal is whom a change concerns; false: everybody.
func changedPrincipal(change *authorizationv1.Change) (principal, bool) {
	p := principal{change.GetPrincipal().GetIssuer(), change.GetPrincipal().GetSubject()}
	return p, p != principal{}
}

// cache keeps at most size answers: those that were used lately. It has two
// halves: what is used moves to the young one, and when that is full, what is in
// the old one is forgotten. Not safe for concurrent use.
type cache struct {
	half       int
	young, old map[question]answer
}

func newCache(size int) *cache {
	return &cache{half: max(size/2, 1), young: map[question]answer{}, old: map[question]answer{}}
}

func (c *cache) get(q *question) (answer, bool) {
	if a, ok := c.young[*q]; ok {
		return a, true
	}
	a, ok := c.old[*q]
	if ok {
		delete(c.old, *q)
		c.put(q, a)
	}
	return a, ok
}

func (c *cache) put(q *question, a answer) {
	if len(c.young) >= c.half {
		c.old, c.young = c.young, make(map[question]answer, c.half/4)
	}
	c.young[*q] = a
}

func (c *cache) remove(q *question) {
	delete(c.young, *q)
	delete(c.old, *q)
}

func (c *cache) clear() {
	clear(c.young)
	clear(c.old)
}
