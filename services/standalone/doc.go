// Package standalone runs the whole MQTT integration in one process, on
// loopback, for trying it out and for tests: authorization, event-fanout,
// command-ingress and mqtt-frontend, as they are, over real gRPC on real
// sockets; an emulated Kafka with a data directory, unless a real one is
// configured; a development sign-in provider; and a demonstration: a user who
// owns an application with a simulated device.
//
// Tests start it like this, and learn the addresses:
//
//	cfg := standalone.DefaultConfig()
//	cfg.DataDir = t.TempDir()
//	cfg.AnyPorts()                                // every port 0: any free one
//	cfg.Kafka.Brokers = testkit.Kafka(t)          // or none: one of its own
//	cfg.CommandIngress.Commands.Topic = …         // what else a test changes
//	cfg.Demo.Enabled = false                      // no user, application, device
//	system, err := standalone.Start(t.Context(), cfg, standalone.Options{})
//	if err != nil { … }
//	t.Cleanup(func() { err := system.Close(); … })
//	system.Addresses().MQTT                       // 127.0.0.1:41234
//	system.Issuer().Mint(claims)                  // tokens of anybody
//	system.AdministratorToken()                   // for AdminService at Addresses().AuthorizationAdmin
//
// [Run] is the same without the handle. Both own every goroutine that they
// start. What they start ends in the opposite order, so that nothing loses what
// it leans on while it still drains.
package standalone
