// Package testca makes a certificate authority and certificates for tests, for
// compose files and for trying things out on one machine. Its keys lie in plain
// files: it is nothing to protect a real system with.
//
// Files are replaced by renaming, so that whoever reads them sees an old or a new
// one. All of it is safe for concurrent use, as long as names differ.
package testca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// caValidity is how long an authority is good for.
	caValidity = 10 * 365 * 24 * time.Hour
	// validity is how long certificates are good for, unless asked otherwise.
	validity = 365 * 24 * time.Hour
	// skew is how much a certificate is older than it is, for clocks that differ.
	skew = time.Hour
)

// CA is an authority.
type CA struct {
	// File has its certificate.
	File string

	dir         string
	certificate *x509.Certificate
	key         crypto.Signer
}

// Options of a certificate.
type Options struct {
	// Names that it is for: host names, IP addresses, and URIs with a scheme
	// (spiffe://example.org/mqtt-frontend). None: the name of the file.
	Names []string
	// NotBefore and NotAfter bound its validity. Zero: an hour ago, and in a year.
	NotBefore, NotAfter time.Time
}

// Pair is the files of a certificate and of its key.
type Pair struct{ CertFile, KeyFile string }

// New makes an authority and writes its certificate to ca.pem and its key to
// ca-key.pem in dir, over what is there.
func New(dir string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of the authority: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "test authority " + now.UTC().Format(time.RFC3339)},
		NotBefore: now.Add(-skew), NotAfter: now.Add(caValidity),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of the authority: %w", err)
	}
	if err := write(dir, "ca", der, key); err != nil {
		return nil, err
	}
	return Load(dir)
}

// Load takes up the authority that New wrote to dir.
func Load(dir string) (*CA, error) {
	ca := &CA{File: filepath.Join(dir, "ca.pem"), dir: dir}
	der, err := read(ca.File)
	if err != nil {
		return nil, err
	}
	if ca.certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("parse %s: %w", ca.File, err)
	}
	file := filepath.Join(dir, "ca-key.pem")
	if der, err = read(file); err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", file, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s is no key to sign with", file)
	}
	ca.key = signer
	return ca, nil
}

// Issue makes a certificate that is good for servers and for clients, and writes
// it to <name>.pem and its key to <name>-key.pem beside the authority's, over
// what is there.
func (ca *CA) Issue(name string, options Options) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make the key of %s: %w", name, err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-skew), NotAfter: now.Add(validity),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if !options.NotBefore.IsZero() {
		template.NotBefore = options.NotBefore
	}
	if !options.NotAfter.IsZero() {
		template.NotAfter = options.NotAfter
	}
	names := options.Names
	if len(names) == 0 {
		names = []string{name}
	}
	for _, n := range names {
		if err := addName(template, n); err != nil {
			return Pair{}, fmt.Errorf("certificate %s: %w", name, err)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, key.Public(), ca.key)
	if err != nil {
		return Pair{}, fmt.Errorf("make certificate %s: %w", name, err)
	}
	if err := write(ca.dir, name, der, key); err != nil {
		return Pair{}, err
	}
	return Pair{CertFile: filepath.Join(ca.dir, name+".pem"), KeyFile: filepath.Join(ca.dir, name+"-key.pem")}, nil
}

func addName(template *x509.Certificate, name string) error {
	if strings.Contains(name, "://") {
		uri, err := url.Parse(name)
		if err != nil {
			return err
		}
		template.URIs = append(template.URIs, uri)
		return nil
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = append(template.IPAddresses, ip)
		return nil
	}
	template.DNSNames = append(template.DNSNames, name)
	return nil
}

// write writes a certificate and its key.
func write(dir, name string, certificate []byte, key *ecdsa.PrivateKey) error {
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key of %s: %w", name, err)
	}
	if err := replace(filepath.Join(dir, name+"-key.pem"), "PRIVATE KEY", private, 0o600); err != nil {
		return err
	}
	return replace(filepath.Join(dir, name+".pem"), "CERTIFICATE", certificate, 0o644)
}

// replace writes a file beside the old one and renames it.
func replace(path, kind string, der []byte, mode os.FileMode) error {
	next := path + ".next"
	if err := os.WriteFile(next, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return err
	}
	return os.Rename(next, path)
}

func read(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New(path + " is not PEM")
	}
	return block.Bytes, nil
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] &= 0x7f           // not negative
	return new(big.Int).SetBytes(b[:])
}
