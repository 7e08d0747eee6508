package oidc

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/errgroup"

	"mqtt-integration/services/authorization/internal/policy"
)

// What is wrong with a token. The text of errors that wrap these is for the log,
// never for the client.
var (
	// ErrBad is a token that is malformed, forged, or no access token.
	ErrBad = errors.New("bad token")
	// ErrExpired is a token that was good.
	ErrExpired = errors.New("token expired")
	// ErrNotYetValid is a token that will be good.
	ErrNotYetValid = errors.New("token not valid yet")
	// ErrWrongIssuer is a token that none of the configured issuers made.
	ErrWrongIssuer = errors.New("unknown issuer")
	// ErrWrongAudience is a good token for somebody else.
	ErrWrongAudience = errors.New("wrong audience")
	// ErrUnavailable means that it could not be decided.
	ErrUnavailable = errors.New("OIDC provider unavailable")
)

const (
	// MaxTokenSize is the size of the largest token in bytes.
	MaxTokenSize = 16 << 10
	maxSubject   = 256
	// DefaultNameClaim is where Keycloak and others have the login name.
	DefaultNameClaim = "preferred_username"
)

// Issuer is a provider as it is configured.
type Issuer struct {
	Alias              string
	URL                string
	CAFile             string
	Audiences          []string
	Algorithms         []string // empty: RS256, PS256, ES256, EdDSA
	NameClaim          string   // empty: DefaultNameClaim
	RolesClaim         string   // empty: none
	AdministratorRoles []string
	// AdministratorNames make administrators by the name claim.
	AdministratorNames []string
	RequireATJWT       bool
	RequiredScopes     []string
}

// Config is what a Verifier needs.
type Config struct {
	Issuers []Issuer
	// Leeway is what clocks may differ.
	Leeway time.Duration
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Token is what a verified token says.
type Token struct {
	Principal policy.Principal
	// Name is the login name that the issuer knows; may be empty, and anything.
	Name string
	// Administrator says that the token makes its bearer administrator.
	Administrator bool
	// ExpireTime is when it ends: its exp, and for one that is accepted after
	// that, the end of the leeway.
	ExpireTime time.Time
}

// Verifier verifies tokens. Its methods may be used from several goroutines.
type Verifier struct {
	cfg     Config
	issuers map[string]*issuer // by URL
}

// New makes a Verifier that can verify once Run has been called. It fails when a
// CA file cannot be read.
func New(cfg Config) (*Verifier, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	v := &Verifier{cfg: cfg, issuers: map[string]*issuer{}}
	for _, configured := range cfg.Issuers {
		if configured.NameClaim == "" {
			configured.NameClaim = DefaultNameClaim
		}
		if len(configured.Algorithms) == 0 {
			configured.Algorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}
		}
		i, err := newIssuer(configured, cfg.Logger, cfg.Now)
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", configured.Alias, err)
		}
		v.issuers[configured.URL] = i
	}
	return v, nil
}

// Run keeps the keys of all providers until ctx ends, and returns nil then.
func (v *Verifier) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, i := range v.issuers {
		g.Go(func() error {
			i.run(ctx)
			return nil
		})
	}
	return g.Wait()
}

// Verify says whose a token is. The error wraps one of the errors of this package.
func (v *Verifier) Verify(ctx context.Context, raw string) (Token, error) {
	if len(raw) > MaxTokenSize {
		return Token{}, fmt.Errorf("%w: %d bytes", ErrBad, len(raw))
	}
	i, err := v.choose(raw)
	if err != nil {
		return Token{}, err
	}
	verified := &verification{issuer: i}
	verifier := gooidc.NewVerifier(i.cfg.URL, verified, &gooidc.Config{
		SkipClientIDCheck:    true, // several audiences: below
		SkipExpiryCheck:      true, // another leeway: below
		SupportedSigningAlgs: i.cfg.Algorithms,
	})
	if _, err := verifier.Verify(ctx, raw); err != nil {
		// go-oidc keeps the text of an error, not the error.
		if errors.Is(verified.err, ErrUnavailable) {
			return Token{}, verified.err
		}
		return Token{}, fmt.Errorf("%w: %w", ErrBad, err)
	}
	if err := accessTokenHeader(verified.header, i.cfg.RequireATJWT); err != nil {
		return Token{}, err
	}
	c, err := decodeClaims(verified.payload)
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrBad, err)
	}
	return i.accept(c, v.cfg.Now(), v.cfg.Leeway)
}

// choose finds the issuer that a token says it is from.
func (v *Verifier) choose(raw string) (*issuer, error) {
	// go-jose would take the JSON serialization, too.
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%w: not three parts", ErrBad)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	unverified, err := decodeClaims(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	i, ok := v.issuers[unverified.text("iss")]
	if !ok {
		return nil, ErrWrongIssuer
	}
	return i, nil
}

// verification is the go-oidc key set of one token.
type verification struct {
	issuer  *issuer
	header  jose.Header
	payload []byte
	err     error
}

var _ gooidc.KeySet = (*verification)(nil)

