package xds

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	cachetypes "github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"txmesh/policies"
)

// plane is a control plane made of go-control-plane's own server and caches.
type plane struct {
	t      *testing.T
	caches map[string]*cachev3.LinearCache

	mu       sync.Mutex // guards all below
	opened   int
	requests []*discoveryv3.DeltaDiscoveryRequest
	sent     []*discoveryv3.DeltaDiscoveryResponse
	address  string
	server   *grpc.Server
}

func newPlane(t *testing.T) *plane {
	p := &plane{t: t, caches: map[string]*cachev3.LinearCache{}}
	for _, url := range []string{typePolicies, typePeers, typeSecrets, typeRuntime} {
		p.caches[url] = cachev3.NewLinearCache(url)
	}
	p.start("127.0.0.1:0")
	t.Cleanup(p.stop)
	p.beat()
	return p
}

// start serves, with caches as they are.
func (p *plane) start(address string) {
	p.t.Helper()
	caches := map[string]cachev3.Cache{}
	for url, c := range p.caches {
		caches[url] = c
	}
	mux := &cachev3.MuxCache{Caches: caches, Classify: func(r *cachev3.Request) string { return r.GetTypeUrl() },
		ClassifyDelta: func(r *cachev3.DeltaRequest) string { return r.GetTypeUrl() }}
	callbacks := serverv3.CallbackFuncs{
		DeltaStreamOpenFunc: func(context.Context, int64, string) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.opened++
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, r *discoveryv3.DeltaDiscoveryRequest) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.requests = append(p.requests, proto.Clone(r).(*discoveryv3.DeltaDiscoveryRequest))
			return nil
		},
		StreamDeltaResponseFunc: func(_ int64, _ *discoveryv3.DeltaDiscoveryRequest, r *discoveryv3.DeltaDiscoveryResponse) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.sent = append(p.sent, proto.Clone(r).(*discoveryv3.DeltaDiscoveryResponse))
		}}
	l, err := net.Listen("tcp", address)
	if err != nil {
		p.t.Fatal(err)
	}
	server := grpc.NewServer()
	ctx, cancel := context.WithCancel(context.Background())
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, serverv3.NewServer(ctx, mux, callbacks, delta.DeactivateLegacyWildcard()))
	p.mu.Lock()
	p.address, p.server = l.Addr().String(), server
	p.mu.Unlock()
	go func() {
		defer cancel()
		_ = server.Serve(l) // ends with stop
	}()
}

func (p *plane) stop() { p.server.Stop() }

func (p *plane) put(url, name string, r cachetypes.Resource) {
	p.t.Helper()
	if err := p.caches[url].UpdateResource(name, r); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) remove(url, name string) {
	p.t.Helper()
	if err := p.caches[url].DeleteResource(name); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) beat() {
	p.runtime("heartbeat", map[string]any{"at": time.Now().Format(time.RFC3339Nano)})
}

func (p *plane) runtime(name string, layer map[string]any) {
	p.t.Helper()
	s, err := structpb.NewStruct(layer)
	if err != nil {
		p.t.Fatal(err)
	}
	p.put(typeRuntime, name, &runtimev3.Runtime{Name: name, Layer: s})
}

func (p *plane) policy(name, text string) {
	p.t.Helper()
	p.put(typePolicies, name, policyResource(p.t, name, text))
}

func policyResource(t testing.TB, name, text string) *corev3.TypedExtensionConfig {
	t.Helper()
	a, err := anypb.New(wrapperspb.String(text))
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.TypedExtensionConfig{Name: name, TypedConfig: a}
}

func (p *plane) peers(service string, nodes ...Node) {
	p.t.Helper()
	p.put(typePeers, service, assignment(p.t, service, nodes...))
}

func assignment(t testing.TB, service string, nodes ...Node) *endpointv3.ClusterLoadAssignment {
	t.Helper()
	var all []*endpointv3.LbEndpoint
	for _, n := range nodes {
		m, err := structpb.NewStruct(map[string]any{"owner": n.Owner, "incarnation": n.Incarnation, "service": n.Service,
			"inbound": n.Inbound, "peer": n.Peer, "home": n.Home, "version": n.Version, "standby": n.Standby})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{
				Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "127.0.0.1",
					PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 1}}}}}},
			Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{metadataName: m}}})
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: service, Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: all}}}
}

