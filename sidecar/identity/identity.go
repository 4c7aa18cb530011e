// Package identity proves who a sidecar is, and sees who others are: X.509 certificates with a SPIFFE id, from the
// control plane's authority (authority.go), from an agent that serves secrets over a Unix socket (sds.go), or from files
// (files.go). It makes TLS of connections (conn.go, listen.go) and says in plain words why one was refused (refusal.go).
// It never decides what a known caller may do, and no key leaves the process unless that is configured. Start at Identity.
package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Source brings certificates until its context ends. It calls Identity.Take for each.
type Source interface {
	Run(ctx context.Context, i *Identity)
}

// Options is what an Identity is made of. The hooks may be nil and are called by many goroutines.
type Options struct {
	TrustDomain string                     // whose members are let in
	Refused     func(by By, reason Reason) // a handshake ended without a connection
	Renewed     func(ok bool)              // a certificate was put in force, or a source could not bring one
	Log         *slog.Logger               // nil: silence
	Dialer      *net.Dialer                // of Dial; nil: a plain one
}

// Identity holds the certificate and the roots in force. Connections that exist never notice a change; every handshake
// uses what is current. It is safe for many goroutines.
type Identity struct {
	opt    Options
	domain spiffeid.TrustDomain

	changing sync.Mutex // held while current is replaced by what depends on it

	mu      sync.RWMutex // guards current and cause
	current *material
	cause   string // why there is no current, or no newer one
}

// material is a certificate with the roots that came with it, and what follows from both.
type material struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
	wants  *tls.Config // of a server that wants a certificate of its clients
	takes  *tls.Config // of a server that takes one
	client *tls.Config
}

// ErrNone says that no certificate has come yet, or that the last one has expired.
var ErrNone = errors.New("no valid certificate")

var errForeign = errors.New("of another trust domain")

// New returns an Identity that has no certificate yet.
func New(opt Options) (*Identity, error) {
	domain, err := spiffeid.TrustDomainFromString(opt.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", opt.TrustDomain, err)
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Dialer == nil {
		opt.Dialer = new(net.Dialer)
	}
	if opt.Refused == nil {
		opt.Refused = func(By, Reason) {}
	}
	if opt.Renewed == nil {
		opt.Renewed = func(bool) {}
	}
	return &Identity{opt: opt, domain: domain, cause: "its source has not answered"}, nil
}

// Take puts a certificate and its roots in force, or says why they are not fit; what was in force stays then.
func (i *Identity) Take(svid *x509svid.SVID, bundle *x509bundle.Bundle) error {
	i.changing.Lock()
	defer i.changing.Unlock()
	if err := i.take(svid, bundle); err != nil {
		return i.unfit(err)
	}
	return nil
}

// unfit notes that what a source brought, or did not bring, cannot be used.
func (i *Identity) unfit(err error) error {
	i.opt.Renewed(false)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cause = err.Error()
	return err
}

func (i *Identity) take(svid *x509svid.SVID, bundle *x509bundle.Bundle) error {
	if !svid.ID.MemberOf(i.domain) {
		return fmt.Errorf("certificate of %s is not of trust domain %s: set trust-domain, or the source's", svid.ID, i.domain)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil {
		return fmt.Errorf("certificate of %s does not hold against its own roots: %w", svid.ID, err)
	}
	m := i.made(svid, bundle)
	i.mu.Lock()
	changed := i.current == nil || !i.current.svid.Certificates[0].Equal(svid.Certificates[0]) || !i.current.bundle.Equal(bundle)
	i.current, i.cause = m, ""
	i.mu.Unlock()
	if changed {
		i.opt.Renewed(true)
		i.opt.Log.Info("certificate in force", "id", svid.ID.String(), "expires", svid.Certificates[0].NotAfter,
			"roots", len(bundle.X509Authorities()))
	}
	return nil
}

// SetRoots replaces the roots, as when the control plane changes its own. The certificate in force must hold against
// them. Before the first certificate they are refused: a source brings roots of its own.
func (i *Identity) SetRoots(pem []byte) error {
	bundle, err := x509bundle.Parse(i.domain, pem)
	if err != nil {
		return fmt.Errorf("roots: %w", err)
	}
	i.changing.Lock()
	defer i.changing.Unlock()
	m, err := i.get()
	if err != nil {
		return err
	}
	return i.take(m.svid, bundle)
}

func (i *Identity) made(svid *x509svid.SVID, bundle *x509bundle.Bundle) *material {
	cert := tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	roots := x509.NewCertPool()
	for _, c := range bundle.X509Authorities() {
		roots.AddCert(c)
	}
	// The chain is verified by crypto/tls, because only then the client is told what is wrong with it. Tickets would let
	// a client in again whose certificate has expired meanwhile.
	wants := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: roots,
		ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true, VerifyConnection: i.member}
	takes := wants.Clone()
	takes.ClientAuth = tls.VerifyClientCertIfGiven
	client := tlsconfig.MTLSClientConfig(svid, i, tlsconfig.AuthorizeMemberOf(i.domain))
	client.MinVersion = tls.VersionTLS13
	return &material{svid: svid, bundle: bundle, wants: wants, takes: takes, client: client}
}

// member lets in whoever has an id of the trust domain; the chain was verified before.
func (i *Identity) member(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return nil // and it was not wanted
	}
	id, err := x509svid.IDFromCert(s.PeerCertificates[0])
	if err != nil {
		return fmt.Errorf("certificate without a SPIFFE id: %w", err)
	}
	if !id.MemberOf(i.domain) {
		return fmt.Errorf("certificate of %s: %w", id, errForeign)
	}
	return nil
}

func (i *Identity) get() (*material, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if i.current == nil {
		return nil, fmt.Errorf("%w: %s", ErrNone, i.cause)
	}
	return i.current, nil
}

// GetX509SVID implements x509svid.Source.
func (i *Identity) GetX509SVID() (*x509svid.SVID, error) {
	m, err := i.get()
	if err != nil {
		return nil, err
	}
	return m.svid, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source: it knows one trust domain.
func (i *Identity) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if domain != i.domain {
		return nil, fmt.Errorf("certificate of trust domain %s: %w", domain, errForeign)
	}
	m, err := i.get()
	if err != nil {
		return nil, err
	}
	return m.bundle, nil
}

// Ready returns nil while there is a certificate that has not expired, else why there is none.
func (i *Identity) Ready() error {
	m, err := i.get()
	if err != nil {
		return err
	}
	if end := m.svid.Certificates[0].NotAfter; time.Now().After(end) {
		i.mu.RLock()
		defer i.mu.RUnlock()
		return fmt.Errorf("%w: the last one expired at %s: %s", ErrNone, end.Format(time.RFC3339), i.cause)
	}
	return nil
}

// ID is the SPIFFE id in force; empty: none yet.
func (i *Identity) ID() string {
	m, err := i.get()
	if err != nil {
		return ""
	}
	return m.svid.ID.String()
}

// Expires is the end of the certificate in force; zero: there is none.
func (i *Identity) Expires() time.Time {
	m, err := i.get()
	if err != nil {
		return time.Time{}
	}
	return m.svid.Certificates[0].NotAfter
}
