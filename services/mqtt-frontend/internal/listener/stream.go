package listener

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// socket is the connection below a WebSocket, as the library sees it.
type socket struct {
	net.Conn

	deadline atomic.Int64 // for writing, in Unix nanoseconds
}

// SetWriteDeadline implements net.Conn.
func (s *socket) SetWriteDeadline(t time.Time) error {
	s.deadline.Store(t.UnixNano())
	return s.Conn.SetWriteDeadline(t)
}

// Write implements net.Conn. The library writes pongs and close frames by itself,
// when the deadline of what we wrote last may be over.
func (s *socket) Write(p []byte) (int, error) {
	if now := time.Now(); s.deadline.Load() < now.UnixNano() {
		if err := s.SetWriteDeadline(now.Add(farewell)); err != nil {
			return 0, err
		}
	}
	return s.Conn.Write(p)
}

// Close implements net.Conn: it wakes who waits. The stream closes the
// connection, after the client has had time to read what was sent.
func (s *socket) Close() error { return s.Conn.SetDeadline(time.Unix(1, 0)) }

var errText = errors.New("text frame from a client")

// stream is the bytes in the binary frames of a WebSocket, in both directions. As
// with any connection, one goroutine may read and another write.
type stream struct {
	socket *socket
	in     *bufio.Reader // what the library reads from
	ws     *websocket.Conn

	// Of the reading goroutine, which also calls CloseWrite and Close.
	message io.Reader // nil between two messages
	status  websocket.StatusCode

	closing bool // there was a closing handshake, or an attempt
	closed  bool // and the client has done its part

	broken atomic.Bool // a frame was not written completely
}

var _ net.Conn = (*stream)(nil)

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	switch {
	case s.closed:
		return 0, io.EOF
	case s.closing:
		return s.socket.Conn.Read(p) // nobody looks at it
	}
	for {
		if s.message == nil {
			kind, message, err := s.ws.Reader(context.Background()) // deadlines are the socket's
			switch {
			case err != nil:
				return 0, ended(err)
			case kind != websocket.MessageBinary: // [MQTT-6.0.0-1]
				s.status = websocket.StatusUnsupportedData
				return 0, errText
			}
			s.message = message
		}
		// The library waits until p is full. What is there must not wait for that.
		n, err := s.message.Read(p[:max(1, min(len(p), s.in.Buffered()))])
		if errors.Is(err, io.EOF) {
			s.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// ended is io.EOF for the end that a client means.
func ended(err error) error {
	switch websocket.CloseStatus(err) {
	case websocket.StatusNormalClosure, websocket.StatusGoingAway, websocket.StatusNoStatusRcvd:
		return io.EOF
	default:
		return err
	}
}

// Write implements net.Conn: each one is a binary message.
func (s *stream) Write(p []byte) (int, error) {
	if err := s.ws.Write(context.Background(), websocket.MessageBinary, p); err != nil {
		s.broken.Store(true)
		return 0, err
	}
	return len(p), nil
}

// CloseWrite sends a close frame and waits for the client's: what it sends before
// that is read and dropped.
func (s *stream) CloseWrite() error {
	if s.closing {
		return nil
	}
	s.closing = true
	if s.broken.Load() {
		return s.ws.CloseNow()
	}
	if err := s.SetDeadline(time.Now().Add(farewell)); err != nil {
		return err
	}
	status := s.status
	if status == 0 {
		status = websocket.StatusNormalClosure
	}
	err := s.ws.Close(status, "")
	s.closed = err == nil || errors.Is(err, net.ErrClosed) || websocket.CloseStatus(err) != -1
	return nil // there may be something to read nevertheless
}

// Close implements net.Conn.
func (s *stream) Close() error {
	_ = s.CloseWrite() // what matters is that the connection is closed
	return s.socket.Conn.Close()
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return s.socket.LocalAddr() }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return s.socket.RemoteAddr() }

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error { return s.socket.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error { return s.socket.SetWriteDeadline(t) }
