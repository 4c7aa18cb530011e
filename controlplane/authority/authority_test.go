package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func newAuthority(t *testing.T, opt Options) *Authority {
	t.Helper()
	opt.TrustDomain, opt.Life = "mesh.example", time.Hour
	if opt.Dir == "" {
		opt.Dir = t.TempDir()
	}
	a, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func csr(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func elliptic256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func signed(t *testing.T, a *Authority, service string) *x509.Certificate {
	t.Helper()
	r, err := a.Read(csr(t, elliptic256(t)), service)
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Sign(r)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := pem.Decode(c.Chain)
	leaf, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestRootIsMadeOnceByWhoeverIsFirst(t *testing.T) {
	dir := t.TempDir()
	fingerprints := make([]string, 8)
	var all sync.WaitGroup
	for i := range fingerprints {
		all.Go(func() { fingerprints[i] = newAuthority(t, Options{Dir: dir}).Fingerprint() })
	}
	all.Wait()
	for _, f := range fingerprints {
		if f != fingerprints[0] {
			t.Fatalf("roots %v, want one", fingerprints)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "root.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("root.pem: %v, %v", info.Mode(), err)
	}
	bundle, err := os.ReadFile(filepath.Join(dir, "bundle.pem"))
	if err != nil || strings.Contains(string(bundle), "PRIVATE") {
		t.Errorf("bundle: %v, %s", err, bundle)
	}
}

func TestRootChangesWithBothTrusted(t *testing.T) {
	old, next := t.TempDir(), t.TempDir()
	newAuthority(t, Options{Dir: next})
	also := filepath.Join(t.TempDir(), "also.pem")
	write := func(path string, from ...string) {
		t.Helper()
		var data []byte
		for _, f := range from {
			d, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			data = append(data, d...)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := newAuthority(t, Options{Dir: old})
	first := signed(t, a, "bank/accounts")
	oldBundle := filepath.Join(t.TempDir(), "old.pem")
	write(oldBundle, filepath.Join(old, "bundle.pem"))

	write(also, filepath.Join(next, "bundle.pem")) // 1: trust the new one
	a = newAuthority(t, Options{Dir: old, AlsoFile: also})
	write(filepath.Join(old, "root.pem"), filepath.Join(next, "root.pem")) // 2: sign with it, trust the old one
	write(also, oldBundle)
	if changed, err := a.Reload(); err != nil || !changed {
		t.Fatalf("Reload = %t, %v", changed, err)
	}
	second := signed(t, a, "bank/accounts")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.Bundle())
	for i, c := range []*x509.Certificate{first, second} {
		if _, err := c.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
			t.Errorf("certificate %d in the time of two roots: %v", i, err)
		}
	}
	if err := os.WriteFile(also, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := string(a.Bundle())
	if _, err := a.Reload(); err == nil || string(a.Bundle()) != before {
		t.Errorf("Reload of nonsense = %v, bundle changed: %t", err, string(a.Bundle()) != before)
	}
	write(also, filepath.Join(old, "root.pem")) // 3: the old one has gone
	if changed, err := a.Reload(); err != nil || !changed || strings.Count(string(a.Bundle()), "BEGIN CERTIFICATE") != 1 {
		t.Errorf("Reload without the old root = %t, %v", changed, err)
	}
}

func TestRootsThatCannotBeUsed(t *testing.T) {
	good, other := newAuthority(t, Options{}), newAuthority(t, Options{})
	leaf := signed(t, good, "bank/accounts")
	leafFile := filepath.Join(t.TempDir(), "leaf.pem")
	if err := os.WriteFile(leafFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, cert, key string
		now             time.Time
		text            string
	}{
		{"another's key", good.rootFile(), other.rootFile(), time.Now(), "its key is another one's"},
		{"no key", good.BundleFile(), good.BundleFile(), time.Now(), "a key: false"},
		{"no file", "nowhere", "nowhere", time.Now(), "open nowhere"},
		{"expired", good.rootFile(), good.rootFile(), time.Now().Add(2 * rootLife), "it expired at"},
		{"a leaf", leafFile, good.rootFile(), time.Now(), "its key is another one's"},
	} {
		_, err := New(Options{TrustDomain: "mesh.example", Dir: t.TempDir(), CertFile: tt.cert, KeyFile: tt.key, Life: time.Hour, Now: func() time.Time { return tt.now }})
		if err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.text)
		}
	}
}

func TestNoCertificateOutlivesItsRoot(t *testing.T) {
	dir := t.TempDir()
	root := newAuthority(t, Options{Dir: dir}).material().root
	a := newAuthority(t, Options{Dir: dir, Now: func() time.Time { return root.NotAfter.Add(-time.Minute) }})
	if got := signed(t, a, "bank/accounts").NotAfter; !got.Equal(root.NotAfter) {
		t.Errorf("certificate ends %v, its root %v", got, root.NotAfter)
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	a := newAuthority(t, Options{})
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := csr(t, elliptic256(t))
	b, _ := pem.Decode([]byte(good))
	forged := append([]byte{}, b.Bytes...)
	forged[len(forged)-1] ^= 1
	for _, tt := range []struct{ name, csr, service, text string }{
		{"short RSA key", csr(t, short), "a/b", "its RSA key has 1024 bits, 2048 at least"},
		{"forged", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged})), "a/b", "csr is not signed with its own key"},
		{"no PEM", "hello", "a/b", "csr is not one CERTIFICATE REQUEST"},
		{"two", good + good, "a/b", "csr is not one CERTIFICATE REQUEST"},
		{"no namespace", good, "b", `service "b" is not namespace/name`},
		{"dots", good, "../b", `service "../b"`},
	} {
		if _, err := a.Read(tt.csr, tt.service); err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.text)
		}
	}
}

