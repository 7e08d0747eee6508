package credential

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"
	"unicode/utf8"

	"mqtt-integration/services/authorization/internal/apikey"
	"mqtt-integration/services/authorization/internal/attempts"
	"mqtt-integration/services/authorization/internal/oidc"
	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

// ErrOverloaded means that too many credentials are being verified.
var ErrOverloaded = errors.New("too many authentications at a time")

// Denial is the kind of reason for which a credential is refused.
type Denial int

// The denials. The zero value is none.
const (
	NotDenied Denial = iota
	BadCredentials
	Expired
	NotYetValid
	WrongIssuer
	WrongAudience
	AnonymousDisabled
	UserDisabled
	TooManyAttempts
)

// Attempt is a credential with where it comes from.
type Attempt struct {
	// Kind says which of the following are looked at.
	Kind policy.CredentialKind
	// Token is the access token.
	Token string
	// Name and Key are login name and API key.
	Name, Key string
	// Address is the network address of the client; empty: failures do not count.
	Address string
	// ConnectionID is the subject of an anonymous principal.
	ConnectionID string
}

// Result is a principal, or a denial.
type Result struct {
	Denial     Denial
	Principal  policy.Principal
	Name       string
	Credential policy.Credential
	// Revision of the store that the result rests on.
	Revision int64
}

type userStore interface {
	SignIn(ctx context.Context, p policy.Principal, names []string) (store.User, int64, error)
	FindKey(ctx context.Context, id string) (store.KeyRecord, int64, error)
	Revision(ctx context.Context) (int64, error)
}

type tokenVerifier interface {
	Verify(ctx context.Context, token string) (oidc.Token, error)
}

