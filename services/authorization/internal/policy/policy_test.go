package policy_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"mqtt-integration/services/authorization/internal/policy"
)

var (
	now    = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	ada    = policy.Principal{Issuer: "dev", Subject: "ada"}
	root   = policy.Principal{Issuer: "dev", Subject: "root"}
	rules  = policy.Rules{AnonymousEnabled: true, Issuers: []string{"dev"}, Administrators: []policy.Principal{root}}
	token  = policy.Credential{Kind: policy.AccessToken, ExpireTime: now.Add(time.Hour)}
	key    = policy.Credential{Kind: policy.APIKey, ID: "k1"}
	none   = policy.Credential{Kind: policy.Anonymous}
	nobody = policy.Principal{Issuer: policy.IssuerAnonymous, Subject: "connection-1"}
)

// The table of BEHAVIOUR.md, section 6: role, read, write, administer, own.
func TestRoles(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		role                         policy.Role
		read, write, administer, own bool
	}{
		{role: policy.NoRole},
		{role: policy.Reader, read: true},
		{role: policy.Publisher, write: true},
		{role: policy.Manager, read: true, write: true},
		{role: policy.Admin, read: true, write: true, administer: true},
		{role: policy.Owner, read: true, write: true, administer: true, own: true},
		{role: 6},
		{role: -1},
	} {
		for permission, want := range map[policy.Permission]bool{
			policy.Read: tt.read, policy.Write: tt.write, policy.Administer: tt.administer, policy.Own: tt.own,
			0: false, policy.Connect: false, 6: false,
		} {
			if got := tt.role.Grants(permission); got != want {
				t.Errorf("Role(%d).Grants(%d) = %v, want %v", tt.role, permission, got, want)
			}
		}
	}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	user := policy.Facts{UserExists: true, ApplicationExists: true}
	with := func(f policy.Facts, change func(*policy.Facts)) policy.Facts {
		change(&f)
		return f
	}
	role := func(r policy.Role) policy.Facts { return with(user, func(f *policy.Facts) { f.Role = r }) }
	everyone := func(r policy.Role) policy.Facts {
		return policy.Facts{ApplicationExists: true, EveryoneRole: r}
	}
	keyed := func(r policy.Role, k policy.Key) policy.Facts {
		return with(role(r), func(f *policy.Facts) { f.Key = &k })
	}
	rw := policy.Key{Scopes: policy.ScopeRead | policy.ScopeWrite}
	all := policy.Key{Scopes: policy.ScopeRead | policy.ScopeWrite | policy.ScopeAdmin}
	connect := policy.Question{Permission: policy.Connect}
	read := policy.Question{Permission: policy.Read, Application: "app"}
	write := policy.Question{Permission: policy.Write, Application: "app"}
	administer := policy.Question{Permission: policy.Administer, Application: "app"}
	own := policy.Question{Permission: policy.Own, Application: "app"}
	everything := policy.Question{Permission: policy.Administer}
	by := func(p policy.Principal, c policy.Credential, q policy.Question) policy.Question {
		q.Principal, q.Credential = p, c
		return q
	}
	shared := func(q policy.Question) policy.Question {
		q.Shared = true
		return q
	}

	for _, tt := range []struct {
		name  string
		rules *policy.Rules // nil: rules
		q     policy.Question
		facts policy.Facts
		want  policy.Reason
	}{
		// The credential.
		{name: "a token connects", q: by(ada, token, connect), facts: user, want: policy.Allowed},
		{name: "a key connects", q: by(ada, key, connect), facts: keyed(policy.NoRole, rw), want: policy.Allowed},
		{name: "a key for administration alone connects", q: by(ada, key, connect), facts: keyed(policy.NoRole, policy.Key{Scopes: policy.ScopeAdmin}), want: policy.Allowed},
		{name: "a key for one application connects", q: by(ada, key, connect), facts: keyed(policy.NoRole, policy.Key{Applications: []string{"app"}}), want: policy.Allowed},
		{name: "nobody connects where that is on", q: by(nobody, none, connect), want: policy.Allowed},
		{name: "nobody does not connect where that is off", rules: &policy.Rules{}, q: by(nobody, none, connect), want: policy.AnonymousForbidden},
		{name: "nobody cannot be somebody", q: by(ada, none, connect), facts: user, want: policy.AnonymousForbidden},
		{name: "a token of a deleted user", q: by(ada, token, connect), want: policy.UserDisabled},
		{name: "a token of a disabled user", q: by(ada, token, connect), facts: policy.Facts{UserExists: true, UserDisabled: true}, want: policy.UserDisabled},
		{name: "a key of a deleted user", q: by(ada, key, connect), want: policy.UserDisabled},
		{name: "a key of a disabled user", q: by(ada, key, connect), facts: with(keyed(policy.Owner, all), func(f *policy.Facts) { f.UserDisabled = true }), want: policy.UserDisabled},
		{name: "a revoked key", q: by(ada, key, read), facts: role(policy.Owner), want: policy.CredentialRevoked},
		{name: "an expired key", q: by(ada, key, read), facts: keyed(policy.Owner, policy.Key{Scopes: policy.ScopeRead, ExpireTime: now}), want: policy.CredentialExpired},
		{name: "a key that ends in a moment", q: by(ada, key, read), facts: keyed(policy.Owner, policy.Key{Scopes: policy.ScopeRead, ExpireTime: now.Add(1)}), want: policy.Allowed},
		{name: "an expired token", q: by(ada, policy.Credential{Kind: policy.AccessToken, ExpireTime: now}, read), facts: role(policy.Owner), want: policy.CredentialExpired},
		{name: "a token of an issuer that is not configured any more", q: by(policy.Principal{Issuer: "old", Subject: "ada"}, token, read), facts: role(policy.Owner), want: policy.CredentialRevoked},
		{name: "a key of a user of an issuer that is not configured any more", q: by(policy.Principal{Issuer: "old", Subject: "ada"}, key, read), facts: keyed(policy.Owner, rw), want: policy.Allowed},
		{name: "no kind of credential", q: by(ada, policy.Credential{}, connect), facts: role(policy.Owner), want: policy.CredentialRevoked},

		// Grants.
		{name: "no role", q: by(ada, token, read), facts: user, want: policy.NotGranted},
		{name: "no such application", q: by(ada, token, read), facts: policy.Facts{UserExists: true}, want: policy.NotGranted},
		{name: "a reader reads", q: by(ada, token, read), facts: role(policy.Reader), want: policy.Allowed},
		{name: "a reader reads shared", q: by(ada, token, shared(read)), facts: role(policy.Reader), want: policy.Allowed},
		{name: "a reader does not write", q: by(ada, token, write), facts: role(policy.Reader), want: policy.NotGranted},
		{name: "a publisher writes", q: by(ada, token, write), facts: role(policy.Publisher), want: policy.Allowed},
		{name: "a publisher does not read", q: by(ada, token, read), facts: role(policy.Publisher), want: policy.NotGranted},
		{name: "a manager does not administer", q: by(ada, token, administer), facts: role(policy.Manager), want: policy.NotGranted},
		{name: "an admin administers", q: by(ada, token, administer), facts: role(policy.Admin), want: policy.Allowed},
		{name: "an admin does not own", q: by(ada, token, own), facts: role(policy.Admin), want: policy.NotGranted},
		{name: "an owner owns", q: by(ada, token, own), facts: role(policy.Owner), want: policy.Allowed},
		{name: "an owner of one application does not administer everything", q: by(ada, token, everything), facts: role(policy.Owner), want: policy.NotGranted},

		// Everyone.
		{name: "nobody reads what everyone may", q: by(nobody, none, read), facts: everyone(policy.Reader), want: policy.Allowed},
		{name: "nobody writes what everyone may", q: by(nobody, none, write), facts: everyone(policy.Publisher), want: policy.Allowed},
		{name: "nobody does not write what everyone may read", q: by(nobody, none, write), facts: everyone(policy.Reader), want: policy.NotGranted},
		{name: "somebody reads what everyone may", q: by(ada, token, read), facts: with(user, func(f *policy.Facts) { f.EveryoneRole = policy.Reader }), want: policy.Allowed},
		{name: "a key reads what everyone may", q: by(ada, key, read), facts: with(keyed(policy.NoRole, rw), func(f *policy.Facts) { f.EveryoneRole = policy.Reader }), want: policy.Allowed},
		{name: "a role below that of everyone", q: by(ada, token, write), facts: with(role(policy.Reader), func(f *policy.Facts) { f.EveryoneRole = policy.Manager }), want: policy.Allowed},
		{name: "nobody reads nothing that everyone may not", q: by(nobody, none, read), facts: everyone(policy.NoRole), want: policy.NotGranted},
		{name: "nobody never administers, whatever the grant", q: by(nobody, none, administer), facts: everyone(policy.Owner), want: policy.NotGranted},
		{name: "nobody never administers everything", q: by(nobody, policy.Credential{Kind: policy.Anonymous, Administrator: true}, everything), want: policy.NotGranted},
		{name: "nobody does not share", q: by(nobody, none, shared(read)), facts: everyone(policy.Reader), want: policy.AnonymousForbidden},
		{name: "nobody shares where that is on", rules: &policy.Rules{AnonymousEnabled: true, AnonymousShare: true}, q: by(nobody, none, shared(read)), facts: everyone(policy.Reader), want: policy.Allowed},
		{name: "nobody reads nothing after anonymous was switched off", rules: &policy.Rules{}, q: by(nobody, none, read), facts: everyone(policy.Reader), want: policy.AnonymousForbidden},

		// What a key limits.
		{name: "a key without the scope", q: by(ada, key, write), facts: keyed(policy.Owner, policy.Key{Scopes: policy.ScopeRead}), want: policy.NotGranted},
		{name: "a key with the scope", q: by(ada, key, write), facts: keyed(policy.Owner, policy.Key{Scopes: policy.ScopeWrite}), want: policy.Allowed},
		{name: "a key never grants more than its user has", q: by(ada, key, write), facts: keyed(policy.Reader, all), want: policy.NotGranted},
		{name: "a key for another application", q: by(ada, key, read), facts: keyed(policy.Owner, policy.Key{Scopes: policy.ScopeRead, Applications: []string{"other"}}), want: policy.NotGranted},
		{name: "a key for this application", q: by(ada, key, read), facts: keyed(policy.Owner, policy.Key{Scopes: policy.ScopeRead, Applications: []string{"other", "app"}}), want: policy.Allowed},
		{name: "a key for another application does not read what everyone may", q: by(ada, key, read), facts: with(keyed(policy.NoRole, policy.Key{Scopes: policy.ScopeRead, Applications: []string{"other"}}), func(f *policy.Facts) { f.EveryoneRole = policy.Reader }), want: policy.NotGranted},
		{name: "a key without the admin scope does not administer", q: by(ada, key, administer), facts: keyed(policy.Owner, rw), want: policy.NotGranted},
		{name: "a key with the admin scope administers", q: by(ada, key, administer), facts: keyed(policy.Admin, all), want: policy.Allowed},

		// Administrators.
		{name: "an administrator administers everything", q: by(root, token, everything), facts: policy.Facts{UserExists: true}, want: policy.Allowed},
		{name: "an administrator reads everything", q: by(root, token, read), facts: user, want: policy.Allowed},
		{name: "an administrator owns everything", q: by(root, token, own), facts: user, want: policy.Allowed},
		{name: "an administrator has nothing that is not there", q: by(root, token, read), facts: policy.Facts{UserExists: true}, want: policy.NotGranted},
		{name: "a disabled administrator", q: by(root, token, everything), facts: policy.Facts{UserExists: true, UserDisabled: true}, want: policy.UserDisabled},
		{name: "an administrator by role", q: by(ada, policy.Credential{Kind: policy.AccessToken, Administrator: true}, everything), facts: policy.Facts{UserExists: true}, want: policy.Allowed},
		{name: "an administrator by role reads", q: by(ada, policy.Credential{Kind: policy.AccessToken, Administrator: true}, read), facts: user, want: policy.Allowed},
		{name: "a key carries no role of the provider", q: by(ada, policy.Credential{Kind: policy.APIKey, ID: "k1", Administrator: true}, everything), facts: keyed(policy.NoRole, all), want: policy.NotGranted},
		{name: "an administrator's key with the admin scope", q: by(root, key, everything), facts: keyed(policy.NoRole, all), want: policy.Allowed},
		{name: "an administrator's key without the admin scope", q: by(root, key, everything), facts: keyed(policy.NoRole, rw), want: policy.NotGranted},
		{name: "an administrator's key without the admin scope has no more than its user by membership", q: by(root, key, read), facts: keyed(policy.NoRole, rw), want: policy.NotGranted},
		{name: "an administrator's key with the admin scope reads only with the read scope", q: by(root, key, read), facts: keyed(policy.NoRole, policy.Key{Scopes: policy.ScopeAdmin}), want: policy.NotGranted},
		{name: "an administrator's key for one application is not for everything", q: by(root, key, everything), facts: keyed(policy.NoRole, policy.Key{Scopes: policy.ScopeAdmin, Applications: []string{"app"}}), want: policy.NotGranted},
		{name: "the same subject at another issuer is somebody else", q: by(policy.Principal{Issuer: "local", Subject: "root"}, key, everything), facts: keyed(policy.NoRole, all), want: policy.NotGranted},

		// Questions that make no sense.
		{name: "no permission", q: by(root, token, policy.Question{Application: "app"}), facts: role(policy.Owner), want: policy.NotGranted},
		{name: "read of no application", q: by(root, token, policy.Question{Permission: policy.Read}), facts: policy.Facts{UserExists: true}, want: policy.NotGranted},
		{name: "an unknown permission", q: by(root, token, policy.Question{Permission: 99, Application: "app"}), facts: role(policy.Owner), want: policy.NotGranted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := rules
			if tt.rules != nil {
				r = *tt.rules
			}
			if got := policy.Decide(now, r, tt.q, tt.facts); got != tt.want {
				t.Errorf("Decide(%+v, %+v) = %d, want %d", tt.q, tt.facts, got, tt.want)
			}
		})
	}
}

