package store

import (
	"errors"
	"time"

	"mqtt-integration/services/authorization/internal/policy"
)

// Errors that callers tell apart. Whatever else a store returns wraps
// ErrUnavailable or the error of the context.
var (
	// ErrUnavailable means that the store did not answer: nothing is known.
	ErrUnavailable = errors.New("store unavailable")

	ErrUserNotFound        = errors.New("no such user")
	ErrApplicationNotFound = errors.New("no such application")
	ErrMemberNotFound      = errors.New("no such member")
	ErrKeyNotFound         = errors.New("no such API key")
	ErrUserExists          = errors.New("the user exists already")
	ErrNameTaken           = errors.New("the login name is taken")
	ErrApplicationExists   = errors.New("the application exists already")
	// ErrOwnsApplications means that a user cannot be deleted yet.
	ErrOwnsApplications = errors.New("the user owns an application")
	// ErrOwner means that an application would be left without its owner.
	ErrOwner = errors.New("an application always has an owner, who can only give it away")
	// ErrTooManyKeys means that MaxKeys is reached.
	ErrTooManyKeys = errors.New("the user has too many API keys")
	// ErrTooManyMembers means that MaxMembers is reached.
	ErrTooManyMembers = errors.New("the application has too many members")
)

// Limits of what one list can have, because lists are sent as a whole.
const (
	// MaxKeys is how many API keys a user can have.
	MaxKeys = 100
	// MaxMembers is how many members an application can have.
	MaxMembers = 10_000
)

// User is somebody who can sign in.
type User struct {
	Principal policy.Principal
	// Name is the login name, unique over all issuers.
	Name       string
	Disabled   bool
	CreateTime time.Time
}

// Application has events and devices.
type Application struct {
	Name string
	// Owner is a login name.
	Owner      string
	CreateTime time.Time
}

// Member is a user with a role, or everyone.
type Member struct {
	// User is a login name; empty with Everyone.
	User     string
	Everyone bool
	Role     policy.Role
}

// Key is an API key without its secret.
type Key struct {
	ID string
	// User is the login name of the owner.
	User         string
	Description  string
	Scopes       policy.Scope
	Applications []string
	CreateTime   time.Time
	ExpireTime   time.Time // zero: never
	LastUseTime  time.Time // zero: never; to the hour
}

// KeyRecord is what is needed to verify a key.
type KeyRecord struct {
	Key
	// Hash is the SHA-256 of the secret.
	Hash  [32]byte
	Owner User
}

// Change says whose decisions may have turned. An empty field means any.
type Change struct {
	Revision     int64
	Principal    policy.Principal
	CredentialID string
	Application  string
}
