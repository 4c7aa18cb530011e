package authority

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
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"txmesh/controlplane/keep"
)

// rootLife is that of a root that is made here.
const rootLife = 10 * 365 * 24 * time.Hour

// material is a root with its key and the bundle around it.
type material struct {
	root   *x509.Certificate
	key    crypto.Signer
	pool   *x509.CertPool
	bundle []byte
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

func (a *Authority) rootFile() string { return filepath.Join(a.opt.Dir, "root.pem") }

// makeRoot makes a root unless there is one. Certificate and key are one file that appears at once, so that of two
// replicas which start on the same directory one makes it and the other reads it.
func (a *Authority) makeRoot() error {
	if _, err := os.Stat(a.rootFile()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text, err := a.newRoot()
	if err != nil {
		return fmt.Errorf("make a root: %w", err)
	}
	_, err = keep.Once(a.rootFile(), text)
	return err
}

// newRoot returns a key and the certificate that it signs itself, in PEM.
func (a *Authority) newRoot() ([]byte, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := a.opt.Now()
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{Organization: []string{"txmesh"}, CommonName: a.domain.Name() + " root " + now.UTC().Format(time.DateOnly)},
		NotBefore: now.Add(-skew), NotAfter: now.Add(rootLife), IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: []*url.URL{a.domain.ID().URL()}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...), nil
}

// read reads root, key and further roots from their files.
func (a *Authority) read() (*material, error) {
	certFile, keyFile := a.opt.CertFile, a.opt.KeyFile
	if certFile == "" {
		certFile, keyFile = a.rootFile(), a.rootFile()
	}
	roots, _, err := readPEM(certFile)
	if err != nil {
		return nil, err
	}
	_, key, err := readPEM(keyFile)
	if err != nil {
		return nil, err
	}
	if len(roots) != 1 || key == nil {
		return nil, fmt.Errorf("root: %s holds %d certificates and %s a key: %t; one of each is needed", certFile, len(roots), keyFile, key != nil)
	}
	m := &material{root: roots[0], key: key, pool: x509.NewCertPool()}
	if err := a.checkRoot(m); err != nil {
		return nil, fmt.Errorf("root %s: %w", certFile, err)
	}
	if a.opt.AlsoFile != "" {
		also, _, err := readPEM(a.opt.AlsoFile)
		if err != nil {
			return nil, err
		}
		roots = append(roots, also...)
	}
	for i, c := range roots {
		if i > 0 && c.Equal(m.root) {
			continue
		}
		m.pool.AddCert(c)
		m.bundle = append(m.bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return m, nil
}

func (a *Authority) checkRoot(m *material) error {
	public, ok := m.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(m.root.PublicKey):
		return errors.New("its key is another one's")
	case !m.root.IsCA || !m.root.BasicConstraintsValid || m.root.KeyUsage != 0 && m.root.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("it is not a certificate authority: basicConstraints CA:TRUE and keyUsage keyCertSign are needed")
	case a.opt.Now().After(m.root.NotAfter):
		return fmt.Errorf("it expired at %s: give a new one, and keep both in the bundle for a while", m.root.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// readPEM returns all certificates of a file and the last private key in it.
func readPEM(path string) (certs []*x509.Certificate, key crypto.Signer, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read a root: %w", err)
	}
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		switch b.Type {
		case "CERTIFICATE":
			var c *x509.Certificate
			if c, err = x509.ParseCertificate(b.Bytes); err == nil {
				certs = append(certs, c)
			}
		case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY":
			key, err = parseKey(b)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read a root: %s: %s: %w", path, b.Type, err)
		}
	}
	if len(certs) == 0 && key == nil {
		return nil, nil, fmt.Errorf("read a root: %s holds neither a certificate nor a key in PEM", path)
	}
	return certs, key, nil
}

func parseKey(b *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch b.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(b.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return signer, nil
}
