package storetest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

// step is a change and what watches have to hear of it.
type step struct {
	name string
	do   func(ctx context.Context, f *fixture) error
	want store.Change
}

func steps() []step {
	ada, bob := principal("ada"), principal("bob")
	user := func(name string) func(context.Context, *fixture) error {
		return func(ctx context.Context, f *fixture) error {
			_, err := f.CreateUser(ctx, store.User{Principal: principal(name), Name: name})
			return err
		}
	}
	return []step{
		{"create user", user("ada"), store.Change{Principal: ada}},
		{"create user", user("bob"), store.Change{Principal: bob}},
		{"create application", func(ctx context.Context, f *fixture) error {
			_, err := f.CreateApplication(ctx, "app", "ada")
			return err
		}, store.Change{Application: "app"}},
		{"set member", func(ctx context.Context, f *fixture) error {
			return f.SetMember(ctx, "app", store.Member{User: "bob", Role: policy.Reader})
		}, store.Change{Principal: bob, Application: "app"}},
		{"set everyone", func(ctx context.Context, f *fixture) error {
			return f.SetMember(ctx, "app", store.Member{Everyone: true, Role: policy.Reader})
		}, store.Change{Application: "app"}},
		{"create key", func(ctx context.Context, f *fixture) error {
			_, err := f.CreateKey(ctx, store.Key{ID: "k1", User: "bob"}, [32]byte{})
			return err
		}, store.Change{Principal: bob, CredentialID: "k1"}},
		{"disable", func(ctx context.Context, f *fixture) error {
			_, err := f.SetUserDisabled(ctx, "bob", true)
			return err
		}, store.Change{Principal: bob}},
		{"enable", func(ctx context.Context, f *fixture) error {
			_, err := f.SetUserDisabled(ctx, "bob", false)
			return err
		}, store.Change{Principal: bob}},
		{
			"revoke key", func(ctx context.Context, f *fixture) error { return f.RevokeKey(ctx, "k1") },
			store.Change{Principal: bob, CredentialID: "k1"},
		},
		{"remove everyone", func(ctx context.Context, f *fixture) error {
			return f.RemoveMember(ctx, "app", store.Member{Everyone: true})
		}, store.Change{Application: "app"}},
		{"remove member", func(ctx context.Context, f *fixture) error {
			return f.RemoveMember(ctx, "app", store.Member{User: "bob"})
		}, store.Change{Principal: bob, Application: "app"}},
		{"transfer ownership", func(ctx context.Context, f *fixture) error {
			_, err := f.TransferOwnership(ctx, "app", "bob")
			return err
		}, store.Change{Application: "app"}},
		{"delete user", func(ctx context.Context, f *fixture) error { return f.DeleteUser(ctx, "ada") }, store.Change{Principal: ada}},
		{
			"delete application", func(ctx context.Context, f *fixture) error { return f.DeleteApplication(ctx, "app") },
			store.Change{Application: "app"},
		},
	}
}

func testRevisions(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	var all []store.Change
	for i, s := range steps() {
		check(t, s.name, s.do(ctx, f), nil)
		s.want.Revision = int64(i) + 1
		all = append(all, s.want)
		if got := must[int64](t)(f.Revision(ctx)); got != s.want.Revision {
			t.Errorf("%s: revision %d, want %d", s.name, got, s.want.Revision)
		}
	}
	for after := range int64(len(all) + 1) {
		changes, complete, err := f.Changes(ctx, after, 100)
		if err != nil || !complete {
			t.Errorf("Changes(%d): complete %v, %v", after, complete, err)
		}
		diff(t, fmt.Sprintf("changes after %d", after), changes, all[after:])
	}
	changes, complete, err := f.Changes(ctx, 2, 3)
	if err != nil || !complete {
		t.Errorf("limited: complete %v, %v", complete, err)
	}
	diff(t, "limited", changes, all[2:5])
	for _, after := range []int64{int64(len(all)) + 1, 1000, -1} {
		if changes, complete, err := f.Changes(ctx, after, 100); complete || err != nil {
			t.Errorf("Changes(%d) = %d changes, complete, %v: the store was never there", after, len(changes), err)
		}
	}
}

