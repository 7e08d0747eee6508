package grpcserver_test

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
)

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()

	cfg := grpcserver.Config{Address: "127.0.0.1:0"}
	if err := cfg.Validate(); err != nil {
		fmt.Println(err)
	}
	server := grpcserver.New(cfg, daemon.NewEnv(slog.New(slog.DiscardHandler)))
	// Here: authorizationv1.RegisterAuthorizationServiceServer(server.Registrar(), …)
	fmt.Println(server.Run(ctx, time.Second))
	// Output: <nil>
}
