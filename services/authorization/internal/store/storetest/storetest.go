package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

// Store is everything that the service uses of a store.
type Store interface {
	ID() string
	Ping(ctx context.Context) error
	Revision(ctx context.Context) (int64, error)
	Changes(ctx context.Context, after int64, limit int) (changes []store.Change, complete bool, err error)
	Updated() <-chan struct{}
	Configured(ctx context.Context, fingerprint string) error

	Facts(ctx context.Context, questions []policy.Question) ([]policy.Facts, int64, error)
	SignIn(ctx context.Context, p policy.Principal, names []string) (store.User, int64, error)
	FindKey(ctx context.Context, id string) (store.KeyRecord, int64, error)
	Used(ctx context.Context, keys map[string]time.Time) error

	CreateUser(ctx context.Context, user store.User) (store.User, error)
	User(ctx context.Context, name string) (store.User, error)
	Users(ctx context.Context, after string, limit int) ([]store.User, error)
	SetUserDisabled(ctx context.Context, name string, disabled bool) (store.User, error)
	DeleteUser(ctx context.Context, name string) error

	CreateApplication(ctx context.Context, name, owner string) (store.Application, error)
	Application(ctx context.Context, name string) (store.Application, error)
	Applications(ctx context.Context, of *policy.Principal, after string, limit int) ([]store.Application, error)
	DeleteApplication(ctx context.Context, name string) error
	TransferOwnership(ctx context.Context, name, owner string) (store.Application, error)
	SetMember(ctx context.Context, application string, member store.Member) error
	RemoveMember(ctx context.Context, application string, member store.Member) error
	Members(ctx context.Context, application string) ([]store.Member, error)

	CreateKey(ctx context.Context, key store.Key, hash [32]byte) (store.Key, error)
	Keys(ctx context.Context, user string) ([]store.Key, error)
	RevokeKey(ctx context.Context, id string) error

	Close() error
}

// KeepChanges is what the store under test has to be configured with.
const KeepChanges = 50

// Now is the clock that the store under test has to be configured with.
func Now() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 123456000, time.UTC) }

// Run runs the suite. open opens a store of the test: the same one when it is
// called again after Close.
func Run(t *testing.T, open func(t *testing.T) func() Store) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, *fixture){
		"users":                         testUsers,
		"sign in":                       testSignIn,
		"sign in at the same time":      testConcurrentSignIn,
		"applications":                  testApplications,
		"ownership":                     testOwnership,
		"members":                       testMembers,
		"keys":                          testKeys,
		"what is deleted with a user":   testDeleteUser,
		"facts":                         testFacts,
		"every change has a revision":   testRevisions,
		"what failed changes nothing":   testFailures,
		"changes are pruned":            testPruning,
		"announcements":                 testAnnouncements,
		"configuration":                 testConfigured,
		"everything survives a restart": testRestart,
		"a context that ended":          testContext,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reopen := open(t)
			f := &fixture{Store: reopen(), open: reopen}
			t.Cleanup(func() {
				if err := f.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			test(t, f)
		})
	}
}

type fixture struct {
	Store
	open func() Store
}

func (f *fixture) reopen(t *testing.T) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	f.Store = f.open()
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) || (err == nil) != (want == nil) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func diff(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s: (-want +got)\n%s", what, d)
	}
}

func principal(name string) policy.Principal {
	return policy.Principal{Issuer: "dev", Subject: "sub-" + name}
}

func (f *fixture) user(t *testing.T, name string) store.User {
	t.Helper()
	return must[store.User](t)(f.CreateUser(t.Context(), store.User{Principal: principal(name), Name: name}))
}

func (f *fixture) application(t *testing.T, name, owner string) {
	t.Helper()
	must[store.Application](t)(f.CreateApplication(t.Context(), name, owner))
}

func (f *fixture) key(t *testing.T, id, user string) {
	t.Helper()
	must[store.Key](t)(f.CreateKey(t.Context(), store.Key{ID: id, User: user, Scopes: policy.ScopeRead}, [32]byte{1}))
}