// VerifySignature implements [gooidc.KeySet].
func (v *verification) VerifySignature(ctx context.Context, raw string) ([]byte, error) {
	v.payload, v.err = v.verify(ctx, raw)
	return v.payload, v.err
}

func (v *verification) verify(ctx context.Context, raw string) ([]byte, error) {
	allowed := make([]jose.SignatureAlgorithm, 0, len(v.issuer.cfg.Algorithms))
	for _, algorithm := range v.issuer.cfg.Algorithms {
		allowed = append(allowed, jose.SignatureAlgorithm(algorithm))
	}
	jws, err := jose.ParseSignedCompact(raw, allowed)
	if err != nil {
		return nil, err
	}
	v.header = jws.Signatures[0].Protected
	if _, critical := v.header.ExtraHeaders["crit"]; critical {
		return nil, errors.New("critical header")
	}
	keys, err := v.issuer.keysFor(ctx, v.header.KeyID, v.header.Algorithm)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		payload, err := jws.Verify(key)
		if err == nil {
			return payload, nil
		}
	}
	return nil, fmt.Errorf("no key of the issuer made the signature (%d tried)", len(keys))
}

// accessTokenHeader refuses what the header says is something else.
func accessTokenHeader(header jose.Header, requireATJWT bool) error {
	value, present := header.ExtraHeaders[jose.HeaderType]
	typ, isText := value.(string)
	if present && !isText {
		return fmt.Errorf("%w: header typ is no string", ErrBad)
	}
	typ = strings.TrimPrefix(strings.ToLower(typ), "application/")
	switch {
	case typ == "at+jwt":
		return nil
	case (!present || typ == "jwt") && !requireATJWT:
		return nil
	default:
		return fmt.Errorf("%w: header typ %q", ErrBad, typ)
	}
}

// accept checks the claims of a token whose signature is good.
func (i *issuer) accept(c claims, now time.Time, leeway time.Duration) (Token, error) {
	if err := accessTokenClaims(c); err != nil {
		return Token{}, err
	}
	subject := c.text("sub")
	if subject == "" || len(subject) > maxSubject || !utf8.ValidString(subject) {
		return Token{}, fmt.Errorf("%w: claim sub is missing, too long or not UTF-8", ErrBad)
	}
	if !slices.ContainsFunc(c.audiences(), func(a string) bool { return slices.Contains(i.cfg.Audiences, a) }) {
		return Token{}, fmt.Errorf("%w: %q", ErrWrongAudience, c.audiences())
	}
	expire, err := checkTimes(c, now, leeway)
	if err != nil {
		return Token{}, err
	}
	scopes := append(c.list("scope"), c.list("scp")...)
	for _, required := range i.cfg.RequiredScopes {
		if !slices.Contains(scopes, required) {
			return Token{}, fmt.Errorf("%w: without scope %q", ErrBad, required)
		}
	}
	name := c.text(i.cfg.NameClaim)
	return Token{
		Principal:     policy.Principal{Issuer: i.cfg.Alias, Subject: subject},
		Name:          name,
		Administrator: i.administrator(c, name),
		ExpireTime:    expire,
	}, nil
}

func (i *issuer) administrator(c claims, name string) bool {
	if name != "" && slices.Contains(i.cfg.AdministratorNames, name) {
		return true
	}
	if i.cfg.RolesClaim == "" {
		return false
	}
	return slices.ContainsFunc(c.list(i.cfg.RolesClaim), func(role string) bool {
		return slices.Contains(i.cfg.AdministratorRoles, role)
	})
}

// accessTokenClaims refuses ID tokens, and Keycloak's other kinds of tokens.
func accessTokenClaims(c claims) error {
	for _, claim := range []string{"nonce", "at_hash", "c_hash"} {
		if _, ok := c[claim]; ok {
			return fmt.Errorf("%w: an ID token, by its claim %s", ErrBad, claim)
		}
	}
	switch strings.ToLower(c.text("typ")) {
	case "id", "refresh", "offline", "logout":
		return fmt.Errorf("%w: claim typ %q", ErrBad, c.text("typ"))
	}
	return nil
}

// checkTimes returns when the token ends.
func checkTimes(c claims, now time.Time, leeway time.Duration) (time.Time, error) {
	var times [3]time.Time
	for n, claim := range []string{"exp", "nbf", "iat"} {
		at, err := c.time(claim)
		if err != nil {
			return time.Time{}, fmt.Errorf("%w: %w", ErrBad, err)
		}
		times[n] = at
	}
	expire, notBefore, issued := times[0], times[1], times[2]
	switch {
	case expire.IsZero():
		return time.Time{}, fmt.Errorf("%w: without exp", ErrBad)
	case !now.Before(expire.Add(leeway)):
		return time.Time{}, fmt.Errorf("%w at %v", ErrExpired, expire)
	case now.Add(leeway).Before(notBefore):
		return time.Time{}, fmt.Errorf("%w: nbf %v", ErrNotYetValid, notBefore)
	case now.Add(leeway).Before(issued):
		return time.Time{}, fmt.Errorf("%w: iat %v", ErrNotYetValid, issued)
	case !now.Before(expire):
		return expire.Add(leeway), nil
	default:
		return expire, nil
	}
}
