package sidecar

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"

	"txmesh/interceptor"
	"txmesh/interceptor/dtm/dtmgimp"
	"txmesh/sidecar/identity"
	"txmesh/sidecar/identity/identitytest"
	"txmesh/sidecar/peer"
	"txmesh/txn"
)

// proven gives a configuration an identity of the authority that takes joins at an address.
func proven(t *testing.T, a *identitytest.Authority, at string, c *Config) {
	t.Helper()
	dir := t.TempDir()
	c.Identity.From, c.Identity.TrustDomain, c.Identity.JoinAddress = "control-plane", a.Domain, at
	for path, data := range map[*string][]byte{&c.Identity.JoinTokenFile: []byte(a.Token), &c.Identity.JoinCAFile: a.Bundle()} {
		*path = filepath.Join(dir, fmt.Sprint(len(data)))
		if err := os.WriteFile(*path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// newProvenBank is a bank whose sidecars have certificates.
func newProvenBank(t *testing.T, a *identitytest.Authority, change ...func(c *Config)) *bank {
	t.Helper()
	at := a.Serve()
	return newBankOf(t, func(c *Config) {
		proven(t, a, at, c)
		for _, f := range change {
			f(c)
		}
	})
}

// counts waits until a line of the metrics is there.
func (r *running) counts(line string) {
	r.t.Helper()
	eventually(r.t, line, func() bool {
		_, text := call(r.t, "GET", "http://"+r.API+"/metrics", "")
		return strings.Contains(text, "\n"+line+"\n")
	})
}

// shown is a client that shows a certificate; none if id is empty.
func shown(t *testing.T, a *identitytest.Authority, id string, from, to time.Time) *http.Client {
	t.Helper()
	c := &tls.Config{InsecureSkipVerify: true}
	if id != "" {
		cert, key := a.Issue(id, from, to)
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	trip := &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}
	t.Cleanup(trip.CloseIdleConnections)
	return &http.Client{Transport: trip}
}

func TestTransferOverCertificates(t *testing.T) {
	for _, services := range []string{"off", "permissive", "strict"} {
		t.Run(services, func(t *testing.T) {
			a := identitytest.New(t, "mesh.test")
			b := newProvenBank(t, a, func(c *Config) { c.Identity.Services = services })
			res, text := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}", "Idempotency-Key", "k1")
			if res.StatusCode != 201 || res.Header.Get("tx-status") != "committed" {
				t.Errorf("transfer = %d %s %v, want 201 committed", res.StatusCode, text, res.Header)
			}
			b.savings.status = 409
			res, _ = call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}", "Idempotency-Key", "k2")
			if res.StatusCode != 409 || res.Header.Get("tx-status") != "aborted" {
				t.Errorf("refused transfer = %d %v, want 409 aborted", res.StatusCode, res.Header)
			}
			if got, want := b.accounts.saw(), "POST /accounts/alice/withdrawals, POST /accounts/alice/withdrawals, DELETE /accounts/alice/withdrawals/e1"; got != want {
				t.Errorf("accounts saw %s, want %s", got, want)
			}
			id, err := b.at.client.Identity(t.Context(), b.aa.Peer)
			if want := (peer.Identity{Owner: b.aa.Owner, Incarnation: id.Incarnation, Service: "bank/accounts", Inbound: b.aa.Inbound,
				TLS: services != "off", SPIFFE: "spiffe://mesh.test/ns/bank/sa/accounts"}); err != nil || id != want {
				t.Errorf("identity %+v, %v, want %+v", id, err, want)
			}
		})
	}
}

func TestThePeerPortRefusesWhoIsNotOfTheMesh(t *testing.T) {
	a, other := identitytest.New(t, "mesh.test"), identitytest.New(t, "mesh.test")
	at := a.Serve()
	cfg := config(t, "bank/accounts", newService(t).address())
	proven(t, a, at, &cfg)
	r := start(t, cfg)
	now := time.Now()
	for _, tt := range []struct {
		name   string
		client *http.Client
		seen   string
		line   string
	}{
		{"no certificate", shown(t, a, "", now, now), "certificate required", `txmesh_tls_refused_total{by="self",reason="no_certificate"} 1`},
		{"foreign certificate", shown(t, other, other.ID("bank/x"), now.Add(-time.Hour), now.Add(time.Hour)), "unknown certificate authority",
			`txmesh_tls_refused_total{by="self",reason="foreign"} 1`},
		{"expired certificate", shown(t, a, a.ID("bank/x"), now.Add(-time.Hour), now.Add(-time.Minute)), "expired certificate",
			`txmesh_tls_refused_total{by="self",reason="expired"} 1`},
		{"no SPIFFE id", shown(t, a, "https://mesh.test/x", now.Add(-time.Hour), now.Add(time.Hour)), "bad certificate",
			`txmesh_tls_refused_total{by="self",reason="not_authorised"} 1`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := tt.client.Get("https://" + r.Peer + "/v1/identity")
			if err == nil {
				res.Body.Close()
				t.Fatalf("answered %d", res.StatusCode)
			}
			if !strings.Contains(err.Error(), tt.seen) {
				t.Errorf("client sees %v, want %s", err, tt.seen)
			}
			r.counts(tt.line)
		})
	}
	res, text := call(t, "GET", "http://"+r.Peer+"/v1/identity", "")
	if res.StatusCode != 400 || !strings.Contains(text, "wants TLS with a certificate") {
		t.Errorf("plain request = %d %s", res.StatusCode, text)
	}
	r.counts(`txmesh_tls_refused_total{by="self",reason="plain"} 1`)

	// A certificate is one factor, the mesh secret the other.
	member := shown(t, a, a.ID("bank/x"), now.Add(-time.Hour), now.Add(time.Hour))
	res, err := member.Get("https://" + r.Peer + "/v1/identity")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 401 {
		t.Errorf("certificate without the secret = %d, want 401", res.StatusCode)
	}
	r.counts(`txmesh_peer_refused_total{cause="unsigned"} 1`)
}

