package grpcserver

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// healthService is gRPC's own, except that a Watch ends when the server stops:
// after it has said NOT_SERVING there is nothing left to watch, and the drain
// would wait for it in vain.
type healthService struct {
	*health.Server

	stopping atomic.Bool
}

func newHealthService() *healthService { return &healthService{Server: health.NewServer()} }

// Shutdown tells everybody NOT_SERVING, for good.
func (h *healthService) Shutdown() {
	h.stopping.Store(true)
	h.Server.Shutdown()
}

// Watch implements [healthv1.HealthServer].
func (h *healthService) Watch(request *healthv1.HealthCheckRequest, stream healthv1.Health_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	err := h.Server.Watch(request, &watchStream{Health_WatchServer: stream, ctx: ctx, cancel: cancel, service: h})
	if h.stopping.Load() && stream.Context().Err() == nil {
		return status.Error(codes.Unavailable, "server is stopping")
	}
	return err
}

// watchStream ends the Watch behind the last answer.
type watchStream struct {
	healthv1.Health_WatchServer

	ctx     context.Context // what Context returns
	cancel  context.CancelFunc
	service *healthService
}

func (w *watchStream) Context() context.Context { return w.ctx }

func (w *watchStream) Send(response *healthv1.HealthCheckResponse) error {
	err := w.Health_WatchServer.Send(response)
	if w.service.stopping.Load() && response.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		w.cancel()
	}
	return err
}
