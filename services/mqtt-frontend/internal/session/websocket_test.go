package session_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/mochi-mqtt/server/v2/packets"

	"mqtt-integration/services/mqtt-frontend/internal/listener"
	"mqtt-integration/services/mqtt-frontend/internal/mqtttest"
)

// dialWebSocket returns a client over WebSocket, which has said nothing yet.
func (f *frontend) dialWebSocket(level byte) *mqtttest.Client {
	f.t.Helper()
	l, err := new(net.ListenConfig).Listen(f.ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	f.connections.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			f.t.Error(err)
			return
		}
		ws := &listener.WebSocket{Timeout: mqtttest.Patience, Logger: slog.New(slog.DiscardHandler)}
		if conn, err = ws.Upgrade(f.ctx, conn); err != nil {
			f.t.Error(err)
			return
		}
		f.server.Serve(f.ctx, conn)
	})
	client, answer, err := websocket.Dial(f.ctx, "ws://"+l.Addr().String()+"/mqtt", &websocket.DialOptions{ //nolint:bodyclose // the library's
		Subprotocols: []string{"mqttv3.1", "mqtt"}, HTTPClient: &http.Client{Transport: &http.Transport{}},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	if got := answer.Header.Get("Sec-WebSocket-Protocol"); got != "mqtt" {
		f.t.Errorf("subprotocol %q", got)
	}
	return mqtttest.New(f.t, websocket.NetConn(context.WithoutCancel(f.ctx), client, websocket.MessageBinary), level)
}

func TestOverWebSocket(t *testing.T) {
	t.Parallel()
	for _, level := range []byte{4, 5} {
		t.Run(fmt.Sprintf("level %d", level), func(t *testing.T) {
			t.Parallel()
			f := newFrontend(t)
			c := f.dialWebSocket(level)
			c.Send(mqtttest.Connect(level, "c", "anna", "key"))
			if k := c.Want(packets.Connack); k.ReasonCode != 0 {
				t.Fatalf("CONNACK %#x", k.ReasonCode)
			}
			c.Send(mqtttest.Subscribe(level, 1, "app/a"))
			c.Want(packets.Suback)
			sub := f.events.last()
			sub.deliver(t, 300) // more than the window, and than a batch
			for range 300 {
				c.Send(mqtttest.Puback(c.Want(packets.Publish).PacketID))
			}
			eventually(t, "all are acknowledged", func() bool { return len(sub.acks()) == 300 })
			// A packet in single bytes, and several in one message.
			for _, b := range plain(topic)(level, 1) {
				c.Send([]byte{b})
			}
			c.Want(packets.Puback)
			c.Send(append(plain(topic)(level, 1), plain(topic)(level, 1)...))
			c.Want(packets.Puback)
			c.Want(packets.Puback)
			c.Ping()
			// Taken over: it can read why, and then the WebSocket is closed.
			second := f.dialWebSocket(level)
			second.Send(mqtttest.Connect(level, "c", "anna", "key"))
			second.Want(packets.Connack)
			if d := c.WantClosed(); level == 5 && (d == nil || d.ReasonCode != 0x8e) {
				t.Errorf("got %v, want DISCONNECT 0x8e", d)
			}
			second.Send([]byte{0xe0, 0})
			second.WantClosed()
		})
	}
}

func TestKeepAliveOverWebSocket(t *testing.T) {
	t.Parallel()
	f := newFrontend(t)
	c := f.dialWebSocket(5)
	begin := time.Now()
	c.Send(mqtttest.Connect(5, "c", "anna", "key", func(pk *packets.Packet) { pk.Connect.Keepalive = 1 }))
	c.Want(packets.Connack)
	if d := c.WantClosed(); d == nil || d.ReasonCode != 0x8d {
		t.Errorf("got %v, want DISCONNECT 0x8d", d)
	}
	if took := time.Since(begin); took < 1500*time.Millisecond {
		t.Errorf("after %v, want 1.5 s", took)
	}
}
