package sqlite

import (
	"context"
	"database/sql"

	"mqtt-integration/services/authorization/internal/policy"
	"mqtt-integration/services/authorization/internal/store"
)

const applicationQuery = `
	SELECT a.id, a.name, u.name, a.create_time, a.owner_id
	FROM applications a JOIN users u ON u.id = a.owner_id WHERE a.name = ?`

// application is a row of the table.
type application struct {
	store.Application
	id, ownerID int64
}

func scanApplication(row *sql.Row) (a application, err error) {
	var created sql.NullInt64
	err = row.Scan(&a.id, &a.Name, &a.Owner, &created, &a.ownerID)
	a.CreateTime = timeOf(created)
	return a, orElse(err, store.ErrApplicationNotFound)
}

// CreateApplication creates an application. ErrApplicationExists, ErrUserNotFound
// when there is no such owner.
func (s *Store) CreateApplication(ctx context.Context, name, owner string) (created store.Application, err error) {
	err = s.transact(ctx, "create application", func(t *transaction) error {
		var exists bool
		if err := t.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM applications WHERE name = ?)`, name).Scan(&exists); err != nil {
			return err
		}
		if exists {
			return store.ErrApplicationExists
		}
		id, _, err := userID(ctx, t, owner)
		if err != nil {
			return err
		}
		if _, err := t.ExecContext(ctx, `INSERT INTO applications (name, owner_id, create_time) VALUES (?, ?, ?)`,
			name, id, micros(s.cfg.Now())); err != nil {
			return err
		}
		a, err := scanApplication(t.QueryRowContext(ctx, applicationQuery, name))
		if err != nil {
			return err
		}
		created = a.Application
		return t.change(ctx, store.Change{Application: name})
	})
	return created, err
}

// Application finds an application. ErrApplicationNotFound.
func (s *Store) Application(ctx context.Context, name string) (store.Application, error) {
	a, err := scanApplication(s.read.QueryRowContext(ctx, applicationQuery, name))
	return a.Application, failed("read application", err)
}

// Applications returns up to limit applications in the order of their names, from
// the one after a name on: all of them, or those that a principal owns or is
// admin of.
func (s *Store) Applications(ctx context.Context, of *policy.Principal, after string, limit int) ([]store.Application, error) {
	const op = "list applications"
	query := `SELECT a.name, o.name, a.create_time FROM applications a JOIN users o ON o.id = a.owner_id WHERE a.name > ?`
	args := []any{after}
	if of != nil {
		query += ` AND EXISTS (SELECT 1 FROM users u LEFT JOIN members m ON m.user_id = u.id AND m.application_id = a.id
			WHERE u.issuer = ? AND u.subject = ? AND (a.owner_id = u.id OR m.role = ?))`
		args = append(args, of.Issuer, of.Subject, policy.Admin)
	}
	rows, err := s.read.QueryContext(ctx, query+` ORDER BY a.name LIMIT ?`, append(args, limit)...)
	if err != nil {
		return nil, failed(op, err)
	}
	defer func() { _ = rows.Close() }()
	var applications []store.Application
	for rows.Next() {
		var a store.Application
		var created sql.NullInt64
		if err := rows.Scan(&a.Name, &a.Owner, &created); err != nil {
			return nil, failed(op, err)
		}
		a.CreateTime = timeOf(created)
		applications = append(applications, a)
	}
	return applications, failed(op, rows.Err())
}

// DeleteApplication deletes an application and its memberships.
// ErrApplicationNotFound.
func (s *Store) DeleteApplication(ctx context.Context, name string) error {
	return s.transact(ctx, "delete application", func(t *transaction) error {
		a, err := scanApplication(t.QueryRowContext(ctx, applicationQuery, name))
		if err != nil {
			return err
		}
		if _, err := t.ExecContext(ctx, `DELETE FROM applications WHERE id = ?`, a.id); err != nil {
			return err
		}
		return t.change(ctx, store.Change{Application: name})
	})
}

// TransferOwnership makes somebody else the owner, and the former one an admin.
// ErrApplicationNotFound, ErrUserNotFound.
func (s *Store) TransferOwnership(ctx context.Context, name, owner string) (transferred store.Application, err error) {
	err = s.transact(ctx, "transfer ownership", func(t *transaction) error {
		a, err := scanApplication(t.QueryRowContext(ctx, applicationQuery, name))
		if err != nil {
			return err
		}
		id, _, err := userID(ctx, t, owner)
		if err != nil {
			return err
		}
		transferred = a.Application
		if id == a.ownerID {
			return nil
		}
		transferred.Owner = owner
		for _, step := range []struct {
			statement string
			args      []any
		}{
			{`UPDATE applications SET owner_id = ? WHERE id = ?`, []any{id, a.id}},
			{`DELETE FROM members WHERE application_id = ? AND user_id = ?`, []any{a.id, id}},
			{`INSERT INTO members (application_id, user_id, role) VALUES (?, ?, ?)`, []any{a.id, a.ownerID, policy.Admin}},
		} {
			if _, err := t.ExecContext(ctx, step.statement, step.args...); err != nil {
				return err
			}
		}
		return t.change(ctx, store.Change{Application: name})
	})
	return transferred, err
}

// SetMember gives a user or everyone a role below owner, in the place of any that
// it had. ErrApplicationNotFound, ErrUserNotFound, ErrOwner, ErrTooManyMembers.
func (s *Store) SetMember(ctx context.Context, name string, member store.Member) error {
	return s.transact(ctx, "set member", func(t *transaction) error {
		a, err := scanApplication(t.QueryRowContext(ctx, applicationQuery, name))
		if err != nil {
			return err
		}
		if member.Everyone {
			return t.changedRows(ctx, store.Change{Application: name}, nil,
				`UPDATE applications SET everyone_role = ?2 WHERE id = ?1 AND everyone_role <> ?2`, a.id, member.Role)
		}
		id, p, err := userID(ctx, t, member.User)
		if err != nil {
			return err
		}
		if id == a.ownerID {
			return store.ErrOwner
		}
		var count int
		err = t.QueryRowContext(ctx, `SELECT count(*) FROM members WHERE application_id = ? AND user_id <> ?`, a.id, id).Scan(&count)
		if err != nil {
			return err
		}
		if count >= store.MaxMembers {
			return store.ErrTooManyMembers
		}
		return t.changedRows(ctx, store.Change{Principal: p, Application: name}, nil,
			`INSERT INTO members (application_id, user_id, role) VALUES (?1, ?2, ?3)
			 ON CONFLICT DO UPDATE SET role = ?3 WHERE role <> ?3`, a.id, id, member.Role)
	})
}

// changedRows runs a statement, and notes the change if it changed a row. If not,
// it returns otherwise.
func (t *transaction) changedRows(ctx context.Context, c store.Change, otherwise error, statement string, args ...any) error {
	result, err := t.ExecContext(ctx, statement, args...)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err != nil {
		return err
	}
	if n == 0 {
		return otherwise
	}
	return t.change(ctx, c)
}

// RemoveMember takes a role away. ErrApplicationNotFound, ErrUserNotFound,
// ErrMemberNotFound, ErrOwner.
func (s *Store) RemoveMember(ctx context.Context, name string, member store.Member) error {
	return s.transact(ctx, "remove member", func(t *transaction) error {
		a, err := scanApplication(t.QueryRowContext(ctx, applicationQuery, name))
		if err != nil {
			return err
		}
		if member.Everyone {
			return t.changedRows(ctx, store.Change{Application: name}, store.ErrMemberNotFound,
				`UPDATE applications SET everyone_role = 0 WHERE id = ? AND everyone_role <> 0`, a.id)
		}
		id, p, err := userID(ctx, t, member.User)
		if err != nil {
			return err
		}
		if id == a.ownerID {
			return store.ErrOwner
		}
		return t.changedRows(ctx, store.Change{Principal: p, Application: name}, store.ErrMemberNotFound,
			`DELETE FROM members WHERE application_id = ? AND user_id = ?`, a.id, id)
	})
}

// Members returns the members of an application: the owner, the others in the
// order of their names, then everyone. ErrApplicationNotFound.
func (s *Store) Members(ctx context.Context, name string) ([]store.Member, error) {
	const op = "list members"
	rows, err := s.read.QueryContext(ctx, `
		SELECT place, name, role FROM (
			SELECT 1 AS place, u.name AS name, 5 AS role FROM applications a JOIN users u ON u.id = a.owner_id WHERE a.name = ?1
			UNION ALL
			SELECT 2, u.name, m.role FROM applications a JOIN members m ON m.application_id = a.id JOIN users u ON u.id = m.user_id
			WHERE a.name = ?1
			UNION ALL
			SELECT 3, '', a.everyone_role FROM applications a WHERE a.name = ?1 AND a.everyone_role <> 0
		) ORDER BY place, name`, name)
	if err != nil {
		return nil, failed(op, err)
	}
	defer func() { _ = rows.Close() }()
	var members []store.Member
	for rows.Next() {
		var member store.Member
		var place int
		if err := rows.Scan(&place, &member.User, &member.Role); err != nil {
			return nil, failed(op, err)
		}
		member.Everyone = place == 3
		members = append(members, member)
	}
	if err := rows.Err(); err != nil {
		return nil, failed(op, err)
	}
	if len(members) == 0 { // an application always has an owner
		return nil, failed(op, store.ErrApplicationNotFound)
	}
	return members, nil
}
