package oidc

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"
	"golang.org/x/time/rate"
)

const (
	requestTimeout = 5 * time.Second
	// waitTimeout is how long a token waits for keys; a round has two requests.
	waitTimeout     = 2*requestTimeout + time.Second
	refreshInterval = 5 * time.Minute
	firstRetry      = time.Second
	maxRetry        = 30 * time.Second
	// maxKeyAge is for how long keys are used that could not be refreshed: a
	// provider's outage of a day locks nobody out, and a key that it withdrew
	// does not live for ever.
	maxKeyAge = 24 * time.Hour
	// Rounds that tokens with unknown keys can cause.
	roundInterval = 5 * time.Second
	roundBurst    = 4

	maxBody      = 1 << 20
	maxKeys      = 64
	minRSABits   = 2048
	maxRedirects = 3
)

// issuer is a provider with its keys.
type issuer struct {
	cfg    Issuer
	client *http.Client
	logger *slog.Logger
	now    func() time.Time
	limit  *rate.Limiter
	wake   chan struct{} // has room for one

	keysURL string // of run alone; empty: not discovered

	mu      sync.Mutex
	keys    []jose.JSONWebKey
	fetched time.Time // last success
	failed  bool      // whether the last round failed
	stopped bool
	pending *round // the next round or the one in progress, nil when nobody waits
}

// round is one attempt to get the keys.
type round struct {
	done  chan struct{}
	begun bool // guarded by the issuer's mu
}

func newIssuer(cfg Issuer, logger *slog.Logger, now func() time.Time) (*issuer, error) {
	client, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	return &issuer{
		cfg: cfg, client: client, now: now, logger: logger.With(slog.String("issuer", cfg.Alias)),
		limit: rate.NewLimiter(rate.Every(roundInterval), roundBurst), wake: make(chan struct{}, 1), failed: true,
	}, nil
}

func newClient(cfg Issuer) (*http.Client, error) {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSHandshakeTimeout:   requestTimeout,
		ResponseHeaderTimeout: requestTimeout,
		MaxIdleConns:          2,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: no certificate in %s", cfg.CAFile)
		}
	}
	return &http.Client{
		Transport: limited{transport},
		Timeout:   requestTimeout,
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return errors.New("too many redirects")
			}
			return secureAs(cfg.URL, r.URL.String())
		},
	}, nil
}

// secureAs refuses to leave https once the issuer has it.
func secureAs(issuerURL, other string) error {
	u, err := url.Parse(other)
	if err != nil {
		return err
	}
	if u.Scheme != "https" && (u.Scheme != "http" || strings.HasPrefix(issuerURL, "https:")) {
		return fmt.Errorf("%s is not as secure as the issuer", other)
	}
	return nil
}

// limited bounds the size of answers.
type limited struct{ http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := l.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(response.Body, maxBody), response.Body}
	return response, nil
}

// CloseIdleConnections is looked for by http.Client.
func (l limited) CloseIdleConnections() {
	if c, ok := l.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// run gets and refreshes the keys until ctx ends.
func (i *issuer) run(ctx context.Context) {
	defer i.client.CloseIdleConnections()
	defer i.stop()
	retry := firstRetry
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.wake:
		case <-timer.C:
		}
		r := i.begin()
		keys, err := i.refresh(ctx)
		if ctx.Err() != nil {
			return
		}
		i.end(r, keys, err)
		wait := refreshInterval
		if err != nil {
			i.logger.WarnContext(ctx, "OIDC provider cannot be used", slog.Any("error", err), slog.Duration("retry", retry))
			wait = retry
			retry = min(2*retry, maxRetry)
		} else {
			retry = firstRetry
		}
		timer.Reset(wait)
	}
}

// begin joins those who wait already.
func (i *issuer) begin() *round {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pending == nil {
		i.pending = &round{done: make(chan struct{})}
	}
	i.pending.begun = true
	select {
	case <-i.wake: // whoever woke us waits for this round
	default:
	}
	return i.pending
}

func (i *issuer) end(r *round, keys []jose.JSONWebKey, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.failed = err != nil
	switch {
	case err == nil:
		i.keys, i.fetched = keys, i.now()
	case i.now().Sub(i.fetched) > maxKeyAge:
		i.keys = nil
	}
	i.pending = nil
	close(r.done)
}

func (i *issuer) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.stopped = true
	if i.pending != nil {
		close(i.pending.done)
		i.pending = nil
	}
}

