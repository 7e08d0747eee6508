package access

import (
	"context"

	"google.golang.org/grpc"

	"mqtt-integration/libs/daemon"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
)

// Client asks authorization. All methods are safe for concurrent use.
type Client struct{}

// New makes a client. Run has to be called once; it closes the connection.
func New(cfg Config, env daemon.Env, opts ...grpc.DialOption) (*Client, error) { return &Client{}, nil }

// Run keeps the watch until ctx ends, and returns nil then.
func (c *Client) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Authenticate says who presented the credentials. The error is a [*Denial] or
// wraps [ErrUnavailable]. It takes at most 5 s.
func (c *Client) Authenticate(ctx context.Context, credentials Credentials) (Identity, error) {
	return Identity{}, ErrUnavailable
}

// Authorize says whether id may do something, mostly from what it knows. The
// error wraps [ErrUnavailable]. It takes at most 5 s.
func (c *Client) Authorize(ctx context.Context, id Identity, permission authorizationv1.Permission, application, shareName string) (Decision, error) {
	return Decision{}, ErrUnavailable
}

// Watch calls changed when decisions about id may have turned: ask again then.
// changed must not block and may be called from any goroutine, also while stop
// runs; once stop has returned, it is not called any more but for calls that had
// begun.
func (c *Client) Watch(id Identity, changed func()) (stop func()) { return func() {} }
