package command_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/daemon"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/mqtt-frontend/internal/command"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	statusOK          = commandsv1.ResultStatus_RESULT_STATUS_OK
	statusUnavailable = commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE
	statusUnknown     = commandsv1.ResultStatus_RESULT_STATUS_UNKNOWN_OUTCOME
	statusExhausted   = commandsv1.ResultStatus_RESULT_STATUS_RESOURCE_EXHAUSTED
)

var errBreak = status.Error(codes.Unavailable, "broken by the test")

// session is a stream as the server sees it. Its methods fail the stream, not the
// test, when the client has gone.
type session struct {
	number int // 0 is the first stream of the server
	stream grpc.BidiStreamingServer[commandsv1.PublishRequest, commandsv1.PublishResponse]
}

// receive returns the commands of the next frame.
func (s *session) receive() ([]*commandsv1.Command, error) {
	request, err := s.stream.Recv()
	if err != nil {
		return nil, err
	}
	return request.GetCommands().GetCommands(), nil
}

// receiveN returns n commands, in as many frames as it takes.
func (s *session) receiveN(n int) ([]*commandsv1.Command, error) {
	var all []*commandsv1.Command
	for len(all) < n {
		commands, err := s.receive()
		if err != nil {
			return nil, err
		}
		all = append(all, commands...)
	}
	return all, nil
}

func (s *session) answer(outcome commandsv1.ResultStatus, commands ...*commandsv1.Command) error {
	batch := &commandsv1.ResultBatch{}
	for _, c := range commands {
		batch.Results = append(batch.Results, &commandsv1.Result{Correlation: c.GetCorrelation(), Status: outcome})
	}
	return s.stream.Send(&commandsv1.PublishResponse{Frame: &commandsv1.PublishResponse_Results{Results: batch}})
}

func (s *session) goaway() error {
	return s.stream.Send(&commandsv1.PublishResponse{Frame: &commandsv1.PublishResponse_Goaway{Goaway: &commandsv1.Goaway{}}})
}

func (s *session) hello(maxRecord int64, maxInFlight uint32) error {
	return s.stream.Send(&commandsv1.PublishResponse{Frame: &commandsv1.PublishResponse_Hello{
		Hello: &commandsv1.ServerHello{InstanceId: "fake", MaxRecordBytes: maxRecord, MaxInFlight: maxInFlight},
	}})
}

// server is a command-ingress on loopback.
type server struct {
	commandsv1.UnimplementedCommandsServiceServer

	maxRecord   int64
	maxInFlight uint32
	serve       func(*session) error

	mu      sync.Mutex
	streams int
}

func (s *server) Publish(stream grpc.BidiStreamingServer[commandsv1.PublishRequest, commandsv1.PublishResponse]) error {
	s.mu.Lock()
	number := s.streams
	s.streams++
	s.mu.Unlock()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetHello().GetFrontendId() != "frontend" {
		return status.Error(codes.InvalidArgument, "no hello")
	}
	one := &session{number: number, stream: stream}
	if err := one.hello(s.maxRecord, s.maxInFlight); err != nil {
		return err
	}
	return s.serve(one)
}

// echo answers every command with OK.
func echo(s *session) error {
	for {
		commands, err := s.receive()
		if err != nil {
			return err
		}
		if err := s.answer(statusOK, commands...); err != nil {
			return err
		}
	}
}

func listen(tb testing.TB, s *server) string {
	tb.Helper()
	address, _ := listenOn(tb, "127.0.0.1:0", s)
	return address
}

// listenOn also returns what cuts everything off.
func listenOn(tb testing.TB, at string, s *server) (address string, kill func()) {
	tb.Helper()
	listener, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", at)
	if err != nil {
		tb.Fatal(err)
	}
	grpcServer := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}))
	commandsv1.RegisterCommandsServiceServer(grpcServer, s)
	served := make(chan error, 1)
	go func() { served <- grpcServer.Serve(listener) }()
	kill = sync.OnceFunc(func() {
		grpcServer.Stop()
		if err := <-served; err != nil {
			tb.Errorf("Serve() = %v", err)
		}
	})
	tb.Cleanup(kill)
	return listener.Addr().String(), kill
}

func config(addresses ...string) command.Config {
	cfg := command.DefaultConfig()
	cfg.Addresses = addresses
	cfg.Streams = 1
	return cfg
}

// start runs a client until the test ends.
func start(tb testing.TB, cfg command.Config) *command.Client {
	tb.Helper()
	client, stop := startUntil(tb, cfg)
	tb.Cleanup(stop)
	return client
}

func startUntil(tb testing.TB, cfg command.Config) (client *command.Client, stop func()) {
	tb.Helper()
	client, err := command.New(cfg, "frontend", daemon.NewEnv(nil))
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	return client, func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Run() = %v, want nil", err)
		}
	}
}

// publish sends a command and returns where its result will come.
func publish(client *command.Client, device, id string) <-chan command.Result {
	results := make(chan command.Result, 2) // room for one too many
	client.Publish(&commandsv1.Command{Id: id, Application: "app", Device: device, Command: "go"},
		func(r command.Result) { results <- r })
	return results
}

func wantResult(t *testing.T, what string, results <-chan command.Result, want commandsv1.ResultStatus) {
	t.Helper()
	select {
	case got := <-results:
		if got.Status != want {
			t.Errorf("%s: result = %v (%s), want %v", what, got.Status, got.Message, want)
		}
		if (got.Message == "") != (want == statusOK) {
			t.Errorf("%s: message = %q with %v", what, got.Message, want)
		}
	case <-time.After(15 * time.Second):
		t.Fatalf("%s: no result", what)
	}
}

func ids(commands []*commandsv1.Command) []string {
	var all []string
	for _, c := range commands {
		all = append(all, c.GetId())
	}
	return all
}

var errUnexpected = errors.New("not what the test expects")
