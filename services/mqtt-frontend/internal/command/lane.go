package command

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
)

const (
	// maxBatch is how many commands go into one frame.
	maxBatch = 1000
	// maxFrame is how many bytes of commands go into one frame, unless it is one
	// larger command.
	maxFrame = 64 << 10
)

// lane is the commands of the devices that share a stream, in their order. It
// outlives the streams, which may be to different instances.
type lane struct {
	client *Client
	number int

	// Of the goroutine that connects.
	tried int       // streams that broke since the preferred instance was chosen
	broke time.Time // when the last one did

	maxRecord atomic.Int64  // 0: not known
	wake      chan struct{} // there may be something to send
	refusals  chan struct{} // there are refused commands

	mu          sync.Mutex
	closed      bool
	drained     chan struct{} // when closed: closed when nothing is left
	head, tail  *entry        // without a result
	next        *entry        // first one that was not sent on this stream
	waiting     map[uint64]*entry
	overdue     int // entries of waiting that were given up
	maxInFlight int // 0: there is no stream
	refused     []refusal
	giveUp      func() // ends the stream, when there is one
}

// entry is a command without a result.
type entry struct {
	prev, next  *entry
	correlation uint64
	wire        []byte // as an element of CommandBatch
	size        int64
	deadline    time.Time
	done        func(Result) // nil once it was given up
	sent        bool         // on this stream
	doubtful    bool         // it was on a stream that broke
}

// refusal is a command that was not taken.
type refusal struct {
	done   func(Result)
	result Result
}

func newLane(c *Client, number int) *lane {
	return &lane{
		client: c, number: number,
		wake:     make(chan struct{}, 1),
		refusals: make(chan struct{}, 1),
		waiting:  map[uint64]*entry{},
	}
}

// push appends a command, unless the client has ended.
func (l *lane) push(e *entry) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	e.prev = l.tail
	if l.tail == nil {
		l.head = e
	} else {
		l.tail.next = e
	}
	l.tail = e
	if l.next == nil {
		l.next = e
	}
	l.mu.Unlock()
	signal(l.wake)
	return true
}

// refuse gives a command a result at once, but from another goroutine. The list
// needs no bound of its own: it holds one function per call, and is emptied
// without waiting for anything.
func (l *lane) refuse(done func(Result), result Result) {
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.refused = append(l.refused, refusal{done, result})
	}
	l.mu.Unlock()
	if closed {
		go l.client.finish(context.Background(), done, result)
		return
	}
	signal(l.refusals)
}

// unlink removes an entry that has got its result. The caller holds mu.
func (l *lane) unlink(e *entry) {
	if l.next == e {
		l.next = e.next
	}
	if e.prev == nil {
		l.head = e.next
	} else {
		e.prev.next = e.next
	}
	if e.next == nil {
		l.tail = e.prev
	} else {
		e.next.prev = e.prev
	}
	e.prev, e.next = nil, nil
	l.client.release(e.size)
	if l.drained != nil && l.head == nil {
		close(l.drained)
		l.drained = nil
	}
}

// frame takes the commands that go into the next frame. It is empty when there
// are none or the server has enough.
func (l *lane) frame() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	first, count, size := l.next, 0, 0
	for e := first; e != nil && count < maxBatch && len(l.waiting) < l.maxInFlight; e = e.next {
		if count > 0 && size+len(e.wire) > maxFrame {
			break
		}
		count++
		size += len(e.wire)
		e.sent = true
		l.waiting[e.correlation] = e
	}
	if count == 0 {
		return nil
	}
	frame := make([]byte, 0, 1+protowire.SizeBytes(size))
	frame = protowire.AppendTag(frame, fieldCommands, protowire.BytesType)
	frame = protowire.AppendVarint(frame, uint64(size))
	e := first
	for range count {
		frame = append(frame, e.wire...)
		e = e.next
	}
	l.next = e
	return frame
}

// begin takes up a stream, on which nothing was sent yet.
func (l *lane) begin(hello *commandsv1.ServerHello, giveUp func()) {
	l.mu.Lock()
	l.giveUp = giveUp
	l.mu.Unlock()
	l.limits(hello)
}

