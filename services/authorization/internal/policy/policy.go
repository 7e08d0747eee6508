package policy

import (
	"slices"
	"time"
)

// The issuers that no OIDC provider stands behind.
const (
	// IssuerLocal is the issuer of users that only this service knows.
	IssuerLocal = "local"
	// IssuerAnonymous is the issuer of connections without credentials, whose
	// subject is the identifier of the connection.
	IssuerAnonymous = "anonymous"
)

// Principal is who somebody is.
type Principal struct {
	// Issuer is the alias of an issuer, IssuerLocal or IssuerAnonymous.
	Issuer string
	// Subject is unique at that issuer.
	Subject string
}

// String is the principal as it is written in logs: "<alias>/<subject>".
func (p Principal) String() string { return p.Issuer + "/" + p.Subject }

// CredentialKind says with what somebody signed in.
type CredentialKind int

// The kinds. The zero value is none of them and is always denied.
const (
	AccessToken CredentialKind = iota + 1
	APIKey
	Anonymous
)

// Credential is what is known of a credential after it was verified.
type Credential struct {
	Kind CredentialKind
	// ID is the public id of an API key.
	ID string
	// ExpireTime is when the credential ends; zero: it does not.
	ExpireTime time.Time
	// Administrator says that the token makes its bearer administrator of
	// everything. It is not looked at for other kinds.
	Administrator bool
}

// Permission is something that a principal may or may not do.
type Permission int

// The permissions. The zero value is always denied.
const (
	// Connect is to be connected at all: is the credential still good?
	Connect Permission = iota + 1
	// Read is to subscribe to the events of an application.
	Read
	// Write is to send commands to devices of an application.
	Write
	// Administer is to administer an application, or without one, everything.
	Administer
	// Own is to give an application away or delete it.
	Own
)

// Role is what a member may do in an application.
type Role int

// The roles, in the order of the API. The zero value is no role.
const (
	NoRole Role = iota
	Reader
	Publisher
	Manager
	Admin
	Owner
)

// Grants says whether the role has the permission.
func (r Role) Grants(p Permission) bool {
	switch p {
	case Read:
		return r == Reader || r == Manager || r == Admin || r == Owner
	case Write:
		return r == Publisher || r == Manager || r == Admin || r == Owner
	case Administer:
		return r == Admin || r == Owner
	case Own:
		return r == Owner
	default:
		return false
	}
}

// Scope is a set of things that an API key may be used for.
type Scope int

// The scopes.
const (
	ScopeRead Scope = 1 << iota
	ScopeWrite
	ScopeAdmin
)

// Has says whether s has all of other.
func (s Scope) Has(other Scope) bool { return s&other == other }

// Question is what is asked.
type Question struct {
	Principal  Principal
	Credential Credential
	Permission Permission
	// Application is empty for Connect, and for Administer when everything is
	// meant.
	Application string
	// Shared says that Read is asked for a shared subscription.
	Shared bool
}

// Facts is what the store knows about a question.
type Facts struct {
	// UserExists is false for anonymous principals.
	UserExists   bool
	UserDisabled bool
	// Key is the API key of the question's credential, nil when there is no such
	// key of that user.
	Key *Key
	// ApplicationExists is false when none was named.
	ApplicationExists bool
	// Role is the role of the principal itself in the application.
	Role Role
	// EveryoneRole is the role of everyone, signed in or not.
	EveryoneRole Role
}

// Key is an API key, as far as it matters for decisions.
type Key struct {
	Scopes Scope
	// Applications that it may be used for; empty: all.
	Applications []string
	// ExpireTime is when it ends; zero: it does not.
	ExpireTime time.Time
}

// Rules are what the configuration says.
type Rules struct {
	AnonymousEnabled bool
	AnonymousShare   bool
	// Issuers are the aliases of the configured issuers.
	Issuers []string
	// Administrators may administer everything.
	Administrators []Principal
}

// Reason is why something is denied.
type Reason int