func testUsers(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	ada := f.user(t, "ada")
	diff(t, "created", ada, store.User{Principal: principal("ada"), Name: "ada", CreateTime: Now()})
	f.user(t, "bob")
	f.user(t, "Cid")
	diff(t, "read", must[store.User](t)(f.User(ctx, "ada")), ada)
	_, err := f.User(ctx, "ADA")
	check(t, "another spelling", err, store.ErrUserNotFound)
	_, err = f.CreateUser(ctx, store.User{Principal: principal("ada"), Name: "other"})
	check(t, "the same principal", err, store.ErrUserExists)
	_, err = f.CreateUser(ctx, store.User{Principal: principal("other"), Name: "ada"})
	check(t, "the same name", err, store.ErrNameTaken)
	must[store.User](t)(f.CreateUser(ctx, store.User{Principal: policy.Principal{Issuer: "other", Subject: "sub-ada"}, Name: "ada2"}))

	var names []string
	after := ""
	for {
		page := must[[]store.User](t)(f.Users(ctx, after, 3))
		for _, u := range page {
			names = append(names, u.Name)
		}
		if len(page) < 3 {
			break
		}
		after = page[2].Name
	}
	diff(t, "pages", names, []string{"Cid", "ada", "ada2", "bob"})

	ada.Disabled = true
	diff(t, "disabled", must[store.User](t)(f.SetUserDisabled(ctx, "ada", true)), ada)
	diff(t, "disabled again", must[store.User](t)(f.SetUserDisabled(ctx, "ada", true)), ada)
	diff(t, "read disabled", must[store.User](t)(f.User(ctx, "ada")), ada)
	_, err = f.SetUserDisabled(ctx, "nobody", true)
	check(t, "disable nobody", err, store.ErrUserNotFound)
	check(t, "delete", f.DeleteUser(ctx, "ada"), nil)
	check(t, "delete again", f.DeleteUser(ctx, "ada"), store.ErrUserNotFound)
}

func testSignIn(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	ada, revision, err := f.SignIn(ctx, principal("ada"), []string{"ada", "ada@dev"})
	check(t, "the first time", err, nil)
	diff(t, "the first time", ada, store.User{Principal: principal("ada"), Name: "ada", CreateTime: Now()})
	if revision != 1 {
		t.Errorf("revision %d, want that of the new user", revision)
	}
	again, revision, err := f.SignIn(ctx, principal("ada"), []string{"another name"})
	check(t, "again", err, nil)
	diff(t, "again", again, ada)
	if revision != 1 {
		t.Errorf("revision %d, want 1: nothing changed", revision)
	}
	other := policy.Principal{Issuer: "other", Subject: "sub-ada"}
	second, _, err := f.SignIn(ctx, other, []string{"ada", "ada@other"})
	check(t, "a clash", err, nil)
	diff(t, "a clash", second, store.User{Principal: other, Name: "ada@other", CreateTime: Now()})
	_, _, err = f.SignIn(ctx, principal("eve"), []string{"ada", "ada@other"})
	check(t, "no name is free", err, store.ErrNameTaken)
	must[store.User](t)(f.SetUserDisabled(ctx, "ada", true))
	disabled, revision, err := f.SignIn(ctx, principal("ada"), nil)
	check(t, "disabled", err, nil)
	if !disabled.Disabled || revision != 3 {
		t.Errorf("disabled user %+v at revision %d, want disabled at 3", disabled, revision)
	}
}

func testConcurrentSignIn(t *testing.T, f *fixture) {
	t.Helper()
	const n = 16
	var wg sync.WaitGroup
	users := make([]store.User, n)
	for i := range n {
		wg.Go(func() {
			var err error
			if users[i], _, err = f.SignIn(t.Context(), principal("ada"), []string{"ada"}); err != nil {
				t.Errorf("SignIn: %v", err)
			}
		})
	}
	wg.Wait()
	for _, u := range users {
		diff(t, "user", u, users[0])
	}
	if revision := must[int64](t)(f.Revision(t.Context())); revision != 1 {
		t.Errorf("revision %d, want 1: one user was created", revision)
	}
}