// limits takes in what the server says about itself.
func (l *lane) limits(hello *commandsv1.ServerHello) {
	l.maxRecord.Store(hello.GetMaxRecordBytes())
	l.mu.Lock()
	l.maxInFlight = int(hello.GetMaxInFlight())
	if l.maxInFlight == 0 {
		l.maxInFlight = maxBatch
	}
	l.mu.Unlock()
	signal(l.wake)
}

// end is called when a stream has ended: what has no result is sent again, in the
// order in which it was published.
func (l *lane) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.head; e != nil && e != l.next; e = e.next {
		e.doubtful = e.doubtful || e.sent
		e.sent = false
	}
	l.next = l.head
	l.maxInFlight, l.overdue = 0, 0
	l.giveUp = nil
	clear(l.waiting)
}

// settle takes the results of a frame.
func (l *lane) settle(ctx context.Context, results []*commandsv1.Result) {
	type outcome struct {
		done   func(Result)
		result Result
	}
	outcomes := make([]outcome, 0, len(results))
	l.mu.Lock()
	for _, r := range results {
		e, ok := l.waiting[r.GetCorrelation()]
		if !ok {
			continue
		}
		delete(l.waiting, r.GetCorrelation())
		if e.done == nil {
			l.overdue--
			continue
		}
		outcomes = append(outcomes, outcome{e.done, judge(e, r)})
		l.unlink(e)
	}
	l.mu.Unlock()
	signal(l.wake) // the server takes more now
	for _, o := range outcomes {
		l.client.finish(ctx, o.done, o.result)
	}
}

// judge says what a result means for a command.
func judge(e *entry, r *commandsv1.Result) Result {
	result := Result{Status: r.GetStatus(), Message: r.GetMessage()}
	switch r.GetStatus() {
	case commandsv1.ResultStatus_RESULT_STATUS_UNSPECIFIED:
		return unknownOutcome
	case commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE,
		commandsv1.ResultStatus_RESULT_STATUS_RESOURCE_EXHAUSTED,
		commandsv1.ResultStatus_RESULT_STATUS_QUOTA_EXCEEDED:
		if e.doubtful {
			// That is true of this attempt only.
			return unknownOutcome
		}
	default:
	}
	return result
}

var (
	unknownOutcome = Result{commandsv1.ResultStatus_RESULT_STATUS_UNKNOWN_OUTCOME, "it is not known whether it was written"}
	notSent        = Result{commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE, "command-ingress cannot be reached"}
)

func (e *entry) lost() Result {
	if e.sent || e.doubtful {
		return unknownOutcome
	}
	return notSent
}

// expire ends what is overdue, and tells those that were refused, until ctx ends.
func (l *lane) expire(ctx context.Context) {
	timer := time.NewTimer(l.client.cfg.Deadline)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-l.refusals:
		}
		ended, next := l.overdueNow(time.Now())
		for _, r := range ended {
			l.client.finish(ctx, r.done, r.result)
		}
		timer.Reset(next)
	}
}

// overdueNow takes out what has to end now, and says when to look again.
func (l *lane) overdueNow(now time.Time) (ended []refusal, next time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ended, l.refused = l.refused, nil
	// All have the same time to live: the first ones are overdue first.
	for l.head != nil && !l.head.deadline.After(now) {
		e := l.head
		ended = append(ended, refusal{e.done, e.lost()})
		l.unlink(e)
		if e.sent {
			l.overdue++ // the server still counts it
		}
		e.done, e.wire = nil, nil
	}
	if l.overdue > 0 && l.overdue >= l.maxInFlight && l.giveUp != nil {
		// It answers nothing any more, and would never take anything either.
		l.giveUp()
	}
	if l.head == nil {
		return ended, l.client.cfg.Deadline
	}
	return ended, l.head.deadline.Sub(now)
}

// drain takes no more commands. The channel is closed when none is left.
func (l *lane) drain() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	drained := l.drained
	if drained == nil {
		drained = make(chan struct{})
		if l.head == nil {
			close(drained)
		} else {
			l.drained = drained
		}
	}
	return drained
}

// abandon ends all that is left.
func (l *lane) abandon(ctx context.Context) {
	l.mu.Lock()
	ended := l.refused
	l.refused = nil
	for l.head != nil {
		e := l.head
		ended = append(ended, refusal{e.done, e.lost()})
		l.unlink(e)
	}
	l.mu.Unlock()
	for _, r := range ended {
		l.client.finish(ctx, r.done, r.result)
	}
}

// signal puts a token into a channel of one, if there is none.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