// The reasons.
const (
	// Allowed is the reason of a decision that allows.
	Allowed Reason = iota
	// NotGranted is no grant, or no such application.
	NotGranted
	// CredentialRevoked is an API key that is not there (any more), or a token of
	// an issuer that is not configured (any more).
	CredentialRevoked
	// CredentialExpired is an expired key or token.
	CredentialExpired
	// UserDisabled is a user that is disabled or deleted.
	UserDisabled
	// AnonymousForbidden is an anonymous connection where they may not be, or a
	// shared subscription of one where that is not allowed.
	AnonymousForbidden
)

// Decide answers a question. It is deterministic and safe for concurrent use.
//
// First comes whether the credential is good at all, then what an API key limits,
// then what grants give: the role of the principal, the role of everyone, and for
// administrators everything that exists.
func Decide(now time.Time, rules Rules, q Question, facts Facts) Reason {
	if reason := credentialReason(now, rules, q, facts); reason != Allowed {
		return reason
	}
	switch {
	case q.Permission == Connect:
		return Allowed
	case q.Shared && q.Credential.Kind == Anonymous && !rules.AnonymousShare:
		return AnonymousForbidden
	case q.Credential.Kind == APIKey && !keyCovers(facts.Key, q):
		return NotGranted
	case q.Application == "":
		if q.Permission == Administer && administrator(rules, q, facts) {
			return Allowed
		}
		return NotGranted
	case !facts.ApplicationExists:
		return NotGranted
	case administrator(rules, q, facts) && known(q.Permission):
		return Allowed
	case q.Credential.Kind != Anonymous && facts.Role.Grants(q.Permission):
		return Allowed
	case everyoneGrants(facts.EveryoneRole, q.Permission):
		return Allowed
	default:
		return NotGranted
	}
}

func known(p Permission) bool { return p >= Connect && p <= Own }

// credentialReason says whether the credential is still good.
func credentialReason(now time.Time, rules Rules, q Question, facts Facts) Reason {
	switch q.Credential.Kind {
	case Anonymous:
		// Somebody else's principal with the kind of credential that needs no
		// proof would be a mistake of the caller; it must not help.
		if !rules.AnonymousEnabled || q.Principal.Issuer != IssuerAnonymous {
			return AnonymousForbidden
		}
		return Allowed
	case AccessToken:
		if !slices.Contains(rules.Issuers, q.Principal.Issuer) {
			return CredentialRevoked
		}
	case APIKey:
		if facts.UserExists && facts.Key == nil {
			return CredentialRevoked
		}
		if facts.Key != nil && ended(now, facts.Key.ExpireTime) {
			return CredentialExpired
		}
	default:
		return CredentialRevoked
	}
	switch {
	case !facts.UserExists || facts.UserDisabled:
		return UserDisabled
	case ended(now, q.Credential.ExpireTime):
		return CredentialExpired
	}
	return Allowed
}

func ended(now, expire time.Time) bool { return !expire.IsZero() && !now.Before(expire) }

// keyCovers says whether an API key may be used for what is asked.
func keyCovers(key *Key, q Question) bool {
	if len(key.Applications) > 0 && !slices.Contains(key.Applications, q.Application) {
		return false // also when no application is named: such a key never administers everything
	}
	switch q.Permission {
	case Read:
		return key.Scopes.Has(ScopeRead)
	case Write:
		return key.Scopes.Has(ScopeWrite)
	case Administer, Own:
		return key.Scopes.Has(ScopeAdmin)
	default:
		return false
	}
}

// administrator says whether the principal is administrator of everything, with
// this credential.
func administrator(rules Rules, q Question, facts Facts) bool {
	switch q.Credential.Kind {
	case AccessToken:
		return q.Credential.Administrator || slices.Contains(rules.Administrators, q.Principal)
	case APIKey:
		// Without the scope, a key has what its user has by membership alone.
		return facts.Key.Scopes.Has(ScopeAdmin) && slices.Contains(rules.Administrators, q.Principal)
	default:
		return false
	}
}

// everyoneGrants leaves out what no grant to everyone may give, whatever the
// store says.
func everyoneGrants(role Role, p Permission) bool {
	return (p == Read || p == Write) && role.Grants(p)
}
