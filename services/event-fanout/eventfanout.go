package eventfanout

import (
	"context"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
)

// Run serves until ctx ends, then drains for at most DrainTimeout: streams are
// asked to move on, positions are committed. It returns nil after an orderly
// stop, and leaves no goroutine behind.
func Run(ctx context.Context, cfg Config, env daemon.Env) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	env = env.Complete()
	server := grpcserver.New(cfg.GRPC, env)
	eventsv1.RegisterEventsServiceServer(server.Registrar(), eventsv1.UnimplementedEventsServiceServer{})
	adminv1.RegisterSessionAdminServiceServer(server.Registrar(), adminv1.UnimplementedSessionAdminServiceServer{})
	return server.Run(ctx, cfg.DrainTimeout)
}
