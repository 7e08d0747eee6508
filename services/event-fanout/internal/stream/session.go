package stream

import (
	"cmp"
	"context"
	"sync"
	"time"

	"mqtt-integration/libs/naming"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/event-fanout/internal/commit"
)

// key identifies an MQTT session.
type key struct{ issuer, subject, clientID string }

func keyOf(k *eventsv1.SessionKey) key {
	return key{k.GetIssuer(), k.GetSubject(), k.GetClientId()}
}

func (k key) valid() bool { return k.issuer != "" && k.subject != "" && k.clientID != "" }

// epoch orders the CONNECTs of a session.
type epoch struct {
	micros   uint64
	frontend string
}

func epochOf(e *eventsv1.Epoch) epoch { return epoch{e.GetTimeMicros(), e.GetFrontendId()} }

func (e epoch) compare(other epoch) int {
	return cmp.Or(cmp.Compare(e.micros, other.micros), cmp.Compare(e.frontend, other.frontend))
}

func (e epoch) proto() *eventsv1.Epoch {
	return &eventsv1.Epoch{TimeMicros: e.micros, FrontendId: e.frontend}
}

// session is a session that is attached to a stream.
type session struct {
	stream *stream
	handle uint64
	key    key
	group  *commit.Group
	// reattached sessions may have positions in Kafka that we do not know.
	reattached bool
	work       work

	// Guarded by the stream's mu.
	attached      bool // Attached was answered
	ended         bool
	subscriptions map[string]*subscription // by application
	shared        map[uint64]*shared       // by handle
}

// owner is who owns a session, or owned it lately.
type owner struct {
	epoch      epoch
	connection string
	group      *commit.Group // nil once it is given up
	session    *session      // nil while no stream has it
	until      time.Time     // without session: when it is forgotten
}

// owners knows the sessions of this instance.
type owners struct {
	mu       sync.Mutex
	attached int
	sessions map[key]*owner
}

// attaching is what claim says.
type attaching struct {
	status   eventsv1.AttachStatus
	current  epoch         // with SUPERSEDED
	message  string        // with others that are not OK
	previous *session      // whose session it was, on another stream or this one
	resumed  bool          // it is the same connection
	replaced *commit.Group // of another connection, to be deleted
}

// claim makes next the owner of its session, if its epoch is the highest.
func (o *owners) claim(next *session, at epoch, connection string, maxSessions int, newGroup func() *commit.Group) attaching {
	o.mu.Lock()
	defer o.mu.Unlock()
	known := o.sessions[next.key]
	switch {
	case known == nil && (o.attached >= maxSessions || len(o.sessions) >= 2*maxSessions):
		return attaching{status: eventsv1.AttachStatus_ATTACH_STATUS_QUOTA_EXCEEDED, message: "this instance has too many sessions"}
	case known != nil && (at.compare(known.epoch) < 0 || at == known.epoch && connection != known.connection):
		return attaching{status: eventsv1.AttachStatus_ATTACH_STATUS_SUPERSEDED, current: known.epoch}
	}
	result := attaching{status: eventsv1.AttachStatus_ATTACH_STATUS_OK}
	if known != nil {
		result.previous = known.session
		if known.connection == connection && known.group != nil {
			result.resumed = true
			next.group = known.group
		} else {
			result.replaced = known.group
		}
	}
	if next.group == nil {
		next.group = newGroup()
	}
	if result.previous == nil {
		o.attached++
	}
	o.sessions[next.key] = &owner{epoch: at, connection: connection, group: next.group, session: next}
	return result
}

// release says that a session is no longer on its stream. It is remembered for a
// while, with its group if that is kept. False if somebody else owns it already.
func (o *owners) release(s *session, keepGroup bool, until time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	known := o.sessions[s.key]
	if known == nil || known.session != s {
		return false
	}
	o.attached--
	known.session, known.until = nil, until
	if !keepGroup {
		known.group = nil
	}
	return true
}

// expire forgets who has been gone for long enough, and returns their groups.
func (o *owners) expire(now time.Time) []*commit.Group {
	o.mu.Lock()
	defer o.mu.Unlock()
	var groups []*commit.Group
	for k, known := range o.sessions {
		if known.session == nil && now.After(known.until) {
			delete(o.sessions, k)
			if known.group != nil {
				groups = append(groups, known.group)
			}
		}
	}
	return groups
}

// epoch is the highest one that is known of a session.
func (o *owners) epoch(k key) epoch {
	o.mu.Lock()
	defer o.mu.Unlock()
	if known := o.sessions[k]; known != nil {
		return known.epoch
	}
	return epoch{}
}

func (o *owners) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.attached
}

// transientGroup is the consumer group of a connection.
func transientGroup(k key, connection string) string {
	return naming.TransientGroup(k.issuer, k.subject, k.clientID, connection)
}

// maxWork is how much work of a session may wait.
const maxWork = 1024

// work does the work of a session that needs Kafka, one after the other, without a
// goroutine while there is none.
type work struct {
	mu      sync.Mutex
	queue   []func(context.Context)
	running bool
}

// add adds work. False if there is too much of it, unless it must be done.
func (w *work) add(server *Server, must bool, f func(context.Context)) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) >= maxWork && !must {
		return false
	}
	w.queue = append(w.queue, f)
	if !w.running {
		w.running = true
		server.done.Go(func() { w.run(server.ctx) })
	}
	return true
}

func (w *work) run(ctx context.Context) {
	for {
		w.mu.Lock()
		if len(w.queue) == 0 {
			w.queue, w.running = nil, false
			w.mu.Unlock()
			return
		}
		f := w.queue[0]
		w.queue[0] = nil
		w.queue = w.queue[1:]
		w.mu.Unlock()
		f(ctx)
	}
}
