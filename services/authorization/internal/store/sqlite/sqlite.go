package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver

	"mqtt-integration/services/authorization/internal/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	readers     = 4
	busyTimeout = 5 * time.Second
)

// Config says where the store is.
type Config struct {
	// Path is the file. It is created when missing, with its directory.
	Path string
	// KeepChanges is how many changes are kept for watches.
	KeepChanges int64
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Store is an open store. Its methods may be used from several goroutines, until
// Close.
type Store struct {
	cfg   Config
	id    string
	lock  *os.File
	write *sql.DB // one connection: SQLite has one writer, and a queue is better than SQLITE_BUSY
	read  *sql.DB
	facts *sql.Stmt
	key   *sql.Stmt
	user  *sql.Stmt

	mu      sync.Mutex
	updated chan struct{} // closed at the next change
}

// Open opens or creates the store and brings its tables up to date. It fails when
// another process has it open, and when a newer version of this program made it.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{cfg: cfg, updated: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open store %s: %w", cfg.Path, err), s.Close())
		}
	}()
	if s.lock, err = lockFile(cfg.Path + ".lock"); err != nil {
		return nil, err
	}
	// SQLite would create it readable for everyone.
	file, err := os.OpenFile(cfg.Path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := file.Close(); err != nil {
		return nil, err
	}
	if s.write, err = open(cfg.Path, "_txlock=immediate"); err != nil {
		return nil, err
	}
	s.write.SetMaxOpenConns(1)
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	if err := s.identify(ctx); err != nil {
		return nil, err
	}
	if s.read, err = open(cfg.Path, "_pragma=query_only(1)"); err != nil {
		return nil, err
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	for _, p := range []struct {
		statement **sql.Stmt
		query     string
	}{{&s.facts, factsQuery}, {&s.key, keyQuery}, {&s.user, principalQuery}} {
		if *p.statement, err = s.read.PrepareContext(ctx, p.query); err != nil { //nolint:sqlclosecheck // Close does it
			return nil, err
		}
	}
	return s, nil
}

func open(path, option string) (*sql.DB, error) {
	query := strings.Join([]string{
		fmt.Sprintf("_pragma=busy_timeout(%d)", busyTimeout.Milliseconds()),
		"_pragma=journal_mode(WAL)",
		// A revocation that was confirmed survives a power failure.
		"_pragma=synchronous(FULL)",
		"_pragma=foreign_keys(1)",
		option,
	}, "&")
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: query}).String())
}

func (s *Store) migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, s.write, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	current, target, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read version: %w", err)
	}
	if current > target {
		return fmt.Errorf("a newer version of this program made it (%d, this one knows %d)", current, target)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// identify gives a new store its identity.
func (s *Store) identify(ctx context.Context) error {
	_, err := s.write.ExecContext(ctx,
		`INSERT INTO state (id, store_id, revision, configuration) VALUES (1, ?, 0, '') ON CONFLICT DO NOTHING`, uuid.NewString())
	if err != nil {
		return err
	}
	return s.write.QueryRowContext(ctx, `SELECT store_id FROM state`).Scan(&s.id)
}

// Close closes the store. Nothing may use it any more.
func (s *Store) Close() error {
	var errs []error
	for _, statement := range []*sql.Stmt{s.facts, s.key, s.user} {
		if statement != nil {
			errs = append(errs, statement.Close())
		}
	}
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// ID is the identity of the store.
func (s *Store) ID() string { return s.id }

// Ping says whether the store can be read.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.Revision(ctx)
	return err
}

// Revision is that of the last change, 0 before the first.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	var revision int64
	err := s.read.QueryRowContext(ctx, `SELECT revision FROM state`).Scan(&revision)
	return revision, failed("read revision", err)
}

// Updated returns a channel that is closed at the next change.
func (s *Store) Updated() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.updated
}

func (s *Store) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.updated)
	s.updated = make(chan struct{})
}

