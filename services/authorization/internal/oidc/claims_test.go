package oidc

import (
	"errors"
	"testing"
	"time"
)

// FuzzAccept maps any claims: whatever they are, nothing panics, and what is
// accepted keeps to the rules.
func FuzzAccept(f *testing.F) {
	for _, seed := range []string{
		`{"sub":"a","aud":"mqtt","exp":1795348800,"preferred_username":"ada","realm_access":{"roles":["boss"]}}`,
		`{"sub":"a","aud":["x","mqtt"],"exp":1795348800.5,"nbf":1,"iat":1e3,"scope":"a b"}`,
		`{"sub":"a","aud":{},"exp":"1"}`,
		`{"typ":"ID"}`,
		`{"sub":["a"],"aud":[[]],"exp":-1e400,"realm_access":{"roles":{"boss":true}}}`,
		`{"a.b":{"c":"d"},"a":{"b.c":"e"}}`,
		`[]`, `null`, `{}`, `{"sub":"` + "\xff" + `"}`,
	} {
		f.Add([]byte(seed))
	}
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	const leeway = 30 * time.Second
	i := &issuer{cfg: Issuer{
		Alias: "dev", Audiences: []string{"mqtt"}, NameClaim: DefaultNameClaim,
		RolesClaim: "realm_access.roles", AdministratorRoles: []string{"boss"},
	}}
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := decodeClaims(payload)
		if err != nil {
			return
		}
		token, err := i.accept(c, now, leeway)
		if err != nil {
			if !errors.Is(err, ErrBad) && !errors.Is(err, ErrExpired) && !errors.Is(err, ErrNotYetValid) && !errors.Is(err, ErrWrongAudience) {
				t.Errorf("accept(%s): %v is none of our errors", payload, err)
			}
			return
		}
		if token.Principal.Subject == "" || len(token.Principal.Subject) > maxSubject || token.Principal.Issuer != "dev" {
			t.Errorf("accept(%s): principal %v", payload, token.Principal)
		}
		if !token.ExpireTime.After(now) {
			t.Errorf("accept(%s): expires at %v", payload, token.ExpireTime)
		}
	})
}

func FuzzClaimPath(f *testing.F) {
	f.Add([]byte(`{"a":{"b":{"c":"d"}}}`), "a.b.c")
	f.Add([]byte(`{"a.b":{"c":["d"]}}`), "a.b.c")
	f.Add([]byte(`{"":{"":""}}`), ".")
	f.Fuzz(func(t *testing.T, payload []byte, path string) {
		c, err := decodeClaims(payload)
		if err != nil || len(path) > 100 {
			return
		}
		_, found := c.at(path)
		if (c.text(path) != "" || c.list(path) != nil) && !found {
			t.Errorf("%q in %s is there and not there", path, payload)
		}
	})
}
