package grpcclient_test

import (
	"fmt"
	"log/slog"
	"time"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcclient"
)

func Example() {
	cfg := grpcclient.Config{Addresses: []string{"127.0.0.1:9101", "127.0.0.1:9102"}, Timeout: 5 * time.Second}
	conn, err := grpcclient.New(cfg, daemon.NewEnv(slog.New(slog.DiscardHandler)))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = conn.Close() }()
	// Here: authorizationv1.NewAuthorizationServiceClient(conn).Authorize(ctx, request, grpc.WaitForReady(true))
	fmt.Println(conn.Target())
	// Output: instances:///services
}
