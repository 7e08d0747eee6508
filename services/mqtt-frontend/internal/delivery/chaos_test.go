package delivery_test

import (
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/delivery"
)

const chaosPartitions = 3

// fanout is an event-fanout that keeps to the protocol and has logs in memory. Its
// streams break or say goaway at random.
type fanout struct {
	eventsv1.UnimplementedEventsServiceServer

	logs   [chaosPartitions][]int64 // offsets, with gaps
	breaks int                      // one frame in so many ends the stream

	mu        sync.Mutex
	committed map[string]*[chaosPartitions]int64 // by client id: first offset that is not acknowledged
}

type fanoutSub struct {
	client  string
	window  int
	next    [chaosPartitions]int64
	waiting [chaosPartitions]map[int64]bool
}

func (s *fanoutSub) outstanding() (n int) {
	for _, w := range s.waiting {
		n += len(w)
	}
	return n
}

func (f *fanout) commit(s *fanoutSub) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range chaosPartitions {
		at := s.next[i]
		for offset := range s.waiting[i] {
			at = min(at, offset)
		}
		f.committed[s.client][i] = at
	}
}

func (f *fanout) Deliver(stream grpc.BidiStreamingServer[eventsv1.DeliverRequest, eventsv1.DeliverResponse]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if err := stream.Send(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Hello{Hello: &eventsv1.ServerHello{}}}); err != nil {
		return err
	}
	requests := make(chan *eventsv1.DeliverRequest, 1000)
	go func() {
		defer close(requests)
		for {
			request, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- request:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	sessions, subs := map[uint64]string{}, map[uint64]*fanoutSub{}
	leaving := false
	for {
		if len(requests) == 0 && !leaving {
			if progressed, err := f.sendEvents(stream, subs); err != nil {
				return err
			} else if progressed && len(requests) == 0 {
				continue
			}
		}
		if f.breaks > 0 && rand.IntN(f.breaks) == 0 {
			if rand.IntN(2) == 0 {
				return status.Error(codes.Unavailable, "broken by the test")
			}
			if !leaving {
				leaving = true
				if err := stream.Send(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Goaway{Goaway: &eventsv1.Goaway{}}}); err != nil {
					return err
				}
			}
		}
		var request *eventsv1.DeliverRequest
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			request = r
		case <-time.After(time.Millisecond):
			continue
		}
		if err := f.handle(stream, request, sessions, subs); err != nil {
			return err
		}
	}
}

func (f *fanout) handle(stream grpc.BidiStreamingServer[eventsv1.DeliverRequest, eventsv1.DeliverResponse],
	request *eventsv1.DeliverRequest, sessions map[uint64]string, subs map[uint64]*fanoutSub,
) error {
	switch r := request.GetFrame().(type) {
	case *eventsv1.DeliverRequest_Attach:
		sessions[r.Attach.GetSession()] = r.Attach.GetKey().GetClientId()
		return stream.Send(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Attached{Attached: &eventsv1.Attached{
			Session: r.Attach.GetSession(), Status: eventsv1.AttachStatus_ATTACH_STATUS_OK,
		}}})
	case *eventsv1.DeliverRequest_Open:
		client, handle := sessions[r.Open.GetSession()], r.Open.GetSubscription()
		if client == "" || subs[handle] != nil {
			return status.Error(codes.InvalidArgument, "no session, or a handle used twice")
		}
		s := &fanoutSub{client: client, window: int(r.Open.GetWindow().GetEvents())}
		f.mu.Lock()
		known := f.committed[client] != nil
		if !known {
			f.committed[client] = &[chaosPartitions]int64{}
		}
		f.mu.Unlock()
		for i := range chaosPartitions {
			s.waiting[i] = map[int64]bool{}
		}
		for _, p := range r.Open.GetResume().GetPositions() {
			s.next[p.GetPartition()] = p.GetNextOffset()
			for _, u := range p.GetUnacknowledged() {
				for offset := u.GetFirst(); offset <= u.GetLast(); offset++ {
					s.waiting[p.GetPartition()][offset] = true
				}
			}
		}
		subs[handle] = s
		opened := &eventsv1.Opened{Subscription: handle}
		for i := range chaosPartitions {
			opened.Positions = append(opened.Positions, &eventsv1.Position{Partition: int32(i), Offset: s.next[i]})
		}
		f.commit(s)
		return stream.Send(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Opened{Opened: opened}})
	case *eventsv1.DeliverRequest_Acknowledge:
		for _, a := range r.Acknowledge.GetAcknowledgements() {
			s := subs[a.GetSubscription()]
			if s == nil {
				continue
			}
			for _, acked := range a.GetRanges() {
				for offset := acked.GetFirst(); offset <= acked.GetLast(); offset++ {
					delete(s.waiting[a.GetPartition()], offset)
				}
			}
			f.commit(s)
		}
	case *eventsv1.DeliverRequest_Detach:
		return stream.Send(&eventsv1.DeliverResponse{Frame: &eventsv1.DeliverResponse_Detached{Detached: &eventsv1.Detached{
			Session: r.Detach.GetSession(),
		}}})
	}
	return nil
}

