package authorization

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
	"mqtt-integration/services/authorization/internal/oidc"
	"mqtt-integration/services/authorization/internal/policy"
)

// Config is the configuration of the service. Start from [DefaultConfig].
type Config struct {
	daemon.Common `yaml:",inline"`

	// GRPC is where AuthorizationService listens, for mqtt-frontend.
	GRPC grpcserver.Config `yaml:"grpc"`
	// AdminAPI is where AdminService listens, for mqi. It is not admin, the HTTP
	// port for health and metrics.
	AdminAPI grpcserver.Config `yaml:"admin_api"`
	Store    StoreConfig       `yaml:"store"`
	// Issuers are the OIDC providers whose access tokens are accepted. Without
	// any, users sign in with API keys alone.
	Issuers   []Issuer        `yaml:"issuers"`
	Anonymous AnonymousConfig `yaml:"anonymous"`
	// Administrators may administer everything, from the first start on.
	Administrators []Administrator `yaml:"administrators"`
	// UsersCreateApplications lets every user create applications of their own.
	// By default only administrators do, because the name of an application
	// selects the Kafka topic that its members may read.
	UsersCreateApplications bool `yaml:"users_create_applications"`
	// DecisionLifetime is for how long an answer may be used without being asked
	// again while no watch is heard. It bounds how long somebody whose access was
	// revoked keeps it while this service cannot be reached.
	DecisionLifetime time.Duration `yaml:"decision_lifetime"`
	// Leeway is what the clocks of OIDC providers may differ from ours: for exp,
	// nbf and iat alike.
	Leeway time.Duration `yaml:"leeway"`
	Limits Limits        `yaml:"limits"`
}

// StoreConfig says where users, applications, members and API keys are kept.
type StoreConfig struct {
	SQLite SQLiteConfig `yaml:"sqlite"`
	// KeepChanges is how many changes are kept for watches that resume. One that
	// missed more starts over.
	KeepChanges int64 `yaml:"keep_changes"`
}

// SQLiteConfig is the embedded store, for one replica.
type SQLiteConfig struct {
	// Path is the file. It is created when missing, with its directory, for the
	// owner alone. A second process on the same file is refused.
	Path string `yaml:"path"`
}

// Issuer is an OIDC provider.
type Issuer struct {
	// Alias names the issuer in principals, session keys and Kafka groups: it
	// must not be changed, nor given to another provider, ever. Lower-case
	// letters, digits and dashes.
	Alias string `yaml:"alias"`
	// URL is the issuer's identifier, exactly as in the claim iss. Discovery
	// starts there. It is https, or http on loopback.
	URL string `yaml:"url"`
	// Insecure allows http elsewhere than on loopback. For tests only.
	Insecure bool `yaml:"insecure"`
	// CAFile has the certificates that the provider's is checked against, in PEM.
	// Empty: those of the system.
	CAFile string `yaml:"ca_file"`
	// Audiences: a token must be for one of them. Mandatory.
	Audiences []string `yaml:"audiences"`
	// Algorithms that a token may be signed with. Empty: RS256, PS256, ES256 and
	// EdDSA. Symmetric ones and none are never allowed.
	Algorithms []string `yaml:"algorithms"`
	// NameClaim has the login name; a dotted path. Empty: preferred_username.
	NameClaim string `yaml:"name_claim"`
	// RolesClaim has the roles, a list or a string with spaces; a dotted path,
	// for Keycloak realm_access.roles. Empty: roles are not looked at.
	RolesClaim string `yaml:"roles_claim"`
	// AdministratorRoles make their bearer administrator of everything.
	AdministratorRoles []string `yaml:"administrator_roles"`
	// RequireATJWT accepts only tokens whose header has the typ at+jwt (RFC 9068).
	RequireATJWT bool `yaml:"require_at_jwt"`
	// RequiredScopes must all be in the claim scope (or scp).
	RequiredScopes []string `yaml:"required_scopes"`
}

// AnonymousConfig says what connections without credentials may do. Grants to
// everyone decide the rest.
type AnonymousConfig struct {
	// Enabled lets them in.
	Enabled bool `yaml:"enabled"`
	// Share lets them use shared subscriptions, where an unknown client can take
	// events away from others.
	Share bool `yaml:"share"`
}