func testApplications(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	f.user(t, "ada")
	f.user(t, "bob")
	app := must[store.Application](t)(f.CreateApplication(ctx, "app", "ada"))
	diff(t, "created", app, store.Application{Name: "app", Owner: "ada", CreateTime: Now()})
	diff(t, "read", must[store.Application](t)(f.Application(ctx, "app")), app)
	_, err := f.CreateApplication(ctx, "app", "bob")
	check(t, "the same name", err, store.ErrApplicationExists)
	_, err = f.CreateApplication(ctx, "lost", "nobody")
	check(t, "no such owner", err, store.ErrUserNotFound)
	_, err = f.Application(ctx, "lost")
	check(t, "not created", err, store.ErrApplicationNotFound)
	f.application(t, "b", "bob")
	f.application(t, "c", "bob")
	f.application(t, "d", "bob")
	check(t, "admin", f.SetMember(ctx, "c", store.Member{User: "ada", Role: policy.Admin}), nil)
	check(t, "manager", f.SetMember(ctx, "d", store.Member{User: "ada", Role: policy.Manager}), nil)

	list := func(of *policy.Principal, after string, limit int) []string {
		var names []string
		for _, a := range must[[]store.Application](t)(f.Applications(ctx, of, after, limit)) {
			names = append(names, a.Name)
		}
		return names
	}
	ada, nobody := principal("ada"), principal("nobody")
	diff(t, "all", list(nil, "", 10), []string{"app", "b", "c", "d"})
	diff(t, "a page", list(nil, "app", 2), []string{"b", "c"})
	diff(t, "of ada", list(&ada, "", 10), []string{"app", "c"})
	diff(t, "a page of ada", list(&ada, "app", 10), []string{"c"})
	diff(t, "of nobody", list(&nobody, "", 10), []string{})

	check(t, "delete", f.DeleteApplication(ctx, "c"), nil)
	check(t, "delete again", f.DeleteApplication(ctx, "c"), store.ErrApplicationNotFound)
	f.application(t, "c", "bob")
	diff(t, "members of a new application with an old name", must[[]store.Member](t)(f.Members(ctx, "c")),
		[]store.Member{{User: "bob", Role: policy.Owner}})
}

func testOwnership(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	f.user(t, "ada")
	f.user(t, "bob")
	f.application(t, "app", "ada")
	check(t, "member", f.SetMember(ctx, "app", store.Member{User: "bob", Role: policy.Reader}), nil)
	check(t, "delete the owner", f.DeleteUser(ctx, "ada"), store.ErrOwnsApplications)
	check(t, "take the owner's role", f.SetMember(ctx, "app", store.Member{User: "ada", Role: policy.Reader}), store.ErrOwner)
	check(t, "remove the owner", f.RemoveMember(ctx, "app", store.Member{User: "ada"}), store.ErrOwner)
	before := must[int64](t)(f.Revision(ctx))
	must[store.Application](t)(f.TransferOwnership(ctx, "app", "ada"))
	if after := must[int64](t)(f.Revision(ctx)); after != before {
		t.Errorf("revision %d, want %d: the owner is the same", after, before)
	}
	app := must[store.Application](t)(f.TransferOwnership(ctx, "app", "bob"))
	diff(t, "transferred", app, store.Application{Name: "app", Owner: "bob", CreateTime: Now()})
	diff(t, "members", must[[]store.Member](t)(f.Members(ctx, "app")),
		[]store.Member{{User: "bob", Role: policy.Owner}, {User: "ada", Role: policy.Admin}})
	check(t, "delete the former owner", f.DeleteUser(ctx, "ada"), nil)
	_, err := f.TransferOwnership(ctx, "app", "nobody")
	check(t, "to nobody", err, store.ErrUserNotFound)
	_, err = f.TransferOwnership(ctx, "lost", "bob")
	check(t, "of nothing", err, store.ErrApplicationNotFound)
}