// Every combination of everything that matters, against rules that are written
// another way: what must never be allowed, and what must be.
func TestDecideInvariants(t *testing.T) {
	t.Parallel()
	principals := []policy.Principal{ada, root, nobody, {Issuer: "local", Subject: "ada"}, {Issuer: "old", Subject: "ada"}}
	roles := []policy.Role{policy.NoRole, policy.Reader, policy.Publisher, policy.Manager, policy.Admin, policy.Owner}
	permissions := []policy.Permission{0, policy.Connect, policy.Read, policy.Write, policy.Administer, policy.Own}
	keys := []*policy.Key{nil}
	for scopes := range policy.Scope(8) {
		keys = append(keys, &policy.Key{Scopes: scopes})
	}
	every := policy.ScopeRead | policy.ScopeWrite | policy.ScopeAdmin
	keys = append(keys, &policy.Key{Scopes: every, Applications: []string{"app"}},
		&policy.Key{Scopes: every, Applications: []string{"other"}}, &policy.Key{Scopes: every, ExpireTime: now})
	bools := []bool{false, true}
	checked := 0
	for _, kind := range []policy.CredentialKind{policy.AccessToken, policy.APIKey, policy.Anonymous} {
		for _, principal := range principals {
			for _, k := range keys {
				for _, own := range roles {
					for _, everyone := range []policy.Role{policy.NoRole, policy.Reader, policy.Owner} {
						for _, permission := range permissions {
							for bits := range 64 {
								bit := func(n int) bool { return bools[bits>>n&1] }
								q := policy.Question{
									Principal: principal, Permission: permission, Shared: bit(0),
									Credential: policy.Credential{Kind: kind, Administrator: bit(1)},
								}
								if bit(2) {
									q.Application = "app"
								}
								facts := policy.Facts{
									UserExists: bit(3), UserDisabled: bit(4), Key: k,
									ApplicationExists: bit(5), Role: own, EveryoneRole: everyone,
								}
								checkInvariants(t, q, facts)
								checked++
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d questions", checked)
}

func checkInvariants(t *testing.T, q policy.Question, f policy.Facts) {
	t.Helper()
	got := policy.Decide(now, rules, q, f)
	fail := func(why string) {
		t.Helper()
		t.Fatalf("Decide(%+v, %+v [key %+v]) = %d: %s", q, f, f.Key, got, why)
	}
	known := q.Credential.Kind != policy.Anonymous
	isKey := q.Credential.Kind == policy.APIKey
	isRoot := q.Principal == root && (!isKey || f.Key != nil && f.Key.Scopes.Has(policy.ScopeAdmin))
	byRole := q.Credential.Kind == policy.AccessToken && q.Credential.Administrator
	if got != policy.Allowed {
		good := q.Credential.Kind == policy.AccessToken && q.Principal.Issuer == "dev" && f.UserExists && !f.UserDisabled
		if good && q.Application != "" && f.ApplicationExists && f.Role.Grants(q.Permission) {
			fail("denied what a good token's user was granted")
		}
		return
	}
	switch {
	case q.Permission == 0:
		fail("allowed no permission")
	case known && (!f.UserExists || f.UserDisabled):
		fail("allowed a user who is not there or disabled")
	case isKey && f.Key == nil:
		fail("allowed a key that is not there")
	case isKey && !f.Key.ExpireTime.IsZero():
		fail("allowed an expired key")
	case !known && q.Principal.Issuer != policy.IssuerAnonymous:
		fail("allowed somebody without a credential")
	case !known && q.Shared && q.Permission != policy.Connect:
		fail("allowed a shared subscription without a credential")
	}
	if q.Permission == policy.Connect {
		return
	}
	if isKey && len(f.Key.Applications) > 0 && !slices.Contains(f.Key.Applications, q.Application) {
		fail("allowed a key outside its applications")
	}
	if isKey {
		scope := map[policy.Permission]policy.Scope{
			policy.Read: policy.ScopeRead, policy.Write: policy.ScopeWrite,
			policy.Administer: policy.ScopeAdmin, policy.Own: policy.ScopeAdmin,
		}[q.Permission]
		if !f.Key.Scopes.Has(scope) {
			fail("allowed a key without the scope")
		}
	}
	if q.Application != "" && !f.ApplicationExists {
		fail("allowed an application that is not there")
	}
	granted := known && f.Role.Grants(q.Permission) ||
		(q.Permission == policy.Read || q.Permission == policy.Write) && f.EveryoneRole.Grants(q.Permission)
	if !isRoot && !byRole && (q.Application == "" || !granted) && known {
		fail("allowed what nobody granted")
	}
	if !known && q.Permission != policy.Read && q.Permission != policy.Write {
		fail(fmt.Sprintf("allowed permission %d without a credential", q.Permission))
	}
}
