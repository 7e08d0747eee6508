package command_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/mqtt-frontend/internal/command"
)

// TestCommandsGoToAnotherInstance kills an instance that has commands: the other
// one gets them with the same ids and in the same order, before later ones.
func TestCommandsGoToAnotherInstance(t *testing.T) {
	t.Parallel()
	received := make(chan int, 2)
	got := make(chan []string, 1)
	var kill [2]func()
	var addresses [2]string
	var mu sync.Mutex
	dead := false
	for i := range 2 {
		addresses[i], kill[i] = listenOn(t, "127.0.0.1:0", &server{maxInFlight: 3, serve: func(s *session) error {
			mu.Lock()
			second := dead
			mu.Unlock()
			commands, err := s.receiveN(3)
			if err != nil {
				return err
			}
			if !second {
				if err := s.answer(statusOK, commands[1]); err != nil {
					return err
				}
				received <- i
				<-s.stream.Context().Done()
				return errBreak
			}
			if err := s.answer(statusOK, commands...); err != nil {
				return err
			}
			more, err := s.receiveN(1)
			if err != nil {
				return err
			}
			got <- ids(append(commands, more...))
			if err := s.answer(statusOK, more...); err != nil {
				return err
			}
			return echo(s)
		}})
	}
	client := start(t, config(addresses[:]...))
	a, b, c := publish(client, "d", "a"), publish(client, "d", "b"), publish(client, "d", "c")
	wantResult(t, "b", b, statusOK)
	d, e := publish(client, "d", "d"), publish(client, "d", "e")
	first := <-received
	mu.Lock()
	dead = true
	mu.Unlock()
	began := time.Now()
	kill[first]()
	for what, results := range map[string]<-chan command.Result{"a": a, "c": c, "d": d, "e": e} {
		wantResult(t, what, results, statusOK)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	if diff := cmp.Diff([]string{"a", "c", "d", "e"}, <-got); diff != "" {
		t.Errorf("sent to the other instance (-want +got):\n%s", diff)
	}
}

// names is a resolver whose one name has the addresses that the test sets.
type names struct {
	mu        sync.Mutex
	addresses []netip.Addr
}

func (n *names) set(addresses ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addresses = nil
	for _, address := range addresses {
		n.addresses = append(n.addresses, netip.MustParseAddrPort(address).Addr())
	}
}

func (n *names) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if network != "ip4" || host != "command-ingress" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return append([]netip.Addr(nil), n.addresses...), nil
}

// TestInstancesComeAndLeave changes the view below publishers: every command is
// written once, and those of a device in their order.
func TestInstancesComeAndLeave(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	written := map[string][]string{} // by device
	used := map[int]int{}            // commands by instance
	open := map[int]int{}            // streams by instance
	serve := func(instance int) func(*session) error {
		return func(s *session) error {
			count := func(n int) {
				mu.Lock()
				defer mu.Unlock()
				open[instance] += n
			}
			count(1)
			defer count(-1)
			for {
				commands, err := s.receive()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				mu.Lock()
				used[instance] += len(commands)
				for _, c := range commands {
					written[c.GetDevice()] = append(written[c.GetDevice()], c.GetId())
				}
				mu.Unlock()
				if err := s.answer(statusOK, commands...); err != nil {
					return err
				}
			}
		}
	}
	first, _ := listenOn(t, "127.0.0.1:0", &server{serve: serve(0)})
	port := strconv.Itoa(int(netip.MustParseAddrPort(first).Port()))
	second, _ := listenOn(t, "127.0.0.2:"+port, &server{serve: serve(1)})
	dns := &names{}
	cfg := config("command-ingress:" + port)
	cfg.Insecure, cfg.Resolver, cfg.PollInterval, cfg.Streams = true, dns, 20*time.Millisecond, 2
	client := start(t, cfg)

	const devices = 20
	stop := make(chan struct{})
	var answered, failed atomic.Int64
	var publishers sync.WaitGroup
	published := [devices]int{}
	for d := range devices {
		publishers.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				client.Publish(&commandsv1.Command{Id: strconv.Itoa(published[d]), Application: "app", Device: strconv.Itoa(d)},
					func(r command.Result) {
						if r.Status != statusOK {
							failed.Add(1)
						}
						answered.Add(1)
					})
				published[d]++
			}
		})
	}
	until := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(time.Millisecond) {
			mu.Lock()
			ok := done()
			mu.Unlock()
			if ok {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not within 15 s: %s; streams %v", what, open)
			}
		}
	}
	time.Sleep(50 * time.Millisecond) // nobody is known yet, and they wait
	dns.set(first)
	until("both streams to the only one", func() bool { return open[0] == 2 && used[0] > 100 })
	dns.set(first, second)
	until("a stream to each", func() bool { return open[0] == 1 && open[1] == 1 && used[1] > 100 })
	dns.set(second)
	until("both streams to the one that is left", func() bool { return open[0] == 0 && open[1] == 2 })
	dns.set(first, second)
	until("a stream to each again", func() bool { return open[0] == 1 && open[1] == 1 })
	close(stop)
	publishers.Wait()
	total := 0
	for _, n := range published {
		total += n
	}
	until("all results", func() bool { return answered.Load() == int64(total) })
	if failed.Load() > 0 {
		t.Errorf("%d of %d commands failed", failed.Load(), total)
	}
	for d, n := range published {
		var want []string
		for i := range n {
			want = append(want, strconv.Itoa(i))
		}
		mu.Lock()
		if diff := cmp.Diff(want, written[strconv.Itoa(d)]); diff != "" {
			t.Errorf("device %d (-want +got):\n%s", d, diff)
		}
		mu.Unlock()
	}
}