// A mesh gets its identities one sidecar after the other.
func TestTurningIdentityOnDropsNothing(t *testing.T) {
	a := identitytest.New(t, "mesh.test")
	at := a.Serve()
	for _, first := range []string{"bank/accounts", "bank/transfers"} {
		t.Run(first, func(t *testing.T) {
			b := newBankOf(t, func(c *Config) {
				if c.Service != first {
					return
				}
				proven(t, a, at, c)
				c.Identity.Peers = "permissive"
				c.Identity.Services = "permissive"
			})
			b.savings.status = 409
			res, _ := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}")
			if res.StatusCode != 409 || res.Header.Get("tx-status") != "aborted" {
				t.Errorf("transfer = %d %v, want 409 aborted", res.StatusCode, res.Header)
			}
			if got, want := b.accounts.saw(), "POST /accounts/alice/withdrawals, DELETE /accounts/alice/withdrawals/e1"; got != want {
				t.Errorf("accounts saw %s, want %s", got, want)
			}
		})
	}
}

// What was sent once is not believed a second time, whoever brings it.
func TestAReplayedRelayIsRefusedAndCounted(t *testing.T) {
	r := start(t, config(t, "bank/accounts", newService(t).address()))
	auth := authOf(t)
	body := []byte(`{"tx":"` + r.Owner + `.1","branch":{"key":"k"}}`)
	h := http.Header{}
	auth.Sign(h, "POST", "/v1/enlist", body)
	send := func() int {
		req, err := http.NewRequest("POST", "http://"+r.Peer+"/v1/enlist", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = h.Clone()
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body) // the status tells all
		return res.StatusCode
	}
	if got := [2]int{send(), send()}; got != [2]int{404, 401} {
		t.Errorf("a relay and its replay = %v, want 404 (no such transaction) and 401", got)
	}
	r.counts(`txmesh_peer_refused_total{cause="replayed"} 1`)
}

// A context that no sidecar of the mesh signed opens and joins nothing.
func TestAForgedContextJoinsNothing(t *testing.T) {
	b := newBank(t)
	res, _ := call(t, "POST", "http://"+b.aa.Inbound+"/accounts/alice/withdrawals", "{}",
		"tx-context", "1."+b.at.Owner+".01JD3ZK0000000000000000000.0.zzzzzz.AAAAAAAAAAAAAAAAAAAAAA", "tx-branch", b.at.Owner+".01JD3ZK0000000000000000000-0", "tx-op", "undo")
	if res.StatusCode != 201 {
		t.Errorf("call with a forged context = %d, want 201: it passes as any other", res.StatusCode)
	}
	if h := b.accounts.headers[0]; h.Get("tx-context") != "" || h.Get("tx-op") != "" || h.Get("tx-branch") != "" {
		t.Errorf("the application saw %v", h)
	}
	b.aa.counts("txmesh_context_forged_total 1")
}

