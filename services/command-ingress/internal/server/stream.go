package server

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	otelcodes "go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/telemetry"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/command-ingress/internal/producer"
	"mqtt-integration/services/command-ingress/internal/record"
)

const (
	// maxBatch is what the protocol allows in one frame, of commands and of results.
	maxBatch = 1000
	// helloTimeout is how long a stream may exist without a hello.
	helloTimeout = 10 * time.Second
)

var (
	errNoHello     = status.Error(codes.InvalidArgument, "the first frame has to be a hello")
	errSecondHello = status.Error(codes.InvalidArgument, "only the first frame may be a hello")
	errEmptyFrame  = status.Error(codes.InvalidArgument, "frame without content")
	errBatch       = status.Error(codes.InvalidArgument, "more than 1000 commands in a frame")
	errCorrelation = status.Error(codes.InvalidArgument, "correlation used twice")
)

type rpc = grpc.BidiStreamingServer[commandsv1.PublishRequest, commandsv1.PublishResponse]

// stream is one stream of a frontend.
type stream struct {
	server *Server
	rpc    rpc

	hello chan struct{} // closed with the hello
	wake  chan struct{} // there are results to send
	room  chan struct{} // results were sent
	read  chan error    // how reading ended

	mu sync.Mutex
	// waiting are commands that the publisher has, by correlation, with their span.
	waiting map[uint64]trace.Span
	results []*commandsv1.Result
	ended   bool
}

func newStream(s *Server, r rpc) *stream {
	return &stream{
		server: s, rpc: r, waiting: map[uint64]trace.Span{},
		hello: make(chan struct{}), wake: make(chan struct{}, 1), room: make(chan struct{}, 1), read: make(chan error, 1),
	}
}

// serve runs the stream to its end. It is the only one that sends.
func (s *stream) serve() error {
	defer s.end()
	go func() { s.read <- s.receive() }()
	select {
	case <-s.hello:
	case err := <-s.read:
		return endOf(err)
	case <-time.After(helloTimeout):
		return errNoHello
	}
	limits, changed := s.server.publisher.Limits()
	if err := s.sendHello(limits); err != nil {
		return err
	}
	draining, receiving := s.server.draining, true
	for {
		select {
		case <-s.wake:
			if err := s.sendResults(); err != nil {
				return err
			}
		case <-changed:
			limits, changed = s.server.publisher.Limits()
			if err := s.sendHello(limits); err != nil {
				return err
			}
		case <-draining:
			draining = nil
			if err := s.rpc.Send(goaway()); err != nil {
				return err
			}
		case err := <-s.read:
			if err = endOf(err); err != nil {
				return err
			}
			receiving = false
		case <-s.rpc.Context().Done():
			return s.rpc.Context().Err()
		}
		if !receiving && s.idle() {
			return nil
		}
	}
}

// endOf is what the end of reading means for the stream: nil for a half-close.
func endOf(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func goaway() *commandsv1.PublishResponse {
	return &commandsv1.PublishResponse{Frame: &commandsv1.PublishResponse_Goaway{
		Goaway: &commandsv1.Goaway{Reason: "command-ingress is stopping"},
	}}
}

func (s *stream) sendHello(limits producer.Limits) error {
	return s.rpc.Send(&commandsv1.PublishResponse{Frame: &commandsv1.PublishResponse_Hello{Hello: &commandsv1.ServerHello{
		InstanceId:     s.server.cfg.InstanceID,
		MaxRecordBytes: limits.MaxRecordBytes,
		MaxInFlight:    uint32(s.server.cfg.MaxInFlight), //nolint:gosec // at most a million
	}}})
}

// sendResults sends what there is.
func (s *stream) sendResults() error {
	s.mu.Lock()
	results := s.results
	s.results = nil
	s.mu.Unlock()
	for len(results) > 0 {
		n := min(len(results), maxBatch)
		frame := &commandsv1.PublishResponse{Frame: &commandsv1.PublishResponse_Results{
			Results: &commandsv1.ResultBatch{Results: results[:n]},
		}}
		if err := s.rpc.Send(frame); err != nil {
			return err
		}
		results = results[n:]
	}
	notify(s.room)
	return nil
}

// idle says whether nothing is left to wait for or to send.
func (s *stream) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting) == 0 && len(s.results) == 0
}

