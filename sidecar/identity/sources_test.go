package identity

import (
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"txmesh/sidecar/identity/identitytest"
)

// agent serves secrets over a Unix socket, to every stream what was put last.
type agent struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	t      *testing.T
	socket string
	server *grpc.Server

	mu      sync.Mutex // guards all below
	secrets map[string]*tlsv3.Secret
	version int
	changed chan struct{} // closed at the next change
	nacks   []string
	nodes   []string
}

func newAgent(t *testing.T) *agent {
	g := &agent{t: t, socket: filepath.Join(t.TempDir(), "sds.sock"), secrets: map[string]*tlsv3.Secret{}, changed: make(chan struct{})}
	g.serve()
	t.Cleanup(func() { g.server.Stop() })
	return g
}

func (g *agent) serve() {
	l, err := net.Listen("unix", g.socket)
	if err != nil {
		g.t.Fatal(err)
	}
	server := grpc.NewServer()
	secretv3.RegisterSecretDiscoveryServiceServer(server, g)
	g.server = server
	go func() { _ = server.Serve(l) }() // until Stop
}

func inline(data []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: data}}
}

func certSecret(name string, cert, key []byte) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(cert), PrivateKey: inline(key)}}}
}

func rootSecret(name string, roots []byte) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
		TrustedCa: inline(roots)}}}
}

// put changes secrets and tells all streams at once.
func (g *agent) put(secrets ...*tlsv3.Secret) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range secrets {
		g.secrets[s.Name] = s
	}
	g.version++
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *agent) refusedTexts() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.nacks)
}

// StreamSecrets sends what is asked for, one secret a response as SPIRE's agent may, and again after each change.
func (g *agent) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	asked := make(chan *discoveryv3.DiscoveryRequest)
	go func() {
		defer close(asked)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case asked <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	var names []string
	sent := map[string]*tlsv3.Secret{}
	for {
		g.mu.Lock()
		changed, version := g.changed, strconv.Itoa(g.version)
		var due []*tlsv3.Secret
		for _, n := range names {
			if s := g.secrets[n]; s != nil && sent[n] != s {
				due, sent[n] = append(due, s), s
			}
		}
		g.mu.Unlock()
		for _, s := range due {
			packed, err := anypb.New(s)
			if err != nil {
				return err
			}
			if err := stream.Send(&discoveryv3.DiscoveryResponse{VersionInfo: version, Nonce: version + s.Name, TypeUrl: secretType, Resources: []*anypb.Any{packed}}); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case r, open := <-asked:
			if !open {
				return nil
			}
			names = r.ResourceNames
			g.mu.Lock()
			if r.ErrorDetail != nil {
				g.nacks = append(g.nacks, r.ErrorDetail.Message)
			}
			if r.Node != nil {
				g.nodes = append(g.nodes, r.Node.Id)
			}
			g.mu.Unlock()
		}
	}
}

func TestSecretsOfAnAgent(t *testing.T) {
	for _, tt := range []struct{ name, cert, roots string }{
		{"names of SPIRE", "default", "ROOTCA"},
		{"SPIFFE ids", "spiffe://mesh.test/ns/bank/sa/accounts", "spiffe://mesh.test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, a := newAgent(t), identitytest.New(t, domain)
			issue := func(life time.Duration) (cert, key []byte) {
				return a.Issue(a.ID("bank/accounts"), time.Now().Add(-time.Minute), time.Now().Add(life))
			}
			p := newParty(t, domain)
			runs(t, SDS{Socket: g.socket, Node: "me", Name: tt.cert, Roots: tt.roots}, p.Identity)
			cert, key := issue(time.Hour)
			g.put(certSecret(tt.cert, cert, key))
			g.put(rootSecret(tt.roots, a.Bundle()))
			eventually(t, "a certificate is in force", func() bool { return p.Ready() == nil })
			first := p.Expires()
			cert, key = issue(2 * time.Hour)
			g.put(certSecret(tt.cert, cert, key))
			eventually(t, "the next one is", func() bool { return p.Expires().After(first) })

			second := p.Expires()
			foreign, foreignKey := identitytest.New(t, domain).Issue(a.ID("bank/accounts"), time.Now().Add(-time.Minute), time.Now().Add(9*time.Hour))
			g.put(certSecret(tt.cert, foreign, foreignKey))
			eventually(t, "one that does not fit is refused", func() bool { return len(g.refusedTexts()) > 0 })
			if text := g.refusedTexts()[0]; !strings.Contains(text, "does not hold against its own roots") {
				t.Errorf("refused with %q", text)
			}
			if p.Ready() != nil || !p.Expires().Equal(second) {
				t.Errorf("after a refusal: %v, %v, want what was in force", p.Ready(), p.Expires())
			}
		})
	}
}

func TestAnAgentThatRestarts(t *testing.T) {
	g, a := newAgent(t), identitytest.New(t, domain)
	put := func(life time.Duration) {
		cert, key := a.Issue(a.ID("bank/accounts"), time.Now().Add(-time.Minute), time.Now().Add(life))
		g.put(certSecret("default", cert, key), rootSecret("ROOTCA", a.Bundle()))
	}
	put(time.Hour)
	p := newParty(t, domain)
	runs(t, SDS{Socket: g.socket, Node: "me", Name: "default", Roots: "ROOTCA"}, p.Identity)
	eventually(t, "a certificate is in force", func() bool { return p.Ready() == nil })
	first := p.Expires()
	g.server.Stop()
	if p.Ready() != nil {
		t.Errorf("without its agent: %v, want the last certificate", p.Ready())
	}
	put(2 * time.Hour)
	g.serve()
	eventually(t, "the agent is asked again", func() bool { return p.Expires().After(first) })
	if g.nodes[0] != "me" {
		t.Errorf("asked as %q", g.nodes)
	}
}

func TestFilesThatChange(t *testing.T) {
	a, dir := identitytest.New(t, domain), t.TempDir()
	f := Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Roots: filepath.Join(dir, "ca.crt")}
	put := func(life time.Duration) (cert, key []byte) {
		cert, key = a.Issue(a.ID("bank/accounts"), time.Now().Add(-time.Minute), time.Now().Add(life))
		write(t, f.Roots, a.Bundle())
		write(t, f.Cert, cert)
		write(t, f.Key, key)
		return cert, key
	}
	p := newParty(t, domain)
	runs(t, f, p.Identity)
	eventually(t, "it says what is missing", func() bool {
		err := p.Ready()
		return err != nil && strings.Contains(err.Error(), "tls.crt")
	})
	put(time.Hour)
	eventually(t, "a certificate is in force", func() bool { return p.Ready() == nil })
	first := p.Expires()
	cert, _ := a.Issue(a.ID("bank/accounts"), time.Now().Add(-time.Minute), time.Now().Add(3*time.Hour))
	write(t, f.Cert, cert) // its key is not there yet
	eventually(t, "half of a change is not taken", func() bool {
		p.Identity.mu.RLock()
		defer p.Identity.mu.RUnlock()
		return p.cause != ""
	})
	if p.Ready() != nil || !p.Expires().Equal(first) {
		t.Errorf("after half of a change: %v, %v", p.Ready(), p.Expires())
	}
	put(2 * time.Hour)
	eventually(t, "the next one is", func() bool { return p.Expires().After(first) })
}
