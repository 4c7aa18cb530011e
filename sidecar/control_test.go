package sidecar

import (
	"context"
	"encoding/pem"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	typePolicies = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
	typePeers    = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeRuntime  = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
)

// plane is a control plane that tells every sidecar of all that have connected, by what their first requests said.
type plane struct {
	t       *testing.T
	caches  map[string]*cachev3.LinearCache
	secure  []grpc.ServerOption
	address string
	server  *grpc.Server
}

func newPlane(t *testing.T) *plane {
	p := &plane{t: t, caches: map[string]*cachev3.LinearCache{}}
	for _, url := range []string{typePolicies, typePeers, typeRuntime} {
		p.caches[url] = cachev3.NewLinearCache(url)
	}
	p.put(typeRuntime, "heartbeat", &runtimev3.Runtime{Name: "heartbeat"})
	p.start("127.0.0.1:0")
	t.Cleanup(func() { p.server.Stop() })
	return p
}

func (p *plane) start(address string) {
	p.t.Helper()
	caches := map[string]cachev3.Cache{}
	for url, c := range p.caches {
		caches[url] = c
	}
	mux := &cachev3.MuxCache{Caches: caches, ClassifyDelta: func(r *cachev3.DeltaRequest) string { return r.GetTypeUrl() }}
	seen := serverv3.CallbackFuncs{StreamDeltaRequestFunc: func(_ int64, r *discoveryv3.DeltaDiscoveryRequest) error {
		if m := r.GetNode().GetMetadata(); m != nil {
			p.put(typePeers, m.Fields["service"].GetStringValue(), &endpointv3.ClusterLoadAssignment{
				ClusterName: m.Fields["service"].GetStringValue(),
				Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
					Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"txmesh": m}}}}}}})
		}
		return nil
	}}
	var l net.Listener
	eventually(p.t, "the port is free", func() (ok bool) { // another test may have got it for a while
		var err error
		l, err = net.Listen("tcp", address)
		return err == nil
	})
	p.address, p.server = l.Addr().String(), grpc.NewServer(p.secure...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(p.server,
		serverv3.NewServer(context.Background(), mux, seen, delta.DeactivateLegacyWildcard()))
	go func(s *grpc.Server) { _ = s.Serve(l) }(p.server) // ends with the test, or before the next one starts
}

func (p *plane) put(url, name string, r types.Resource) {
	p.t.Helper()
	if err := p.caches[url].UpdateResource(name, r); err != nil {
		p.t.Error(err)
	}
}

func (p *plane) policy(name, text string) {
	p.t.Helper()
	a, err := anypb.New(wrapperspb.String(text))
	if err != nil {
		p.t.Fatal(err)
	}
	p.put(typePolicies, name, &corev3.TypedExtensionConfig{Name: name, TypedConfig: a})
}

// by makes a sidecar follow the plane, and nothing else.
func (p *plane) by(c *Config) {
	c.Policies, c.Peers, c.ControlPlane = nil, nil, []string{p.address}
}

func (r *running) ready() (int, string) {
	r.t.Helper()
	res, text := call(r.t, "GET", "http://"+r.API+"/readyz", "")
	return res.StatusCode, text
}

func TestTheControlPlaneBringsPoliciesAndPeers(t *testing.T) {
	p := newPlane(t)
	p.policy("bank/transfer", transferPolicy)
	accounts, savings := newService(t), newService(t)
	side := func(name string, s *service) *running {
		cfg := config(t, name, s.address())
		p.by(&cfg)
		return start(t, cfg)
	}
	aa, as := side("bank/accounts", accounts), side("bank/savings", savings)
	b := newBank(t, p.by, func(c *Config) {
		c.Upstreams[0].To, c.Upstreams[1].To = []string{aa.Inbound}, []string{as.Inbound}
	})
	savings.status = 409
	// The ready line came after the policies, and after the peers: the very first request is a transaction.
	res, _ := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}", "Idempotency-Key", "k1")
	if res.StatusCode != 409 || res.Header.Get("tx-status") != "aborted" {
		t.Errorf("transfer = %d %v, want 409 aborted", res.StatusCode, res.Header)
	}
	if got, want := accounts.saw(), "POST /accounts/alice/withdrawals, DELETE /accounts/alice/withdrawals/e1"; got != want {
		t.Errorf("accounts saw %s, want %s", got, want)
	}
	if status, text := b.at.ready(); status != 200 || text != `{"status":"ready"}`+"\n" {
		t.Errorf("readyz = %d %s", status, text)
	}
	eventually(t, "the metrics show it", func() bool {
		_, text := call(t, "GET", "http://"+b.at.API+"/metrics", "")
		return strings.Contains(text, "txmesh_xds_connected 1\n") && strings.Contains(text, "txmesh_xds_stale 0\n") &&
			strings.Contains(text, `txmesh_xds_last_ack_seconds{type="runtime"}`) && strings.Contains(text, `txmesh_xds_nacks_total{type="policies"} 0`)
	})
	p.policy("bank/transfer", "spec: {}")
	eventually(t, "the refusal shows, and the last good set stays", func() bool {
		status, text := b.at.ready()
		return status == 200 && strings.HasPrefix(text, `{"status":"ready","notes":["control plane: policies refused: bank/transfer:1:1: TXM`)
	})
	res, _ = call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}", "Idempotency-Key", "k2")
	if res.Header.Get("tx-status") != "aborted" {
		t.Errorf("transfer under the last good set = %d %v", res.StatusCode, res.Header)
	}
}

