package access_test

import (
	"strconv"
	"testing"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/services/mqtt-frontend/internal/access"
)

// BenchmarkAuthorize is a decision that is known, among 10,000 others.
func BenchmarkAuthorize(b *testing.B) {
	client, err := access.NewWithAPI(access.DefaultConfig(), daemon.NewEnv(nil), &fakeAPI{revision: 7}, func() error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	for i := range 10_000 {
		defer client.Watch(user(strconv.Itoa(i)), func() {})()
		if _, err := client.Authorize(b.Context(), user(strconv.Itoa(i)), read, "app", ""); err != nil {
			b.Fatal(err)
		}
	}
	id := user("77")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Authorize(b.Context(), id, read, "app", ""); err != nil {
			b.Fatal(err)
		}
	}
}
