-- +goose Up

-- The one row says which store this is, and where it stands.
CREATE TABLE state (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    store_id      TEXT    NOT NULL,
    revision      INTEGER NOT NULL,
    configuration TEXT    NOT NULL
) STRICT;

-- Times are microseconds since 1970.
CREATE TABLE users (
    id          INTEGER PRIMARY KEY,
    issuer      TEXT    NOT NULL,
    subject     TEXT    NOT NULL,
    name        TEXT    NOT NULL UNIQUE,
    disabled    INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    create_time INTEGER NOT NULL,
    UNIQUE (issuer, subject)
) STRICT;

-- The owner is a column, so that there is always exactly one.
CREATE TABLE applications (
    id            INTEGER PRIMARY KEY,
    name          TEXT    NOT NULL UNIQUE,
    owner_id      INTEGER NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
    everyone_role INTEGER NOT NULL DEFAULT 0 CHECK (everyone_role BETWEEN 0 AND 3),
    create_time   INTEGER NOT NULL
) STRICT;
CREATE INDEX applications_owner ON applications (owner_id);

CREATE TABLE members (
    application_id INTEGER NOT NULL REFERENCES applications (id) ON DELETE CASCADE,
    user_id        INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role           INTEGER NOT NULL CHECK (role BETWEEN 1 AND 4),
    PRIMARY KEY (application_id, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_user ON members (user_id);

-- applications is a JSON list of names, empty for all. They are no references on
-- purpose: a key whose last application is deleted must not become one for all.
CREATE TABLE api_keys (
    id            TEXT    PRIMARY KEY,
    user_id       INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    hash          BLOB    NOT NULL CHECK (length(hash) = 32),
    description   TEXT    NOT NULL,
    scopes        INTEGER NOT NULL,
    applications  TEXT    NOT NULL,
    create_time   INTEGER NOT NULL,
    expire_time   INTEGER,
    last_use_time INTEGER
) STRICT;
CREATE INDEX api_keys_user ON api_keys (user_id);

-- What watches resume from: one row per revision, the oldest are pruned.
CREATE TABLE changes (
    revision      INTEGER PRIMARY KEY,
    issuer        TEXT NOT NULL,
    subject       TEXT NOT NULL,
    credential_id TEXT NOT NULL,
    application   TEXT NOT NULL
) STRICT;
