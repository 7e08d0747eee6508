// Package issuer is a small OpenID Connect provider for tests and for
// development on one machine: discovery, a key set, the password and the
// client_credentials grant, and, for tests, tokens with any claims.
//
// Its tokens look like those of Keycloak (preferred_username,
// realm_access.roles, typ Bearer), and so does its key set: an RS256 and an
// ES256 signing key, and an RSA-OAEP encryption key that verifiers have to
// ignore.
//
// It has no browser login, no consent, no refresh tokens and no accounts but
// those of its configuration, listens on loopback only, and speaks plain HTTP:
// it is not for production. There is no default user and no default secret.
//
// Start returns an Issuer that serves until Close, which ends its goroutines.
package issuer