func testMembers(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	for _, name := range []string{"ada", "bob", "cid"} {
		f.user(t, name)
	}
	f.application(t, "app", "bob")
	check(t, "set", f.SetMember(ctx, "app", store.Member{User: "cid", Role: policy.Publisher}), nil)
	check(t, "set", f.SetMember(ctx, "app", store.Member{User: "ada", Role: policy.Reader}), nil)
	check(t, "everyone", f.SetMember(ctx, "app", store.Member{Everyone: true, Role: policy.Publisher}), nil)
	check(t, "another role", f.SetMember(ctx, "app", store.Member{User: "cid", Role: policy.Manager}), nil)
	check(t, "another role for everyone", f.SetMember(ctx, "app", store.Member{Everyone: true, Role: policy.Reader}), nil)
	diff(t, "members", must[[]store.Member](t)(f.Members(ctx, "app")), []store.Member{
		{User: "bob", Role: policy.Owner},
		{User: "ada", Role: policy.Reader},
		{User: "cid", Role: policy.Manager},
		{Everyone: true, Role: policy.Reader},
	})
	before := must[int64](t)(f.Revision(ctx))
	check(t, "the same", f.SetMember(ctx, "app", store.Member{User: "cid", Role: policy.Manager}), nil)
	check(t, "the same", f.SetMember(ctx, "app", store.Member{Everyone: true, Role: policy.Reader}), nil)
	if after := must[int64](t)(f.Revision(ctx)); after != before {
		t.Errorf("revision %d, want %d: nothing changed", after, before)
	}
	check(t, "remove", f.RemoveMember(ctx, "app", store.Member{User: "cid"}), nil)
	check(t, "remove again", f.RemoveMember(ctx, "app", store.Member{User: "cid"}), store.ErrMemberNotFound)
	check(t, "remove everyone", f.RemoveMember(ctx, "app", store.Member{Everyone: true}), nil)
	check(t, "remove everyone again", f.RemoveMember(ctx, "app", store.Member{Everyone: true}), store.ErrMemberNotFound)
	check(t, "set nobody", f.SetMember(ctx, "app", store.Member{User: "nobody", Role: policy.Reader}), store.ErrUserNotFound)
	check(t, "remove nobody", f.RemoveMember(ctx, "app", store.Member{User: "nobody"}), store.ErrUserNotFound)
	check(t, "set in nothing", f.SetMember(ctx, "lost", store.Member{User: "ada", Role: policy.Reader}), store.ErrApplicationNotFound)
	check(t, "remove from nothing", f.RemoveMember(ctx, "lost", store.Member{User: "ada"}), store.ErrApplicationNotFound)
	_, err := f.Members(ctx, "lost")
	check(t, "of nothing", err, store.ErrApplicationNotFound)
}

func testKeys(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	ada := f.user(t, "ada")
	diff(t, "none", must[[]store.Key](t)(f.Keys(ctx, "ada")), []store.Key{})
	hash := [32]byte{1, 2, 3}
	want := store.Key{
		ID: "k1", User: "ada", Description: "for the pump", Scopes: policy.ScopeRead | policy.ScopeAdmin,
		Applications: []string{"app", `a "quoted", one`}, ExpireTime: Now().Add(time.Hour),
	}
	got := must[store.Key](t)(f.CreateKey(ctx, want, hash))
	want.CreateTime = Now()
	diff(t, "created", got, want)
	must[store.Key](t)(f.CreateKey(ctx, store.Key{ID: "k0", User: "ada", Scopes: policy.ScopeWrite}, [32]byte{}))
	diff(t, "listed", must[[]store.Key](t)(f.Keys(ctx, "ada")),
		[]store.Key{{ID: "k0", User: "ada", Scopes: policy.ScopeWrite, CreateTime: Now()}, want})
	record, revision, err := f.FindKey(ctx, "k1")
	check(t, "find", err, nil)
	diff(t, "found", record, store.KeyRecord{Key: want, Hash: hash, Owner: ada})
	if revision != 3 {
		t.Errorf("revision %d, want 3", revision)
	}
	_, revision, err = f.FindKey(ctx, "unknown")
	check(t, "find another", err, store.ErrKeyNotFound)
	if revision != 3 {
		t.Errorf("revision of an unknown key %d, want 3", revision)
	}

	hour := Now().Truncate(time.Hour)
	check(t, "used", f.Used(ctx, map[string]time.Time{"k1": hour, "gone": hour}), nil)
	check(t, "used before", f.Used(ctx, map[string]time.Time{"k1": hour.Add(-time.Hour)}), nil)
	want.LastUseTime = hour
	record, revision, _ = f.FindKey(ctx, "k1")
	diff(t, "after use", record.Key, want)
	if revision != 3 {
		t.Errorf("revision %d, want 3: use changes no decision", revision)
	}

	check(t, "revoke", f.RevokeKey(ctx, "k1"), nil)
	check(t, "revoke again", f.RevokeKey(ctx, "k1"), store.ErrKeyNotFound)
	_, err = f.Keys(ctx, "nobody")
	check(t, "of nobody", err, store.ErrUserNotFound)
	_, err = f.CreateKey(ctx, store.Key{ID: "k2", User: "nobody"}, hash)
	check(t, "for nobody", err, store.ErrUserNotFound)
	for i := range store.MaxKeys - 1 {
		f.key(t, fmt.Sprintf("many-%d", i), "ada")
	}
	_, err = f.CreateKey(ctx, store.Key{ID: "k3", User: "ada"}, hash)
	check(t, "too many", err, store.ErrTooManyKeys)
}

