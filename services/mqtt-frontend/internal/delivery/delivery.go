package delivery

import (
	"errors"
	"fmt"

	"mqtt-integration/libs/grpcclient"
	eventsv1 "mqtt-integration/proto/gen/mqttintegration/events/v1"
	"mqtt-integration/services/mqtt-frontend/internal/event"
)

// SessionInfo says which session of which connection it is.
type SessionInfo struct {
	// Issuer and Subject are the principal, ClientID the MQTT client identifier:
	// together the session.
	Issuer, Subject, ClientID string
	// ConnectionID is unique for ever.
	ConnectionID string
	// Epoch orders the CONNECTs of the session: microseconds since 1970, fixed at
	// CONNECT.
	Epoch uint64
	// ProtocolLevel is that of MQTT: 4 or 5.
	ProtocolLevel byte
	// ClientAddress is the network address of the client, for administrators.
	ClientAddress string
}

// SessionError says that a session was lost.
type SessionError struct {
	// Reason says what to send to the client.
	Reason eventsv1.SessionErrorReason
	// Message is for logs.
	Message string
}

// Window bounds what a subscription may have delivered and not acknowledged.
type Window struct {
	// Events, at least 1.
	Events uint32
	// Bytes of the events' wire form. One event is always allowed when nothing is
	// outstanding.
	Bytes uint64
}

// OpenRequest says what to subscribe to.
type OpenRequest struct {
	// Application whose events are wanted.
	Application string
	// ShareName is empty for an own subscription.
	ShareName string
	// Window is the first one.
	Window Window
	// QoS is the granted one, 0 or 1.
	QoS byte
	// Binary is the content mode, structured unless true.
	Binary bool
	// SubscriptionID is the MQTT Subscription Identifier; 0: none.
	SubscriptionID uint32
}

// OpenError says why a subscription could not be opened, or ended.
type OpenError struct {
	// Reason is the kind of reason.
	Reason eventsv1.SubscriptionErrorReason
	// Message may be shown to the client.
	Message string
}

// Error describes it.
func (e *OpenError) Error() string {
	return fmt.Sprintf("open subscription: %s", e.Message)
}

// Sink receives what is delivered to a subscription. Its methods are called one
// at a time by a goroutine that serves many subscriptions: they only put things
// into queues, and never block. The first call may come before Open has returned.
type Sink interface {
	// Deliver takes events, in order per partition. The slice belongs to the
	// caller and is used again after the call: copy its elements. The events
	// themselves are shared and may be kept.
	Deliver(deliveries []Delivery)
	// Skipped says that retention removed count records that were not delivered;
	// the next event of the partition is the first one that is left.
	Skipped(partition int32, count int64)
	// Failed ends the subscription. Nothing comes after it.
	Failed(err *OpenError)
}

// Delivery is an event on its way to one subscription.
type Delivery struct {
	// Event is shared by all its recipients.
	Event *event.Shared
	// Offset and Partition are what to acknowledge.
	Offset    int64
	Partition int32
}

// DetachOptions say how a session ends.
type DetachOptions struct {
	// DropWill is true when the client sent DISCONNECT with reason 0x00.
	DropWill bool
	// Discard is true when the right to the session ended: nothing is stored.
	Discard bool
}

// Config says where event-fanout is.
type Config struct {
	grpcclient.Config `yaml:",inline"`

	// Streams per instance. Sessions are spread over them by application.
	Streams int `yaml:"streams"`
	// MaxSubscriptions bounds the open subscriptions of this process.
	MaxSubscriptions int `yaml:"max_subscriptions"`
}

// DefaultConfig is one event-fanout on this machine with 2 streams, and 500,000
// subscriptions.
func DefaultConfig() Config {
	return Config{
		Config:           grpcclient.Config{Addresses: []string{"127.0.0.1:7002"}},
		Streams:          2,
		MaxSubscriptions: 500_000,
	}
}

// Validate reports every problem under its YAML path.
func (c Config) Validate() error {
	var errs []error
	if err := c.Config.Validate(); err != nil {
		errs = append(errs, err)
	}
	if c.Streams < 1 || c.Streams > 64 {
		errs = append(errs, fmt.Errorf("streams: %d is not between 1 and 64", c.Streams))
	}
	if c.MaxSubscriptions < 1 {
		errs = append(errs, fmt.Errorf("max_subscriptions: %d is not positive", c.MaxSubscriptions))
	}
	return errors.Join(errs...)
}
