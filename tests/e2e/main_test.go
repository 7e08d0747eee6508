//go:build e2e

package e2e_test

import (
	"net/http"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(int) {
		removeBinaries()
		http.DefaultClient.CloseIdleConnections()
	}))
}
