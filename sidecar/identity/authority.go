package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	joinPath    = "/v1/certificates"
	joinMax     = 10 * time.Second // one request to the control plane
	joinBodyMax = 1 << 20
	tokenMax    = 64 << 10
)

// Authority gets certificates from the control plane: the first one for a token, each further one for the one before.
// The key is made here for each certificate and is not sent. A token that is good once belongs to the first key that it
// was shown with, so a key is kept until a certificate has come for it.
type Authority struct {
	Address   string // host:port where the control plane takes joins
	Service   string // namespace/name, which the id will name
	TokenFile string // join token, or a Kubernetes service account's; read anew for each join
	RootsFile string // roots of the control plane's certificate, PEM; empty: those of the system
	KeepFile  string // where certificate and key outlast the process; empty: nowhere
}

// joinRequest and joined are the two bodies of POST /v1/certificates.
type joinRequest struct {
	CSR     string `json:"csr"`
	Service string `json:"service"`
}

type joined struct {
	Certificate string    `json:"certificate"` // PEM chain, the leaf first
	Bundle      string    `json:"bundle"`      // PEM
	Expires     time.Time `json:"expires"`
}

// Run joins, then renews at about half of each life until ctx ends. While the control plane is away the last
// certificate stays.
func (a Authority) Run(ctx context.Context, i *Identity) {
	a.recall(i)
	var key *ecdsa.PrivateKey
	for failures := 0; ; {
		pause := time.Duration(0)
		if m, err := i.get(); err == nil && failures == 0 {
			pause = renewAfter(m.svid.Certificates[0], time.Now())
		} else if failures > 0 {
			pause = retryAfter(failures)
		}
		if !rest(ctx, pause) {
			return
		}
		var err error
		if key == nil {
			key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		}
		if err == nil {
			err = a.renew(ctx, i, key, failures%2 == 1)
		}
		switch {
		case err == nil:
			key, failures = nil, 0
		case ctx.Err() != nil:
			return
		default:
			failures++
			i.opt.Log.Warn("certificate not renewed", "control_plane", a.Address, "failures", failures, "error", err)
		}
	}
}

// renew gets one certificate and puts it in force. It shows the certificate in force; the token where there is none, or
// where the certificate may be what was refused.
func (a Authority) renew(ctx context.Context, i *Identity, key *ecdsa.PrivateKey, byToken bool) error {
	j, err := a.ask(ctx, i, key, byToken || i.Ready() != nil)
	if err != nil {
		return i.unfit(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := a.take(i, []byte(j.Certificate), keyPEM, []byte(j.Bundle)); err != nil {
		return err
	}
	if a.KeepFile == "" {
		return nil
	}
	if err := keep(a.KeepFile, []byte(j.Certificate), keyPEM, []byte(j.Bundle)); err != nil {
		i.opt.Log.Warn("certificate not kept: a restart needs the control plane", "file", a.KeepFile, "error", err)
	}
	return nil
}

// take wants the id of this service, whoever signs.
func (a Authority) take(i *Identity, cert, key, roots []byte) error {
	svid, err := x509svid.Parse(cert, key)
	if err != nil {
		return i.unfit(fmt.Errorf("certificate of the control plane: %w", err))
	}
	bundle, err := x509bundle.Parse(i.domain, roots)
	if err != nil {
		return i.unfit(fmt.Errorf("bundle of the control plane: %w", err))
	}
	namespace, name, _ := strings.Cut(a.Service, "/")
	if want := "/ns/" + namespace + "/sa/" + name; svid.ID.Path() != want {
		return i.unfit(fmt.Errorf("the control plane gave a certificate of %s, this service's id ends with %s", svid.ID, want))
	}
	return i.Take(svid, bundle)
}

// ask makes one request: with the token, or with the certificate in force.
func (a Authority) ask(ctx context.Context, i *Identity, key *ecdsa.PrivateKey, byToken bool) (joined, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return joined{}, fmt.Errorf("make a request for a certificate: %w", err)
	}
	body, err := json.Marshal(joinRequest{CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), Service: a.Service})
	if err != nil {
		return joined{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinMax)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+a.Address+joinPath, bytes.NewReader(body))
	if err != nil {
		return joined{}, err
	}
	r.Header.Set("Content-Type", "application/json")
	roots, err := a.Roots()
	if err != nil {
		return joined{}, err
	}
	host, _, err := net.SplitHostPort(a.Address)
	if err != nil {
		return joined{}, fmt.Errorf("join-address: %w", err)
	}
	config := i.ControlPlane(host, roots)
	if byToken {
		config.GetClientCertificate = nil
		if err := a.authorise(r); err != nil {
			return joined{}, err
		}
	}
	// A connection of its own, because the certificate changes with each request.
	client := &http.Client{Transport: &http.Transport{DialContext: i.opt.Dialer.DialContext, TLSClientConfig: config, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(r)
	if err != nil {
		return joined{}, fmt.Errorf("join: %w", err)
	}
	return answerOf(res)
}

func (a Authority) authorise(r *http.Request) error {
	token, err := readFile(a.TokenFile, tokenMax)
	if err != nil {
		return fmt.Errorf("join-token-file: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return nil
}

// Roots reads RootsFile, for others who speak to the control plane.
func (a Authority) Roots() (*x509.CertPool, error) {
	if a.RootsFile == "" {
		return x509.SystemCertPool()
	}
	data, err := readFile(a.RootsFile, joinBodyMax)
	if err != nil {
		return nil, fmt.Errorf("join-ca-file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("join-ca-file: %s holds no certificate in PEM", a.RootsFile)
	}
	return roots, nil
}

func answerOf(res *http.Response) (joined, error) {
	data, err := io.ReadAll(io.LimitReader(res.Body, joinBodyMax))
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return joined{}, fmt.Errorf("read the answer to the join: %w", err)
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		return joined{}, fmt.Errorf("the control plane refused the join: %d %s", res.StatusCode, bytes.TrimSpace(data[:min(len(data), 512)]))
	}
	var j joined
	if err := json.Unmarshal(data, &j); err != nil {
		return joined{}, fmt.Errorf("decode the answer to the join: %w", err)
	}
	return j, nil
}

// readFile reads a file of a bounded size.
func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	err = errors.Join(err, f.Close())
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return data, err
}
