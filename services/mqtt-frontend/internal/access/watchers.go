package access

import authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"

// maxApplications bounds the applications that are remembered per principal. One
// that uses more is told of the changes of every application.
const maxApplications = 256

// watchers finds whom a change concerns without a walk over all of them: by
// principal, and by the applications that somebody was allowed to use. Not safe
// for concurrent use.
type watchers struct {
	groups       map[principal]*group
	applications map[string]map[*group]struct{}
	wide         map[*group]struct{} // those who use too many applications
}

// group is the watchers of one principal.
type group struct {
	members      map[*watcher]struct{}
	applications map[string]struct{}
	wide         bool
}

// watcher is one call of Watch.
type watcher struct {
	credentialID string
	changed      func()
}

func newWatchers() watchers {
	return watchers{
		groups:       map[principal]*group{},
		applications: map[string]map[*group]struct{}{},
		wide:         map[*group]struct{}{},
	}
}

func (w *watchers) add(who principal, member *watcher) {
	g := w.groups[who]
	if g == nil {
		g = &group{members: map[*watcher]struct{}{}, applications: map[string]struct{}{}}
		w.groups[who] = g
	}
	g.members[member] = struct{}{}
}

func (w *watchers) remove(who principal, member *watcher) {
	g := w.groups[who]
	if g == nil {
		return
	}
	delete(g.members, member)
	if len(g.members) > 0 {
		return
	}
	delete(w.groups, who)
	delete(w.wide, g)
	for application := range g.applications {
		delete(w.applications[application], g)
		if len(w.applications[application]) == 0 {
			delete(w.applications, application)
		}
	}
}

// uses remembers that a principal was allowed to use an application.
func (w *watchers) uses(who principal, application string) {
	g := w.groups[who]
	if g == nil || application == "" || g.wide {
		return
	}
	if _, ok := g.applications[application]; ok {
		return
	}
	if len(g.applications) >= maxApplications {
		g.wide = true
		w.wide[g] = struct{}{}
		return
	}
	g.applications[application] = struct{}{}
	users := w.applications[application]
	if users == nil {
		users = map[*group]struct{}{}
		w.applications[application] = users
	}
	users[g] = struct{}{}
}

// concerned returns the callbacks of those whose decisions a change may have
// turned.
func (w *watchers) concerned(change *authorizationv1.Change) []func() {
	var calls []func()
	add := func(g *group) {
		for member := range g.members {
			if id := change.GetCredentialId(); id == "" || id == member.credentialID {
				calls = append(calls, member.changed)
			}
		}
	}
	application := change.GetApplication()
	if who, named := changedPrincipal(change); named {
		if g := w.groups[who]; g != nil && (application == "" || g.uses(application)) {
			add(g)
		}
		return calls
	}
	if application != "" {
		for g := range w.applications[application] {
			add(g)
		}
		for g := range w.wide {
			if _, ok := g.applications[application]; !ok {
				add(g)
			}
		}
		return calls
	}
	for _, g := range w.groups {
		add(g)
	}
	return calls
}

func (w *watchers) all() []func() { return w.concerned(&authorizationv1.Change{}) }

func (g *group) uses(application string) bool {
	_, ok := g.applications[application]
	return ok || g.wide
}
