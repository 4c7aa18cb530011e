// Package identitytest is a certificate authority for tests: a real one, that signs what it is asked to and serves
// joins over HTTPS as the control plane does. It keeps nothing and checks no more than its own token. Start at
// Authority.
package identitytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// Authority signs certificates of one trust domain. It is safe for many goroutines.
type Authority struct {
	Domain string
	Token  string        // that a join needs
	Life   time.Duration // of the certificates that joins get; 0: an hour
	Once   bool          // the token belongs to the first key that comes with it

	t    *testing.T
	mu   sync.Mutex // guards all below
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	more []byte // roots beside its own, PEM
	seen []Join
	down bool
	lose int // answers that are not given
	used any // public key that has the token
}

// Join is one request that was answered with a certificate.
type Join struct {
	Service string
	Caller  string // id of the client's certificate; empty: it came with the token
}

// New returns an authority with a root of its own.
func New(t *testing.T, domain string) *Authority {
	t.Helper()
	a := &Authority{Domain: domain, Token: rand.Text(), t: t}
	a.Turn()
	return a
}

// Turn gives the authority a new root and returns the old one, in PEM.
func (a *Authority) Turn() []byte {
	a.t.Helper()
	key := newKey(a.t)
	now := time.Now()
	template := &x509.Certificate{SerialNumber: serial(a.t), Subject: pkix.Name{CommonName: "root of " + a.Domain},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: []*url.URL{{Scheme: "spiffe", Host: a.Domain}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		a.t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var old []byte
	if a.root != nil {
		old = encode("CERTIFICATE", a.root.Raw)
	}
	a.key, a.root = key, root
	return old
}

// Also adds roots to the bundle that is given out.
func (a *Authority) Also(roots []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.more = append(a.more, roots...)
}

// Down makes joins fail, or work again.
func (a *Authority) Down(down bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = down
}

// LoseAnswers lets the next n joins be answered by an error after all was done.
func (a *Authority) LoseAnswers(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lose = n
}

// belongs gives the token to the first key, if it is good once.
func (a *Authority) belongs(key any) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used == nil {
		a.used = key
	}
	return !a.Once || key.(*ecdsa.PublicKey).Equal(a.used)
}

// Joins are the requests that were answered with a certificate.
func (a *Authority) Joins() []Join {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Join(nil), a.seen...)
}

// Bundle is the roots in PEM.
func (a *Authority) Bundle() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append(encode("CERTIFICATE", a.root.Raw), a.more...)
}

// ID is the SPIFFE id of a service.
func (a *Authority) ID(service string) string {
	namespace, name, _ := strings.Cut(service, "/")
	return "spiffe://" + a.Domain + "/ns/" + namespace + "/sa/" + name
}

// Issue returns a certificate for an id, and its key, in PEM, with the times given.
func (a *Authority) Issue(id string, from, to time.Time) (cert, key []byte) {
	a.t.Helper()
	k := newKey(a.t)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err = a.sign(&k.PublicKey, id, from, to)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, encode("PRIVATE KEY", der)
}

func (a *Authority) sign(public any, id string, from, to time.Time) ([]byte, error) {
	u, err := url.Parse(id)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	template := &x509.Certificate{SerialNumber: serial(a.t), NotBefore: from, NotAfter: to, URIs: []*url.URL{u},
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, public, a.key)
	return encode("CERTIFICATE", der), err
}

// Serve answers joins until the test ends, and returns host:port. Its own certificate names 127.0.0.1.
func (a *Authority) Serve() string {
	a.t.Helper()
	key := newKey(a.t)
	now := time.Now()
	template := &x509.Certificate{SerialNumber: serial(a.t), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(a.join))
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	a.t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func (a *Authority) join(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	down := a.down
	a.mu.Unlock()
	var in struct{ CSR, Service string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Method != "POST" || r.URL.Path != "/v1/certificates" {
		http.Error(w, fmt.Sprint("malformed ", err), http.StatusBadRequest)
		return
	}
	caller, err := a.caller(r)
	switch {
	case down:
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	case caller != "" && caller != a.ID(in.Service):
		http.Error(w, "renewal for another id than "+caller, http.StatusForbidden)
		return
	}
	public, err := publicKey(in.CSR)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if caller == "" && !a.belongs(public) {
		http.Error(w, "the token has been used", http.StatusUnauthorized)
		return
	}
	now := time.Now()
	end := now.Add(orHour(a.Life))
	cert, err := a.sign(public, a.ID(in.Service), now.Truncate(time.Second), end)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	a.mu.Lock()
	a.seen = append(a.seen, Join{in.Service, caller})
	lost := a.lose > 0
	a.lose--
	a.mu.Unlock()
	if lost {
		http.Error(w, "lost", http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// A client that went away asks again.
	_ = json.NewEncoder(w).Encode(map[string]any{"certificate": string(cert), "bundle": string(a.Bundle()), "expires": end})
}

// caller is who the client's certificate names; without one the token must be right.
func (a *Authority) caller(r *http.Request) (string, error) {
	if len(r.TLS.PeerCertificates) == 0 {
		if r.Header.Get("Authorization") != "Bearer "+a.Token {
			return "", fmt.Errorf("join token is not known")
		}
		return "", nil
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.Bundle())
	leaf := r.TLS.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return "", err
	}
	return leaf.URIs[0].String(), nil
}

func publicKey(csr string) (any, error) {
	block, _ := pem.Decode([]byte(csr))
	if block == nil {
		return nil, fmt.Errorf("csr is not PEM")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return r.PublicKey, r.CheckSignature()
}

func orHour(d time.Duration) time.Duration {
	if d == 0 {
		return time.Hour
	}
	return d
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t *testing.T) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
