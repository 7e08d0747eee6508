package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

const userColumns = `u.issuer, u.subject, u.name, u.disabled, u.create_time, s.revision`

// insertUser adds a user whose name is known to be free.
func (s *Store) insertUser(ctx context.Context, t *transaction, user store.User) error {
	_, err := t.ExecContext(ctx, `INSERT INTO users (issuer, subject, name, disabled, create_time) VALUES (?, ?, ?, ?, ?)`,
		user.Principal.Issuer, user.Principal.Subject, user.Name, user.Disabled, micros(s.cfg.Now()))
	if err != nil {
		return err
	}
	return t.change(ctx, store.Change{Principal: user.Principal})
}

// userID finds a user by login name.
func userID(ctx context.Context, t *transaction, name string) (id int64, p policy.Principal, err error) {
	err = t.QueryRowContext(ctx, `SELECT id, issuer, subject FROM users WHERE name = ?`, name).Scan(&id, &p.Issuer, &p.Subject)
	return id, p, orElse(err, store.ErrUserNotFound)
}

// CreateUser creates a user. ErrUserExists, ErrNameTaken.
func (s *Store) CreateUser(ctx context.Context, user store.User) (created store.User, err error) {
	err = s.transact(ctx, "create user", func(t *transaction) error {
		var exists bool
		err := t.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM users WHERE issuer = ? AND subject = ?)`,
			user.Principal.Issuer, user.Principal.Subject).Scan(&exists)
		if err != nil {
			return err
		}
		if exists {
			return store.ErrUserExists
		}
		if _, err := firstFree(ctx, t, []string{user.Name}); err != nil {
			return err
		}
		if err := s.insertUser(ctx, t, user); err != nil {
			return err
		}
		created, _, err = scanUser(t.QueryRowContext(ctx, principalQuery, user.Principal.Issuer, user.Principal.Subject))
		return err
	})
	return created, err
}

// User finds a user by login name. ErrUserNotFound.
func (s *Store) User(ctx context.Context, name string) (store.User, error) {
	user, _, err := scanUser(s.read.QueryRowContext(ctx, `SELECT `+userColumns+` FROM users u, state s WHERE u.name = ?`, name))
	return user, failed("read user", orElse(err, store.ErrUserNotFound))
}

// Users returns up to limit users in the order of their names, from the one after
// a name on.
func (s *Store) Users(ctx context.Context, after string, limit int) ([]store.User, error) {
	const op = "list users"
	rows, err := s.read.QueryContext(ctx,
		`SELECT issuer, subject, name, disabled, create_time FROM users WHERE name > ? ORDER BY name LIMIT ?`, after, limit)
	if err != nil {
		return nil, failed(op, err)
	}
	defer func() { _ = rows.Close() }()
	var users []store.User
	for rows.Next() {
		var user store.User
		var created sql.NullInt64
		if err := rows.Scan(&user.Principal.Issuer, &user.Principal.Subject, &user.Name, &user.Disabled, &created); err != nil {
			return nil, failed(op, err)
		}
		user.CreateTime = timeOf(created)
		users = append(users, user)
	}
	return users, failed(op, rows.Err())
}

// SetUserDisabled says whether a user may sign in. ErrUserNotFound.
func (s *Store) SetUserDisabled(ctx context.Context, name string, disabled bool) (user store.User, err error) {
	err = s.transact(ctx, "update user", func(t *transaction) error {
		_, p, err := userID(ctx, t, name)
		if err != nil {
			return err
		}
		result, err := t.ExecContext(ctx, `UPDATE users SET disabled = ?2 WHERE name = ?1 AND disabled <> ?2`, name, disabled)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil {
			return err
		} else if n > 0 {
			if err := t.change(ctx, store.Change{Principal: p}); err != nil {
				return err
			}
		}
		user, _, err = scanUser(t.QueryRowContext(ctx, principalQuery, p.Issuer, p.Subject))
		return err
	})
	return user, err
}

// DeleteUser deletes a user with its keys and memberships. ErrUserNotFound,
// ErrOwnsApplications.
func (s *Store) DeleteUser(ctx context.Context, name string) error {
	return s.transact(ctx, "delete user", func(t *transaction) error {
		id, p, err := userID(ctx, t, name)
		if err != nil {
			return err
		}
		var owns bool
		if err := t.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM applications WHERE owner_id = ?)`, id).Scan(&owns); err != nil {
			return err
		}
		if owns {
			return store.ErrOwnsApplications
		}
		if _, err := t.ExecContext(ctx, `DELETE FROM users WHERE id = ?`, id); err != nil {
			return err
		}
		return t.change(ctx, store.Change{Principal: p})
	})
}