func TestAnOperatorNeedsTheToken(t *testing.T) {
	b := newBank(t)
	for _, path := range []string{"POST /v1/transactions", "GET /v1/transactions", "POST /v1/transactions/x/stop", "GET /debug/pprof/"} {
		method, path, _ := strings.Cut(path, " ")
		for _, token := range []string{"", "Bearer wrong", "Basic " + b.at.token} {
			if res, _ := call(t, method, "http://"+b.at.API+path, "{}", "Authorization", token); res.StatusCode != 401 || res.Header.Get("tx-error") != "TXM0300" {
				t.Errorf("%s %s with %q = %d %s, want 401 TXM0300", method, path, token, res.StatusCode, res.Header.Get("tx-error"))
			}
		}
	}
	b.at.counts(`txmesh_denied_total{act="start",reason="no_token"} 3`)
	b.at.counts(`txmesh_denied_total{act="operate",reason="no_token"} 9`)
}

func TestTheAPIIsBoundToThisHost(t *testing.T) {
	for _, k := range keys() {
		host, _, err := net.SplitHostPort(k.def)
		if k.name == "api" && (err != nil || !net.ParseIP(host).IsLoopback()) {
			t.Errorf("api is at %s by default", k.def)
		}
	}
}

// Certificates that live for seconds are renewed under load, and no request notices.
func TestRotationDropsNothing(t *testing.T) {
	a := identitytest.New(t, "mesh.test")
	a.Life = 3 * time.Second
	b := newProvenBank(t, a, func(c *Config) { c.Identity.Services = "strict" })
	renewals := func() map[string]int {
		n := map[string]int{}
		for _, j := range a.Joins() {
			if j.Caller != "" {
				n[j.Service]++
			}
		}
		return n
	}
	transfers := 0
	for end := time.Now().Add(20 * time.Second); ; transfers++ {
		n := renewals()
		if n["bank/transfers"] >= 2 && n["bank/accounts"] >= 2 && n["bank/savings"] >= 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("renewals after 20 s: %v", n)
		}
		if transfers%50 == 25 { // so that new connections are made under each certificate
			b.at.client.Close()
		}
		res, text := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}", "Idempotency-Key", fmt.Sprint("k", transfers))
		if res.StatusCode != 201 {
			t.Fatalf("transfer %d = %d %s after %v renewals", transfers, res.StatusCode, text, n)
		}
	}
	t.Logf("%d transfers while certificates changed: %v", transfers, renewals())
	for _, r := range []*running{b.at, b.aa, b.as} {
		_, text := call(t, "GET", "http://"+r.API+"/metrics", "")
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "txmesh_tls_refused_total") && !strings.HasSuffix(line, " 0\n") {
				t.Errorf("%s counted %s", r.Service, line)
			}
		}
	}
}

// A sidecar without a certificate runs, is not ready and says why; it is ready as soon as it has one.
func TestASidecarWaitsForItsCertificate(t *testing.T) {
	a := identitytest.New(t, "mesh.test")
	at := a.Serve()
	a.Down(true)
	cfg := config(t, "bank/accounts", newService(t).address())
	proven(t, a, at, &cfg)
	r := start(t, cfg)
	res, text := call(t, "GET", "http://"+r.API+"/readyz", "")
	if res.StatusCode != 503 || !strings.Contains(text, "identity: no valid certificate: the control plane refused the join: 503 down") {
		t.Errorf("readyz = %d %s", res.StatusCode, text)
	}
	a.Down(false)
	eventually(t, "it is ready", func() bool {
		res, _ := call(t, "GET", "http://"+r.API+"/readyz", "")
		return res.StatusCode == 200
	})
	r.counts(`txmesh_certificates_total{result="ok"} 1`)
}

const accessPolicy = `apiVersion: txmesh.io/v1beta1
kind: AccessPolicy
metadata: {name: branches, namespace: bank}
spec:
  services: [accounts, savings]
  rules:
  - {from: [transfers], may: [join]}
---
apiVersion: txmesh.io/v1beta1
kind: AccessPolicy
metadata: {name: roots, namespace: bank}
spec:
  services: [transfers]
  rules:
  - {from: ["spiffe://mesh.test/ns/edge/sa/gateway"], may: [start], requests: [{method: POST, path: /transfers}]}
  - {from: ["spiffe://mesh.test/ns/ops/**"], may: [operate]}
`

