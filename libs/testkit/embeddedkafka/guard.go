package embeddedkafka

import (
	"encoding/binary"
	"errors"
	"io"
	"net"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxRequestBytes is Kafka's default for socket.request.max.bytes.
const maxRequestBytes = 100 << 20

var errNoKafkaRequest = errors.New("not a Kafka request")

// guardedListener protects the emulation from whoever does not speak Kafka: it
// panics at a request of an unknown kind and allocates whatever length it is
// told, so that a browser on its port would end the process.
type guardedListener struct{ net.Listener }

func (l guardedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err //nolint:wrapcheck // The wrapper is invisible.
	}
	return &guardedConn{Conn: conn}, nil
}

// guardedConn looks at the head of each request before anybody else does. Only
// one goroutine reads at a time.
type guardedConn struct {
	net.Conn
	head [8]byte // length, kind and version of the present request
	left []byte  // what of head has not been read yet
	body int     // what of the request is still to come after head
}

func (c *guardedConn) Read(p []byte) (int, error) {
	if len(c.left) == 0 && c.body == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if len(c.left) > 0 {
		n := copy(p, c.left)
		c.left = c.left[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p[:min(len(p), c.body)])
	c.body -= n
	return n, err //nolint:wrapcheck // The wrapper is invisible.
}

func (c *guardedConn) next() error {
	if _, err := io.ReadFull(c.Conn, c.head[:]); err != nil {
		return err //nolint:wrapcheck // The wrapper is invisible.
	}
	length := binary.BigEndian.Uint32(c.head[:])
	key := int16(binary.BigEndian.Uint16(c.head[4:])) //nolint:gosec // The protocol's type is int16.
	if length < 4 || length > maxRequestBytes || kmsg.RequestForKey(key) == nil {
		return errNoKafkaRequest
	}
	c.left, c.body = c.head[:], int(length)-4
	return nil
}
