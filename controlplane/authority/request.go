package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Request is a checked request for the certificate of one service.
type Request struct {
	id          spiffeid.ID
	key         crypto.PublicKey
	fingerprint string
}

// Fingerprint names the key of the request.
func (r *Request) Fingerprint() string { return r.fingerprint }

// The least sizes of keys, in bits.
const (
	ellipticBitsMin = 256
	rsaBitsMin      = 2048
)

// Read checks a request in PEM: whoever made it holds the key, the key is long enough, and it asks for no name but the
// service's id.
func (a *Authority) Read(request, service string) (*Request, error) {
	id, err := a.ID(service)
	if err != nil {
		return nil, err
	}
	b, rest := pem.Decode([]byte(request))
	if b == nil || b.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		return nil, errors.New("csr is not one CERTIFICATE REQUEST in PEM")
	}
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("csr: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("csr is not signed with its own key: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("csr: %w", err)
	}
	if n := len(csr.DNSNames) + len(csr.IPAddresses) + len(csr.EmailAddresses); n > 0 {
		return nil, fmt.Errorf("csr asks for %d names; the id %s is the only one that is given", n, id)
	}
	for _, u := range csr.URIs {
		if u.String() != id.String() {
			return nil, fmt.Errorf("csr asks for %s, but service %s is %s", u, service, id)
		}
	}
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return &Request{id: id, key: csr.PublicKey, fingerprint: hex.EncodeToString(sum[:])}, nil
}

func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if bits := k.Curve.Params().BitSize; bits < ellipticBitsMin {
			return fmt.Errorf("its elliptic key has %d bits, %d at least", bits, ellipticBitsMin)
		}
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < rsaBitsMin {
			return fmt.Errorf("its RSA key has %d bits, %d at least", bits, rsaBitsMin)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("its key is a %T; give ECDSA P-256, Ed25519 or RSA with %d bits", key, rsaBitsMin)
	}
	return nil
}
