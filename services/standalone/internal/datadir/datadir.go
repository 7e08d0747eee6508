package datadir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrInUse says that another process has the directory.
var ErrInUse = errors.New("another standalone is using it")

// Default returns where data is kept when nobody says otherwise:
// $XDG_DATA_HOME/mqtt-integration, else ~/.local/share/mqtt-integration.
func Default(getenv func(string) string) (string, error) {
	base := getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(base) { // The specification says to ignore relative ones.
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the home directory: %w", err)
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "mqtt-integration"), nil
}

// Dir is a data directory that this process has to itself until Close.
type Dir struct {
	path string
	lock *os.File
}

// Open creates the directory when it is missing and takes it. The error wraps
// ErrInUse when another process has it.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := take(lock); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	return &Dir{path: path, lock: lock}, nil
}

// Close lets go of the directory.
func (d *Dir) Close() error {
	// The lock ends with the file. It is not removed: somebody who waits for
	// it would then hold a lock on a file that nobody else can find.
	return d.lock.Close()
}

// Path returns the directory, or with names what is in it.
func (d *Dir) Path(names ...string) string {
	return filepath.Join(append([]string{d.path}, names...)...)
}

// Secret reads a secret, one line in a file of its own. It is empty when there
// is no such file.
func (d *Dir) Secret(name string) (string, error) {
	data, err := os.ReadFile(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// KeepSecret writes a secret, readable for the owner only.
func (d *Dir) KeepSecret(name, secret string) error {
	// Through another file, so that it is there as a whole or not at all, and
	// has the mode of a new file whatever was there before.
	tmp := d.Path(name + ".new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep secret: %w", err)
	}
	if err := os.WriteFile(tmp, []byte(secret+"\n"), 0o600); err != nil {
		return fmt.Errorf("keep secret: %w", err)
	}
	if err := os.Rename(tmp, d.Path(name)); err != nil {
		return fmt.Errorf("keep secret: %w", err)
	}
	return nil
}

// RandomSecret reads a secret, and makes and keeps a random one of 130 bits
// when there is none.
func (d *Dir) RandomSecret(name string) (string, error) {
	secret, err := d.Secret(name)
	if err != nil || secret != "" {
		return secret, err
	}
	secret = strings.ToLower(rand.Text())
	return secret, d.KeepSecret(name, secret)
}
