package command_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/mqtt-frontend/internal/command"
)

func TestCommandArrivesAsItWas(t *testing.T) {
	t.Parallel()
	got := make(chan *commandsv1.Command, 1)
	client := start(t, config(listen(t, &server{serve: func(s *session) error {
		commands, err := s.receive()
		if err != nil {
			return err
		}
		got <- commands[0]
		return s.answer(statusOK, commands...)
	}})))
	sent := &commandsv1.Command{
		Id: "id", Application: "app", Device: "pump", Command: "go", Time: timestamppb.New(time.Unix(1, 2)),
		Payload: []byte{0, 0xff}, ContentType: new("text/plain"), CorrelationData: []byte{0xfe},
		UserProperties: []*commandsv1.UserProperty{{Name: "n", Value: "v"}, {Name: "n", Value: ""}},
		Traceparent:    "00-…", PrincipalIssuer: "idp",
	}
	want := proto.CloneOf(sent)
	results := make(chan command.Result, 1)
	client.Publish(sent, func(r command.Result) { results <- r })
	sent.Payload[0] = 9 // the command is the caller's again
	wantResult(t, "command", results, statusOK)
	if diff := cmp.Diff(want, <-got, protocmp.Transform(), protocmp.IgnoreFields(want, "correlation")); diff != "" {
		t.Errorf("command (-want +got):\n%s", diff)
	}
}

func TestResultsComeInAnyOrder(t *testing.T) {
	t.Parallel()
	client := start(t, config(listen(t, &server{serve: func(s *session) error {
		commands, err := s.receiveN(3)
		if err != nil {
			return err
		}
		for i, outcome := range []commandsv1.ResultStatus{statusOK, statusUnavailable, statusUnknown} {
			c := commands[2-i]
			if outcome == statusOK {
				err = s.answer(outcome, c)
			} else {
				err = s.stream.Send(&commandsv1.PublishResponse{Frame: &commandsv1.PublishResponse_Results{Results: &commandsv1.ResultBatch{
					Results: []*commandsv1.Result{{Correlation: 12345}, {Correlation: c.GetCorrelation(), Status: outcome, Message: "why"}},
				}}})
			}
			if err != nil {
				return err
			}
		}
		_, err = s.receive()
		return err
	}})))
	a, b, c := publish(client, "d", "a"), publish(client, "d", "b"), publish(client, "d", "c")
	wantResult(t, "a", a, statusUnknown)
	wantResult(t, "b", b, statusUnavailable)
	wantResult(t, "c", c, statusOK)
}

func TestAfterABreakCommandsAreSentAgainInOrder(t *testing.T) {
	t.Parallel()
	first, second := make(chan struct{}), make(chan []string, 1)
	client := start(t, config(listen(t, &server{maxInFlight: 2, serve: func(s *session) error {
		switch s.number {
		case 0:
			commands, err := s.receiveN(2)
			if err != nil {
				return err
			}
			if err := s.answer(statusOK, commands[1]); err != nil {
				return err
			}
			commands, err = s.receiveN(1)
			if err != nil || commands[0].GetId() != "c" {
				return errUnexpected
			}
			close(first)
			return errBreak
		default:
			var all []*commandsv1.Command
			for len(all) < 3 {
				commands, err := s.receive()
				if err != nil {
					return err
				}
				all = append(all, commands...)
				if err := s.answer(statusOK, commands...); err != nil {
					return err
				}
			}
			second <- ids(all)
			return echo(s)
		}
	}})))
	a, b, c, d := publish(client, "x", "a"), publish(client, "x", "b"), publish(client, "x", "c"), publish(client, "x", "d")
	<-first
	for what, results := range map[string]<-chan command.Result{"a": a, "b": b, "c": c, "d": d} {
		wantResult(t, what, results, statusOK)
	}
	if diff := cmp.Diff([]string{"a", "c", "d"}, <-second); diff != "" {
		t.Errorf("sent on the second stream (-want +got):\n%s", diff)
	}
}

