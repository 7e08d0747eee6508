package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
	"mqtt-integration/services/authorization/internal/store/sqlite"
	"mqtt-integration/services/authorization/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(path string) sqlite.Config {
	return sqlite.Config{Path: path, KeepChanges: storetest.KeepChanges, Now: storetest.Now}
}

func open(t *testing.T, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), config(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) func() storetest.Store {
		t.Helper()
		path := filepath.Join(t.TempDir(), "store.db")
		return func() storetest.Store {
			s, err := sqlite.Open(context.WithoutCancel(t.Context()), config(path))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	})
}

func TestASecondProcessIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.db")
	first := open(t, path)
	// A lock of flock belongs to the open file: this is what another process sees.
	if _, err := sqlite.Open(t.Context(), config(path)); err == nil || !strings.Contains(err.Error(), "one replica") {
		t.Errorf("second Open = %v, want an error that says that another one has it", err)
	}
	if err := first.Ping(t.Context()); err != nil {
		t.Errorf("the first one after that: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

func TestTheFileIsForItsOwnerAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "a #strange%20 name?.db")
	s := open(t, path)
	if _, err := s.CreateUser(t.Context(), store.User{Principal: policy.Principal{Issuer: "dev", Subject: "x"}, Name: "x"}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, entry := range entries {
		names[entry.Name()] = true
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", entry.Name(), info.Mode())
		}
	}
	if base := filepath.Base(path); len(names) != 4 || !names[base] || !names[base+"-wal"] {
		t.Errorf("files %v, want %q with its WAL, index and lock", names, base)
	}
}

func TestAStoreOfANewerVersionIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.db")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), config(path)); err == nil || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("Open = %v, want an error that says that it is newer", err)
	}
}

func TestAFileThatIsNoDatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("no database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), config(path)); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Open = %v, want an error that names the file", err)
	}
}

func TestAClosedStoreIsUnavailable(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "store.db"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Facts(t.Context(), []policy.Question{{}}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Facts = %v, want ErrUnavailable", err)
	}
	if _, err := s.CreateUser(t.Context(), store.User{Name: "x"}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("CreateUser = %v, want ErrUnavailable", err)
	}
}

func BenchmarkFacts(b *testing.B) {
	s, err := sqlite.Open(b.Context(), config(filepath.Join(b.TempDir(), "store.db")))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	ada := policy.Principal{Issuer: "dev", Subject: "ada"}
	if _, err := s.CreateUser(b.Context(), store.User{Principal: ada, Name: "ada"}); err != nil {
		b.Fatal(err)
	}
	if _, err := s.CreateApplication(b.Context(), "app", "ada"); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := s.Facts(b.Context(), []policy.Question{{Principal: ada, Application: "app"}}); err != nil {
			b.Fatal(err)
		}
	}
}
