package apikey

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"strings"
)

const (
	prefix = "mqi_"
	// Lengths in characters of base 62, which have 5.95 bits each.
	idLength       = 12
	secretLength   = 32
	checksumLength = 6
	length         = len(prefix) + idLength + 1 + secretLength + checksumLength

	alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// ErrMalformed means that something is not an API key at all.
var ErrMalformed = errors.New("malformed API key")

// Key is an API key that was just made.
type Key struct {
	// ID is its public id.
	ID string
	// Text is the whole key, for its owner. Secret.
	Text string
	// Hash is the SHA-256 of its secret part.
	Hash [sha256.Size]byte
}

// New makes a key.
func New() Key {
	id, secret := random(idLength), random(secretLength)
	text := prefix + id + "_" + secret
	return Key{ID: id, Text: text + checksum(text), Hash: sha256.Sum256([]byte(secret))}
}

// Parse returns the public id and the hash of the secret of a key. The error is
// ErrMalformed.
func Parse(text string) (id string, hash [sha256.Size]byte, err error) {
	if len(text) != length || !strings.HasPrefix(text, prefix) || text[len(prefix)+idLength] != '_' {
		return "", hash, ErrMalformed
	}
	id = text[len(prefix):][:idLength]
	secret := text[len(prefix)+idLength+1:][:secretLength]
	signed := text[:length-checksumLength]
	if !alphanumeric(id) || !alphanumeric(secret) || text[len(signed):] != checksum(signed) {
		return "", hash, ErrMalformed
	}
	return id, sha256.Sum256([]byte(secret)), nil
}

func alphanumeric(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return !strings.ContainsRune(alphabet, c) })
}

// random returns n random characters, each equally likely.
func random(n int) string {
	const largest = 256 / len(alphabet) * len(alphabet)
	text := make([]byte, 0, n)
	buffer := make([]byte, 2*n)
	for {
		_, _ = rand.Read(buffer) // never fails
		for _, b := range buffer {
			if int(b) >= largest {
				continue
			}
			text = append(text, alphabet[int(b)%len(alphabet)])
			if len(text) == n {
				return string(text)
			}
		}
	}
}

func checksum(text string) string {
	sum := crc32.ChecksumIEEE([]byte(text))
	var digits [checksumLength]byte
	for i := checksumLength - 1; i >= 0; i-- {
		digits[i] = alphabet[sum%uint32(len(alphabet))]
		sum /= uint32(len(alphabet))
	}
	return string(digits[:])
}