func TestOutcomeOfADoubtfulCommandIsUnknown(t *testing.T) {
	t.Parallel()
	for _, outcome := range []commandsv1.ResultStatus{statusUnavailable, statusExhausted, 0} {
		t.Run(outcome.String(), func(t *testing.T) {
			t.Parallel()
			client := start(t, config(listen(t, &server{serve: func(s *session) error {
				commands, err := s.receive()
				if err != nil {
					return err
				}
				if s.number == 0 {
					return errBreak
				}
				if err := s.answer(outcome, commands...); err != nil {
					return err
				}
				return echo(s)
			}})))
			wantResult(t, "sent twice", publish(client, "d", "a"), statusUnknown)
		})
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	t.Run("never sent", func(t *testing.T) {
		t.Parallel()
		cfg := config("127.0.0.1:1")
		cfg.Deadline = 200 * time.Millisecond
		client := start(t, cfg)
		began := time.Now()
		a, b := publish(client, "d", "a"), publish(client, "d", "b")
		wantResult(t, "a", a, statusUnavailable)
		wantResult(t, "b", b, statusUnavailable)
		if took := time.Since(began); took < cfg.Deadline || took > 10*cfg.Deadline {
			t.Errorf("results after %v, want about %v", took, cfg.Deadline)
		}
	})
	t.Run("sent and not answered", func(t *testing.T) {
		t.Parallel()
		cfg := config(listen(t, &server{maxInFlight: 10, serve: func(s *session) error {
			commands, err := s.receive()
			if err != nil {
				return err
			}
			more, err := s.receiveN(1) // sent after the first one is overdue
			if err != nil {
				return err
			}
			if err := s.answer(statusOK, append(commands, more...)...); err != nil {
				return err
			}
			return echo(s)
		}}))
		cfg.Deadline = 200 * time.Millisecond
		client := start(t, cfg)
		a := publish(client, "d", "a")
		wantResult(t, "a", a, statusUnknown)
		publish(client, "d", "b")
		wantResult(t, "c", publish(client, "d", "c"), statusOK)
		select {
		case r := <-a:
			t.Errorf("a second result: %v", r)
		default:
		}
	})
	t.Run("a server that never answers is left", func(t *testing.T) {
		t.Parallel()
		cfg := config(listen(t, &server{maxInFlight: 1, serve: func(s *session) error {
			if s.number == 0 {
				<-s.stream.Context().Done()
				return nil
			}
			return echo(s)
		}}))
		cfg.Deadline = 300 * time.Millisecond
		client := start(t, cfg)
		wantResult(t, "a", publish(client, "d", "a"), statusUnknown)
		wantResult(t, "b", publish(client, "d", "b"), statusOK)
	})
}

func TestGoaway(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	ended := false
	client := start(t, config(listen(t, &server{serve: func(s *session) error {
		if s.number > 0 {
			mu.Lock()
			defer mu.Unlock()
			if !ended {
				return errUnexpected
			}
			return echo(s)
		}
		commands, err := s.receiveN(1)
		if err != nil {
			return err
		}
		if err := s.goaway(); err != nil {
			return err
		}
		for { // what was on its way, until the client half-closes
			more, err := s.receive()
			if err != nil {
				break
			}
			commands = append(commands, more...)
		}
		if err := s.answer(statusOK, commands...); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		ended = true
		return nil
	}})))
	var all []<-chan command.Result
	for i := range 200 {
		all = append(all, publish(client, "d", strconv.Itoa(i)))
		if i%10 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	for i, results := range all {
		wantResult(t, strconv.Itoa(i), results, statusOK)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	hold := func(s *session) error {
		<-s.stream.Context().Done()
		return nil
	}
	tests := []struct {
		name   string
		change func(*command.Config)
		cmd    *commandsv1.Command
		fit    int
		want   commandsv1.ResultStatus
	}{
		{
			name: "records", change: func(c *command.Config) { c.MaxRecords = 3 },
			cmd: &commandsv1.Command{Id: "a"}, fit: 3, want: statusExhausted,
		},
		{
			name: "bytes", change: func(c *command.Config) { c.MaxBytes = 10_000 },
			cmd: &commandsv1.Command{Id: "a", Payload: make([]byte, 4900)}, fit: 2, want: statusExhausted,
		},
		{
			name: "text that is not UTF-8",
			cmd:  &commandsv1.Command{Id: "a", Device: "\xff"}, want: commandsv1.ResultStatus_RESULT_STATUS_INVALID,
		},
		{
			name: "larger than a message",
			cmd:  &commandsv1.Command{Id: "a", Payload: make([]byte, 4<<20)}, want: commandsv1.ResultStatus_RESULT_STATUS_TOO_LARGE,
		},
		{
			name: "larger than Kafka takes",
			cmd:  &commandsv1.Command{Id: "a", Payload: make([]byte, 1<<20+1)}, want: commandsv1.ResultStatus_RESULT_STATUS_TOO_LARGE,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := config(listen(t, &server{serve: hold, maxRecord: 1 << 20}))
			cfg.Deadline = 300 * time.Millisecond
			if tt.change != nil {
				tt.change(&cfg)
			}
			client := start(t, cfg)
			for client.MaxRecordBytes() != 1<<20 {
				time.Sleep(time.Millisecond)
			}
			var mu sync.Mutex // that the callback takes, and the caller holds
			results := make(chan command.Result, tt.fit+1)
			mu.Lock()
			for range tt.fit + 1 {
				client.Publish(tt.cmd, func(r command.Result) {
					mu.Lock()
					defer mu.Unlock()
					results <- r
				})
			}
			mu.Unlock()
			wantResult(t, "the one too many", results, tt.want)
			for range tt.fit {
				wantResult(t, "one that fits", results, statusUnknown)
			}
			// There is room again.
			if tt.fit > 0 {
				client.Publish(tt.cmd, func(r command.Result) { results <- r })
				wantResult(t, "a later one", results, statusUnknown)
			}
		})
	}
}

// What clients are told is what they can send, whatever Kafka would take.
func TestLargestRecord(t *testing.T) {
	t.Parallel()
	const message = 4<<20 - 1024
	for _, tt := range []struct{ kafka, want int64 }{{1 << 20, 1 << 20}, {16 << 20, message}} {
		idle := func(s *session) error {
			_, err := s.receive()
			return err
		}
		client := start(t, config(listen(t, &server{serve: idle, maxRecord: tt.kafka})))
		for client.MaxRecordBytes() == 0 {
			time.Sleep(time.Millisecond)
		}
		if got := client.MaxRecordBytes(); got != tt.want {
			t.Errorf("with a limit of %d in Kafka: %d, want %d", tt.kafka, got, tt.want)
		}
	}
}

func TestServerGetsNoMoreThanItTakes(t *testing.T) {
	t.Parallel()
	const limit, total = 10, 500
	cfg := config(listen(t, &server{maxInFlight: limit, serve: func(s *session) error {
		var open []*commandsv1.Command
		for {
			commands, err := s.receive()
			if err != nil {
				return err
			}
			if open = append(open, commands...); len(open) > limit {
				return errUnexpected
			}
			n := rand.IntN(len(open)) + 1
			if err := s.answer(statusOK, open[:n]...); err != nil {
				return err
			}
			open = open[n:]
		}
	}}))
	cfg.Deadline = 2 * time.Second // the last ones are not answered
	client := start(t, cfg)
	var all []<-chan command.Result
	for i := range total {
		all = append(all, publish(client, "d", strconv.Itoa(i)))
	}
	answered := 0
	for _, results := range all[:total-limit] {
		wantResult(t, "command", results, statusOK)
		answered++
	}
	if answered != total-limit {
		t.Errorf("%d answered", answered)
	}
}

func TestFramesAreBounded(t *testing.T) {
	t.Parallel()
	begin := make(chan struct{})
	var mu sync.Mutex
	var sizes, counts []int
	client := start(t, config(listen(t, &server{maxInFlight: 1 << 20, serve: func(s *session) error {
		<-begin
		for {
			request, err := s.stream.Recv()
			if err != nil {
				return err
			}
			mu.Lock()
			sizes = append(sizes, proto.Size(request))
			counts = append(counts, len(request.GetCommands().GetCommands()))
			mu.Unlock()
			if err := s.answer(statusOK, request.GetCommands().GetCommands()...); err != nil {
				return err
			}
		}
	}})))
	var all []<-chan command.Result
	for i := range 5000 {
		all = append(all, publish(client, "d", strconv.Itoa(i)))
	}
	for range 3 {
		results := make(chan command.Result, 1)
		client.Publish(&commandsv1.Command{Id: "large", Application: "app", Device: "d", Payload: make([]byte, 100_000)},
			func(r command.Result) { results <- r })
		all = append(all, results)
	}
	close(begin)
	for _, results := range all {
		wantResult(t, "command", results, statusOK)
	}
	mu.Lock()
	defer mu.Unlock()
	for i := range sizes {
		if counts[i] > 1000 || counts[i] > 1 && sizes[i] > 64<<10+16 {
			t.Errorf("a frame of %d commands and %d bytes", counts[i], sizes[i])
		}
	}
	if len(counts) > 2000 {
		t.Errorf("%d frames for 5003 commands, want batches", len(counts))
	}
}

// TestChaos breaks streams at random under concurrent publishers: every command
// gets one result, what is OK was written, and per device the first copies are
// in the order in which they were published.
func TestChaos(t *testing.T) {
	t.Parallel()
	const devices, perDevice = 20, 300
	var mu sync.Mutex
	written := map[string][]string{}
	serve := func(s *session) error {
		for {
			commands, err := s.receive()
			if err != nil {
				return err
			}
			for i, c := range commands {
				if rand.IntN(400) == 0 {
					return errBreak
				}
				mu.Lock()
				written[c.GetDevice()] = append(written[c.GetDevice()], c.GetId())
				mu.Unlock()
				if rand.IntN(400) == 0 {
					return errBreak // after it was written, before it is said
				}
				if err := s.answer(statusOK, commands[i]); err != nil {
					return err
				}
			}
			if rand.IntN(400) == 0 {
				if err := s.goaway(); err != nil {
					return err
				}
				for {
					rest, err := s.receive()
					if errors.Is(err, io.EOF) {
						return nil
					}
					if err != nil {
						return err
					}
					mu.Lock()
					for _, c := range rest {
						written[c.GetDevice()] = append(written[c.GetDevice()], c.GetId())
					}
					mu.Unlock()
					if err := s.answer(statusOK, rest...); err != nil {
						return err
					}
				}
			}
		}
	}
	cfg := config(listen(t, &server{serve: serve, maxInFlight: 50}), listen(t, &server{serve: serve, maxInFlight: 50}))
	cfg.Streams = 2
	client := start(t, cfg)
	results := make(chan command.Result, devices*perDevice*2)
	var publishers sync.WaitGroup
	for d := range devices {
		publishers.Go(func() {
			for i := range perDevice {
				client.Publish(&commandsv1.Command{Id: strconv.Itoa(i), Application: "app", Device: strconv.Itoa(d)},
					func(r command.Result) { results <- r })
			}
		})
	}
	publishers.Wait()
	for range devices * perDevice {
		wantResult(t, "command", results, statusOK)
	}
	mu.Lock()
	defer mu.Unlock()
	for device, got := range written {
		seen := map[string]bool{}
		var first []string
		for _, id := range got {
			if !seen[id] {
				seen[id] = true
				first = append(first, id)
			}
		}
		var want []string
		for i := range perDevice {
			want = append(want, strconv.Itoa(i))
		}
		if !slices.Equal(first, want) {
			t.Errorf("device %s: order of the first copies: %s", device, strings.Join(first, " "))
		}
	}
	if len(results) > 0 {
		t.Errorf("%d results too many", len(results))
	}
}

func TestRunWaitsForResults(t *testing.T) {
	t.Parallel()
	received, release := make(chan struct{}), make(chan struct{})
	client, stop := startUntil(t, config(listen(t, &server{serve: func(s *session) error {
		commands, err := s.receive()
		if err != nil {
			return err
		}
		close(received)
		<-release
		if err := s.answer(statusOK, commands...); err != nil {
			return err
		}
		return echo(s)
	}})))
	a := publish(client, "d", "a")
	<-received
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	for { // until Run takes nothing more
		refused := make(chan command.Result, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		client.Publish(&commandsv1.Command{Id: "late", Application: "app", Device: "d"}, func(r command.Result) { refused <- r })
		select {
		case r := <-refused:
			cancel()
			if r.Status != statusUnavailable {
				t.Errorf("result after the end = %v, want %v", r.Status, statusUnavailable)
			}
		case <-ctx.Done():
			cancel()
			continue
		}
		break
	}
	select {
	case <-stopped:
		t.Error("Run ended before the result")
	default:
	}
	close(release)
	<-stopped
	wantResult(t, "a", a, statusOK)
}
