package controlplane

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	runtime "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"txmesh/controlplane/api"
	"txmesh/controlplane/xdstest"
)

const policy = "apiVersion: txmesh.io/v1beta1\nkind: TransactionPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  calls:\n" +
	"  - {name: a, match: {service: accounts}, undo: {path: /u}}\n"

// plane is a running control plane.
type plane struct {
	t *testing.T
	Addresses
	plane *ControlPlane
	cfg   Config
	stop  func()
}

// start runs a control plane with times that suit tests, as edited, until stop or the end of the test.
func start(t *testing.T, edit func(*Config)) *plane {
	t.Helper()
	dir := t.TempDir()
	cfg, err := Load([]string{"--listen=127.0.0.1:0", "--api=127.0.0.1:0", "--policies", filepath.Join(dir, "policies"), "--data-dir", filepath.Join(dir, "data"),
		"--tokens-dir", filepath.Join(dir, "tokens"), "--grace=200ms", "--lease=100ms", "--name=one"}, nil, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(&cfg)
	}
	if err := os.MkdirAll(cfg.Policies[0], 0o700); err != nil {
		t.Fatal(err)
	}
	p := &plane{t: t, cfg: cfg}
	if _, err := os.Stat(filepath.Join(cfg.Policies[0], "p.yaml")); err != nil {
		p.policies(policy)
	}
	c, err := New(cfg, "test", slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	p.plane = c
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan Addresses, 1), make(chan error, 1)
	go func() { done <- c.Run(ctx, func(a Addresses) { ready <- a }) }()
	ended := false
	p.stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(p.stop)
	select {
	case p.Addresses = <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return p
}

func (p *plane) policies(text string) {
	p.t.Helper()
	path := filepath.Join(p.cfg.Policies[0], "p.yaml")
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		p.t.Fatal(err)
	}
}