// Config is what an Authenticator needs.
type Config struct {
	Store    userStore
	Tokens   tokenVerifier
	Attempts *attempts.Limiter
	LastUse  *LastUse
	Rules    policy.Rules
	Logger   *slog.Logger
	// Concurrent is how many access tokens are verified at a time, and how many
	// credentials of the other kinds.
	Concurrent int
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Authenticator verifies credentials. Its methods may be used from several
// goroutines.
type Authenticator struct {
	cfg Config
	// Tokens have slots of their own: they may have to wait for their provider,
	// which is no reason to refuse anybody else.
	tokens, others chan struct{}
}

// New makes an Authenticator.
func New(cfg Config) *Authenticator {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Authenticator{cfg: cfg, tokens: make(chan struct{}, cfg.Concurrent), others: make(chan struct{}, cfg.Concurrent)}
}

// Authenticate says who it is, or why not. The error is ErrOverloaded, or wraps
// that of the store or of package oidc: it could not be decided.
func (a *Authenticator) Authenticate(ctx context.Context, attempt Attempt) (Result, error) {
	slots := a.others
	if attempt.Kind == policy.AccessToken {
		slots = a.tokens
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	default:
		return Result{}, ErrOverloaded
	}
	name := attempt.Name
	if len(name) > store.MaxName {
		name = "" // nobody has it, and it shall not take memory
	}
	if attempt.Kind != policy.Anonymous && !a.cfg.Attempts.Allowed(attempt.Address, name) {
		return a.denied(ctx, TooManyAttempts)
	}
	var result Result
	var err error
	switch attempt.Kind {
	case policy.AccessToken:
		result, err = a.token(ctx, attempt.Token)
	case policy.APIKey:
		result, err = a.key(ctx, attempt.Name, attempt.Key)
	case policy.Anonymous:
		result, err = a.anonymous(ctx, attempt.ConnectionID)
	default:
		return Result{}, fmt.Errorf("credential of kind %d", attempt.Kind)
	}
	// Only guesses count: whoever has an expired token, or one for somebody else,
	// is known to the issuer and may be one of many behind that address.
	if err == nil && (result.Denial == BadCredentials || result.Denial == WrongIssuer) {
		a.cfg.Attempts.Failed(attempt.Address, name)
	}
	return result, err
}

func (a *Authenticator) denied(ctx context.Context, denial Denial) (Result, error) {
	revision, err := a.cfg.Store.Revision(ctx)
	return Result{Denial: denial, Revision: revision}, err
}

func (a *Authenticator) token(ctx context.Context, raw string) (Result, error) {
	token, err := a.cfg.Tokens.Verify(ctx, raw)
	if err != nil {
		denial, ok := tokenDenial(err)
		if !ok {
			return Result{}, fmt.Errorf("verify token: %w", err)
		}
		a.cfg.Logger.DebugContext(ctx, "token refused", slog.Any("error", err))
		return a.denied(ctx, denial)
	}
	user, revision, err := a.cfg.Store.SignIn(ctx, token.Principal, loginNames(token))
	if err != nil {
		return Result{}, err
	}
	result := Result{
		Principal: token.Principal, Name: user.Name, Revision: revision,
		Credential: policy.Credential{Kind: policy.AccessToken, ExpireTime: token.ExpireTime, Administrator: token.Administrator},
	}
	return a.decided(result, policy.Facts{UserExists: true, UserDisabled: user.Disabled}), nil
}

func tokenDenial(err error) (Denial, bool) {
	for _, d := range []struct {
		err    error
		denial Denial
	}{
		{oidc.ErrBad, BadCredentials},
		{oidc.ErrExpired, Expired},
		{oidc.ErrNotYetValid, NotYetValid},
		{oidc.ErrWrongIssuer, WrongIssuer},
		{oidc.ErrWrongAudience, WrongAudience},
	} {
		if errors.Is(err, d.err) {
			return d.denial, true
		}
	}
	return NotDenied, false
}

func (a *Authenticator) key(ctx context.Context, name, text string) (Result, error) {
	id, hash, err := apikey.Parse(text)
	if err != nil {
		return a.denied(ctx, BadCredentials)
	}
	record, revision, err := a.cfg.Store.FindKey(ctx, id)
	found := 1
	if errors.Is(err, store.ErrKeyNotFound) {
		found = 0
	} else if err != nil {
		return Result{}, err
	}
	// All of it, whatever the first comparison says.
	presented, owner := sha256.Sum256([]byte(name)), sha256.Sum256([]byte(record.Owner.Name))
	if found&subtle.ConstantTimeCompare(hash[:], record.Hash[:])&subtle.ConstantTimeCompare(presented[:], owner[:]) == 0 {
		return Result{Denial: BadCredentials, Revision: revision}, nil
	}
	result := Result{
		Principal: record.Owner.Principal, Name: record.Owner.Name, Revision: revision,
		Credential: policy.Credential{Kind: policy.APIKey, ID: record.ID, ExpireTime: record.ExpireTime},
	}
	result = a.decided(result, policy.Facts{
		UserExists: true, UserDisabled: record.Owner.Disabled,
		Key: &policy.Key{Scopes: record.Scopes, Applications: record.Applications, ExpireTime: record.ExpireTime},
	})
	if result.Denial == NotDenied {
		a.cfg.LastUse.Note(record.ID, record.LastUseTime, a.cfg.Now())
	}
	return result, nil
}

func (a *Authenticator) anonymous(ctx context.Context, connectionID string) (Result, error) {
	revision, err := a.cfg.Store.Revision(ctx)
	if err != nil {
		return Result{}, err
	}
	return a.decided(Result{
		Principal:  policy.Principal{Issuer: policy.IssuerAnonymous, Subject: connectionID},
		Credential: policy.Credential{Kind: policy.Anonymous},
		Revision:   revision,
	}, policy.Facts{}), nil
}

// decided asks the policy whether the verified credential may connect at all.
func (a *Authenticator) decided(result Result, facts policy.Facts) Result {
	question := policy.Question{Principal: result.Principal, Credential: result.Credential, Permission: policy.Connect}
	var denial Denial
	switch policy.Decide(a.cfg.Now(), a.cfg.Rules, question, facts) {
	case policy.Allowed:
		return result
	case policy.CredentialExpired:
		denial = Expired
	case policy.UserDisabled:
		denial = UserDisabled
	case policy.AnonymousForbidden:
		denial = AnonymousDisabled
	default:
		denial = BadCredentials
	}
	return Result{Denial: denial, Revision: result.Revision}
}

// loginNames are the names for a user at its first sign-in, the best first. The
// last one is taken by nobody else.
func loginNames(token oidc.Token) []string {
	sum := sha256.Sum256([]byte(token.Principal.String()))
	unique := hex.EncodeToString(sum[:8])
	name := token.Name
	if store.ValidateLoginName(name) != nil {
		name = token.Principal.Subject
	}
	if store.ValidateLoginName(name) != nil {
		name = "user-" + unique
	}
	qualified := "@" + token.Principal.Issuer
	return []string{name, shorten(name, qualified), shorten(name, qualified+"-"+unique)}
}

// shorten puts a suffix behind a name, of which it keeps what fits.
func shorten(name, suffix string) string {
	for len(name) > store.MaxName-len(suffix) {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return name + suffix
}
