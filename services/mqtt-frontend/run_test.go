package mqttfrontend_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"mqtt-integration/libs/daemon"
	mqttfrontend "mqtt-integration/services/mqtt-frontend"
	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs the service on a port of its own. The other services are not there.
func start(t *testing.T, change ...func(*mqttfrontend.Config)) (address string, stop func() error) {
	t.Helper()
	cfg := mqttfrontend.DefaultConfig()
	cfg.Listeners = []mqttfrontend.ListenerConfig{{Address: "127.0.0.1:0"}}
	// A port that nobody listens on, and nobody else gets.
	nowhere := listen(t)
	cfg.Authorization.Addresses = []string{nowhere.Addr().String()}
	cfg.EventFanout.Addresses = cfg.Authorization.Addresses
	cfg.CommandIngress.Addresses = cfg.Authorization.Addresses
	if err := nowhere.Close(); err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(&cfg)
	}
	env := daemon.NewEnv(slog.New(slog.DiscardHandler))
	addresses := make(chan string, 1)
	env.Listen = func(ctx context.Context, network, address string) (net.Listener, error) {
		l, err := new(net.ListenConfig).Listen(ctx, network, address)
		if err == nil {
			addresses <- l.Addr().String()
		}
		return l, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mqttfrontend.Run(ctx, cfg, env) }()
	stopped := false
	stop = func() error {
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(mqtttest.Patience):
			return errors.New("Run does not return")
		}
	}
	t.Cleanup(func() {
		if !stopped {
			if err := stop(); err != nil {
				t.Errorf("Run: %v", err)
			}
		}
	})
	select {
	case address = <-addresses:
	case err := <-done:
		stopped = true
		cancel()
		t.Fatalf("Run: %v", err)
	}
	return address, stop
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dial(t *testing.T, address string, level byte) *mqtttest.Client {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return mqtttest.New(t, conn, level)
}

func TestWithoutTheOtherServicesNobodyIsLetIn(t *testing.T) {
	t.Parallel()
	address, _ := start(t)
	for level, want := range map[byte]byte{4: 3, 5: 0x88} {
		t.Run(strconv.Itoa(int(level)), func(t *testing.T) {
			t.Parallel()
			c := dial(t, address, level)
			c.Send(mqtttest.Connect(level, "c", "anna", "key"))
			if k := c.Want(packets.Connack); k.ReasonCode != want {
				t.Errorf("CONNACK %#x, want %#x", k.ReasonCode, want)
			}
			c.WantClosed()
		})
	}
}

func TestWebSocketListener(t *testing.T) {
	t.Parallel()
	address, stop := start(t, func(c *mqttfrontend.Config) { c.Listeners[0].Transport = mqttfrontend.TransportWebSocket })
	ws, _, err := websocket.Dial(t.Context(), "ws://"+address+"/mqtt", &websocket.DialOptions{ //nolint:bodyclose // the library's
		Subprotocols: []string{"mqtt"}, HTTPClient: &http.Client{Transport: &http.Transport{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := mqtttest.New(t, websocket.NetConn(context.WithoutCancel(t.Context()), ws, websocket.MessageBinary), 5)
	c.Send(mqtttest.Connect(5, "c", "anna", "key"))
	if k := c.Want(packets.Connack); k.ReasonCode != 0x88 {
		t.Errorf("CONNACK %#x, want 0x88", k.ReasonCode)
	}
	c.WantClosed()
	half := dial(t, address, 5)
	half.Send([]byte("GET /mqtt HTTP/1.1\r\n"))
	begin := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	half.WantClosed()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v: requests that are not complete are waited for", took)
	}
}

func TestRunEndsInAnOrderlyWay(t *testing.T) {
	t.Parallel()
	address, stop := start(t)
	dial(t, address, 5) // says nothing
	half := dial(t, address, 5)
	half.Send([]byte("\x10\x20\x00"))
	begin := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	half.WantClosed()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v: connections that have not said CONNECT are waited for", took)
	}
	if _, err := new(net.Dialer).DialContext(t.Context(), "tcp", address); err == nil {
		t.Error("still listening")
	}
}

func TestPortInUseIsNamed(t *testing.T) {
	t.Parallel()
	l := listen(t)
	defer func() { _ = l.Close() }()
	cfg := mqttfrontend.DefaultConfig()
	cfg.Listeners = []mqttfrontend.ListenerConfig{{Address: "127.0.0.1:0"}, {Address: l.Addr().String()}}
	err := mqttfrontend.Run(t.Context(), cfg, daemon.NewEnv(slog.New(slog.DiscardHandler)))
	if err == nil || !strings.Contains(err.Error(), "listeners[1]: ") || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("Run: %v", err)
	}
}
