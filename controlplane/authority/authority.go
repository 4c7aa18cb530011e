// Package authority is the mesh's certificate authority: one root, kept in a directory or given as files, that signs
// short-lived certificates with the SPIFFE id of a service. It checks what it is asked to sign (request.go) and whether
// a token may join as a service (tokens.go). It never makes or sees a workload's key, and listens nowhere. Start at New.
package authority

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"txmesh/controlplane/keep"
)

// Options is what an Authority is made of.
type Options struct {
	TrustDomain string
	Dir         string // where the root is kept, or made when there is none; the bundle is written there too
	CertFile    string // of a root that is given instead, PEM
	KeyFile     string // its key, PEM; may be the same file
	AlsoFile    string // PEM: further roots of the bundle while the root is being changed; empty: none
	Life        time.Duration
	Names       []string // host names and addresses of this control plane
	Now         func() time.Time
}

// Authority signs certificates. It is safe for many goroutines.
type Authority struct {
	opt    Options
	domain spiffeid.TrustDomain

	mu      sync.Mutex // guards all below; what they point to never changes
	current *material
	own     *tls.Certificate // of this control plane; nil: to be made
}

// skew is how far back a certificate begins, for clocks that are behind.
const skew = time.Minute

// New reads the root, or makes one in an empty directory.
func New(opt Options) (*Authority, error) {
	domain, err := spiffeid.TrustDomainFromString(opt.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust-domain %q: %w; write for example mesh.example", opt.TrustDomain, err)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if err := os.MkdirAll(opt.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("data-dir: %w", err)
	}
	a := &Authority{opt: opt, domain: domain}
	if opt.CertFile == "" {
		if err := a.makeRoot(); err != nil {
			return nil, err
		}
	}
	if _, err := a.Reload(); err != nil {
		return nil, err
	}
	return a, nil
}

// Reload reads the files again and reports whether the root or the bundle is another. On an error all stays.
func (a *Authority) Reload() (changed bool, err error) {
	m, err := a.read()
	if err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current != nil && bytes.Equal(a.current.bundle, m.bundle) && a.current.root.Equal(m.root) {
		return false, nil
	}
	if err := keep.Replace(a.BundleFile(), m.bundle); err != nil {
		return false, err
	}
	a.current, a.own = m, nil
	return true, nil
}

func (a *Authority) material() *material {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

// Bundle is the roots that members of the mesh trust, in PEM, the one that signs first.
func (a *Authority) Bundle() []byte { return bytes.Clone(a.material().bundle) }

// ID is the SPIFFE id of a service, namespace/name.
func (a *Authority) ID(service string) (spiffeid.ID, error) {
	namespace, name, ok := strings.Cut(service, "/")
	if !ok {
		return spiffeid.ID{}, fmt.Errorf("service %q is not namespace/name", service)
	}
	id, err := spiffeid.FromSegments(a.domain, "ns", namespace, "sa", name)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("service %q: %w", service, err)
	}
	return id, nil
}

// controlPlane is the last part of the id of every replica of the control plane.
const controlPlane = "controlplane"

// Caller says who a verified client is: a service, or another replica of the control plane.
func (a *Authority) Caller(s *tls.ConnectionState) (service string, replica bool, err error) {
	if s == nil || len(s.VerifiedChains) == 0 {
		return "", false, errors.New("the client has shown no certificate")
	}
	leaf := s.VerifiedChains[0][0]
	if len(leaf.URIs) != 1 {
		return "", false, fmt.Errorf("the certificate has %d URIs, a SPIFFE id is one", len(leaf.URIs))
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return "", false, fmt.Errorf("the certificate's id: %w", err)
	}
	parts := strings.Split(strings.TrimPrefix(id.Path(), "/"), "/")
	switch {
	case id.TrustDomain() != a.domain:
		return "", false, fmt.Errorf("%s is of another trust domain than %s", id, a.domain)
	case len(parts) == 1 && parts[0] == controlPlane:
		return "", true, nil
	case len(parts) == 4 && parts[0] == "ns" && parts[2] == "sa":
		return parts[1] + "/" + parts[3], false, nil
	}
	return "", false, fmt.Errorf("%s is neither a service's id, /ns/NAMESPACE/sa/NAME, nor the control plane's", id)
}

// ServerTLS is the control plane's side of every connection. A client may come without a certificate; one that it
// shows is verified. The root goes along in the chain, so that whoever knows its fingerprint can find it there.
func (a *Authority) ServerTLS(protocols ...string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		own, m, err := a.ownCertificate()
		if err != nil {
			return nil, err
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*own}, NextProtos: protocols,
			ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: m.pool}, nil
	}}
}

// ClientTLS is this replica's side of a connection to another one.
func (a *Authority) ClientTLS(host string) (*tls.Config, error) {
	own, m, err := a.ownCertificate()
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host, RootCAs: m.pool, Certificates: []tls.Certificate{*own}}, nil
}

// ownCertificate makes a certificate for this control plane when there is none or its life is half over.
func (a *Authority) ownCertificate() (*tls.Certificate, *material, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.own != nil {
		l := a.own.Leaf
		if half := l.NotBefore.Add(l.NotAfter.Sub(l.NotBefore) / 2); a.opt.Now().Before(half) {
			return a.own, a.current, nil
		}
	}
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template := a.leaf(a.current, spiffeid.RequireFromPath(a.domain, "/"+controlPlane).URL())
	for _, name := range a.opt.Names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := a.current.sign(template, key.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of the control plane: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of the control plane: %w", err)
	}
	a.own = &tls.Certificate{Certificate: [][]byte{der, a.current.root.Raw}, PrivateKey: key, Leaf: leaf}
	return a.own, a.current, nil
}

// leaf is the template of every certificate that is no root.
func (a *Authority) leaf(m *material, id *url.URL) *x509.Certificate {
	now := a.opt.Now()
	until := now.Add(a.opt.Life)
	if until.After(m.root.NotAfter) {
		until = m.root.NotAfter
	}
	return &x509.Certificate{NotBefore: now.Add(-skew), NotAfter: until, URIs: []*url.URL{id}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
}

// Certificate is what a workload gets.
type Certificate struct {
	Chain   []byte // PEM, the leaf first
	Bundle  []byte // PEM
	Expires time.Time
}

// Sign gives a certificate for a request that was read. Whoever calls it has made sure that the caller is the service.
func (a *Authority) Sign(r *Request) (Certificate, error) {
	m := a.material()
	template := a.leaf(m, r.id.URL())
	der, err := m.sign(template, r.key)
	if err != nil {
		return Certificate{}, fmt.Errorf("certificate of %s: %w", r.id, err)
	}
	return Certificate{Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Bundle: bytes.Clone(m.bundle),
		Expires: template.NotAfter.UTC().Truncate(time.Second)}, nil
}

func (m *material) sign(template *x509.Certificate, public any) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	return x509.CreateCertificate(rand.Reader, template, m.root, public, m.key)
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// BundleFile is where the bundle is written.
func (a *Authority) BundleFile() string { return filepath.Join(a.opt.Dir, "bundle.pem") }

// Fingerprint is the SHA-256 of the root's certificate, in hexadecimal.
func (a *Authority) Fingerprint() string {
	sum := sha256.Sum256(a.material().root.Raw)
	return hex.EncodeToString(sum[:])
}

// Expires is when the root does.
func (a *Authority) Expires() time.Time { return a.material().root.NotAfter }
