package authorization

import (
	"context"

	"golang.org/x/sync/errgroup"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
)

// Run serves until ctx ends, then drains for at most DrainTimeout. It returns nil
// after an orderly stop, and leaves no goroutine behind.
func Run(ctx context.Context, cfg Config, env daemon.Env) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	env = env.Complete()
	decisions := grpcserver.New(cfg.GRPC, env)
	administration := grpcserver.New(cfg.AdminAPI, env)
	authorizationv1.RegisterAuthorizationServiceServer(decisions.Registrar(), authorizationv1.UnimplementedAuthorizationServiceServer{})
	adminv1.RegisterAdminServiceServer(administration.Registrar(), adminv1.UnimplementedAdminServiceServer{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return decisions.Run(ctx, cfg.DrainTimeout) })
	g.Go(func() error { return administration.Run(ctx, cfg.DrainTimeout) })
	return g.Wait()
}
