package authorization_test

import (
	"testing"

	"mqtt-integration/libs/testkit"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
)

// Through gRPC on loopback, client and server in one process.
func BenchmarkService(b *testing.B) {
	i := devIssuer(b)
	s := start(b, configFor(b, i))
	root := s.root(b, i)
	root.createUser(b, "dev", "sub-demo", "demo")
	root.createApplication(b, "app", "demo")
	key := root.createKey(b, &adminv1.CreateApiKeyRequest{User: "demo"}).GetKey()
	who := s.authenticate(b, byKey("demo", key)).GetAuthenticated()
	token := testkit.Mint(b, i, map[string]any{"sub": "sub-demo"})
	read := &authorizationv1.AuthorizeRequest{
		Principal: who.GetPrincipal(), Credential: who.GetCredential(),
		Permission: authorizationv1.Permission_PERMISSION_READ, Application: "app",
	}
	batch := &authorizationv1.BatchAuthorizeRequest{}
	for range 100 {
		batch.Requests = append(batch.Requests, read)
	}
	for _, bm := range []struct {
		name string
		call func() error
	}{
		{"authorize", func() error { _, err := s.Authorize(b.Context(), read); return err }},
		{"authorize 100", func() error { _, err := s.BatchAuthorize(b.Context(), batch); return err }},
		{"authenticate key", func() error { _, err := s.Authenticate(b.Context(), byKey("demo", key)); return err }},
		{"authenticate token", func() error { _, err := s.Authenticate(b.Context(), byToken(token)); return err }},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := bm.call(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