func (p *plane) secret(name string, s *tlsv3.Secret) {
	p.t.Helper()
	s.Name = name
	p.put(typeSecrets, name, s)
}

func inline(data string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte(data)}}
}

// seen returns the requests of a type so far.
func (p *plane) seen(url string) []*discoveryv3.DeltaDiscoveryRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*discoveryv3.DeltaDiscoveryRequest
	for _, r := range p.requests {
		if r.TypeUrl == url {
			out = append(out, r)
		}
	}
	return out
}

// answers returns the responses of a type so far.
func (p *plane) answers(url string) []*discoveryv3.DeltaDiscoveryResponse {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*discoveryv3.DeltaDiscoveryResponse
	for _, r := range p.sent {
		if r.TypeUrl == url {
			out = append(out, r)
		}
	}
	return out
}

func (p *plane) streams() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened
}

// nacks returns what refusals of a type said.
func (p *plane) nacks(url string) []string {
	var out []string
	for _, r := range p.seen(url) {
		if r.ErrorDetail != nil {
			out = append(out, r.ErrorDetail.Message)
		}
	}
	return out
}

// follower is a client under test and what it has handed over.
type follower struct {
	*Client
	t    *testing.T
	stop func()

	mu        sync.Mutex // guards all below
	set       *policies.Set
	fleet     Fleet
	takeovers []Takeover
	secrets   map[string]string
	acks      map[string]int
	nacked    map[string]int
	fail      error // of the hook Policies
}

var self = Node{Owner: "01jd0000000aa", Incarnation: "I1", Service: "bank/transfers", Inbound: "127.0.0.1:1", Peer: "127.0.0.1:2", Version: "test"}

// newFollower returns a client that was not started.
func newFollower(t *testing.T, opt Options) *follower {
	t.Helper()
	f := &follower{t: t, secrets: map[string]string{}, acks: map[string]int{}, nacked: map[string]int{}}
	held := func(do func()) {
		f.mu.Lock()
		defer f.mu.Unlock()
		do()
	}
	opt.Policies = func(_ context.Context, s *policies.Set) (err error) {
		held(func() {
			if err = f.fail; err == nil {
				f.set = s
			}
		})
		return err
	}
	opt.Peers = func(fleet Fleet) { held(func() { f.fleet = fleet }) }
	opt.Takeovers = func(ts []Takeover) { held(func() { f.takeovers = ts }) }
	opt.Roots = func(pem []byte) error { held(func() { f.secrets["roots"] = string(pem) }); return nil }
	opt.MeshSecret = func(s []byte) error { held(func() { f.secrets["mesh"] = string(s) }); return nil }
	opt.Observer = Observer{Acked: func(k string) { held(func() { f.acks[k]++ }) }, Nacked: func(k string) { held(func() { f.nacked[k]++ }) }}
	if opt.Log == nil {
		opt.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	if opt.SaveAfter == 0 {
		opt.SaveAfter = time.Millisecond
	}
	opt.BackoffMax = 100 * time.Millisecond
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	f.Client = c
	return f
}

// follow restores and runs a client until the test ends.
func follow(t *testing.T, opt Options) *follower {
	t.Helper()
	f := newFollower(t, opt)
	if err := f.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.run()
	return f
}

func (f *follower) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx, self)
	}()
	f.stop = func() { cancel(); <-done }
	f.t.Cleanup(f.stop)
}

// rules names the policies in force.
func (f *follower) rules() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.set == nil {
		return "none"
	}
	text := ""
	for _, c := range f.set.Calls() {
		text += c.Name + " "
	}
	return text
}

func (f *follower) sidecars() Fleet {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fleet
}

// eventually waits for what another goroutine brings about.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it never came true: %s", what)
		}
	}
}