// governed adds the access policies.
func governed(t *testing.T, c *Config) {
	t.Helper()
	c.Policies = append(c.Policies, writeFile(t, accessPolicy))
}

func TestAccessPoliciesAreHeldTo(t *testing.T) {
	a := identitytest.New(t, "mesh.test")
	b := newProvenBank(t, a, func(c *Config) {
		c.Identity.Services = "strict"
		governed(t, c)
	})
	now := time.Now()
	as := func(id string) *http.Client { return shown(t, a, id, now.Add(-time.Minute), now.Add(time.Hour)) }
	transfer := func(c *http.Client, scheme string) (int, string) {
		res, err := c.Post(scheme+"://"+b.at.Inbound+"/transfers", "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode, res.Header.Get("tx-error") + res.Header.Get("tx-status")
	}
	for _, tt := range []struct {
		name   string
		client *http.Client
		scheme string
		status int
		said   string
	}{
		{"no certificate", &http.Client{}, "http", 403, "TXM0128"},
		{"certificate without the right", as("spiffe://mesh.test/ns/edge/sa/other"), "https", 403, "TXM0128"},
		{"certificate with the right", as("spiffe://mesh.test/ns/edge/sa/gateway"), "https", 201, "committed"},
	} {
		if status, said := transfer(tt.client, tt.scheme); status != tt.status || said != tt.said {
			t.Errorf("%s: transfer = %d %s, want %d %s", tt.name, status, said, tt.status, tt.said)
		}
	}
	if got := b.accounts.saw() + "; " + b.savings.saw(); got != "POST /accounts/alice/withdrawals; POST /accounts/bob/deposits" {
		t.Errorf("services saw %s", got)
	}
	b.savings.status = 409 // undo goes to the home over the peer port
	if status, said := transfer(as("spiffe://mesh.test/ns/edge/sa/gateway"), "https"); status != 409 || said != "aborted" {
		t.Errorf("refused transfer = %d %s, want 409 aborted", status, said)
	}
	if got := b.accounts.saw(); !strings.HasSuffix(got, "DELETE /accounts/alice/withdrawals/e1") {
		t.Errorf("accounts saw %s, want an undo at the end", got)
	}
	b.at.counts(`txmesh_denied_total{act="start",reason="no_certificate"} 1`)
	b.at.counts(`txmesh_denied_total{act="start",reason="not_authorised"} 1`)

	for id, want := range map[string]int{"spiffe://mesh.test/ns/ops/sa/anna": 404, "spiffe://mesh.test/ns/edge/sa/gateway": 403, "": 401} {
		res, err := as(id).Post("https://"+b.at.API+"/v1/transactions/"+b.at.Owner+".X/stop", "application/json", strings.NewReader(`{"by":"anna","why":"ticket 1"}`))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("stop by %q = %d, want %d", id, res.StatusCode, want)
		}
	}
	b.at.counts(`txmesh_denied_total{act="operate",reason="not_authorised"} 1`)
	b.at.counts(`txmesh_denied_total{act="operate",reason="no_token"} 1`)
}

const accessOfDTM = `apiVersion: txmesh.io/v1beta1
kind: AccessPolicy
metadata: {name: initiators, namespace: bank}
spec:
  services: [transfers]
  rules:
  - {from: [orders], may: [start, decide]}
`

// A rule for everybody can be held to the ports of DTM.
func TestEverybodyMayBeLetInAtTheDoorOfDTMAlone(t *testing.T) {
	cfg := config(t, "bank/transfers", newService(t).address(), transferPolicy)
	cfg.DTM.HTTP = "127.0.0.1:0"
	rule := `{from: ["*"], may: [start, decide], requests: [{path: "/api/dtmsvr/{operation}"}, {path: "/dtmgimp.Dtm/{method}"}]}`
	cfg.Policies = append(cfg.Policies, writeFile(t, strings.Replace(accessOfDTM, "{from: [orders], may: [start, decide]}", rule, 1)))
	r := start(t, cfg)
	if res, text := call(t, "POST", "http://"+r.DTM+"/api/dtmsvr/prepare", `{"gid":"h","trans_type":"tcc"}`); res.StatusCode != 200 {
		t.Errorf("prepare = %d %s, want 200", res.StatusCode, text)
	}
	if res, text := call(t, "POST", "http://"+r.Inbound+"/transfers", "{}"); res.StatusCode != 403 {
		t.Errorf("transfer = %d %s, want 403", res.StatusCode, text)
	}
}

