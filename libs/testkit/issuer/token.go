package issuer

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// Token says what a minted token is like. The zero value is a valid access
// token of nobody in particular.
type Token struct {
	// Claims replace the default ones: iss, aud, sub, iat, exp, jti and typ.
	// A nil value leaves a claim out.
	Claims map[string]any

	// Algorithm is RS256 (also when empty) or ES256.
	Algorithm string

	// Type is the header typ. Empty means at+jwt, "-" leaves it out.
	Type string

	// Forged signs with a key that is not the issuer's, under the key id of
	// the issuer's own.
	Forged bool

	// KeyID replaces the key id in the header.
	KeyID string
}

// Mint returns an access token with these claims over the default ones: any
// subject, any roles, any lifetime. It is how tests make tokens.
func (i *Issuer) Mint(claims map[string]any) (string, error) {
	return i.MintToken(Token{Claims: claims})
}

// MintToken is Mint for tokens that are unusual in more than their claims.
func (i *Issuer) MintToken(t Token) (string, error) {
	now := time.Now()
	claims := map[string]any{
		"iss": i.url,
		"aud": i.cfg.Audience,
		"sub": "somebody",
		"iat": now.Unix(),
		"exp": now.Add(i.cfg.TokenLifetime).Unix(),
		"jti": newID(),
		"typ": "Bearer",
	}
	maps.Copy(claims, t.Claims)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encode claims: %w", err)
	}

	algorithm := jose.RS256
	if t.Algorithm != "" {
		algorithm = jose.SignatureAlgorithm(t.Algorithm)
	}
	key, err := i.keys.signing(algorithm)
	if err != nil {
		return "", err
	}
	if t.Forged {
		others := &keyStore{}
		if others.keys.Active, err = newSigningKeys(); err != nil {
			return "", err
		}
		id := key.KeyID
		if key, err = others.signing(algorithm); err != nil {
			return "", err
		}
		key.KeyID = id
	}
	if t.KeyID != "" {
		key.KeyID = t.KeyID
	}
	opts := &jose.SignerOptions{}
	switch t.Type {
	case "":
		opts.WithType("at+jwt")
	case "-":
	default:
		opts.WithType(jose.ContentType(t.Type))
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, opts)
	if err != nil {
		return "", fmt.Errorf("make signer: %w", err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("encode token: %w", err)
	}
	return compact, nil
}