// Administrator names a user of an issuer, who need not have signed in yet. One
// of Subject and Name is given.
type Administrator struct {
	// Issuer is the alias of an issuer, or "local" with Subject.
	Issuer string `yaml:"issuer"`
	// Subject is the claim sub. An API key of that user with the admin scope may
	// administer, too.
	Subject string `yaml:"subject"`
	// Name is the issuer's name claim, where the subject is not known beforehand.
	// It holds for access tokens alone, and for whoever has that name at the
	// issuer: use it where users cannot choose their names, and the subject else.
	Name string `yaml:"name"`
}

// Limits bound what clients can cause.
type Limits struct {
	// ConcurrentAuthentications is how many access tokens are verified at a time,
	// and how many other credentials; above it, callers get RESOURCE_EXHAUSTED.
	ConcurrentAuthentications int `yaml:"concurrent_authentications"`
	// Watches is how many watches may be open.
	Watches int `yaml:"watches"`
	// FailuresPerAddress bounds failed attempts from an address (IPv6: its /64).
	FailuresPerAddress FailureLimit `yaml:"failures_per_address"`
	// FailuresPerName bounds failed attempts with a login name from an address.
	FailuresPerName FailureLimit `yaml:"failures_per_name"`
}

// FailureLimit is a token bucket of failed attempts.
type FailureLimit struct {
	// Burst is how many may fail in a row. 0: no limit.
	Burst int `yaml:"burst"`
	// Recovery is how long it takes until one more may fail.
	Recovery time.Duration `yaml:"recovery"`
}

// DefaultConfig returns the defaults: loopback, SQLite in the working directory,
// no issuer, no administrator, nobody anonymous.
func DefaultConfig() Config {
	return Config{
		Common:           daemon.DefaultCommon(),
		GRPC:             grpcserver.Config{Address: "127.0.0.1:7001"},
		AdminAPI:         grpcserver.Config{Address: "127.0.0.1:7011"},
		Store:            StoreConfig{SQLite: SQLiteConfig{Path: "authorization.db"}, KeepChanges: 100_000},
		DecisionLifetime: 5 * time.Minute,
		Leeway:           30 * time.Second,
		Limits: Limits{
			ConcurrentAuthentications: 256,
			Watches:                   1024,
			FailuresPerAddress:        FailureLimit{Burst: 100, Recovery: time.Second},
			FailuresPerName:           FailureLimit{Burst: 10, Recovery: 10 * time.Second},
		},
	}
}

const maxLeeway = 5 * time.Minute

// Validate reports every problem under its YAML path.
func (c Config) Validate() error {
	errs := []error{c.Common.Validate(), under("grpc", c.GRPC.Validate()), under("admin_api", c.AdminAPI.Validate())}
	if c.GRPC.Address == c.AdminAPI.Address && !strings.HasSuffix(c.GRPC.Address, ":0") {
		errs = append(errs, errors.New("admin_api.address: is that of grpc"))
	}
	if c.Store.SQLite.Path == "" {
		errs = append(errs, errors.New("store.sqlite.path: is required"))
	}
	if c.Store.KeepChanges < 1 {
		errs = append(errs, fmt.Errorf("store.keep_changes: %d is not positive", c.Store.KeepChanges))
	}
	errs = append(errs, c.validateIssuers()...)
	errs = append(errs, c.validateAdministrators()...)
	if c.Anonymous.Share && !c.Anonymous.Enabled {
		errs = append(errs, errors.New("anonymous.share: needs anonymous.enabled"))
	}
	if c.DecisionLifetime <= 0 {
		errs = append(errs, fmt.Errorf("decision_lifetime: %v is not positive", c.DecisionLifetime))
	}
	if c.Leeway < 0 || c.Leeway > maxLeeway {
		errs = append(errs, fmt.Errorf("leeway: %v is not between 0 and %v", c.Leeway, maxLeeway))
	}
	errs = append(errs, c.Limits.validate()...)
	return errors.Join(errs...)
}

// under puts a path before each of several joined errors.
func under(path string, err error) error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, e := range joined.Unwrap() {
			errs = append(errs, under(path, e))
		}
		return errors.Join(errs...)
	}
	return fmt.Errorf("%s.%w", path, err)
}

var aliasPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func (c Config) validateIssuers() []error {
	var errs []error
	aliases, urls := map[string]bool{}, map[string]bool{}
	for i, issuer := range c.Issuers {
		fail := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("issuers[%d].%w", i, fmt.Errorf(format, args...)))
		}
		switch {
		case issuer.Alias == policy.IssuerLocal || issuer.Alias == policy.IssuerAnonymous:
			fail("alias: %q is reserved", issuer.Alias)
		case !aliasPattern.MatchString(issuer.Alias):
			fail("alias: %q is not 1 to 32 lower-case letters, digits and dashes", issuer.Alias)
		case aliases[issuer.Alias]:
			fail("alias: %q is there twice", issuer.Alias)
		}
		aliases[issuer.Alias] = true
		if err := issuer.validateURL(); err != nil {
			fail("url: %w", err)
		} else if urls[issuer.URL] {
			fail("url: %q is there twice", issuer.URL)
		}
		urls[issuer.URL] = true
		if len(issuer.Audiences) == 0 || slices.Contains(issuer.Audiences, "") {
			fail("audiences: at least one is required, and none may be empty")
		}
		for _, algorithm := range issuer.Algorithms {
			if !slices.Contains(oidc.Algorithms(), algorithm) {
				fail("algorithms: %q is none of %s", algorithm, strings.Join(oidc.Algorithms(), ", "))
			}
		}
		for _, claim := range []struct{ key, path string }{{"name_claim", issuer.NameClaim}, {"roles_claim", issuer.RolesClaim}} {
			if claim.path != "" && slices.Contains(strings.Split(claim.path, "."), "") {
				fail("%s: %q has an empty part", claim.key, claim.path)
			}
		}
		if len(issuer.AdministratorRoles) > 0 && issuer.RolesClaim == "" {
			fail("administrator_roles: needs roles_claim")
		}
		if slices.Contains(issuer.AdministratorRoles, "") {
			fail("administrator_roles: none may be empty")
		}
	}
	return errs
}

func (i Issuer) validateURL() error {
	u, err := url.Parse(i.URL)
	if err != nil {
		return err
	}
	if u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("%q is not the URL of an issuer", i.URL)
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		ip := net.ParseIP(u.Hostname())
		if i.Insecure || u.Hostname() == "localhost" || (ip != nil && ip.IsLoopback()) {
			return nil
		}
		return fmt.Errorf("%q is plain http on an address that is not loopback", i.URL)
	default:
		return fmt.Errorf("%q has neither https nor http", i.URL)
	}
}

func (c Config) validateAdministrators() []error {
	var errs []error
	for i, administrator := range c.Administrators {
		known := slices.ContainsFunc(c.Issuers, func(issuer Issuer) bool { return issuer.Alias == administrator.Issuer })
		local := administrator.Issuer == policy.IssuerLocal && administrator.Subject != ""
		if !known && !local {
			errs = append(errs, fmt.Errorf("administrators[%d].issuer: %q is no alias of an issuer", i, administrator.Issuer))
		}
		if (administrator.Subject == "") == (administrator.Name == "") {
			errs = append(errs, fmt.Errorf("administrators[%d]: exactly one of subject and name is required", i))
		}
	}
	return errs
}

func (l Limits) validate() []error {
	var errs []error
	if l.ConcurrentAuthentications < 1 {
		errs = append(errs, fmt.Errorf("limits.concurrent_authentications: %d is not positive", l.ConcurrentAuthentications))
	}
	if l.Watches < 1 {
		errs = append(errs, fmt.Errorf("limits.watches: %d is not positive", l.Watches))
	}
	for _, limit := range []struct {
		path  string
		limit FailureLimit
	}{{"failures_per_address", l.FailuresPerAddress}, {"failures_per_name", l.FailuresPerName}} {
		if limit.limit.Burst < 0 {
			errs = append(errs, fmt.Errorf("limits.%s.burst: %d is negative", limit.path, limit.limit.Burst))
		}
		if limit.limit.Burst > 0 && limit.limit.Recovery <= 0 {
			errs = append(errs, fmt.Errorf("limits.%s.recovery: %v is not positive", limit.path, limit.limit.Recovery))
		}
	}
	return errs
}
