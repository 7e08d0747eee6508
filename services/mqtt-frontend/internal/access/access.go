package access

import (
	"errors"
	"fmt"
	"time"

	"mqtt-integration/libs/grpcclient"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
)

// ErrUnavailable says that it could not be decided: fail closed, but never as if
// the credentials were bad. The error that wraps it says why, for logs.
var ErrUnavailable = errors.New("authorization cannot be reached")

// ErrOverloaded says that authorization is overloaded. Errors that wrap it wrap
// [ErrUnavailable] as well.
var ErrOverloaded = errors.New("authorization is overloaded")

// Kind says with what somebody signed in.
type Kind = authorizationv1.CredentialKind

// Credentials are what a client presented: a token, or a user name with an API
// key, or nothing and Anonymous.
type Credentials struct {
	// Token is an OAuth 2 access token.
	Token string
	// UserName and APIKey belong together.
	UserName, APIKey string
	// Anonymous says that nothing was presented.
	Anonymous bool
	// ClientAddress is the network address of the client without its port, for
	// limits on failed attempts. Empty: not limited by address.
	ClientAddress string
	// ConnectionID is unique for ever, the subject of an anonymous principal.
	ConnectionID string
}

// Identity is a principal together with what is known of its credential. It is
// comparable, and holds no secret.
type Identity struct {
	// Issuer and Subject are the principal.
	Issuer, Subject string
	// Name is the login name, for people; empty for anonymous connections.
	Name string
	// Kind of the credential.
	Kind Kind
	// CredentialID is the public id of an API key, empty for the other kinds.
	CredentialID string
	// Expires is when the credential ends, in UTC; zero: never.
	Expires time.Time
	// Administrator is true when a role in the token makes its bearer
	// administrator of everything.
	Administrator bool
}

// Denial is the error for credentials that were refused.
//
//nolint:errname // it reads as what it is: an answer
type Denial struct {
	// Reason is the kind of reason.
	Reason authorizationv1.AuthenticationDenialReason
	// Message may be shown to the client.
	Message string
}

// Error describes the denial; the text has no secret.
func (d *Denial) Error() string {
	return fmt.Sprintf("credentials refused: %s", d.Message)
}

// Decision is the answer to [Client.Authorize].
type Decision struct {
	// Allowed is true when it is allowed.
	Allowed bool
	// Reason says why not.
	Reason authorizationv1.AuthorizationDenialReason
}

// Config says where authorization is and how much of it is kept.
type Config struct {
	grpcclient.Config `yaml:",inline"`

	// MaxDecisions bounds how many decisions are kept.
	MaxDecisions int `yaml:"max_decisions"`
}

// DefaultConfig is authorization on this machine, and 100,000 decisions.
func DefaultConfig() Config {
	return Config{Config: grpcclient.Config{Addresses: []string{"127.0.0.1:7001"}}, MaxDecisions: 100_000}
}

// Validate reports every problem under its YAML path.
func (c Config) Validate() error {
	var errs []error
	if err := c.Config.Validate(); err != nil {
		errs = append(errs, err)
	}
	if c.MaxDecisions < 1 {
		errs = append(errs, fmt.Errorf("max_decisions: %d is not positive", c.MaxDecisions))
	}
	return errors.Join(errs...)
}
