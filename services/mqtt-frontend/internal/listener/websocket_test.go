package listener_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"mqtt-integration/services/mqtt-frontend/internal/listener"
)

const patience = 20 * time.Second

// upgraded is what became of a connection.
type upgraded struct {
	conn net.Conn
	err  error
}

// dialWebSocket connects a socket whose other end is being made a WebSocket.
func dialWebSocket(t *testing.T, ws *listener.WebSocket) (net.Conn, <-chan upgraded) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	client, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	_ = client.SetDeadline(time.Now().Add(patience))
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan upgraded, 1)
	go func() {
		conn, err := ws.Upgrade(t.Context(), server)
		done <- upgraded{conn, err}
	}()
	return client, done
}

func webSocket(origins ...string) *listener.WebSocket {
	return &listener.WebSocket{Origins: origins, Timeout: patience, Logger: slog.New(slog.DiscardHandler)}
}

// request is the request of a browser, with other lines where they are given, and
// without those that are empty.
func request(path string, change map[string]string) string {
	lines := [][2]string{
		{"Host", "mqtt.example.com:8083"},
		{"Upgrade", "websocket"},
		{"Connection", "keep-alive, Upgrade"},
		{"Sec-WebSocket-Version", "13"},
		{"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="},
		{"Sec-WebSocket-Protocol", "mqtt"},
		{"Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"},
		{"Origin", ""},
		{"X", ""},
	}
	var b strings.Builder
	b.WriteString("GET " + path + " HTTP/1.1\r\n")
	for _, l := range lines {
		if v, ok := change[l[0]]; ok {
			l[1] = v
		}
		if l[1] != "" {
			b.WriteString(l[0] + ": " + l[1] + "\r\n")
		}
	}
	return b.String() + "\r\n"
}