// end lets go of what comes too late.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.results = nil
	notify(s.room)
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// receive reads until the frontend half-closes, which is io.EOF, or the stream
// breaks or breaks the protocol.
func (s *stream) receive() error {
	first, err := s.rpc.Recv()
	if err != nil {
		return err
	}
	if first.GetHello() == nil {
		return errNoHello
	}
	close(s.hello)
	for {
		frame, err := s.rpc.Recv()
		if err != nil {
			return err
		}
		switch {
		case frame.GetHello() != nil:
			return errSecondHello
		case frame.GetCommands() == nil:
			return errEmptyFrame
		case len(frame.GetCommands().GetCommands()) > maxBatch:
			return errBatch
		}
		for _, c := range frame.GetCommands().GetCommands() {
			if err := s.handle(c); err != nil {
				return err
			}
		}
		if err := s.waitForRoom(); err != nil {
			return err
		}
	}
}

// waitForRoom waits while the frontend does not read the results of commands that
// it should not have sent.
func (s *stream) waitForRoom() error {
	for {
		s.mu.Lock()
		full, ended := len(s.results) > 2*s.server.cfg.MaxInFlight, s.ended
		s.mu.Unlock()
		switch {
		case ended:
			return context.Canceled
		case !full:
			return nil
		}
		select {
		case <-s.room:
		case <-s.rpc.Context().Done():
			return s.rpc.Context().Err()
		}
	}
}

// handle takes one command. The error is about the stream.
func (s *stream) handle(c *commandsv1.Command) error {
	correlation := c.GetCorrelation()
	span := s.startSpan(c)
	s.mu.Lock()
	_, twice := s.waiting[correlation]
	full := len(s.waiting)+len(s.results) >= s.server.cfg.MaxInFlight
	ended := s.ended
	if !twice && !full && !ended {
		s.waiting[correlation] = span
	}
	s.mu.Unlock()
	switch {
	case ended:
		span.End()
		return context.Canceled
	case twice:
		span.End()
		return errCorrelation
	case full:
		s.refuse(span, correlation, commandsv1.ResultStatus_RESULT_STATUS_RESOURCE_EXHAUSTED, "too many commands without a result")
		return nil
	}
	r, err := record.Build(c, s.server.cfg.Instance)
	if err != nil {
		s.Done(correlation, producer.Outcome{Status: invalid, Message: err.Error()})
	} else if outcome, accepted := s.server.publisher.Submit(r, correlation, s); !accepted {
		s.Done(correlation, outcome)
	}
	return nil
}

// invalid is a status that only the server has.
const invalid = producer.Status(255)

// Done implements producer.Sink.
func (s *stream) Done(correlation uint64, outcome producer.Outcome) {
	result := code(outcome.Status)
	if outcome.Status == invalid {
		result = commandsv1.ResultStatus_RESULT_STATUS_INVALID
	}
	s.server.count(s.rpc.Context(), result)
	s.mu.Lock()
	span := s.waiting[correlation]
	delete(s.waiting, correlation)
	// In one step, or the stream would look idle in between.
	s.queue(correlation, result, outcome.Message)
	s.mu.Unlock()
	end(span, result, outcome.Message)
}

// refuse is the result of a command that the stream never took.
func (s *stream) refuse(span trace.Span, correlation uint64, code commandsv1.ResultStatus, message string) {
	s.server.count(s.rpc.Context(), code)
	s.mu.Lock()
	s.queue(correlation, code, message)
	s.mu.Unlock()
	end(span, code, message)
}

// queue needs the lock.
func (s *stream) queue(correlation uint64, code commandsv1.ResultStatus, message string) {
	if !s.ended {
		s.results = append(s.results, &commandsv1.Result{Correlation: correlation, Status: code, Message: message})
		notify(s.wake)
	}
}

// end ends the span of a command.
func end(span trace.Span, code commandsv1.ResultStatus, message string) {
	if code != commandsv1.ResultStatus_RESULT_STATUS_OK {
		span.SetStatus(otelcodes.Error, message)
		span.SetAttributes(semconv.ErrorTypeKey.String(outcomeName(code)))
	}
	span.End()
}

// startSpan starts the span of the send to Kafka and puts its context into the
// command, from where it goes into the record's headers. Where nothing is traced,
// the context that the frontend sent stays as it is.
func (s *stream) startSpan(c *commandsv1.Command) trace.Span {
	ctx := context.Background()
	if parent := telemetry.ParseTraceContext(c.GetTraceparent(), c.GetTracestate()); parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	}
	_, span := s.server.tracer.Start(ctx, "send "+s.server.cfg.Topic, trace.WithSpanKind(trace.SpanKindProducer))
	if span.IsRecording() {
		span.SetAttributes(
			semconv.MessagingSystemKafka, semconv.MessagingOperationName("send"), semconv.MessagingOperationTypeSend,
			semconv.MessagingDestinationName(s.server.cfg.Topic), semconv.MessagingMessageID(c.GetId()),
			semconv.MessagingMessageBodySize(len(c.GetPayload())),
		)
		c.Traceparent, c.Tracestate = telemetry.FormatTraceContext(span.SpanContext())
	}
	return span
}
