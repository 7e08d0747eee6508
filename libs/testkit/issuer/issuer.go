package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// DefaultAudience is the audience of tokens when the configuration names
	// none.
	DefaultAudience = "mqtt-integration"

	// DefaultTokenLifetime is how long a token is valid when the
	// configuration does not say.
	DefaultTokenLifetime = time.Hour

	shutdownTimeout = 2 * time.Second
)

// Config says what the issuer serves. The zero value is an issuer on a free
// port with keys in memory and nobody who could sign in: Mint still works.
type Config struct {
	// Dir keeps the keys, readable for the owner only, so that tokens survive
	// a restart. It is created when missing. Empty keeps them in memory.
	Dir string

	// Address is host:port on a loopback interface. Empty means a free port
	// of 127.0.0.1.
	Address string

	// Audience goes into every token. Empty means DefaultAudience.
	Audience string

	// TokenLifetime is how long a token is valid. Zero means
	// DefaultTokenLifetime.
	TokenLifetime time.Duration

	// Users may use the password grant.
	Users []User

	// Clients may ask for tokens. The password grant needs one too: usually a
	// public one, without a secret.
	Clients []Client

	// Logger gets what goes wrong. Nil discards it.
	Logger *slog.Logger
}

// User is a person who signs in with a password.
type User struct {
	// Subject is the claim sub: it identifies the user for ever.
	Subject string
	// Name is what the user types, and the claim preferred_username.
	Name string
	// Password must not be empty.
	Password string
	// Roles are the claim realm_access.roles.
	Roles []string
	// Claims are added to the tokens of this user.
	Claims map[string]any
}

// Client is an application that asks for tokens.
type Client struct {
	// ID is the client_id.
	ID string
	// Secret makes it a confidential client, which may use the
	// client_credentials grant. Empty means a public client.
	Secret string
	// Subject is the claim sub of its own tokens. Empty means the ID.
	Subject string
	// Roles are the claim realm_access.roles of its own tokens.
	Roles []string
}

// Issuer is a running OpenID Connect provider. Its methods may be used from
// several goroutines.
type Issuer struct {
	cfg    Config
	url    string
	keys   *keyStore
	server *http.Server
	served sync.WaitGroup
	closed sync.Once

	mu          sync.Mutex
	unavailable bool
	keyRequests int
}

// Start starts an issuer that serves until Close. When the port is taken, the
// error wraps syscall.EADDRINUSE.
func Start(cfg Config) (*Issuer, error) {
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	if cfg.Audience == "" {
		cfg.Audience = DefaultAudience
	}
	if cfg.TokenLifetime == 0 {
		cfg.TokenLifetime = DefaultTokenLifetime
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("start issuer: %w", err)
	}
	keys, err := openKeys(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("start issuer: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("start issuer: %w", err)
	}
	i := &Issuer{cfg: cfg, keys: keys, url: "http://" + listener.Addr().String()}
	i.server = &http.Server{
		Handler:           i.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelWarn),
	}
	i.served.Go(func() {
		if err := i.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cfg.Logger.LogAttrs(context.Background(), slog.LevelError, "issuer stopped serving", slog.Any("error", err))
		}
	})
	return i, nil
}

func (c Config) validate() error {
	var errs []error
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		errs = append(errs, err)
	} else if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		errs = append(errs, fmt.Errorf("it listens on loopback only, not on %q", host))
	}
	for _, u := range c.Users {
		if u.Subject == "" || u.Name == "" || u.Password == "" {
			errs = append(errs, fmt.Errorf("user %q needs a subject, a name and a password", u.Name))
		}
	}
	for _, cl := range c.Clients {
		if cl.ID == "" {
			errs = append(errs, errors.New("a client needs an id"))
		}
	}
	return errors.Join(errs...)
}

// URL is the issuer's identifier, the claim iss of its tokens: what a relying
// party is configured with. Its port is that of the listener, so an issuer on a
// free port has another identifier after each start.
func (i *Issuer) URL() string { return i.url }

// TokenURL is where tokens are asked for.
func (i *Issuer) TokenURL() string { return i.url + tokenPath }

// Audience is the audience of its tokens.
func (i *Issuer) Audience() string { return i.cfg.Audience }

// Rotate replaces the signing keys. With keep the former ones stay in the key
// set, so that tokens signed by them remain valid; without it only the new
// ones are published.
func (i *Issuer) Rotate(keep bool) error {
	if err := i.keys.rotate(keep); err != nil {
		return fmt.Errorf("rotate keys: %w", err)
	}
	return nil
}

// SetAvailable makes every request fail with 503 (false), or work again (true):
// an outage of the provider.
func (i *Issuer) SetAvailable(available bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.unavailable = !available
}

// KeyRequests returns how often the key set was asked for.
func (i *Issuer) KeyRequests() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keyRequests
}

// Close stops serving; requests in progress get two seconds. It may be called
// more than once.
func (i *Issuer) Close() {
	i.closed.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		if err := i.server.Shutdown(ctx); err != nil {
			_ = i.server.Close()
		}
		i.served.Wait()
	})
}