// sendEvents sends a frame of what the windows allow.
func (f *fanout) sendEvents(stream grpc.BidiStreamingServer[eventsv1.DeliverRequest, eventsv1.DeliverResponse], subs map[uint64]*fanoutSub) (bool, error) {
	var deliveries []*eventsv1.Delivery
	for i, log := range f.logs {
		for _, offset := range log {
			var handles []uint64
			for handle, s := range subs {
				if s.next[i] <= offset && s.outstanding() < s.window && (offset == log[0] || s.next[i] > previous(log, offset)) {
					s.waiting[i][offset] = true
					s.next[i] = offset + 1
					handles = append(handles, handle)
				}
			}
			if len(handles) > 0 {
				deliveries = append(deliveries, oneDelivery(int32(i), offset, handles...))
			}
			if len(deliveries) == 20 {
				return true, stream.Send(frame(deliveries...))
			}
		}
	}
	if len(deliveries) == 0 {
		return false, nil
	}
	return true, stream.Send(frame(deliveries...))
}

func previous(log []int64, offset int64) int64 {
	i, _ := slices.BinarySearch(log, offset)
	return log[i-1]
}

// chaosSink acknowledges in its own time and in any order.
type chaosSink struct {
	mu   sync.Mutex
	got  [chaosPartitions][]int64
	todo []delivery.Delivery
}

func (s *chaosSink) Deliver(deliveries []delivery.Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range deliveries {
		s.got[d.Partition] = append(s.got[d.Partition], d.Offset)
	}
	s.todo = append(s.todo, deliveries...)
}
func (s *chaosSink) Skipped(int32, int64)       {}
func (s *chaosSink) Failed(*delivery.OpenError) {}

// TestChaos breaks streams to two instances at random: every sink gets every event once and in the
// order of its partition, and in the end everything is committed.
func TestChaos(t *testing.T) {
	t.Parallel()
	const clients, events = 20, 150
	f := &fanout{breaks: 100, committed: map[string]*[chaosPartitions]int64{}}
	for i := range f.logs {
		offset := int64(0)
		for range events {
			f.logs[i] = append(f.logs[i], offset)
			offset += 1 + rand.Int64N(2)
		}
	}
	cfg := delivery.DefaultConfig()
	cfg.Addresses = nil
	for range 2 { // with the same Kafka
		listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		grpcServer := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}))
		eventsv1.RegisterEventsServiceServer(grpcServer, f)
		served := make(chan error, 1)
		go func() { served <- grpcServer.Serve(listener) }()
		t.Cleanup(func() {
			grpcServer.Stop()
			if err := <-served; err != nil {
				t.Errorf("Serve() = %v", err)
			}
		})
		cfg.Addresses = append(cfg.Addresses, listener.Addr().String())
	}
	client, stop := start(t, cfg)

	var running sync.WaitGroup
	for n := range clients {
		running.Go(func() {
			id := strconv.Itoa(n)
			session := client.Session(sessionInfo(id), func(err delivery.SessionError) { t.Errorf("session error %v", err) })
			to := &chaosSink{}
			r := request("app-" + strconv.Itoa(n%3))
			r.Window.Events = uint32(1 + n)
			sub, err := session.Open(t.Context(), r, to)
			if err != nil {
				t.Errorf("Open() = %v", err)
				return
			}
			deadline := time.Now().Add(60 * time.Second)
			for acked := 0; acked < chaosPartitions*events; {
				if time.Now().After(deadline) {
					t.Errorf("client %d: %d of %d acknowledged", n, acked, chaosPartitions*events)
					return
				}
				to.mu.Lock()
				rand.Shuffle(len(to.todo), func(i, j int) { to.todo[i], to.todo[j] = to.todo[j], to.todo[i] })
				k := rand.IntN(len(to.todo) + 1)
				batch := slices.Clone(to.todo[:k])
				to.todo = to.todo[k:]
				to.mu.Unlock()
				for _, d := range batch {
					sub.Acknowledge(d.Partition, d.Offset)
					acked++
				}
				if len(batch) == 0 {
					time.Sleep(100 * time.Microsecond)
				}
			}
			to.mu.Lock()
			defer to.mu.Unlock()
			for i, got := range to.got {
				if !slices.Equal(got, f.logs[i]) {
					t.Errorf("client %d, partition %d: %d events, not once each in order (of %d)", n, i, len(got), len(f.logs[i]))
				}
			}
		})
	}
	running.Wait()
	complete := func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, at := range f.committed {
			for i, log := range f.logs {
				if at[i] != log[len(log)-1]+1 {
					return false
				}
			}
		}
		return true
	}
	for deadline := time.Now().Add(20 * time.Second); !complete(); {
		if time.Now().After(deadline) {
			t.Fatalf("not everything is committed: %v", f.committed)
		}
		time.Sleep(time.Millisecond)
	}
	stop()
}
