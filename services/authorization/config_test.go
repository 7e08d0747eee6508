package authorization_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"mqtt-integration/libs/config"
	"mqtt-integration/services/authorization"
)

var deployed = filepath.Join("..", "..", "deploy", "config", "authorization.yaml")

// The documented configuration has every setting, with its default.
func TestDeployedConfiguration(t *testing.T) {
	t.Parallel()
	var fromFile authorization.Config
	if err := config.Load(&fromFile, deployed, nil, "AUTHORIZATION"); err != nil {
		t.Fatal(err)
	}
	if err := fromFile.Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
	if diff := cmp.Diff(authorization.DefaultConfig(), fromFile, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the file and the defaults differ (-defaults +file)\n%s", diff)
	}
}

// The examples in its comments are valid, too, and name every setting.
func TestDeployedExamples(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile(deployed)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^(issuers|administrators): \[\]$`).ReplaceAll(file, []byte("$1:"))
	text = regexp.MustCompile(`(?m)^#(-|  \w|  #)`).ReplaceAll(text, []byte("$1"))
	path := filepath.Join(t.TempDir(), "authorization.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := authorization.DefaultConfig()
	if err := config.Load(&cfg, path, nil, "AUTHORIZATION"); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
	if len(cfg.Issuers) != 1 || len(cfg.Administrators) != 2 {
		t.Fatalf("%d issuers, %d administrators, want 1 and 2", len(cfg.Issuers), len(cfg.Administrators))
	}
	var printed bytes.Buffer
	if err := config.Print(&printed, cfg); err != nil {
		t.Fatal(err)
	}
	for _, key := range regexp.MustCompile(`(?m)^ *(?:- )?(\w+):`).FindAllStringSubmatch(printed.String(), -1) {
		if !strings.Contains(string(text), key[1]+":") {
			t.Errorf("setting %s is not in the file", key[1])
		}
	}
}

func TestConfigurationFromTheEnvironment(t *testing.T) {
	t.Parallel()
	cfg := authorization.DefaultConfig()
	err := config.Load(&cfg, "", []string{
		"AUTHORIZATION_ADMIN_API_ADDRESS=127.0.0.1:1", "AUTHORIZATION_ADMIN_ADDRESS=127.0.0.1:2",
		"AUTHORIZATION_ISSUERS=[{alias: dev, url: 'http://127.0.0.1:3', audiences: [mqtt]}]",
		"AUTHORIZATION_LIMITS_FAILURES_PER_NAME_RECOVERY=1m",
	}, "AUTHORIZATION")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.AdminAPI.Address != "127.0.0.1:1" || cfg.Admin.Address != "127.0.0.1:2" || cfg.Issuers[0].Audiences[0] != "mqtt" ||
		cfg.Limits.FailuresPerName.Recovery != time.Minute {
		t.Errorf("configuration %+v, want what the variables say", cfg)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	dev := func(change func(*authorization.Issuer)) authorization.Issuer {
		i := authorization.Issuer{Alias: "dev", URL: "https://id.example.com", Audiences: []string{"mqtt"}}
		if change != nil {
			change(&i)
		}
		return i
	}
	withIssuer := func(change func(*authorization.Issuer)) func(*authorization.Config) {
		return func(c *authorization.Config) { c.Issuers = []authorization.Issuer{dev(change)} }
	}
	withAdministrator := func(a authorization.Administrator) func(*authorization.Config) {
		return func(c *authorization.Config) {
			c.Issuers = []authorization.Issuer{dev(nil)}
			c.Administrators = []authorization.Administrator{a}
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*authorization.Config)
		want   string // empty: valid
	}{
		{name: "the default", change: func(*authorization.Config) {}},
		{name: "an issuer", change: withIssuer(nil)},
		{name: "http on loopback", change: withIssuer(func(i *authorization.Issuer) { i.URL = "http://127.0.0.1:8080/realms/x" })},
		{name: "http on localhost", change: withIssuer(func(i *authorization.Issuer) { i.URL = "http://localhost" })},
		{name: "http elsewhere", change: withIssuer(func(i *authorization.Issuer) { i.URL = "http://id.example.com" }), want: "issuers[0].url"},
		{name: "http elsewhere, insecure", change: withIssuer(func(i *authorization.Issuer) { i.URL, i.Insecure = "http://id.example.com", true })},
		{name: "no URL", change: withIssuer(func(i *authorization.Issuer) { i.URL = "" }), want: "issuers[0].url"},
		{name: "no host", change: withIssuer(func(i *authorization.Issuer) { i.URL = "https:id" }), want: "issuers[0].url"},
		{name: "another scheme", change: withIssuer(func(i *authorization.Issuer) { i.URL = "ftp://id" }), want: "issuers[0].url"},
		{name: "no alias", change: withIssuer(func(i *authorization.Issuer) { i.Alias = "" }), want: "issuers[0].alias"},
		{name: "an alias with a slash", change: withIssuer(func(i *authorization.Issuer) { i.Alias = "a/b" }), want: "issuers[0].alias"},
		{name: "local", change: withIssuer(func(i *authorization.Issuer) { i.Alias = "local" }), want: "issuers[0].alias"},
		{name: "anonymous", change: withIssuer(func(i *authorization.Issuer) { i.Alias = "anonymous" }), want: "issuers[0].alias"},
		{name: "an alias twice", change: func(c *authorization.Config) {
			c.Issuers = []authorization.Issuer{dev(nil), dev(func(i *authorization.Issuer) { i.URL = "https://other" })}
		}, want: "issuers[1].alias"},
		{name: "a URL twice", change: func(c *authorization.Config) {
			c.Issuers = []authorization.Issuer{dev(nil), dev(func(i *authorization.Issuer) { i.Alias = "other" })}
		}, want: "issuers[1].url"},
		{name: "no audience", change: withIssuer(func(i *authorization.Issuer) { i.Audiences = nil }), want: "issuers[0].audiences"},
		{name: "an empty audience", change: withIssuer(func(i *authorization.Issuer) { i.Audiences = []string{""} }), want: "issuers[0].audiences"},
		{name: "none", change: withIssuer(func(i *authorization.Issuer) { i.Algorithms = []string{"none"} }), want: "issuers[0].algorithms"},
		{name: "HS256", change: withIssuer(func(i *authorization.Issuer) { i.Algorithms = []string{"RS256", "HS256"} }), want: "issuers[0].algorithms"},
		{name: "roles without a claim", change: withIssuer(func(i *authorization.Issuer) { i.AdministratorRoles = []string{"x"} }), want: "issuers[0].administrator_roles"},
		{name: "a bad path", change: withIssuer(func(i *authorization.Issuer) { i.RolesClaim = "a..b" }), want: "issuers[0].roles_claim"},
		{name: "an administrator", change: withAdministrator(authorization.Administrator{Issuer: "dev", Subject: "x"})},
		{name: "an administrator by name", change: withAdministrator(authorization.Administrator{Issuer: "dev", Name: "x"})},
		{name: "a local administrator", change: withAdministrator(authorization.Administrator{Issuer: "local", Subject: "x"})},
		{name: "a local administrator by name", change: withAdministrator(authorization.Administrator{Issuer: "local", Name: "x"}), want: "administrators[0].issuer"},
		{name: "an administrator by a name at any issuer", change: withAdministrator(authorization.Administrator{Name: "x"}), want: "administrators[0].issuer"},
		{name: "an administrator of an unknown issuer", change: withAdministrator(authorization.Administrator{Issuer: "x", Subject: "x"}), want: "administrators[0].issuer"},
		{name: "an administrator without a subject", change: withAdministrator(authorization.Administrator{Issuer: "dev"}), want: "administrators[0]:"},
		{name: "plaintext in the open", change: func(c *authorization.Config) { c.AdminAPI.Address = "0.0.0.0:7011" }, want: "admin_api.address"},
		{name: "one address for both", change: func(c *authorization.Config) { c.AdminAPI.Address = c.GRPC.Address }, want: "admin_api.address"},
		{name: "no store", change: func(c *authorization.Config) { c.Store.SQLite.Path = "" }, want: "store.sqlite.path"},
		{name: "no changes", change: func(c *authorization.Config) { c.Store.KeepChanges = 0 }, want: "store.keep_changes"},
		{name: "share without anonymous", change: func(c *authorization.Config) { c.Anonymous.Share = true }, want: "anonymous.share"},
		{name: "no lifetime", change: func(c *authorization.Config) { c.DecisionLifetime = 0 }, want: "decision_lifetime"},
		{name: "a long leeway", change: func(c *authorization.Config) { c.Leeway = time.Hour }, want: "leeway"},
		{name: "no authentication at all", change: func(c *authorization.Config) { c.Limits.ConcurrentAuthentications = 0 }, want: "limits.concurrent_authentications"},
		{name: "no watches", change: func(c *authorization.Config) { c.Limits.Watches = 0 }, want: "limits.watches"},
		{name: "a limit without recovery", change: func(c *authorization.Config) { c.Limits.FailuresPerName.Recovery = 0 }, want: "limits.failures_per_name.recovery"},
		{name: "the common part", change: func(c *authorization.Config) { c.DrainTimeout = 0 }, want: "drain_timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := authorization.DefaultConfig()
			tt.change(&cfg)
			err := cfg.Validate()
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("Validate = %v, want nil", err)
			case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n")):
				t.Errorf("Validate = %v, want exactly an error under %s", err, tt.want)
			}
		})
	}
}