func testFailures(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	f.user(t, "ada")
	f.user(t, "bob")
	f.application(t, "app", "ada")
	before := must[int64](t)(f.Revision(ctx))
	updated := f.Updated()
	_, err := f.CreateUser(ctx, store.User{Principal: principal("x"), Name: "ada"})
	check(t, "create user", err, store.ErrNameTaken)
	_, err = f.CreateApplication(ctx, "x", "nobody")
	check(t, "create application", err, store.ErrUserNotFound)
	check(t, "delete user", f.DeleteUser(ctx, "ada"), store.ErrOwnsApplications)
	check(t, "remove member", f.RemoveMember(ctx, "app", store.Member{User: "bob"}), store.ErrMemberNotFound)
	if after := must[int64](t)(f.Revision(ctx)); after != before {
		t.Errorf("revision %d, want %d", after, before)
	}
	select {
	case <-updated:
		t.Error("announced, though nothing changed")
	default:
	}
}

func testPruning(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	f.user(t, "ada")
	for i := range 2 * KeepChanges {
		must[store.User](t)(f.SetUserDisabled(ctx, "ada", i%2 == 0))
	}
	current := must[int64](t)(f.Revision(ctx))
	changes, complete, err := f.Changes(ctx, current-KeepChanges, 1000)
	if err != nil || !complete || len(changes) != KeepChanges {
		t.Errorf("the last %d: %d changes, complete %v, %v", KeepChanges, len(changes), complete, err)
	}
	if _, complete, err = f.Changes(ctx, current-KeepChanges-1, 1000); err != nil || complete {
		t.Errorf("one before: complete %v, %v, want incomplete", complete, err)
	}
}

func testAnnouncements(t *testing.T, f *fixture) {
	t.Helper()
	for _, s := range steps() {
		updated := f.Updated()
		select {
		case <-updated:
			t.Fatalf("before %s: announced", s.name)
		default:
		}
		check(t, s.name, s.do(t.Context(), f), nil)
		select {
		case <-updated:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: not announced", s.name)
		}
	}
}

func testConfigured(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	check(t, "first", f.Configured(ctx, "a"), nil)
	check(t, "the same", f.Configured(ctx, "a"), nil)
	check(t, "another", f.Configured(ctx, "b"), nil)
	changes, _, err := f.Changes(ctx, 0, 10)
	check(t, "changes", err, nil)
	diff(t, "changes", changes, []store.Change{{Revision: 1}, {Revision: 2}})
}

func testRestart(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	for _, s := range steps()[:6] {
		check(t, s.name, s.do(ctx, f), nil)
	}
	id := f.ID()
	f.reopen(t)
	if id == "" || f.ID() != id {
		t.Errorf("store id %q, want %q", f.ID(), id)
	}
	check(t, "ping", f.Ping(ctx), nil)
	changes, complete, err := f.Changes(ctx, 0, 100)
	if err != nil || !complete || len(changes) != 6 {
		t.Errorf("%d changes, complete %v, %v, want 6", len(changes), complete, err)
	}
	users := must[[]store.User](t)(f.Users(ctx, "", 10))
	if !slices.ContainsFunc(users, func(u store.User) bool { return u.Name == "bob" }) {
		t.Errorf("users %v, want bob among them", users)
	}
	_, _, err = f.FindKey(ctx, "k1")
	check(t, "key", err, nil)
}

func testContext(t *testing.T, f *fixture) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.CreateUser(ctx, store.User{Principal: principal("ada"), Name: "ada"})
	check(t, "create", err, context.Canceled)
	_, _, err = f.Facts(ctx, []policy.Question{{}})
	check(t, "facts", err, context.Canceled)
	if revision := must[int64](t)(f.Revision(t.Context())); revision != 0 {
		t.Errorf("revision %d, want 0", revision)
	}
}
