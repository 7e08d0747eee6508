package tlsreload

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// Interval is how old what is used may be: files are looked at with the first
// handshake after it.
const Interval = time.Second

var errNoAuthority = errors.New("has no certificate")

// Files are in PEM.
type Files struct {
	// CertFile is our certificate, followed by those that lead to the authority,
	// and KeyFile its key. Both or none.
	CertFile, KeyFile string
	// CAFile has the authorities that certificates of peers must come from.
	CAFile string
}

// Reloader has what was in the files when they were last in order. All methods
// are safe for concurrent use.
type Reloader struct {
	files   Files
	logger  *slog.Logger
	last    atomic.Int64 // when the files were looked at, in ns after start
	start   time.Time
	current atomic.Pointer[material]
	failed  atomic.Pointer[contents] // what was logged
}

// material is what was in the files.
type material struct {
	contents    contents
	certificate *tls.Certificate // nil: none
	authorities *x509.CertPool   // nil: none
}

// contents are the bytes of the files, or why they could not be read.
type contents struct {
	cert, key, ca []byte
	err           string
}

func (c *contents) equal(other *contents) bool {
	return other != nil && c.err == other.err && bytes.Equal(c.cert, other.cert) &&
		bytes.Equal(c.key, other.key) && bytes.Equal(c.ca, other.ca)
}

// New reads the files. It fails when they are not in order; errors name the file.
func New(files Files, logger *slog.Logger) (*Reloader, error) {
	r := &Reloader{files: files, logger: logger, start: time.Now()}
	read, err := r.read()
	if err != nil {
		return nil, err
	}
	loaded, err := r.parse(read)
	if err != nil {
		return nil, err
	}
	r.current.Store(loaded)
	return r, nil
}

// Server is a configuration for a server: a copy of base with the certificate,
// and, if there are authorities, clients must have a certificate from them.
//
//nolint:contextcheck,nolintlint // A handshake has a context of its own; the callers of our callers are told that they lack one.
func (r *Reloader) Server(base *tls.Config) *tls.Config {
	var made atomic.Pointer[forServer]
	cfg := base.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		m := r.get(hello.Context())
		if s := made.Load(); s != nil && s.of == m {
			return s.config, nil
		}
		s := &forServer{of: m, config: base.Clone()}
		s.config.Certificates = nil
		if m.certificate != nil {
			s.config.Certificates = []tls.Certificate{*m.certificate}
		}
		if m.authorities != nil {
			s.config.ClientAuth, s.config.ClientCAs = tls.RequireAndVerifyClientCert, m.authorities
			// A resumed session would go on with a certificate that was in order
			// when it began.
			s.config.SessionTicketsDisabled = true
		}
		made.Store(s)
		return s.config, nil
	}
	return cfg
}

// forServer is a configuration and what it was made of.
type forServer struct {
	of     *material
	config *tls.Config
}

// Client is a configuration for the next connection of a client: a copy of base
// with the certificate, if any, and with the authorities in place of the
// system's, if any. Ask for a new one for each connection.
func (r *Reloader) Client(ctx context.Context, base *tls.Config) *tls.Config {
	m := r.get(ctx)
	cfg := base.Clone()
	if m.certificate != nil {
		cfg.Certificates = []tls.Certificate{*m.certificate}
	}
	if m.authorities != nil {
		cfg.RootCAs = m.authorities
	}
	return cfg
}

// get looks at the files if it is time to. While one caller does, others use
// what there is.
func (r *Reloader) get(ctx context.Context) *material {
	now, last := int64(time.Since(r.start)), r.last.Load()
	if now-last >= int64(Interval) && r.last.CompareAndSwap(last, now) {
		r.reload(ctx)
	}
	return r.current.Load()
}

func (r *Reloader) reload(ctx context.Context) {
	before := r.current.Load()
	read, err := r.read()
	if err == nil {
		if read.equal(&before.contents) {
			r.failed.Store(nil)
			return
		}
		var loaded *material
		if loaded, err = r.parse(read); err == nil {
			r.current.Store(loaded)
			r.failed.Store(nil)
			attrs := []slog.Attr{slog.String("cert_file", r.files.CertFile), slog.String("ca_file", r.files.CAFile)}
			if loaded.certificate != nil {
				attrs = append(attrs, slog.Time("not_after", loaded.certificate.Leaf.NotAfter))
			}
			r.logger.LogAttrs(ctx, slog.LevelInfo, "certificates were renewed", attrs...)
			return
		}
	}
	if read.equal(r.failed.Load()) {
		return
	}
	r.failed.Store(read)
	r.logger.LogAttrs(ctx, slog.LevelError, "new certificates cannot be used, the old ones stay", slog.Any("error", err))
}

// read reads all files.
func (r *Reloader) read() (*contents, error) {
	c := &contents{}
	for _, f := range []struct {
		path string
		to   *[]byte
	}{{r.files.CertFile, &c.cert}, {r.files.KeyFile, &c.key}, {r.files.CAFile, &c.ca}} {
		if f.path == "" {
			continue
		}
		data, err := os.ReadFile(f.path)
		if err != nil {
			return &contents{err: err.Error()}, err
		}
		*f.to = data
	}
	return c, nil
}

// parse makes use of what was read.
func (r *Reloader) parse(read *contents) (*material, error) {
	m := &material{contents: *read}
	if r.files.CertFile != "" || r.files.KeyFile != "" {
		certificate, err := tls.X509KeyPair(read.cert, read.key)
		if err != nil {
			return nil, fmt.Errorf("certificate of %s with key of %s: %w", r.files.CertFile, r.files.KeyFile, err)
		}
		if certificate.Leaf == nil {
			if certificate.Leaf, err = x509.ParseCertificate(certificate.Certificate[0]); err != nil {
				return nil, fmt.Errorf("certificate of %s: %w", r.files.CertFile, err)
			}
		}
		m.certificate = &certificate
	}
	if r.files.CAFile != "" {
		m.authorities = x509.NewCertPool()
		if !m.authorities.AppendCertsFromPEM(read.ca) {
			return nil, fmt.Errorf("%s %w", r.files.CAFile, errNoAuthority)
		}
	}
	return m, nil
}