func testDeleteUser(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	f.user(t, "ada")
	f.user(t, "bob")
	f.application(t, "app", "bob")
	check(t, "member", f.SetMember(ctx, "app", store.Member{User: "ada", Role: policy.Admin}), nil)
	f.key(t, "k1", "ada")
	check(t, "delete", f.DeleteUser(ctx, "ada"), nil)
	_, _, err := f.FindKey(ctx, "k1")
	check(t, "its key", err, store.ErrKeyNotFound)
	diff(t, "members", must[[]store.Member](t)(f.Members(ctx, "app")), []store.Member{{User: "bob", Role: policy.Owner}})
	f.user(t, "ada")
	facts, _, err := f.Facts(ctx, []policy.Question{{Principal: principal("ada"), Credential: policy.Credential{ID: "k1"}, Application: "app"}})
	check(t, "facts", err, nil)
	diff(t, "a new user with the old name", facts, []policy.Facts{{UserExists: true, ApplicationExists: true}})
}

func testFacts(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	for _, name := range []string{"ada", "bob", "cid"} {
		f.user(t, name)
	}
	f.application(t, "app", "ada")
	f.application(t, "open", "ada")
	check(t, "member", f.SetMember(ctx, "app", store.Member{User: "bob", Role: policy.Publisher}), nil)
	check(t, "everyone", f.SetMember(ctx, "open", store.Member{Everyone: true, Role: policy.Reader}), nil)
	must[store.User](t)(f.SetUserDisabled(ctx, "cid", true))
	expire := Now().Add(time.Hour)
	must[store.Key](t)(f.CreateKey(ctx, store.Key{
		ID: "k1", User: "bob", Scopes: policy.ScopeWrite, Applications: []string{"app"}, ExpireTime: expire,
	}, [32]byte{}))

	questions := []policy.Question{
		{Principal: principal("ada"), Application: "app"},
		{Principal: principal("bob"), Application: "app", Credential: policy.Credential{Kind: policy.APIKey, ID: "k1"}},
		{Principal: principal("ada"), Application: "open", Credential: policy.Credential{Kind: policy.APIKey, ID: "k1"}},
		{Principal: principal("bob"), Application: "open"},
		{Principal: principal("bob"), Application: "lost"},
		{Principal: principal("cid")},
		{Principal: principal("nobody"), Application: "open"},
		{Principal: policy.Principal{Issuer: "other", Subject: "sub-ada"}, Application: "app"},
		{Principal: policy.Principal{Issuer: policy.IssuerAnonymous, Subject: "c1"}, Application: "open"},
	}
	want := []policy.Facts{
		{UserExists: true, ApplicationExists: true, Role: policy.Owner},
		{
			UserExists: true, ApplicationExists: true, Role: policy.Publisher,
			Key: &policy.Key{Scopes: policy.ScopeWrite, Applications: []string{"app"}, ExpireTime: expire},
		},
		{UserExists: true, ApplicationExists: true, Role: policy.Owner, EveryoneRole: policy.Reader}, // the key is another's
		{UserExists: true, ApplicationExists: true, EveryoneRole: policy.Reader},
		{UserExists: true},
		{UserExists: true, UserDisabled: true},
		{ApplicationExists: true, EveryoneRole: policy.Reader},
		{ApplicationExists: true},
		{ApplicationExists: true, EveryoneRole: policy.Reader},
	}
	current := must[int64](t)(f.Revision(ctx))
	got, revision, err := f.Facts(ctx, questions)
	check(t, "all", err, nil)
	diff(t, "all", got, want)
	if revision != current {
		t.Errorf("revision %d, want %d", revision, current)
	}
	for i, q := range questions {
		one, revision, err := f.Facts(ctx, []policy.Question{q})
		check(t, "one", err, nil)
		diff(t, fmt.Sprintf("question %d alone", i), one, want[i:i+1])
		if revision != current {
			t.Errorf("revision %d, want %d", revision, current)
		}
	}
}