func TestASidecarStartsWithoutItsControlPlane(t *testing.T) {
	p := newPlane(t)
	p.policy("bank/transfer", transferPolicy)
	app := newService(t)
	cfg := config(t, "bank/transfers", app.address())
	p.by(&cfg)
	cfg.ControlPlaneWait = time.Minute // a wait that is over by itself fails the test by its time-out
	if err := start(t, cfg).end(); err != nil {
		t.Fatal(err)
	}
	p.server.Stop()
	cfg.ControlPlaneWait = 50 * time.Millisecond
	s := start(t, cfg)
	res, _ := call(t, "POST", "http://"+s.Inbound+"/transfers", "{}")
	if res.StatusCode != 201 || res.Header.Get("tx-status") != "committed" || !s.Ready {
		t.Errorf("transfer = %d %v, ready line says %v; want a transaction by the policies from disk", res.StatusCode, res.Header, s.Ready)
	}
	eventually(t, "it is ready, and says that it is stale", func() bool {
		status, text := s.ready()
		return status == 200 && strings.HasPrefix(text, `{"status":"ready","notes":["control plane: stale since the start: `)
	})
	eventually(t, "the metrics show it", func() bool {
		_, text := call(t, "GET", "http://"+s.API+"/metrics", "")
		return strings.Contains(text, "txmesh_xds_connected 0\n") && strings.Contains(text, "txmesh_xds_stale 1\n")
	})
	p.start(p.address)
	eventually(t, "it is fresh", func() bool { _, text := s.ready(); return text == `{"status":"ready"}`+"\n" })
}

func TestTheFirstStartWithoutControlPlaneForwardsAlone(t *testing.T) {
	p := newPlane(t)
	p.server.Stop()
	p.policy("bank/transfer", transferPolicy)
	cfg := config(t, "bank/transfers", newService(t).address())
	p.by(&cfg)
	cfg.ControlPlaneWait = 50 * time.Millisecond
	s := start(t, cfg)
	if status, text := s.ready(); status != 503 || !strings.Contains(text, "control plane: no policies yet") || s.Ready {
		t.Errorf("readyz = %d %s, ready line says %v", status, text, s.Ready)
	}
	if res, _ := call(t, "POST", "http://"+s.Inbound+"/transfers", "{}"); res.StatusCode != 201 || res.Header.Get("tx-status") != "" {
		t.Errorf("request = %d %v, want it forwarded as it is", res.StatusCode, res.Header)
	}
	p.start(p.address)
	eventually(t, "it is ready", func() bool { status, _ := s.ready(); return status == 200 })
	if res, _ := call(t, "POST", "http://"+s.Inbound+"/transfers", "{}"); res.Header.Get("tx-status") != "committed" {
		t.Errorf("request = %d %v, want a transaction", res.StatusCode, res.Header)
	}
}

func TestTheControlPlaneProvesWhoItIs(t *testing.T) {
	host := httptest.NewTLSServer(nil)
	t.Cleanup(host.Close)
	file := filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: host.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlane(t)
	p.server.Stop()
	p.secure = []grpc.ServerOption{grpc.Creds(credentials.NewServerTLSFromCert(&host.TLS.Certificates[0]))}
	p.start("127.0.0.1:0")
	cfg := config(t, "bank/transfers", newService(t).address())
	p.by(&cfg)
	cfg.ControlPlaneCA = file
	s := start(t, cfg)
	if status, text := s.ready(); status != 200 {
		t.Errorf("readyz = %d %s", status, text)
	}
	other := newPlane(t) // in plain text
	cfg.ControlPlane, cfg.DataDir, cfg.ControlPlaneWait = []string{other.address}, t.TempDir(), 50*time.Millisecond
	if status, text := start(t, cfg).ready(); status != 503 {
		t.Errorf("readyz without TLS = %d %s, want 503", status, text)
	}
}

func TestReachableAddresses(t *testing.T) {
	s := &Sidecar{cfg: Config{ControlPlane: []string{"127.0.0.1:9"}}}
	for at, want := range map[string]string{"0.0.0.0:0": "127.0.0.1", "127.0.0.1:0": "127.0.0.1"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		if host, port, err := net.SplitHostPort(s.reachable(l, "")); err != nil || host != want || port == "0" {
			t.Errorf("reachable(%s) = %s:%s, %v", at, host, port, err)
		}
		if got := s.reachable(l, "me:1"); got != "me:1" {
			t.Errorf("reachable = %s, want what is advertised", got)
		}
		l.Close()
	}
	if got := s.reachable(nil, ""); got != "" {
		t.Errorf("reachable without a port = %q", got)
	}
}

func TestMistakesAboutTheControlPlane(t *testing.T) {
	base := []string{"--service=a/b", "--app=127.0.0.1:1", "--mesh-secret-file=x"}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"two sources", append(base, "--control-plane=127.0.0.1:1", "--policies=p.yaml"),
			`config: policies: "p.yaml": is given beside a control plane, which brings all policies; hand it to the control plane, or leave out control-plane`},
		{"plain text", append(base, "--control-plane=control:15810,127.0.0.1:1"),
			`config: control-plane: "control:15810": would be called in plain text, which only loopback may be; set control-plane-ca to the file with its roots`},
		{"roots for nothing", append(base, "--control-plane-ca=f"),
			`config: control-plane-ca: "f": is given without a control plane; set control-plane, or leave this out`},
		{"no secret", []string{"--service=a/b", "--app=127.0.0.1:1", "--control-plane=127.0.0.1:1"},
			"config: mesh-secret-file: is missing, but the control plane brings peers; make one file for the whole mesh with `openssl rand -hex 32`"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Load(tt.args, nil, noHelp); err == nil || err.Error() != tt.want {
				t.Errorf("Load = %v, want %s", err, tt.want)
			}
		})
	}
	file := filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(file, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (&Sidecar{}).controlCredentials(file); err == nil || err.Error() != file+" holds no certificate in PEM form" {
		t.Errorf("controlCredentials = %v", err)
	}
}
