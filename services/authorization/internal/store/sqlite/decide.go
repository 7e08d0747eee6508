package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

// factsQuery has one row, always.
const factsQuery = `
	SELECT s.revision, u.id, u.disabled, k.scopes, k.applications, k.expire_time,
	       a.everyone_role, CASE WHEN a.owner_id = u.id THEN 5 ELSE m.role END
	FROM state s
	LEFT JOIN users u ON u.issuer = ?1 AND u.subject = ?2
	LEFT JOIN api_keys k ON k.id = ?3 AND k.user_id = u.id
	LEFT JOIN applications a ON a.name = ?4
	LEFT JOIN members m ON m.application_id = a.id AND m.user_id = u.id`

// Facts returns what is known about each question, all of it at one revision.
func (s *Store) Facts(ctx context.Context, questions []policy.Question) (facts []policy.Facts, revision int64, err error) {
	const op = "read facts"
	statement := s.facts
	if len(questions) != 1 {
		tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
		if err != nil {
			return nil, 0, failed(op, err)
		}
		defer func() { _ = tx.Rollback() }()
		statement = tx.StmtContext(ctx, s.facts)
		defer func() { _ = statement.Close() }()
	}
	facts = make([]policy.Facts, 0, len(questions))
	for _, q := range questions {
		var f policy.Facts
		if f, revision, err = scanFacts(statement.QueryRowContext(ctx,
			q.Principal.Issuer, q.Principal.Subject, q.Credential.ID, q.Application)); err != nil {
			return nil, 0, failed(op, err)
		}
		facts = append(facts, f)
	}
	return facts, revision, nil
}

func scanFacts(row *sql.Row) (facts policy.Facts, revision int64, err error) {
	var user, scopes, expire, everyone, role sql.NullInt64
	var disabled sql.NullBool
	var applications sql.NullString
	if err := row.Scan(&revision, &user, &disabled, &scopes, &applications, &expire, &everyone, &role); err != nil {
		return policy.Facts{}, 0, err
	}
	facts = policy.Facts{
		UserExists: user.Valid, UserDisabled: disabled.Bool,
		ApplicationExists: everyone.Valid, Role: policy.Role(role.Int64), EveryoneRole: policy.Role(everyone.Int64),
	}
	if scopes.Valid {
		facts.Key = &policy.Key{Scopes: policy.Scope(scopes.Int64), ExpireTime: timeOf(expire)}
		if facts.Key.Applications, err = decodeNames(applications.String); err != nil {
			return policy.Facts{}, 0, err
		}
	}
	return facts, revision, nil
}

func decodeNames(text string) ([]string, error) {
	var names []string
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		return nil, fmt.Errorf("read applications of an API key: %w", err)
	}
	if len(names) == 0 {
		return nil, nil
	}
	return names, nil
}

const principalQuery = `
	SELECT u.issuer, u.subject, u.name, u.disabled, u.create_time, s.revision
	FROM users u, state s WHERE u.issuer = ?1 AND u.subject = ?2`

// SignIn returns the user of a principal. At the first time it is created with
// the first of the names that is free; ErrNameTaken when none is.
func (s *Store) SignIn(ctx context.Context, p policy.Principal, names []string) (user store.User, revision int64, err error) {
	const op = "sign in"
	user, revision, err = scanUser(s.user.QueryRowContext(ctx, p.Issuer, p.Subject))
	if !errors.Is(err, sql.ErrNoRows) {
		return user, revision, failed(op, err)
	}
	err = s.transact(ctx, op, func(t *transaction) error {
		// Somebody may have been quicker.
		existing := func() error {
			user, revision, err = scanUser(t.QueryRowContext(ctx, principalQuery, p.Issuer, p.Subject))
			return err
		}
		if err := existing(); !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		name, err := firstFree(ctx, t, names)
		if err != nil {
			return err
		}
		if err := s.insertUser(ctx, t, store.User{Principal: p, Name: name}); err != nil {
			return err
		}
		return existing()
	})
	return user, revision, err
}

func firstFree(ctx context.Context, t *transaction, names []string) (string, error) {
	for _, name := range names {
		var taken bool
		if err := t.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM users WHERE name = ?)`, name).Scan(&taken); err != nil {
			return "", err
		}
		if !taken {
			return name, nil
		}
	}
	return "", store.ErrNameTaken
}

func scanUser(row *sql.Row) (user store.User, revision int64, err error) {
	var created sql.NullInt64
	err = row.Scan(&user.Principal.Issuer, &user.Principal.Subject, &user.Name, &user.Disabled, &created, &revision)
	user.CreateTime = timeOf(created)
	return user, revision, err
}

const keyQuery = `
	SELECT s.revision, k.id, k.hash, k.description, k.scopes, k.applications, k.create_time, k.expire_time, k.last_use_time,
	       u.issuer, u.subject, u.name, u.disabled, u.create_time
	FROM state s
	LEFT JOIN api_keys k ON k.id = ?1
	LEFT JOIN users u ON u.id = k.user_id`

// FindKey returns an API key by its public id, with ErrKeyNotFound when there is
// none; the revision is right then, too.
func (s *Store) FindKey(ctx context.Context, id string) (record store.KeyRecord, revision int64, err error) {
	const op = "find API key"
	var keyID, description, applications, issuer, subject, name sql.NullString
	var scopes, created, expire, lastUse, userCreated sql.NullInt64
	var disabled sql.NullBool
	var hash []byte
	err = s.key.QueryRowContext(ctx, id).Scan(&revision, &keyID, &hash, &description, &scopes, &applications, &created, &expire,
		&lastUse, &issuer, &subject, &name, &disabled, &userCreated)
	if err != nil {
		return store.KeyRecord{}, 0, failed(op, err)
	}
	if !keyID.Valid {
		return store.KeyRecord{}, revision, failed(op, store.ErrKeyNotFound)
	}
	record = store.KeyRecord{
		Key: store.Key{
			ID: keyID.String, User: name.String, Description: description.String, Scopes: policy.Scope(scopes.Int64),
			CreateTime: timeOf(created), ExpireTime: timeOf(expire), LastUseTime: timeOf(lastUse),
		},
		Owner: store.User{
			Principal: policy.Principal{Issuer: issuer.String, Subject: subject.String},
			Name:      name.String, Disabled: disabled.Bool, CreateTime: timeOf(userCreated),
		},
	}
	copy(record.Hash[:], hash)
	if record.Applications, err = decodeNames(applications.String); err != nil {
		return store.KeyRecord{}, 0, failed(op, err)
	}
	return record, revision, nil
}

// Used notes when keys were last used, where that is later than what is known. It
// changes no decision.
func (s *Store) Used(ctx context.Context, keys map[string]time.Time) error {
	return s.transact(ctx, "note use of API keys", func(t *transaction) error {
		for id, at := range keys {
			_, err := t.ExecContext(ctx,
				`UPDATE api_keys SET last_use_time = ?2 WHERE id = ?1 AND (last_use_time IS NULL OR last_use_time < ?2)`, id, micros(at))
			if err != nil {
				return err
			}
		}
		return nil
	})
}