func TestCallersAreKnownByTheirID(t *testing.T) {
	a := newAuthority(t, Options{})
	state := func(c *x509.Certificate) *tls.ConnectionState {
		return &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{c}}}
	}
	if service, replica, err := a.Caller(state(signed(t, a, "bank/accounts"))); service != "bank/accounts" || replica || err != nil {
		t.Errorf("a sidecar = %q, %t, %v", service, replica, err)
	}
	own, _, err := a.ownCertificate()
	if err != nil {
		t.Fatal(err)
	}
	if service, replica, err := a.Caller(state(own.Leaf)); service != "" || !replica || err != nil {
		t.Errorf("a replica = %q, %t, %v", service, replica, err)
	}
	other, err := New(Options{TrustDomain: "other.example", Dir: t.TempDir(), Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*tls.ConnectionState{"none": nil, "unverified": {PeerCertificates: []*x509.Certificate{own.Leaf}},
		"another trust domain": state(signed(t, other, "bank/accounts")), "a root": state(a.material().root)} {
		if service, replica, err := a.Caller(s); err == nil || service != "" || replica {
			t.Errorf("%s = %q, %t, %v, want an error", name, service, replica, err)
		}
	}
}

func TestTokens(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bank"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := "# one of many\n\nreusable-token-1\n  single-token-0001 once\nshort\nunknown-word-0001 twice\n"
	if err := os.WriteFile(filepath.Join(dir, "bank/accounts"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	one, two := Tokens{Dir: dir}, Tokens{Dir: dir} // two replicas
	for _, tt := range []struct {
		name                string
		who                 Tokens
		token, service, key string
		known               bool
	}{
		{"reusable", one, "reusable-token-1", "bank/accounts", "k1", true},
		{"reusable again", two, "reusable-token-1", "bank/accounts", "k2", true},
		{"once", one, "single-token-0001", "bank/accounts", "k1", true},
		{"once more by another", two, "single-token-0001", "bank/accounts", "k2", false},
		{"once more by the same", two, "single-token-0001", "bank/accounts", "k1", true},
		{"an unknown word is once", one, "unknown-word-0001", "bank/accounts", "k1", true},
		{"an unknown word is once, again", one, "unknown-word-0001", "bank/accounts", "k2", false},
		{"short", one, "short", "bank/accounts", "k1", false},
		{"comment", one, "#", "bank/accounts", "k1", false},
		{"another service", one, "reusable-token-1", "bank/savings", "k1", false},
		{"a way out", one, "reusable-token-1", "bank/../bank/accounts", "k1", false},
		{"none", one, "", "bank/accounts", "k1", false},
		{"no directory", Tokens{}, "reusable-token-1", "bank/accounts", "k1", false},
	} {
		err := tt.who.Review(context.Background(), tt.token, tt.service, tt.key)
		if tt.known != (err == nil) || err != nil && !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v, want known: %t", tt.name, err, tt.known)
		}
	}
}
