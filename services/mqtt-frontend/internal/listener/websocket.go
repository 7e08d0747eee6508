package listener

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/coder/websocket"
)

const (
	// webSocketPath is the only one that there is.
	webSocketPath = "/mqtt"
	// webSocketProtocol is the subprotocol of MQTT [MQTT-6.0.0-3], of all versions.
	webSocketProtocol = "mqtt"
	// maxRequestHeader is how large the request of a WebSocket may be.
	maxRequestHeader = 16 << 10
	// webSocketBuffer is the size of each of the two buffers of a connection.
	webSocketBuffer = 2 << 10
	// farewell bounds how long a client has for what follows our last bytes.
	farewell = time.Second
)

// WebSocket says how connections become WebSockets.
type WebSocket struct {
	// Origins are the hosts of web pages that may connect, beside those of the
	// request's own host: "app.example.com", "https://app.example.com:8443",
	// "*.example.com"; "*" is any.
	// A request without an origin comes from no web page, and is always served.
	Origins []string
	// Timeout bounds the HTTP request. Required.
	Timeout time.Duration
	Logger  *slog.Logger
}

// Validate reports a pattern that can never match.
func (w *WebSocket) Validate() error {
	for _, origin := range w.Origins {
		_, host, found := strings.Cut(origin, "://")
		if !found {
			host = origin
		}
		if _, err := path.Match(host, ""); err != nil || host == "" || strings.Contains(host, "/") {
			return fmt.Errorf("%q is no origin: want host[:port] or scheme://host[:port]", origin)
		}
	}
	return nil
}

var errRequest = errors.New("WebSocket request refused")

// Upgrade makes a WebSocket of a connection by the HTTP request that its client
// sends. What it returns is the stream of bytes in the binary frames, in any
// partition; closing it closes conn. With an error, the request was answered and
// conn is closed. The context ends the request, and not what is returned.
func (w *WebSocket) Upgrade(ctx context.Context, conn net.Conn) (_ net.Conn, err error) {
	defer func() {
		if p := recover(); p != nil {
			w.Logger.LogAttrs(ctx, slog.LevelError, "connection panicked", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			err = errRequest
		}
		if err != nil {
			w.Logger.LogAttrs(ctx, slog.LevelDebug, "no WebSocket", slog.String("remote_address", conn.RemoteAddr().String()), slog.Any("error", err))
			lingering(conn)
			_ = conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(w.Timeout)); err != nil {
		return nil, fmt.Errorf("limit the HTTP request: %w", err)
	}
	limited := &io.LimitedReader{R: conn, N: maxRequestHeader}
	in := bufio.NewReaderSize(limited, webSocketBuffer)
	answer := &response{header: http.Header{}, in: in, socket: &socket{Conn: conn}}
	request, err := http.ReadRequest(in)
	switch {
	case err != nil && limited.N <= 0:
		return nil, answer.refuse(http.StatusRequestHeaderFieldsTooLarge)
	case errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed):
		return nil, err // there is nobody to answer
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, answer.refuse(http.StatusRequestTimeout)
	case err != nil:
		return nil, errors.Join(answer.refuse(http.StatusBadRequest), err)
	case request.URL.Path != webSocketPath:
		return nil, answer.refuse(http.StatusNotFound)
	case request.Header.Get("Upgrade") != "" && !offersMQTT(request.Header):
		return nil, answer.refuse(http.StatusBadRequest)
	}
	ws, err := websocket.Accept(answer, request, &websocket.AcceptOptions{
		Subprotocols: []string{webSocketProtocol}, OriginPatterns: w.Origins, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(-1) // MQTT has its own, and nothing is kept until a message is complete
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("end the limit of the HTTP request: %w", err)
	}
	return &stream{socket: answer.socket, in: in, ws: ws}, nil
}

// offersMQTT reports whether the subprotocol is among those that the client offers,
// in any place: some offer "mqttv3.1" first.
func offersMQTT(header http.Header) bool {
	for _, list := range header.Values("Sec-WebSocket-Protocol") {
		for offered := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.TrimSpace(offered), webSocketProtocol) {
				return true
			}
		}
	}
	return false
}

// response is the answer to the one request of a connection.
type response struct {
	header http.Header
	in     *bufio.Reader
	socket *socket
	code   int
}

var (
	_ http.ResponseWriter = (*response)(nil)
	_ http.Hijacker       = (*response)(nil)
)

func (r *response) refuse(code int) error {
	http.Error(r, http.StatusText(code), code)
	return fmt.Errorf("%w: %d %s", errRequest, code, http.StatusText(code))
}

// Header implements http.ResponseWriter.
func (r *response) Header() http.Header { return r.header }

// WriteHeader implements http.ResponseWriter.
func (r *response) WriteHeader(code int) {
	if r.code != 0 {
		return
	}
	r.code = code
	if code != http.StatusSwitchingProtocols {
		r.header.Set("Connection", "close")
	}
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %d %s\r\n", code, http.StatusText(code))
	_ = r.header.Write(&head) // to memory
	head.WriteString("\r\n")
	_, _ = io.WriteString(r.socket, head.String()) // what comes next fails, too
}

// Write implements http.ResponseWriter.
func (r *response) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.socket.Write(p)
}

// Hijack implements http.Hijacker.
func (r *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return r.socket, bufio.NewReadWriter(r.in, bufio.NewWriterSize(r.socket, webSocketBuffer)), nil
}

// lingering lets the client read our last bytes: closing a socket that has unread
// input resets the connection, and what was sent is lost.
func lingering(conn net.Conn) {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || conn.SetReadDeadline(time.Now().Add(farewell)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, 16*maxRequestHeader))
}