// Changes returns up to limit changes after a revision, in their order. complete
// is false when changes after it are not there any more, or when the store has
// never been at it.
func (s *Store) Changes(ctx context.Context, after int64, limit int) (changes []store.Change, complete bool, err error) {
	const op = "read changes"
	// One statement, one snapshot.
	rows, err := s.read.QueryContext(ctx, `
		SELECT s.revision, c.revision, c.issuer, c.subject, c.credential_id, c.application
		FROM state s LEFT JOIN changes c ON c.revision > ?
		ORDER BY c.revision LIMIT ?`, after, limit)
	if err != nil {
		return nil, false, failed(op, err)
	}
	defer func() { _ = rows.Close() }()
	var current int64
	for rows.Next() {
		var revision sql.NullInt64
		var issuer, subject, credential, application sql.NullString
		if err := rows.Scan(&current, &revision, &issuer, &subject, &credential, &application); err != nil {
			return nil, false, failed(op, err)
		}
		if !revision.Valid {
			continue
		}
		c := store.Change{Revision: revision.Int64, CredentialID: credential.String, Application: application.String}
		c.Principal.Issuer, c.Principal.Subject = issuer.String, subject.String
		changes = append(changes, c)
	}
	if err := rows.Err(); err != nil {
		return nil, false, failed(op, err)
	}
	if len(changes) == 0 {
		return nil, after == current, nil
	}
	// Every revision has one row, so a gap means that rows were pruned.
	return changes, changes[0].Revision == after+1, nil
}

// Configured tells the store the fingerprint of what the configuration says about
// decisions. When it is another one than before, everybody's may have turned.
func (s *Store) Configured(ctx context.Context, fingerprint string) error {
	return s.transact(ctx, "note configuration", func(t *transaction) error {
		var before string
		if err := t.QueryRowContext(ctx, `SELECT configuration FROM state`).Scan(&before); err != nil {
			return err
		}
		if before == fingerprint {
			return nil
		}
		if _, err := t.ExecContext(ctx, `UPDATE state SET configuration = ?`, fingerprint); err != nil {
			return err
		}
		return t.change(ctx, store.Change{})
	})
}

// transaction is a writing transaction.
type transaction struct {
	*sql.Tx
	keepChanges int64
	changed     bool
}

// change gives the transaction a revision.
func (t *transaction) change(ctx context.Context, c store.Change) error {
	if err := t.QueryRowContext(ctx, `UPDATE state SET revision = revision + 1 RETURNING revision`).Scan(&c.Revision); err != nil {
		return err
	}
	_, err := t.ExecContext(ctx, `INSERT INTO changes (revision, issuer, subject, credential_id, application) VALUES (?, ?, ?, ?, ?)`,
		c.Revision, c.Principal.Issuer, c.Principal.Subject, c.CredentialID, c.Application)
	if err != nil {
		return err
	}
	t.changed = true
	_, err = t.ExecContext(ctx, `DELETE FROM changes WHERE revision <= ?`, c.Revision-t.keepChanges)
	return err
}

// transact runs f in a transaction and announces its change when it is committed.
func (s *Store) transact(ctx context.Context, op string, f func(*transaction) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return failed(op, err)
	}
	t := &transaction{Tx: tx, keepChanges: s.cfg.KeepChanges}
	if err := f(t); err != nil {
		return failed(op, errors.Join(err, tx.Rollback()))
	}
	if err := tx.Commit(); err != nil {
		return failed(op, err)
	}
	if t.changed {
		s.announce()
	}
	return nil
}

// domain are the errors that mean something to callers; all others are the
// database's.
var domain = []error{
	store.ErrUserNotFound, store.ErrApplicationNotFound, store.ErrMemberNotFound, store.ErrKeyNotFound,
	store.ErrUserExists, store.ErrNameTaken, store.ErrApplicationExists, store.ErrOwnsApplications, store.ErrOwner,
	store.ErrTooManyKeys, store.ErrTooManyMembers, context.Canceled, context.DeadlineExceeded,
}

func failed(op string, err error) error {
	if err == nil {
		return nil
	}
	for _, known := range domain {
		if errors.Is(err, known) {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	return fmt.Errorf("%s: %w: %w", op, store.ErrUnavailable, err)
}

// orElse replaces the error of a query without a row.
func orElse(err, instead error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return instead
	}
	return err
}

func micros(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: !t.IsZero()}
}

func timeOf(micros sql.NullInt64) time.Time {
	if !micros.Valid {
		return time.Time{}
	}
	return time.UnixMicro(micros.Int64).UTC()
}
