package delivery

import (
	"context"

	"google.golang.org/grpc"

	"mqtt-integration/libs/daemon"
)

// Client holds the streams. All methods are safe for concurrent use.
type Client struct{}

// Session is the session of one connection.
type Session struct{}

// Subscription is a subscription that was opened.
type Subscription struct{}

// New makes a client. frontendID names this process and breaks ties between
// epochs. Run has to be called once; it closes the connections.
func New(cfg Config, frontendID string, env daemon.Env, opts ...grpc.DialOption) (*Client, error) {
	return &Client{}, nil
}

// Run keeps the streams until ctx ends, and returns nil then.
func (c *Client) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Session makes the session of a connection. It costs nothing until the first
// Open attaches it. onError is called at most once, from a goroutine that must
// not be blocked: the session is lost and its subscriptions are closed, without
// Sink.Failed. Call Detach when the connection ends.
func (c *Client) Session(info SessionInfo, onError func(SessionError)) *Session { return &Session{} }

// Open begins a subscription and returns when it is positioned: what is appended
// from now on will be delivered. The error is an [*OpenError], also when ctx
// ends; nothing reaches the sink after an error.
func (s *Session) Open(ctx context.Context, request OpenRequest, sink Sink) (*Subscription, error) {
	return nil, &OpenError{}
}

// Detach lets the session go with all its subscriptions, and returns when nothing
// comes any more. Nothing reaches a sink after it returned, whatever the error.
func (s *Session) Detach(ctx context.Context, options DetachOptions) error { return nil }

// Acknowledge says that an event that was delivered need not come again. It is
// cheap; any order.
func (s *Subscription) Acknowledge(partition int32, offset int64) {}

// SetWindow replaces the window.
func (s *Subscription) SetWindow(events uint32, bytes uint64) {}

// Close ends the subscription; with unsubscribe its position is forgotten.
// Nothing reaches the sink after it returned, whatever the error. Do not call it
// with a lock that the sink takes.
func (s *Subscription) Close(ctx context.Context, unsubscribe bool) error { return nil }
