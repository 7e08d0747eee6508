package authorization

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcserver"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
	authorizationv1 "mqtt-integration/proto/gen/mqttintegration/authorization/v1"
	"mqtt-integration/services/authorization/internal/admin"
	"mqtt-integration/services/authorization/internal/attempts"
	"mqtt-integration/services/authorization/internal/credential"
	"mqtt-integration/services/authorization/internal/oidc"
	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/server"
	"mqtt-integration/services/authorization/internal/store/sqlite"
)

const (
	meterName    = "mqtt-integration/services/authorization"
	pingInterval = 10 * time.Second
	pingTimeout  = 5 * time.Second
)

// Run serves until ctx ends, then drains for at most DrainTimeout. It returns nil
// after an orderly stop, and leaves no goroutine behind.
//
// It is ready while its store answers. OIDC providers may be down: their tokens
// cannot be decided then, and everything else works.
func Run(ctx context.Context, cfg Config, env daemon.Env) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	env = env.Complete()
	if !cfg.hasAdministrator() {
		env.Logger.WarnContext(ctx, "nobody can administer: neither administrators nor administrator_roles are configured")
	}
	ready := env.Health.Register("store")

	store, err := sqlite.Open(ctx, sqlite.Config{Path: cfg.Store.SQLite.Path, KeepChanges: cfg.Store.KeepChanges})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := store.Configured(ctx, cfg.fingerprint()); err != nil {
		return err
	}
	tokens, err := oidc.New(oidc.Config{Issuers: cfg.oidcIssuers(), Leeway: cfg.Leeway, Logger: env.Logger})
	if err != nil {
		return err
	}
	failures := attempts.New(attempts.Config{
		PerAddress: attempts.Limit(cfg.Limits.FailuresPerAddress), PerName: attempts.Limit(cfg.Limits.FailuresPerName),
	})
	defer failures.Close()
	lastUse := credential.NewLastUse(store, env.Logger)
	rules := cfg.rules()
	authenticator := credential.New(credential.Config{
		Store: store, Tokens: tokens, Attempts: failures, LastUse: lastUse, Rules: rules,
		Logger: env.Logger, Concurrent: cfg.Limits.ConcurrentAuthentications,
	})

	servers, serving := errgroup.WithContext(ctx)
	decisions := grpcserver.New(cfg.GRPC, env)
	service, err := server.New(server.Config{
		Authenticator: authenticator, Store: store, Rules: rules, Lifetime: cfg.DecisionLifetime,
		MaxWatches: cfg.Limits.Watches, Stopping: serving.Done(), Logger: env.Logger, Meter: env.Meter.Meter(meterName),
	})
	if err != nil {
		return err
	}
	authorizationv1.RegisterAuthorizationServiceServer(decisions.Registrar(), service)

	administration := admin.New(admin.Config{
		Authenticator: authenticator, Store: store, Rules: rules, UsersCreateApplications: cfg.UsersCreateApplications, Logger: env.Logger,
	})
	adminServer := grpcserver.New(cfg.AdminAPI, env, grpc.ChainUnaryInterceptor(administration.Interceptor))
	adminv1.RegisterAdminServiceServer(adminServer.Registrar(), administration)

	// What the servers use ends after them.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	support, background := errgroup.WithContext(background)
	support.Go(func() error { return tokens.Run(background) })
	support.Go(func() error { return lastUse.Run(background) })
	support.Go(func() error { return watchStore(background, store, ready, env.Logger) })

	servers.Go(func() error { return decisions.Run(serving, cfg.DrainTimeout) })
	servers.Go(func() error { return adminServer.Run(serving, cfg.DrainTimeout) })
	err = servers.Wait()
	stop()
	return errors.Join(err, support.Wait())
}

type pinger interface {
	Ping(ctx context.Context) error
}

// watchStore keeps the readiness of the store until ctx ends.
func watchStore(ctx context.Context, store pinger, ready *daemon.Check, logger *slog.Logger) error {
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	for {
		ping, cancel := context.WithTimeout(ctx, pingTimeout)
		err := store.Ping(ping)
		cancel()
		if ctx.Err() != nil {
			ready.Set(errors.New("stopped"))
			return nil
		}
		if err != nil {
			logger.ErrorContext(ctx, "store cannot be used", slog.Any("error", err))
		}
		ready.Set(err)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

func (c Config) oidcIssuers() []oidc.Issuer {
	issuers := make([]oidc.Issuer, 0, len(c.Issuers))
	for _, i := range c.Issuers {
		issuer := oidc.Issuer{
			Alias: i.Alias, URL: i.URL, CAFile: i.CAFile, Audiences: i.Audiences, Algorithms: i.Algorithms,
			NameClaim: i.NameClaim, RolesClaim: i.RolesClaim, AdministratorRoles: i.AdministratorRoles,
			RequireATJWT: i.RequireATJWT, RequiredScopes: i.RequiredScopes,
		}
		for _, a := range c.Administrators {
			if a.Issuer == i.Alias && a.Name != "" {
				issuer.AdministratorNames = append(issuer.AdministratorNames, a.Name)
			}
		}
		issuers = append(issuers, issuer)
	}
	return issuers
}

func (c Config) hasAdministrator() bool {
	return len(c.Administrators) > 0 ||
		slices.ContainsFunc(c.Issuers, func(i Issuer) bool { return len(i.AdministratorRoles) > 0 })
}

func (c Config) rules() policy.Rules {
	rules := policy.Rules{AnonymousEnabled: c.Anonymous.Enabled, AnonymousShare: c.Anonymous.Share}
	for _, i := range c.Issuers {
		rules.Issuers = append(rules.Issuers, i.Alias)
	}
	for _, a := range c.Administrators {
		if a.Subject != "" {
			rules.Administrators = append(rules.Administrators, policy.Principal{Issuer: a.Issuer, Subject: a.Subject})
		}
	}
	return rules
}

// fingerprint changes when decisions may turn because of the configuration, so
// that those who keep some forget them.
func (c Config) fingerprint() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v %#v %#v", c.Issuers, c.Anonymous, c.Administrators))
	return hex.EncodeToString(sum[:])
}
