package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	jose "github.com/go-jose/go-jose/v4"
)

const (
	keysFile = "issuer-keys.json"
	rsaBits  = 2048

	// maxFormerKeys bounds what Rotate keeps published.
	maxFormerKeys = 8
)

// keyStore has the private keys: the active signing keys, one per algorithm,
// former ones that are still published, and an encryption key that nobody uses.
type keyStore struct {
	path string // empty: memory only

	mu   sync.Mutex
	keys savedKeys
}

type savedKeys struct {
	Active     []jose.JSONWebKey `json:"active"`
	Former     []jose.JSONWebKey `json:"former,omitempty"`
	Encryption jose.JSONWebKey   `json:"encryption"`
}

func openKeys(dir string) (*keyStore, error) {
	s := &keyStore{}
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create key directory: %w", err)
		}
		s.path = filepath.Join(dir, keysFile)
		data, err := os.ReadFile(s.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("read keys: %w", err)
		default:
			if err := json.Unmarshal(data, &s.keys); err != nil {
				return nil, fmt.Errorf("read keys from %s: %w", s.path, err)
			}
			if len(s.keys.Active) == 0 || !s.keys.Encryption.Valid() {
				return nil, fmt.Errorf("read keys from %s: not complete", s.path)
			}
			return s, nil
		}
	}
	var err error
	if s.keys.Active, err = newSigningKeys(); err != nil {
		return nil, err
	}
	encryption, err := rsa.GenerateKey(rand.Reader, rsaBits)
	if err != nil {
		return nil, fmt.Errorf("generate RSA key: %w", err)
	}
	s.keys.Encryption = webKey(encryption, string(jose.RSA_OAEP), "enc")
	return s, s.save()
}

func newSigningKeys() ([]jose.JSONWebKey, error) {
	rs, err := rsa.GenerateKey(rand.Reader, rsaBits)
	if err != nil {
		return nil, fmt.Errorf("generate RSA key: %w", err)
	}
	es, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate ECDSA key: %w", err)
	}
	return []jose.JSONWebKey{webKey(rs, string(jose.RS256), "sig"), webKey(es, string(jose.ES256), "sig")}, nil
}

func webKey(key crypto.PrivateKey, algorithm, use string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key, KeyID: newID(), Algorithm: algorithm, Use: use}
}

func newID() string { return strings.ToLower(rand.Text()) }

// save must be called with mu held, or before anybody else knows the store.
func (s *keyStore) save() error {
	if s.path == "" {
		return nil
	}
	data, err := json.Marshal(s.keys)
	if err != nil {
		return fmt.Errorf("encode keys: %w", err)
	}
	// A file that is half written would lock everybody out at the next start.
	tmp := s.path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	if err := os.Rename(tmp, s.path); err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	return nil
}

func (s *keyStore) rotate(keep bool) error {
	fresh, err := newSigningKeys()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if keep {
		s.keys.Former = slices.Concat(s.keys.Active, s.keys.Former)
		s.keys.Former = s.keys.Former[:min(len(s.keys.Former), maxFormerKeys)]
	} else {
		s.keys.Former = nil
	}
	s.keys.Active = fresh
	return s.save()
}

// signing returns the active key of an algorithm.
func (s *keyStore) signing(algorithm jose.SignatureAlgorithm) (jose.JSONWebKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys.Active {
		if k.Algorithm == string(algorithm) {
			return k, nil
		}
	}
	return jose.JSONWebKey{}, fmt.Errorf("no key for algorithm %q", algorithm)
}

// public returns what is published.
func (s *keyStore) public() jose.JSONWebKeySet {
	s.mu.Lock()
	defer s.mu.Unlock()
	var set jose.JSONWebKeySet
	for _, k := range slices.Concat(s.keys.Active, s.keys.Former, []jose.JSONWebKey{s.keys.Encryption}) {
		set.Keys = append(set.Keys, k.Public())
	}
	return set
}
