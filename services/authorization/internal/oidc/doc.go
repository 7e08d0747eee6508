// Package oidc verifies the access tokens of OIDC providers.
package oidc
