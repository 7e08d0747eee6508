package daemon_test

import (
	"context"
	"fmt"
	"log/slog"

	"mqtt-integration/libs/daemon"
)

// A service is a configuration and a Run function; its main package is
//
//	func main() { os.Exit(daemon.Main("my-service", myservice.DefaultConfig, myservice.Run)) }
func Example() {
	type config struct {
		daemon.Common `yaml:",inline"`
	}
	run := func(ctx context.Context, _ config, env daemon.Env) error {
		kafka := env.Health.Register("kafka")
		fmt.Println(env.Health.Ready())
		kafka.Set(nil)
		fmt.Println(env.Health.Ready())
		<-ctx.Done()
		return nil
	}

	// Main does this with the configuration, a context that ends with a signal,
	// and telemetry.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	fmt.Println(run(ctx, config{daemon.DefaultCommon()}, daemon.NewEnv(slog.New(slog.DiscardHandler))))
	// Output:
	// kafka: not ready yet
	// <nil>
	// <nil>
}