// CreateKey stores a key for the user that it names. ErrUserNotFound, ErrTooManyKeys.
func (s *Store) CreateKey(ctx context.Context, key store.Key, hash [32]byte) (created store.Key, err error) {
	key.CreateTime = timeOf(micros(s.cfg.Now()))
	key.ExpireTime = timeOf(micros(key.ExpireTime))
	key.LastUseTime = time.Time{}
	applications, err := json.Marshal(append([]string{}, key.Applications...))
	if err != nil {
		return store.Key{}, fmt.Errorf("create API key: %w", err)
	}
	err = s.transact(ctx, "create API key", func(t *transaction) error {
		id, p, err := userID(ctx, t, key.User)
		if err != nil {
			return err
		}
		var count int
		if err := t.QueryRowContext(ctx, `SELECT count(*) FROM api_keys WHERE user_id = ?`, id).Scan(&count); err != nil {
			return err
		}
		if count >= store.MaxKeys {
			return store.ErrTooManyKeys
		}
		_, err = t.ExecContext(ctx,
			`INSERT INTO api_keys (id, user_id, hash, description, scopes, applications, create_time, expire_time) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			key.ID, id, hash[:], key.Description, key.Scopes, string(applications), micros(key.CreateTime), micros(key.ExpireTime))
		if err != nil {
			return err
		}
		return t.change(ctx, store.Change{Principal: p, CredentialID: key.ID})
	})
	if err != nil {
		return store.Key{}, err
	}
	return key, nil
}

// Keys returns the keys of a user, oldest first. ErrUserNotFound.
func (s *Store) Keys(ctx context.Context, user string) ([]store.Key, error) {
	const op = "list API keys"
	rows, err := s.read.QueryContext(ctx, `
		SELECT k.id, k.description, k.scopes, k.applications, k.create_time, k.expire_time, k.last_use_time
		FROM users u LEFT JOIN api_keys k ON k.user_id = u.id
		WHERE u.name = ? ORDER BY k.create_time, k.id`, user)
	if err != nil {
		return nil, failed(op, err)
	}
	defer func() { _ = rows.Close() }()
	var keys []store.Key
	found := false
	for rows.Next() {
		found = true
		var id, description, applications sql.NullString
		var scopes, created, expire, lastUse sql.NullInt64
		if err := rows.Scan(&id, &description, &scopes, &applications, &created, &expire, &lastUse); err != nil {
			return nil, failed(op, err)
		}
		if !id.Valid {
			continue
		}
		key := store.Key{
			ID: id.String, User: user, Description: description.String, Scopes: policy.Scope(scopes.Int64),
			CreateTime: timeOf(created), ExpireTime: timeOf(expire), LastUseTime: timeOf(lastUse),
		}
		if key.Applications, err = decodeNames(applications.String); err != nil {
			return nil, failed(op, err)
		}
		keys = append(keys, key)
	}
	if err := rows.Err(); err != nil {
		return nil, failed(op, err)
	}
	if !found {
		return nil, failed(op, store.ErrUserNotFound)
	}
	return keys, nil
}

// RevokeKey deletes a key. ErrKeyNotFound.
func (s *Store) RevokeKey(ctx context.Context, id string) error {
	return s.transact(ctx, "revoke API key", func(t *transaction) error {
		var p policy.Principal
		err := t.QueryRowContext(ctx, `SELECT u.issuer, u.subject FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.id = ?`, id).
			Scan(&p.Issuer, &p.Subject)
		if err != nil {
			return orElse(err, store.ErrKeyNotFound)
		}
		if _, err := t.ExecContext(ctx, `DELETE FROM api_keys WHERE id = ?`, id); err != nil {
			return err
		}
		return t.change(ctx, store.Change{Principal: p, CredentialID: id})
	})
}
