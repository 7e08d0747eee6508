package server

import (
	"context"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"mqtt-integration/libs/daemon"
	commandsv1 "mqtt-integration/proto/gen/mqttintegration/commands/v1"
	"mqtt-integration/services/command-ingress/internal/producer"
	"mqtt-integration/services/command-ingress/internal/record"
)

const scope = "mqtt-integration/services/command-ingress"

// Config bounds streams and says what goes into records.
type Config struct {
	// InstanceID names this process to frontends.
	InstanceID string
	// Instance is the CloudEvents attribute of this name.
	Instance string
	// Topic is where commands go, for the spans of traces.
	Topic string
	// MaxStreams is the number of streams of all frontends, MaxInFlight that of
	// commands without a result on each.
	MaxStreams, MaxInFlight int
}

// publisher writes records.
type publisher interface {
	Submit(r record.Record, correlation uint64, sink producer.Sink) (outcome producer.Outcome, accepted bool)
	Limits() (producer.Limits, <-chan struct{})
}

// Server implements CommandsService.
type Server struct {
	commandsv1.UnsafeCommandsServiceServer

	cfg       Config
	publisher publisher
	tracer    trace.Tracer
	commands  metric.Int64Counter
	byStatus  map[commandsv1.ResultStatus]metric.MeasurementOption

	streams  atomic.Int64
	draining chan struct{}
	drain    sync.Once
}

// New makes a server; register it once.
func New(cfg Config, p publisher, env daemon.Env) (*Server, error) {
	commands, err := env.Meter.Meter(scope).Int64Counter("mqtt_integration.commands",
		metric.WithUnit("{command}"), metric.WithDescription("Commands of frontends, by what became of them."))
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, publisher: p, commands: commands, draining: make(chan struct{}),
		tracer: env.Tracer.Tracer(scope), byStatus: map[commandsv1.ResultStatus]metric.MeasurementOption{},
	}
	for n := range commandsv1.ResultStatus_name {
		code := commandsv1.ResultStatus(n)
		s.byStatus[code] = metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", outcomeName(code))))
	}
	return s, nil
}

// Drain asks all frontends to go elsewhere. Their streams end when they have
// half-closed them and got their results.
func (s *Server) Drain() {
	s.drain.Do(func() { close(s.draining) })
}

// Publish implements CommandsService.
func (s *Server) Publish(rpc grpc.BidiStreamingServer[commandsv1.PublishRequest, commandsv1.PublishResponse]) error {
	if s.streams.Add(1) > int64(s.cfg.MaxStreams) {
		s.streams.Add(-1)
		return status.Error(codes.ResourceExhausted, "too many streams")
	}
	defer s.streams.Add(-1)
	return newStream(s, rpc).serve()
}

// count counts a result.
func (s *Server) count(ctx context.Context, code commandsv1.ResultStatus) {
	s.commands.Add(ctx, 1, s.byStatus[code])
}

func outcomeName(code commandsv1.ResultStatus) string {
	switch code {
	case commandsv1.ResultStatus_RESULT_STATUS_OK:
		return "ok"
	case commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE:
		return "unavailable"
	case commandsv1.ResultStatus_RESULT_STATUS_UNKNOWN_OUTCOME:
		return "unknown_outcome"
	case commandsv1.ResultStatus_RESULT_STATUS_RESOURCE_EXHAUSTED:
		return "resource_exhausted"
	case commandsv1.ResultStatus_RESULT_STATUS_QUOTA_EXCEEDED:
		return "quota_exceeded"
	case commandsv1.ResultStatus_RESULT_STATUS_TOO_LARGE:
		return "too_large"
	case commandsv1.ResultStatus_RESULT_STATUS_INVALID:
		return "invalid"
	default:
		return "unspecified"
	}
}

// code is the status of an outcome in the protocol.
func code(s producer.Status) commandsv1.ResultStatus {
	switch s {
	case producer.Written:
		return commandsv1.ResultStatus_RESULT_STATUS_OK
	case producer.Unavailable:
		return commandsv1.ResultStatus_RESULT_STATUS_UNAVAILABLE
	case producer.Exhausted:
		return commandsv1.ResultStatus_RESULT_STATUS_RESOURCE_EXHAUSTED
	case producer.TooLarge:
		return commandsv1.ResultStatus_RESULT_STATUS_TOO_LARGE
	default:
		return commandsv1.ResultStatus_RESULT_STATUS_UNKNOWN_OUTCOME
	}
}