// refresh asks the provider.
func (i *issuer) refresh(ctx context.Context) ([]jose.JSONWebKey, error) {
	if i.keysURL == "" {
		provider, err := gooidc.NewProvider(gooidc.ClientContext(ctx, i.client), i.cfg.URL)
		if err != nil {
			return nil, fmt.Errorf("discover %s: %w", i.cfg.URL, err)
		}
		var document struct {
			KeysURL string `json:"jwks_uri"`
		}
		if err := provider.Claims(&document); err != nil {
			return nil, fmt.Errorf("discover %s: %w", i.cfg.URL, err)
		}
		if err := secureAs(i.cfg.URL, document.KeysURL); err != nil {
			return nil, fmt.Errorf("discover %s: jwks_uri: %w", i.cfg.URL, err)
		}
		i.keysURL = document.KeysURL
		i.logger.InfoContext(ctx, "OIDC provider discovered", slog.String("url", i.cfg.URL))
	}
	keys, err := i.fetchKeys(ctx)
	if err != nil {
		err = fmt.Errorf("fetch keys from %s: %w", i.keysURL, err)
		i.keysURL = "" // they may have moved
	}
	return keys, err
}

func (i *issuer) fetchKeys(ctx context.Context) ([]jose.JSONWebKey, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, i.keysURL, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := i.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("HTTP status %s", response.Status)
	}
	return parseKeys(body)
}

// parseKeys returns the keys that can verify signatures. Others are left out:
// encryption keys, and kinds that we do not know (RFC 7517, section 5).
func parseKeys(body []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, err
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if err := json.Unmarshal(raw, &key); err != nil {
			continue
		}
		if (key.Use == "" || key.Use == "sig") && key.IsPublic() && key.Valid() && len(keys) < maxKeys {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no signing key")
	}
	return keys, nil
}

// keysFor returns the keys that a token with this header can be signed with. When
// there is none, it asks for a round, as far as the rate allows. The error wraps
// ErrUnavailable; a key that is not there is no error but an empty list.
func (i *issuer) keysFor(ctx context.Context, id, algorithm string) ([]jose.JSONWebKey, error) {
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	for {
		keys, r, late, failed := i.find(id, algorithm)
		if r == nil {
			if len(keys) == 0 && failed {
				return nil, fmt.Errorf("%w: keys are not known", ErrUnavailable)
			}
			return keys, nil
		}
		select {
		case <-r.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		if late {
			continue // what it fetched may be older than the token
		}
		if keys, failed = i.matching(id, algorithm); len(keys) == 0 && failed {
			return nil, fmt.Errorf("%w: keys are not known", ErrUnavailable)
		}
		return keys, nil
	}
}

// find returns the keys, or a round to wait for, or neither. late says that the
// round has begun already.
func (i *issuer) find(id, algorithm string) (keys []jose.JSONWebKey, r *round, late, failed bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	keys, failed = i.match(id, algorithm), i.failed
	if len(keys) > 0 {
		return keys, nil, false, failed
	}
	if i.stopped {
		return nil, nil, false, true
	}
	if i.pending == nil {
		if !i.limit.AllowN(i.now(), 1) {
			return nil, nil, false, failed
		}
		i.pending = &round{done: make(chan struct{})}
		select {
		case i.wake <- struct{}{}:
		default: // a round is due anyway
		}
	}
	return nil, i.pending, i.pending.begun, failed
}

func (i *issuer) matching(id, algorithm string) (keys []jose.JSONWebKey, failed bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.match(id, algorithm), i.failed || i.stopped
}

// match must be called with mu held.
func (i *issuer) match(id, algorithm string) []jose.JSONWebKey {
	var keys []jose.JSONWebKey
	for _, key := range i.keys {
		if (id == "" || key.KeyID == "" || key.KeyID == id) && fits(key, algorithm) {
			keys = append(keys, key)
		}
	}
	return keys
}

// fits says whether a key is for an algorithm, so that a signature never chooses
// how its key is used.
func fits(key jose.JSONWebKey, algorithm string) bool {
	if key.Algorithm != "" && key.Algorithm != algorithm {
		return false
	}
	switch public := key.Key.(type) {
	case *rsa.PublicKey:
		return (strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS")) && public.N.BitLen() >= minRSABits
	case *ecdsa.PublicKey:
		bits, ok := map[string]int{"ES256": 256, "ES384": 384, "ES512": 521}[algorithm]
		return ok && public.Curve.Params().BitSize == bits
	case ed25519.PublicKey:
		return algorithm == "EdDSA"
	default:
		return false
	}
}
