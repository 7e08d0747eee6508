package datadir_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"mqtt-integration/services/standalone/internal/datadir"
)

func TestDefaultFollowsXDG(t *testing.T) {
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{
		"":         filepath.Join(home, ".local/share/mqtt-integration"),
		"relative": filepath.Join(home, ".local/share/mqtt-integration"),
		"/data":    "/data/mqtt-integration",
	} {
		got, err := datadir.Default(func(string) string { return value })
		if err != nil || got != want {
			t.Errorf("XDG_DATA_HOME=%q: %q, %v, want %q", value, got, err, want)
		}
	}
}

func TestOneProcessAtATime(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a", "b")
	first, err := datadir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := datadir.Open(path); !errors.Is(err, datadir.ErrInUse) {
		t.Errorf("second Open: %v, want ErrInUse", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := datadir.Open(path)
	if err != nil {
		t.Fatalf("Open after Close: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v, want mode 0700", info.Mode(), err)
	}
}

func TestSecretsAreForTheOwner(t *testing.T) {
	t.Parallel()
	dir, err := datadir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	if got, err := dir.Secret("key"); got != "" || err != nil {
		t.Errorf("missing secret: %q, %v, want none and no error", got, err)
	}
	if err := os.WriteFile(dir.Path("key"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := dir.KeepSecret("key", "new"); err != nil {
		t.Fatal(err)
	}
	if got, err := dir.Secret("key"); got != "new" || err != nil {
		t.Errorf("secret: %q, %v, want new", got, err)
	}
	random, err := dir.RandomSecret("password")
	if err != nil || len(random) < 26 {
		t.Errorf("random secret: %q, %v", random, err)
	}
	if again, err := dir.RandomSecret("password"); again != random || err != nil {
		t.Errorf("random secret the second time: %q, %v, want the same", again, err)
	}
	for _, name := range []string{"key", "password"} {
		info, err := os.Stat(dir.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", name, info.Mode())
		}
	}
}