func TestClientsOfDTMAreHeldToAccessPolicies(t *testing.T) {
	a := identitytest.New(t, "mesh.test")
	cfg := config(t, "bank/transfers", newService(t).address())
	proven(t, a, a.Serve(), &cfg)
	cfg.DTM.HTTP, cfg.DTM.GRPC = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Policies = append(cfg.Policies, writeFile(t, accessOfDTM))
	r := start(t, cfg)
	now := time.Now()
	for i, tt := range []struct {
		name, id, scheme string
		prepare, stop    int // over HTTP
		code             codes.Code
	}{
		{"no certificate", "", "http", 403, 403, codes.PermissionDenied},
		{"TLS without a certificate", "", "https", 403, 403, codes.PermissionDenied},
		{"certificate without the right", a.ID("bank/other"), "https", 403, 403, codes.PermissionDenied},
		{"certificate with the right", a.ID("bank/orders"), "https", 200, 403, codes.OK}, // it may not operate
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := shown(t, a, tt.id, now.Add(-time.Hour), now.Add(time.Hour))
			post := func(path string) int {
				body := strings.NewReader(fmt.Sprintf(`{"gid":"h%d","trans_type":"tcc"}`, i))
				res, err := client.Post(tt.scheme+"://"+r.DTM+"/api/dtmsvr/"+path, "application/json", body)
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				return res.StatusCode
			}
			if prepare, stop := post("prepare"), post("forceStop"); prepare != tt.prepare || stop != tt.stop {
				t.Errorf("prepare = %d, forceStop = %d; want %d and %d", prepare, stop, tt.prepare, tt.stop)
			}
			creds := insecure.NewCredentials()
			if tt.scheme == "https" {
				creds = credentials.NewTLS(client.Transport.(*http.Transport).TLSClientConfig.Clone())
			}
			conn, err := grpc.NewClient(r.DTMGRPC, grpc.WithTransportCredentials(creds))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }() // nothing is under way
			_, err = dtmgimp.NewDtmClient(conn).Prepare(t.Context(), &dtmgimp.DtmRequest{Gid: fmt.Sprint("g", i), TransType: "tcc"})
			if grpcstatus.Code(err) != tt.code {
				t.Errorf("Prepare over gRPC = %v, want %v", err, tt.code)
			}
		})
	}
	r.counts(`txmesh_denied_total{act="start",reason="no_certificate"} 4`)
	r.counts(`txmesh_denied_total{act="start",reason="not_authorised"} 2`)
	r.counts(`txmesh_denied_total{act="operate",reason="not_authorised"} 2`)
}

// A call with a context is only as good as who brings it, and so is a message of a sidecar.
func TestWhoMayNotJoinDoesNot(t *testing.T) {
	a := identitytest.New(t, "mesh.test")
	b := newProvenBank(t, a, func(c *Config) { // calls between services show no certificate here
		if c.Service != "bank/transfers" {
			governed(t, c)
		}
	})
	res, text := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}")
	if res.StatusCode < 400 || b.accounts.saw() != "" {
		t.Errorf("transfer = %d %s, and accounts saw %q; want a refusal and nothing", res.StatusCode, text, b.accounts.saw())
	}
	b.aa.counts(`txmesh_denied_total{act="join",reason="no_certificate"} 1`)

	// A context alone, that is no branch, joins as well.
	var begun struct{ Context string }
	if status, text := b.at.api("POST", "/v1/transactions", "{}"); status != 201 || json.Unmarshal([]byte(text), &begun) != nil {
		t.Fatalf("begin = %d %s", status, text)
	}
	if res, text := call(t, "POST", "http://"+b.aa.Inbound+"/x", "{}", "tx-context", begun.Context); res.StatusCode != 403 || res.Header.Get("tx-error") != "TXM0128" {
		t.Errorf("call with a context = %d %s, want 403 TXM0128", res.StatusCode, text)
	}
	if res, text := call(t, "POST", "http://"+b.aa.Inbound+"/x", "{}"); res.StatusCode != 201 {
		t.Errorf("call without a context = %d %s, want 201", res.StatusCode, text)
	}

	// Savings may not take part in what accounts owns.
	id := txn.ID(b.aa.Owner + ".X")
	direct := peer.NewClient(authOf(t), time.Second, func(context.Context, string) (string, error) { return b.aa.Peer, nil })
	direct.Secured(peer.Proof{Service: "bank/savings", Dial: b.as.identity.Dial, Of: identity.Callee, Refused: b.as.disbelieved,
		Serves: func(string) string { return "" }})
	defer direct.Close()
	if _, err := direct.Enlist(t.Context(), b.aa.Owner, id, txn.Enlist{Branch: txn.Branch{Key: "k"}}, nil); !errors.Is(err, interceptor.ErrDenied) {
		t.Errorf("enlist by savings at accounts = %v, want ErrDenied", err)
	}
	b.aa.counts(`txmesh_denied_total{act="join",reason="not_authorised"} 1`)
}