// token puts a join token where the control plane finds it.
func (p *plane) token(service, line string) {
	p.t.Helper()
	path := filepath.Join(p.cfg.TokensDir, filepath.FromSlash(service))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(line+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) roots() *x509.CertPool {
	p.t.Helper()
	data, err := os.ReadFile(p.Bundle)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(data) {
		p.t.Fatalf("bundle: %v", err)
	}
	return pool
}

// certified is what POST /v1/certificates answered.
type certified struct {
	Certificate, Bundle, Detail string
	Expires                     time.Time
	code                        int
	key                         *ecdsa.PrivateKey
}

func (c certified) pair(t *testing.T) tls.Certificate {
	t.Helper()
	if c.code != 200 {
		t.Fatalf("certificate: %d %s", c.code, c.Detail)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(c.Certificate), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// certify asks for a certificate, by a token or by an older certificate.
func (p *plane) certify(service, token string, key *ecdsa.PrivateKey, edit func(*x509.CertificateRequest), was ...tls.Certificate) certified {
	p.t.Helper()
	if key == nil {
		key = newKey(p.t, elliptic.P256())
	}
	template := &x509.CertificateRequest{}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		p.t.Fatal(err)
	}
	body, err := json.Marshal(map[string]string{"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), "service": service})
	if err != nil {
		p.t.Fatal(err)
	}
	out := certified{key: key}
	out.code = p.call("POST", "https://"+p.Listen+"/v1/certificates", token, bytes.NewReader(body), &out, was...)
	return out
}

func newKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (p *plane) call(method, url, token string, body io.Reader, out any, certs ...tls.Certificate) int {
	p.t.Helper()
	r, err := http.NewRequest(method, url, body)
	if err != nil {
		p.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: p.roots(), Certificates: certs}}}
	res, err := client.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		p.t.Fatal(err)
	}
	return res.StatusCode
}

// join gets a certificate for a service.
func (p *plane) join(service string) tls.Certificate {
	p.t.Helper()
	token := rand.Text()
	p.token(service, token)
	return p.certify(service, token, nil, nil).pair(p.t)
}

// sidecar opens the stream of a sidecar.
func (p *plane) sidecar(owner, service, inbound string, more map[string]any) *xdstest.Client {
	p.t.Helper()
	return xdstest.Open(p.t, p.Listen, p.creds(service), xdstest.Node(owner, service, inbound, more)).Read()
}

func (p *plane) creds(service string) credentials.TransportCredentials {
	if p.cfg.Insecure {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(&tls.Config{RootCAs: p.roots(), Certificates: []tls.Certificate{p.join(service)}})
}

func (p *plane) status() api.Status {
	p.t.Helper()
	token, err := os.ReadFile(p.TokenFile)
	if err != nil {
		p.t.Fatal(err)
	}
	var st api.Status
	if code := p.call("GET", "http://"+p.API+"/v1/status", strings.TrimSpace(string(token)), nil, &st); code != 200 {
		p.t.Fatalf("status: %d", code)
	}
	return st
}

// TestProfilesAreForWhoHasTheToken: they show what is in memory, keys too.
func TestProfilesAreForWhoHasTheToken(t *testing.T) {
	p := start(t, inSecure)
	token, err := os.ReadFile(p.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	for with, want := range map[string]int{"": 401, "guess": 401, strings.TrimSpace(string(token)): 200} {
		r, err := http.NewRequest(http.MethodGet, "http://"+p.API+"/debug/pprof/heap", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+with)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("with the token %q: status %d, want %d", with, res.StatusCode, want)
		}
	}
}

// until waits for what must come about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func inSecure(c *Config) { c.Insecure = true }

func owners(t *testing.T, r *xdstest.Response, service string) []string {
	t.Helper()
	out := []string{}
	for _, x := range r.GetResources() {
		if x.GetName() != service {
			continue
		}
		a := &endpoint.ClusterLoadAssignment{}
		if err := x.GetResource().UnmarshalTo(a); err != nil {
			t.Fatal(err)
		}
		for _, e := range a.GetEndpoints()[0].GetLbEndpoints() {
			out = append(out, e.GetMetadata().GetFilterMetadata()["txmesh"].GetFields()["owner"].GetStringValue())
		}
	}
	slices.Sort(out)
	return out
}

// untilOwners waits until the endpoints of a service are these owners.
func untilOwners(t *testing.T, c *xdstest.Client, service string, want ...string) {
	t.Helper()
	c.Until(service+" with "+strings.Join(want, ", "), func(r *xdstest.Response) bool {
		return r.GetTypeUrl() == resource.EndpointType && slices.Contains(xdstest.Names(r), service) && slices.Equal(owners(t, r, service), append([]string{}, want...))
	})
}

func TestSidecarGetsItsConfiguration(t *testing.T) {
	p := start(t, func(c *Config) {
		c.MeshSecretFile = filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(c.MeshSecretFile, []byte("a secret of the mesh\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	c := p.sidecar("A", "bank/accounts", "10.0.0.7:15806", nil)
	for _, typ := range []string{resource.ExtensionConfigType, resource.EndpointType, resource.SecretType, resource.RuntimeType} {
		c.Subscribe(typ, "*")
	}
	got := map[string]bool{}
	for len(got) < 5 {
		r := c.Next()
		for _, x := range r.GetResources() {
			got[x.GetName()] = true
			switch x.GetName() {
			case "bank/p":
				e := &core.TypedExtensionConfig{}
				if err := x.GetResource().UnmarshalTo(e); err != nil || e.GetName() != "bank/p" || !bytes.Contains(e.GetTypedConfig().GetValue(), []byte(policy)) {
					t.Errorf("policy = %v, %v", e, err)
				}
			case "ROOTCA":
				s := &tlsv3.Secret{}
				if err := x.GetResource().UnmarshalTo(s); err != nil || !bytes.Contains(s.GetValidationContext().GetTrustedCa().GetInlineBytes(), []byte("BEGIN CERTIFICATE")) {
					t.Errorf("roots = %v, %v", s, err)
				}
			case "mesh-secret":
				s := &tlsv3.Secret{}
				if err := x.GetResource().UnmarshalTo(s); err != nil || string(s.GetGenericSecret().GetSecret().GetInlineBytes()) != "a secret of the mesh" {
					t.Errorf("secret = %v, %v", s, err)
				}
			}
		}
		c.Ack(r)
	}
	want := map[string]bool{"bank/p": true, "bank/accounts": true, "ROOTCA": true, "mesh-secret": true, "heartbeat": true}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("resources (-want +got):\n%s", d)
	}
	until(t, "the policies are accepted", func() bool { return p.status().Sidecars[0].State == api.Accepted })
}

func TestStatusTellsWhoRefused(t *testing.T) {
	p := start(t, inSecure)
	good, bad := p.sidecar("A", "bank/accounts", "127.0.0.1:1", nil), p.sidecar("B", "bank/savings", "127.0.0.1:2", nil)
	for _, c := range []*xdstest.Client{good, bad} {
		c.Subscribe(resource.ExtensionConfigType, "*")
	}
	good.Ack(good.Next())
	bad.Nack(bad.Next(), "bank/p:1:1: no")
	states := func() map[string]api.State {
		out := map[string]api.State{}
		for _, s := range p.status().Sidecars {
			out[s.Owner] = s.State
		}
		return out
	}
	until(t, "one accepts, one refuses", func() bool { return maps.Equal(states(), map[string]api.State{"A": api.Accepted, "B": api.Rejected}) })
	if s := p.status().Sidecars[1]; s.Reason != "bank/p:1:1: no" || s.Service != "bank/savings" || s.Replica != "one" {
		t.Errorf("the one that refused = %+v", s)
	}
	p.policies(policy + "  - {name: b, match: {service: mail}, hold: {}}\n")
	good.Next() // and says nothing
	until(t, "both are stale", func() bool { return maps.Equal(states(), map[string]api.State{"A": api.Stale, "B": api.Stale}) })
	before := p.status().Policies
	p.policies("apiVersion: nonsense")
	until(t, "the fault is shown", func() bool { return strings.Contains(p.status().Problem, "p.yaml:1:") })
	if got := p.status().Policies; got != before {
		t.Errorf("policies in force = %s, want the last good %s", got, before)
	}
}

func TestPeersComeAndGo(t *testing.T) {
	p := start(t, inSecure)
	a := p.sidecar("A", "bank/accounts", "127.0.0.1:1", nil)
	a.Subscribe(resource.EndpointType, "*")
	untilOwners(t, a, "bank/accounts", "A")
	b := p.sidecar("B", "bank/accounts", "127.0.0.1:2", nil)
	b.Subscribe(resource.EndpointType, "*")
	untilOwners(t, a, "bank/accounts", "A", "B")
	b.Close()
	b = p.sidecar("B", "bank/accounts", "127.0.0.1:2", nil) // back within the grace time
	b.Subscribe(resource.EndpointType, "*")
	b.Ack(b.Next())
	for _, r := range a.Rest() {
		if got := owners(t, r, "bank/accounts"); !slices.Equal(got, []string{"A", "B"}) {
			t.Errorf("within the grace time the endpoints were %v", got)
		}
		a.Ack(r)
	}
	b.Close()
	untilOwners(t, a, "bank/accounts", "A")
}

func TestTakeoverIsOfferedAndWithdrawn(t *testing.T) {
	p := start(t, inSecure)
	shared := map[string]any{"home": "~bank/accounts"}
	a, b := p.sidecar("A", "bank/accounts", "127.0.0.1:1", shared), p.sidecar("B", "bank/accounts", "127.0.0.1:2", shared)
	own := p.sidecar("C", "bank/accounts", "127.0.0.1:3", nil)
	for _, c := range []*xdstest.Client{a, b, own} {
		c.Subscribe(resource.RuntimeType, "*")
		c.Ack(c.Next())
	}
	b.Close()
	own.Close() // its journal is its own: nobody can adopt it
	got := a.Until("a takeover", func(r *xdstest.Response) bool { return slices.Contains(xdstest.Names(r), "takeover/B") })
	for _, x := range got.GetResources() {
		r := &runtime.Runtime{}
		if err := x.GetResource().UnmarshalTo(r); err != nil || x.GetName() != "takeover/B" {
			t.Fatalf("resource %s: %v", x.GetName(), err)
		}
		f := r.GetLayer().GetFields()
		if f["owner"].GetStringValue() != "B" || f["adopter"].GetStringValue() != "A" || f["reason"].GetStringValue() == "" {
			t.Errorf("takeover = %v", r)
		}
	}
	back := p.sidecar("B", "bank/accounts", "127.0.0.1:2", shared)
	back.Subscribe(resource.RuntimeType, "*")
	a.Until("its end", func(r *xdstest.Response) bool { return slices.Contains(r.GetRemovedResources(), "takeover/B") })
}

func TestReplicasShareWhatTheyHave(t *testing.T) {
	dir := t.TempDir()
	same := func(c *Config) { c.DataDir = dir }
	one := start(t, same)
	two := start(t, func(c *Config) {
		same(c)
		c.Name, c.Replicas = "two", []string{one.Listen}
	})
	a := one.sidecar("A", "bank/accounts", "127.0.0.1:1", nil)
	a.Subscribe(resource.ExtensionConfigType, "*")
	a.Ack(a.Next())
	b := two.sidecar("B", "bank/accounts", "127.0.0.1:2", nil)
	b.Subscribe(resource.EndpointType, "*")
	untilOwners(t, b, "bank/accounts", "A", "B")
	until(t, "the status of both at one", func() bool {
		st := two.status()
		return len(st.Sidecars) == 2 && st.Sidecars[0].Replica == "one" && st.Sidecars[0].State == api.Accepted && st.Sidecars[1].Replica == "two" && st.Replicas[0].Connected
	})
	a.Close()
	untilOwners(t, b, "bank/accounts", "B")

	a = one.sidecar("A", "bank/accounts", "127.0.0.1:1", nil)
	a.Subscribe(resource.ExtensionConfigType, "*")
	untilOwners(t, b, "bank/accounts", "A", "B")
	one.stop()
	untilOwners(t, b, "bank/accounts", "B")
	until(t, "the lost replica is told", func() bool { r := two.status().Replicas[0]; return !r.Connected && r.Error != "" })
}

func TestStreamNeedsACertificateOfItsService(t *testing.T) {
	p := start(t, nil)
	node := xdstest.Node("A", "bank/accounts", "127.0.0.1:1", nil)
	c := xdstest.Open(t, p.Listen, credentials.NewTLS(&tls.Config{RootCAs: p.roots()}), node).Read()
	c.Subscribe(resource.SecretType, "*")
	if err := c.End(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "POST /v1/certificates") {
		t.Errorf("without a certificate: %v", err)
	}
	c = xdstest.Open(t, p.Listen, p.creds("bank/savings"), node).Read()
	c.Subscribe(resource.SecretType, "*")
	if err := c.End(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "bank/savings") {
		t.Errorf("with another's certificate: %v", err)
	}
}

func TestCertificatesAreGivenToWhoMayHaveThem(t *testing.T) {
	p := start(t, nil)
	p.token("bank/accounts", "a-token-for-accounts\n# a comment\na-token-that-is-good once")
	first := p.certify("bank/accounts", "a-token-for-accounts", nil, nil)
	leaf := first.pair(t).Leaf
	if got := leaf.URIs[0].String(); got != "spiffe://cluster.local/ns/bank/sa/accounts" || leaf.Subject.CommonName != "" || len(leaf.DNSNames) > 0 {
		t.Errorf("certificate of %s, %v, %v", got, leaf.Subject, leaf.DNSNames)
	}
	if life := time.Until(leaf.NotAfter); life > time.Hour || life < 59*time.Minute || !first.Expires.Equal(leaf.NotAfter) {
		t.Errorf("life = %v, expires %v", life, first.Expires)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: p.roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if got := p.certify("bank/accounts", "", nil, nil, first.pair(t)); got.code != 200 {
		t.Errorf("renewal: %d %s", got.code, got.Detail)
	}
	key := newKey(t, elliptic.P256())
	for range 2 { // the answer to the first may have been lost
		if got := p.certify("bank/accounts", "a-token-that-is-good", key, nil); got.code != 200 {
			t.Errorf("a token that is good once: %d %s", got.code, got.Detail)
		}
	}
	named := func(edit func(*x509.CertificateRequest)) certified {
		return p.certify("bank/accounts", "a-token-for-accounts", nil, edit)
	}
	for _, tt := range []struct {
		name string
		got  certified
		code int
		text string
	}{
		{"used token", p.certify("bank/accounts", "a-token-that-is-good", nil, nil), 401, "has been used"},
		{"wrong token", p.certify("bank/accounts", "a-token-for-nobody", nil, nil), 401, "not one of this service's"},
		{"token of another service", p.certify("bank/savings", "a-token-for-accounts", nil, nil), 401, "not one of this service's"},
		{"service outside", p.certify("../accounts", "a-token-for-accounts", nil, nil), 400, "service"},
		{"neither token nor certificate", p.certify("bank/accounts", "", nil, nil), 401, "no token as bearer, and the client has shown no certificate"},
		{"certificate of another service", p.certify("bank/savings", "", nil, nil, first.pair(t)), 403, `a certificate of "bank/accounts" renews no certificate of bank/savings`},
		{"another name", named(func(r *x509.CertificateRequest) { r.DNSNames = []string{"example.com"} }), 400, "csr asks for 1 names"},
		{"another id", named(func(r *x509.CertificateRequest) {
			r.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/bank/sa/savings"}}
		}), 400,
			"csr asks for spiffe://cluster.local/ns/bank/sa/savings, but service bank/accounts is spiffe://cluster.local/ns/bank/sa/accounts"},
		{"short key", p.certify("bank/accounts", "a-token-for-accounts", newKey(t, elliptic.P224()), nil), 400, "its elliptic key has 224 bits, 256 at least"},
	} {
		if tt.got.code != tt.code || !strings.Contains(tt.got.Detail, tt.text) {
			t.Errorf("%s: %d %s, want %d with %q", tt.name, tt.got.code, tt.got.Detail, tt.code, tt.text)
		}
	}
	own := named(func(r *x509.CertificateRequest) {
		r.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/bank/sa/accounts"}}
	})
	if own.code != 200 {
		t.Errorf("the service's own id: %d %s", own.code, own.Detail)
	}
	var st map[string]any
	if code := p.call("GET", "https://"+p.Listen+"/v1/status", "", nil, &st, first.pair(t)); code != 200 {
		t.Errorf("status with a certificate: %d", code)
	}
	if code := p.call("GET", "https://"+p.Listen+"/v1/status", "guess", nil, &st); code != 401 {
		t.Errorf("status with a wrong token: %d", code)
	}
}

func TestInsecureGivesNoCertificates(t *testing.T) {
	p := start(t, inSecure)
	p.token("bank/accounts", "a-token-for-accounts")
	var out certified
	if code := p.call("POST", "http://"+p.Listen+"/v1/certificates", "a-token-for-accounts", strings.NewReader("{}"), &out); code != 403 {
		t.Errorf("certificates without TLS: %d %s", code, out.Detail)
	}
}

func TestControlPlaneIsNotReadyWithoutGoodPolicies(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p.yaml"), []byte("nonsense: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, func(c *Config) {
		inSecure(c)
		c.Policies = []string{dir}
	})
	var out struct{ Reasons []string }
	until(t, "the reason is told", func() bool {
		return p.call("GET", "http://"+p.API+"/readyz", "", nil, &out) == 503 && strings.Contains(strings.Join(out.Reasons, ""), "p.yaml:1:")
	})
	p.policies(policy)
	until(t, "it is ready", func() bool { return p.call("GET", "http://"+p.API+"/readyz", "", nil, &out) == 200 })
}
