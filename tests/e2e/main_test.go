//go:build e2e

package e2e_test

import (
	"net/http"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if where := os.Getenv(emulationVariable); where != "" {
		emulateKafka(where)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(int) {
		removeBinaries()
		http.DefaultClient.CloseIdleConnections()
	}))
}