// A sidecar takes part as long as it shows the certificate of the service that it says it is, and no longer.
func TestASidecarIsTheServiceOfItsCertificate(t *testing.T) {
	a := identitytest.New(t, "mesh.test")
	at := a.Serve()
	of := func(name string) Config {
		c := config(t, name, newService(t).address(), transferPolicy)
		proven(t, a, at, &c)
		return c
	}
	transfers, savings := start(t, of("bank/transfers")), start(t, of("bank/savings"))
	cfg := of("bank/accounts")
	file := filepath.Join(t.TempDir(), "certificate.pem")
	shows := func(service string) {
		t.Helper()
		cert, key := a.Issue(a.ID(service), time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		if err := errors.Join(os.WriteFile(file+".new", append(cert, key...), 0o600), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
	shows("bank/accounts")
	cfg.Identity.From, cfg.Identity.CertFile, cfg.Identity.KeyFile, cfg.Identity.CAFile = "files", file, file, cfg.Identity.JoinCAFile
	cfg.Peers = []string{transfers.Peer, savings.Peer}
	cfg.Upstreams = []Upstream{{Service: "bank/savings", Listen: "127.0.0.1:0", To: []string{savings.Inbound}}}
	accounts := start(t, cfg)
	deposit := func() (*http.Response, string) {
		var begun struct{ Context string }
		if status, text := transfers.api("POST", "/v1/transactions", "{}"); status != 201 || json.Unmarshal([]byte(text), &begun) != nil {
			t.Fatalf("begin = %d %s", status, text)
		}
		return call(t, "POST", "http://"+accounts.Upstreams["bank/savings"]+"/accounts/bob/deposits", "{}", "tx-context", begun.Context)
	}
	ready := func() (int, string) {
		res, text := call(t, "GET", "http://"+accounts.API+"/readyz", "")
		return res.StatusCode, text
	}
	if res, text := deposit(); res.StatusCode != 201 {
		t.Errorf("deposit under its own certificate = %d %s, want 201", res.StatusCode, text)
	}

	shows("bank/other")
	eventually(t, "it is not ready", func() bool { status, _ := ready(); return status == 503 })
	if _, text := ready(); !strings.Contains(text, "service is bank/accounts, but the certificate spiffe://mesh.test/ns/bank/sa/other is of bank/other") {
		t.Errorf("readyz = %s", text)
	}
	accounts.client.Close() // connections that exist go on
	res, text := deposit()
	if res.StatusCode != 403 || res.Header.Get("tx-error") != "TXM0131" || !strings.Contains(text, "bank/accounts") || !strings.Contains(text, "bank/other") {
		t.Errorf("deposit under another's certificate = %d %s, want 403 TXM0131 that names both", res.StatusCode, text)
	}
	eventually(t, "it is counted", func() bool { // as often as it asked, which it does by itself as well
		_, text := call(t, "GET", "http://"+transfers.API+"/metrics", "")
		return !strings.Contains(text, `txmesh_peer_refused_total{cause="mismatch"} 0`)
	})

	// Nor does anybody believe what it says of itself.
	if _, err := transfers.client.Identity(t.Context(), accounts.Peer); !errors.Is(err, interceptor.ErrMismatch) {
		t.Errorf("identity under another's certificate = %v, want ErrMismatch", err)
	}

	shows("bank/accounts")
	eventually(t, "it is ready", func() bool { status, _ := ready(); return status == 200 })
	accounts.client.Close()
	if res, text := deposit(); res.StatusCode != 201 {
		t.Errorf("deposit under its own certificate again = %d %s, want 201", res.StatusCode, text)
	}
}

func authOf(t *testing.T) *peer.Auth {
	t.Helper()
	auth, err := peer.NewAuth([]byte(meshSecret), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return auth
}