func TestWebSocketRequests(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		request string
		origins []string
		code    int
	}{
		{name: "subprotocol mqtt", request: request("/mqtt", nil), code: 101},
		{name: "mqttv3.1 first", request: request("/mqtt", map[string]string{"Sec-WebSocket-Protocol": "mqttv3.1, mqtt"}), code: 101},
		{name: "query", request: request("/mqtt?x=y", nil), code: 101},
		{name: "no subprotocol", request: request("/mqtt", map[string]string{"Sec-WebSocket-Protocol": ""}), code: 400},
		{name: "other subprotocols", request: request("/mqtt", map[string]string{"Sec-WebSocket-Protocol": "mqttv3.1, stomp"}), code: 400},
		{name: "other path", request: request("/", nil), code: 404},
		{name: "longer path", request: request("/mqtt/x", nil), code: 404},
		{name: "no upgrade", request: request("/mqtt", map[string]string{"Upgrade": "", "Connection": ""}), code: 426},
		{name: "upgrade to something else", request: request("/mqtt", map[string]string{"Upgrade": "h2c"}), code: 426},
		{name: "old version", request: request("/mqtt", map[string]string{"Sec-WebSocket-Version": "8"}), code: 400},
		{name: "short key", request: request("/mqtt", map[string]string{"Sec-WebSocket-Key": "eA=="}), code: 400},
		{name: "POST", request: strings.Replace(request("/mqtt", nil), "GET", "POST", 1), code: 405},
		{name: "no HTTP", request: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", code: 400},
		{name: "MQTT", request: "\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01c\r\n\r\n", code: 400},
		{name: "large header", request: request("/mqtt", map[string]string{"X": strings.Repeat("x", 15<<10)}), code: 101},
		{name: "huge header", request: request("/mqtt", map[string]string{"X": strings.Repeat("x", 100<<10)}), code: 431},
		{name: "huge request line", request: request("/"+strings.Repeat("x", 100<<10), nil), code: 431},
		{name: "same origin", request: request("/mqtt", map[string]string{"Origin": "https://mqtt.example.com:8083"}), code: 101},
		{name: "another port", request: request("/mqtt", map[string]string{"Origin": "https://mqtt.example.com"}), code: 403},
		{name: "another origin", request: request("/mqtt", map[string]string{"Origin": "https://evil.example"}), code: 403},
		{name: "no origin that is one", request: request("/mqtt", map[string]string{"Origin": "null"}), code: 403},
		{name: "allowed host", request: request("/mqtt", map[string]string{"Origin": "https://App.example.com"}), origins: []string{"x", "app.example.com"}, code: 101},
		{name: "allowed origin", request: request("/mqtt", map[string]string{"Origin": "https://app.example.com"}), origins: []string{"https://app.example.com"}, code: 101},
		{name: "allowed origin of another scheme", request: request("/mqtt", map[string]string{"Origin": "http://app.example.com"}), origins: []string{"https://app.example.com"}, code: 403},
		{name: "allowed pattern", request: request("/mqtt", map[string]string{"Origin": "https://a.example.com"}), origins: []string{"*.example.com"}, code: 101},
		{name: "longer than allowed", request: request("/mqtt", map[string]string{"Origin": "https://app.example.com.evil.example"}), origins: []string{"app.example.com", "*.example.com"}, code: 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client, done := dialWebSocket(t, webSocket(tt.origins...))
			go func() { _, _ = io.WriteString(client, tt.request) }()
			answer, err := http.ReadResponse(bufio.NewReader(client), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = answer.Body.Close() }()
			if answer.StatusCode != tt.code {
				t.Errorf("status %s, want %d", answer.Status, tt.code)
			}
			if tt.code == http.StatusSwitchingProtocols {
				for name, want := range map[string]string{
					"Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "Sec-WebSocket-Protocol": "mqtt", "Sec-WebSocket-Extensions": "",
				} {
					if got := answer.Header.Get(name); got != want {
						t.Errorf("%s: %q, want %q", name, got, want)
					}
				}
				_ = client.Close()
				if u := <-done; u.err == nil {
					_ = u.conn.Close()
				} else {
					t.Error(u.err)
				}
				return
			}
			if !answer.Close {
				t.Error("the answer promises another request")
			}
			_ = client.(*net.TCPConn).CloseWrite() //nolint:forcetypeassert,errcheck // the test's
			if _, err := io.Copy(io.Discard, client); err != nil {
				t.Errorf("after the answer: %v", err)
			}
			if u := <-done; u.err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestSlowWebSocketRequestEnds(t *testing.T) {
	t.Parallel()
	ws := webSocket()
	ws.Timeout = 100 * time.Millisecond
	client, done := dialWebSocket(t, ws)
	_, _ = io.WriteString(client, "GET /mqtt HTTP/1.1\r\nHost: x\r\n")
	answer, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusRequestTimeout {
		t.Errorf("status %s, want 408", answer.Status)
	}
	_ = client.Close()
	if u := <-done; u.err == nil {
		t.Error("no error")
	}
}

func TestContextEndsAWebSocketRequest(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	server, client := net.Pipe()
	defer func() { _ = client.Close() }()
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := webSocket().Upgrade(ctx, server); err == nil {
		t.Error("no error")
	}
}

// frame is a frame of a client, masked.
func frame(first byte, payload string) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{1, 2, 3, 4}
	b = append(b, mask[:]...)
	for i := range payload {
		b = append(b, payload[i]^mask[i%4])
	}
	return b
}

// The first bytes of frames.
const (
	text, binaryFirst, more, last, binaryWhole = 0x81, 0x02, 0x00, 0x80, 0x82
	closeFrame, ping, pong                     = 0x88, 0x89, 0x8a
)

// open returns both ends of a WebSocket.
func open(t *testing.T) (net.Conn, *bufio.Reader, net.Conn) {
	t.Helper()
	client, done := dialWebSocket(t, webSocket())
	_, _ = io.WriteString(client, request("/mqtt", nil))
	in := bufio.NewReader(client)
	answer, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	u := <-done
	if u.err != nil {
		t.Fatal(u.err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		_ = u.conn.Close()
	})
	return client, in, u.conn
}

func send(t *testing.T, conn net.Conn, b ...[]byte) {
	t.Helper()
	if _, err := conn.Write(bytes.Join(b, nil)); err != nil {
		t.Fatal(err)
	}
}

// next reads a frame of the server.
func next(t *testing.T, in *bufio.Reader) (first byte, payload string) {
	t.Helper()
	head := make([]byte, 2)
	if _, err := io.ReadFull(in, head); err != nil {
		t.Fatal(err)
	}
	size := uint64(head[1])
	if size > 125 {
		long := make([]byte, map[uint64]int{126: 2, 127: 8}[size])
		if _, err := io.ReadFull(in, long); err != nil {
			t.Fatal(err)
		}
		size = binary.BigEndian.Uint64(append(make([]byte, 8-len(long)), long...))
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(in, b); err != nil {
		t.Fatal(err)
	}
	return head[0], string(b)
}

func want(t *testing.T, conn io.Reader, s string) {
	t.Helper()
	b := make([]byte, len(s))
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != s {
		t.Fatalf("read %q, %v, want %q", b, err, s)
	}
}

func TestBytesOfAWebSocket(t *testing.T) {
	t.Parallel()
	client, in, server := open(t)
	send(t, client, frame(binaryFirst, "he"), frame(ping, "p"), frame(more, ""), frame(more, "ll"), frame(last, "o"), frame(binaryWhole, ""),
		frame(pong, "nobody asked"), frame(binaryWhole, ", world"))
	want(t, server, "hello, world")
	if first, payload := next(t, in); first != pong || payload != "p" {
		t.Errorf("%#x %q, want the pong", first, payload)
	}
	large := strings.Repeat("0123456789", 20_000)
	go func() { _, _ = client.Write(frame(binaryWhole, large)) }()
	want(t, server, large)

	// A part of a frame is there at once.
	f := frame(binaryWhole, strings.Repeat("abc", 1000))
	send(t, client, f[:11])
	want(t, server, "abc")
	send(t, client, f[11:])
	want(t, server, strings.Repeat("abc", 999))

	for _, s := range []string{"x", strings.Repeat("y", 200), large} {
		go func() {
			if n, err := io.WriteString(server, s); n != len(s) || err != nil {
				t.Errorf("wrote %d, %v", n, err)
			}
		}()
		if first, payload := next(t, in); first != binaryWhole || payload != s {
			t.Errorf("%#x and %d bytes, want one binary message of %d", first, len(payload), len(s))
		}
	}
}

// The session wakes the reader, and writes its last packet after that.
func TestReadDeadlineOfAWebSocketDoesNotEndWriting(t *testing.T) {
	t.Parallel()
	client, in, server := open(t)
	done := make(chan error, 1)
	go func() {
		_, err := server.Read(make([]byte, 1))
		done <- err
	}()
	if err := server.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read: %v", err)
	}
	if _, err := io.WriteString(server, "bye"); err != nil {
		t.Fatal(err)
	}
	if first, payload := next(t, in); first != binaryWhole || payload != "bye" {
		t.Errorf("%#x %q", first, payload)
	}
	// It lingers: what the client has sent meanwhile is dropped, its close frame waited for.
	closed := make(chan error, 1)
	go func() {
		closed <- server.(interface{ CloseWrite() error }).CloseWrite() //nolint:forcetypeassert,errcheck // the test's
	}()
	if first, payload := next(t, in); first != closeFrame || payload != "\x03\xe8" {
		t.Errorf("%#x %q, want a close frame with 1000", first, payload)
	}
	send(t, client, frame(binaryWhole, strings.Repeat("z", 10_000)), frame(closeFrame, "\x03\xe8"))
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("Read: %v, want the end", err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the close frame: %v", err)
	}
}

func TestEndsOfAWebSocket(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		frames []byte
		eof    bool
		status uint16 // of the close frame that the client gets; 0: not looked at
	}{
		{name: "text frame", frames: frame(text, "\x10\x00"), status: 1003},
		{name: "close frame", frames: frame(closeFrame, "\x03\xe8"), eof: true, status: 1000},
		{name: "close frame without a status", frames: frame(closeFrame, ""), eof: true},
		{name: "going away", frames: frame(closeFrame, "\x03\xe9"), eof: true, status: 1001},
		{name: "not masked", frames: []byte{binaryWhole, 1, 'x'}},
		{name: "reserved bit", frames: frame(0xc2, "x"), status: 1002},
		{name: "unknown opcode", frames: frame(0x83, "x"), status: 1002},
		{name: "continuation of nothing", frames: frame(last, "x"), status: 1002},
		{name: "message in a message", frames: bytes.Join([][]byte{frame(binaryFirst, ""), frame(binaryWhole, "x")}, nil), status: 1002},
		{name: "fragmented ping", frames: frame(0x09, "x"), status: 1002},
		{name: "long ping", frames: frame(ping, strings.Repeat("x", 126)), status: 1002},
		{name: "negative length", frames: []byte{binaryWhole, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client, in, server := open(t)
			send(t, client, tt.frames)
			if _, err := server.Read(make([]byte, 10)); err == nil || errors.Is(err, io.EOF) != tt.eof {
				t.Errorf("Read: %v", err)
			}
			closed := make(chan struct{})
			go func() {
				_ = server.Close() // the client may be gone
				close(closed)
			}()
			if tt.status != 0 {
				if first, payload := next(t, in); first != closeFrame || len(payload) < 2 || binary.BigEndian.Uint16([]byte(payload)) != tt.status {
					t.Errorf("%#x %q, want a close frame with %d", first, payload, tt.status)
				}
				_, _ = client.Write(frame(closeFrame, "\x03\xe8"))
			}
			_, _ = io.Copy(io.Discard, in)
			select {
			case <-closed:
			case <-time.After(patience):
				t.Fatal("Close does not return")
			}
		})
	}
}

// A client that does not read costs the write timeout, also when it sends pings.
func TestStalledWebSocket(t *testing.T) {
	t.Parallel()
	client, _, server := open(t)
	go func() {
		for _, err := client.Write(frame(ping, "x")); err == nil; _, err = client.Write(frame(ping, "x")) {
		}
	}()
	read := make(chan error, 1)
	go func() {
		_, err := server.Read(make([]byte, 1))
		read <- err
	}()
	begin := time.Now()
	var err error
	for chunk := make([]byte, 64<<10); err == nil; _, err = server.Write(chunk) {
		_ = server.SetWriteDeadline(time.Now().Add(time.Second))
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; err == nil {
		t.Error("Read: no error")
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func FuzzWebSocketFrames(f *testing.F) {
	f.Add(frame(binaryWhole, "hello"))
	f.Add(bytes.Join([][]byte{frame(binaryFirst, "he"), frame(ping, "p"), frame(last, "llo"), frame(closeFrame, "\x03\xe8")}, nil))
	f.Add(frame(text, "x"))
	f.Add([]byte{binaryWhole, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4})
	f.Add([]byte(fmt.Sprintf("%c", ping)))
	f.Fuzz(func(t *testing.T, frames []byte) {
		server, client := net.Pipe()
		go func() {
			_, _ = io.WriteString(client, request("/mqtt", nil))
			_, _ = client.Write(frames)
			_ = client.Close()
		}()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			_, _ = io.Copy(io.Discard, client)
		}()
		conn, err := webSocket().Upgrade(t.Context(), server)
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := io.Copy(io.Discard, conn); n > int64(len(frames)) {
			t.Errorf("%d bytes of %d", n, len(frames))
		}
		_ = conn.Close()
		<-drained
	})
}
