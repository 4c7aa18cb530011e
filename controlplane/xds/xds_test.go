package xds

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"txmesh/controlplane/xdstest"
)

// clock is set by hand.
type clock struct {
	mu sync.Mutex // guards at
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func newBench(t *testing.T) *bench {
	return newBenchAt(t, time.Now, func() (Caller, error) { return Caller{}, nil })
}

func newBenchAt(t *testing.T, now func() time.Time, who func() (Caller, error)) *bench {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, address: l.Addr().String(), refused: map[Cause]int{}, joined: make(chan *core.Node, 16), left: make(chan *core.Node, 16), changed: make(chan string, 64)}
	b.server = New(Options{Credentials: insecure.NewCredentials(), Authenticate: func(context.Context) (Caller, error) { return who() },
		Joined: func(_ string, n *core.Node) error {
			if n.GetMetadata() == nil {
				return errors.New("node has no metadata")
			}
			b.joined <- n
			return nil
		},
		Left: func(_ string, n *core.Node) { b.left <- n }, Changed: func(n *core.Node) { b.changed <- n.GetId() }, Answered: func(bool, bool) {},
		Refused: func(c Cause) { b.refused[c]++ }, Beat: 10 * time.Second, Now: now, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	done := make(chan error, 1)
	go func() { done <- b.server.Serve(l) }()
	t.Cleanup(func() {
		b.server.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

func member(service string) func() (Caller, error) {
	return func() (Caller, error) { return Caller{Known: true, Service: service}, nil }
}

func TestStreamsMustBeWhoTheySay(t *testing.T) {
	other := xdstest.Node("A", "bank/savings", "127.0.0.1:1000", nil)
	for _, tt := range []struct {
		name  string
		who   func() (Caller, error)
		node  *core.Node
		code  codes.Code
		cause Cause
		text  string
	}{
		{"no certificate", func() (Caller, error) { return Caller{}, errors.New("nobody") }, other, codes.Unauthenticated, CauseUnknown, "nobody"},
		{"certificate of another service", member("bank/accounts"), other, codes.PermissionDenied, CauseMismatch,
			"node says that it is of bank/savings, its certificate is of bank/accounts"},
		{"no cluster", member("bank/accounts"), &core.Node{Id: "A/1", Metadata: other.Metadata}, codes.PermissionDenied, CauseMismatch, "node says that it is of ,"},
		{"no node", member("bank/savings"), nil, codes.InvalidArgument, CauseNode, "no node"},
		{"a node that cannot be read", member("bank/savings"), &core.Node{Id: "A/1", Cluster: "bank/savings"}, codes.InvalidArgument, CauseNode, "no metadata"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBenchAt(t, time.Now, tt.who)
			c := b.open("", tt.node).Read()
			c.Subscribe(policyType, "*")
			err := c.End()
			if status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("end = %v, want %v with %q", err, tt.code, tt.text)
			}
			b.server.Close() // and with it the streams' goroutines
			if d := cmp.Diff(map[Cause]int{tt.cause: 1}, b.refused); d != "" {
				t.Errorf("refused (-want +got):\n%s", d)
			}
			if len(b.joined)+len(b.left) > 0 {
				t.Error("a refused stream joined or left")
			}
		})
	}
}

func TestNodeStaysTheSameWithinAStream(t *testing.T) {
	b := newBench(t)
	c := b.client("A")
	c.Subscribe("x", "*")
	c.Next()
	r := &xdstest.Request{TypeUrl: "x", ResourceNamesSubscribe: []string{"*"}}
	c.SetNode(b.node("B"))
	c.Send(r)
	if err := c.End(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "within a stream") {
		t.Errorf("end = %v", err)
	}
	if n := <-b.left; n.GetId() != "A/1" {
		t.Errorf("left = %v", n.GetId())
	}
}

func TestSecretsNeedACertificate(t *testing.T) {
	for _, tt := range []struct {
		name string
		who  func() (Caller, error)
		want []string
	}{
		{"anonymous", func() (Caller, error) { return Caller{}, nil }, []string{}},
		{"anonymous that claims a scope", func() (Caller, error) { return Caller{}, nil }, []string{}},
		{"member", member("bank/accounts"), []string{"ROOTCA", "mesh-secret"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBenchAt(t, time.Now, tt.who)
			if err := b.server.SetSecrets([]byte("roots"), []byte("secret")); err != nil {
				t.Fatal(err)
			}
			n := b.node("A")
			n.UserAgentName = scopeMember
			c := b.open("", n).Read()
			c.Subscribe(resource.RuntimeType, "*") // the first request has the node; later ones are as good
			c.Ack(c.Next())
			c.Subscribe(resource.SecretType, "*")
			got := map[string]bool{}
			for _, name := range xdstest.Names(c.Next()) {
				got[name] = true
			}
			want := map[string]bool{}
			for _, name := range tt.want {
				want[name] = true
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("secrets (-want +got):\n%s", d)
			}
		})
	}
}

func TestReplicasSeeWhatIsConnectedHere(t *testing.T) {
	b := newBench(t)
	all := map[string]*endpoint.ClusterLoadAssignment{"a/b": {ClusterName: "a/b"}, "a/c": {ClusterName: "a/c"}}
	here := map[string]*endpoint.ClusterLoadAssignment{"a/c": {ClusterName: "a/c"}}
	if err := b.server.SetEndpoints(all, here); err != nil {
		t.Fatal(err)
	}
	c := b.open("", &core.Node{Id: "replica", Cluster: ReplicaCluster}).Read()
	c.Subscribe(resource.EndpointType, "*")
	wantOne(t, "replica", c.Rest(), []string{"a/c"}, []string{})
	if len(b.joined) > 0 {
		t.Error("a replica joined as a sidecar")
	}
}

func TestPoliciesWaitForTheFirstSet(t *testing.T) {
	b := newBench(t)
	c := b.client("A")
	c.Send(&xdstest.Request{TypeUrl: policyType, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: map[string]string{"a": "held"}})
	wantNone(t, "before there are policies", c.Rest())
	set(t, b.server, "v1", "b", "1")
	wantOne(t, "the first policies", []*xdstest.Response{c.Next()}, []string{"b"}, []string{"a"})
}

func TestNothingIsTakenFromThoseThatComeBackBeforeOthersCould(t *testing.T) {
	b := newBench(t)
	services := func(names ...string) {
		all := map[string]*endpoint.ClusterLoadAssignment{}
		for _, n := range names {
			all[n] = &endpoint.ClusterLoadAssignment{ClusterName: n}
		}
		if err := b.server.SetEndpoints(all, nil); err != nil {
			t.Fatal(err)
		}
	}
	services("a/new")
	back, fresh := b.client("A"), b.client("B")
	back.Send(&xdstest.Request{TypeUrl: resource.EndpointType, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: map[string]string{"a/old": "1", "a/gone": "1"}})
	wantNone(t, "one that came back", back.Rest())
	fresh.Subscribe(resource.EndpointType, "*")
	got := fresh.Next()
	wantOne(t, "one that is new", []*xdstest.Response{got}, []string{"a/new"}, []string{})
	fresh.Ack(got)
	services("a/new", "a/old")
	got = fresh.Next()
	wantOne(t, "one that is new, later", []*xdstest.Response{got}, []string{"a/old"}, []string{})
	if err := b.server.Settle(); err != nil {
		t.Fatal(err)
	}
	settled := back.Next()
	if d := cmp.Diff([]string{"a/gone"}, settled.GetRemovedResources()); d != "" {
		t.Errorf("removed when it has settled (-want +got):\n%s", d)
	}
}

func TestAcceptanceIsKnownPerVersion(t *testing.T) {
	at := &clock{at: time.Unix(1000, 0)}
	b := newBenchAt(t, at.now, func() (Caller, error) { return Caller{}, nil })
	acceptance := func() Acceptance {
		t.Helper()
		a, ok := b.server.Acceptance(deltaID(1))
		if !ok {
			t.Fatal("no stream")
		}
		return a
	}
	set(t, b.server, "v1", "a", "1")
	c := b.client("A")
	c.Subscribe(policyType, "*")
	first := c.Next()
	if d := cmp.Diff(Acceptance{}, acceptance()); d != "" {
		t.Errorf("before an answer (-want +got):\n%s", d)
	}
	c.Ack(first)
	c.Rest()
	if d := cmp.Diff(Acceptance{Accepted: "v1", Since: at.now()}, acceptance()); d != "" {
		t.Errorf("after the ACK (-want +got):\n%s", d)
	}
	set(t, b.server, "v2", "a", "2")
	second := c.Next()
	c.Ack(first) // once more: it is no answer to the second
	c.Rest()
	if got := acceptance().Accepted; got != "v1" {
		t.Errorf("accepted after a second ACK of the first response = %q, want v1", got)
	}
	at.pass(time.Second)
	c.Nack(second, "a:1:1: no")
	c.Rest()
	if d := cmp.Diff(Acceptance{Accepted: "v1", Refused: "v2", Reason: "a:1:1: no", Since: at.now()}, acceptance()); d != "" {
		t.Errorf("after the NACK (-want +got):\n%s", d)
	}
	set(t, b.server, "v3", "a", "3")
	third := c.Next()
	set(t, b.server, "v4", "a", "4") // the ACK is of what was sent, not of what is in force
	c.Ack(third)
	fourth := c.Next()
	if got := acceptance().Accepted; got != "v3" {
		t.Errorf("accepted = %q, want v3", got)
	}
	at.pass(2 * 10 * time.Second)
	if !acceptance().Frozen {
		t.Error("two heartbeats without an answer are not frozen")
	}
	c.Ack(fourth)
	c.Rest() // the fence itself is owed an answer, since now
	if d := cmp.Diff(Acceptance{Accepted: "v4", Since: at.now()}, acceptance()); d != "" {
		t.Errorf("after all (-want +got):\n%s", d)
	}
}

func TestFrozenClientHoldsItsHeartbeat(t *testing.T) {
	at := &clock{at: time.Unix(1000, 0)}
	b := newBenchAt(t, at.now, func() (Caller, error) { return Caller{}, nil })
	c := b.client("A")
	beat := func(n int64) {
		if err := b.server.SetHeartbeat(n, at.now()); err != nil {
			t.Fatal(err)
		}
	}
	beat(1)
	c.Subscribe(resource.RuntimeType, "*")
	r := c.Next()
	for n := int64(2); n < 4; n++ {
		at.pass(10 * time.Second)
		beat(n)
	}
	if a, _ := b.server.Acceptance(deltaID(1)); !a.Frozen {
		t.Error("a client that answers no heartbeat is not frozen")
	}
	c.Ack(r)
	if got := c.Next(); got.GetTypeUrl() != resource.RuntimeType {
		t.Errorf("next = %v", got)
	}
	if a, _ := b.server.Acceptance(deltaID(1)); a.Frozen {
		t.Error("a client that answers again is still frozen")
	}
}

func TestWhoFreezesAndThawsIsTold(t *testing.T) {
	at := &clock{at: time.Unix(1000, 0)}
	b := newBenchAt(t, at.now, func() (Caller, error) { return Caller{}, nil })
	look := func(when string, want ...string) {
		t.Helper()
		b.server.Look()
		got := []string{}
		for len(b.changed) > 0 {
			got = append(got, <-b.changed)
		}
		if d := cmp.Diff(append([]string{}, want...), got); d != "" {
			t.Errorf("%s (-want +got):\n%s", when, d)
		}
	}
	beat := func(c *xdstest.Client, n int64) *xdstest.Response {
		t.Helper()
		if err := b.server.SetHeartbeat(n, at.now()); err != nil {
			t.Fatal(err)
		}
		return c.Next()
	}
	if err := b.server.SetHeartbeat(1, at.now()); err != nil {
		t.Fatal(err)
	}
	a := b.client("A")
	a.Subscribe(resource.RuntimeType, "*")
	a.Ack(a.Next())
	r := beat(a, 2) // the first answer has been taken in
	look("an answer to a heartbeat")
	at.pass(20*time.Second - 1)
	look("just before two heartbeats")
	at.pass(1)
	look("two heartbeats without an answer", "A/1")
	look("nothing new")
	at.pass(time.Minute)
	look("it is still frozen")
	a.Ack(r)
	r = beat(a, 3)
	look("it answers again", "A/1")
	at.pass(10 * time.Second)
	c := b.client("C")
	c.Subscribe(resource.RuntimeType, "*")
	c.Next()
	at.pass(10 * time.Second)
	look("it freezes once more, the other does not yet", "A/1")
	at.pass(10 * time.Second)
	look("the other freezes", "C/1")
	a.Ack(r)
	beat(a, 4)
	look("the first one answers", "A/1")
	c.Close()
	<-b.left
	at.pass(10 * time.Second)
	a.Close()
	<-b.left
	at.pass(time.Minute)
	look("who is gone is not frozen")
}

// TestSecondAnswerOwed: who was frozen by one answer may owe another, which nobody looked at meanwhile.
func TestSecondAnswerOwed(t *testing.T) {
	at := &clock{at: time.Unix(1000, 0)}
	b := newBenchAt(t, at.now, func() (Caller, error) { return Caller{}, nil })
	if err := b.server.SetHeartbeat(1, at.now()); err != nil {
		t.Fatal(err)
	}
	a, c := b.client("A"), b.client("C")
	a.Subscribe(resource.RuntimeType, "*")
	beat := a.Next()
	at.pass(10 * time.Second)
	c.Subscribe(resource.RuntimeType, "*")
	c.Next()
	told := func() (ids []string) {
		b.server.Look()
		for len(b.changed) > 0 {
			ids = append(ids, <-b.changed)
		}
		return ids
	}
	at.pass(10 * time.Second)
	got := [][]string{told()} // A is frozen
	set(t, b.server, "v1", "a", "1")
	a.Subscribe(policyType, "*")
	a.Next()
	at.pass(10 * time.Second)
	got = append(got, told()) // C is
	a.Ack(beat)
	at.pass(1)
	if err := b.server.SetHeartbeat(2, at.now()); err != nil {
		t.Fatal(err)
	}
	a.Ack(a.Next())
	got = append(got, told()) // A is no more
	at.pass(10 * time.Second)
	got = append(got, told()) // A has still not answered about the policies
	if d := cmp.Diff([][]string{{"A/1"}, {"C/1"}, {"A/1"}, {"A/1"}}, got); d != "" {
		t.Errorf("told (-want +got):\n%s", d)
	}
}

func TestStreamsAreCounted(t *testing.T) {
	b := newBench(t)
	want := func(when string, sidecars, others int) {
		t.Helper()
		if s, o := b.server.Streams(); s != sidecars || o != others {
			t.Errorf("%s: %d sidecars and %d others, want %d and %d", when, s, o, sidecars, others)
		}
	}
	a := b.client("A")
	a.Rest()
	want("a sidecar", 1, 0)
	other := b.open("", &core.Node{Id: "replica", Cluster: ReplicaCluster}).Read()
	other.Rest()
	want("a replica too", 1, 1)
	refused := b.open("", &core.Node{Id: "B/1", Cluster: "a/b"}).Read() // without metadata
	refused.Subscribe(policyType, "*")
	if err := refused.End(); err == nil {
		t.Error("a node without metadata was taken")
	}
	a.Close()
	<-b.left
	other.Rest()
	want("the sidecar has gone, another was refused", 0, 1)
}

func TestTakeoversAndHeartbeatLeaveEachOtherAlone(t *testing.T) {
	b := newBench(t)
	if err := b.server.SetHeartbeat(1, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	if err := b.server.SetTakeovers(map[string]map[string]any{"A": {"owner": "A", "adopter": "B", "reason": "x"}}); err != nil {
		t.Fatal(err)
	}
	c := b.client("B")
	c.Subscribe(resource.RuntimeType, "*")
	got := c.Next()
	if len(got.GetResources()) != 2 {
		t.Errorf("resources = %v", xdstest.Names(got))
	}
	c.Ack(got)
	if err := b.server.SetTakeovers(nil); err != nil {
		t.Fatal(err)
	}
	wantOne(t, "after the owner is back", []*xdstest.Response{c.Next()}, []string{}, []string{"takeover/A"})
}

// sotwStream is a stream of the other protocol, and what it has received.
func sotwStream(t *testing.T, b *bench) (send func(*discovery.DiscoveryRequest), got chan *discovery.DiscoveryResponse) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+b.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the stream has ended
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got = make(chan *discovery.DiscoveryResponse, 1024)
	go func() {
		for {
			r, err := s.Recv()
			if err != nil {
				close(got)
				return
			}
			got <- r
		}
	}()
	return func(r *discovery.DiscoveryRequest) {
		if err := s.Send(r); err != nil {
			t.Error(err)
		}
	}, got
}

// Without a version in the request the library sends what was refused again and again.
func TestRefusalOfTheFirstResponseIsNoLoop(t *testing.T) {
	b := newBench(t)
	services := func(names ...string) {
		all := map[string]*endpoint.ClusterLoadAssignment{}
		for _, n := range names {
			all[n] = &endpoint.ClusterLoadAssignment{ClusterName: n}
		}
		if err := b.server.SetEndpoints(all, nil); err != nil {
			t.Fatal(err)
		}
	}
	services("a/b")
	send, got := sotwStream(t, b)
	send(&discovery.DiscoveryRequest{Node: &core.Node{Id: "app"}, TypeUrl: resource.ListenerType, ResourceNames: []string{"a/b", "a/c"}})
	first := <-got
	send(&discovery.DiscoveryRequest{TypeUrl: resource.ListenerType, ResourceNames: []string{"a/b", "a/c"}, ResponseNonce: first.GetNonce(), ErrorDetail: &rpc.Status{Message: "no"}})
	send(&discovery.DiscoveryRequest{TypeUrl: resource.ClusterType, ResourceNames: []string{"a/b"}})
	if r := <-got; r.GetTypeUrl() != resource.ClusterType {
		t.Errorf("after the refusal came %s again", r.GetTypeUrl())
	}
	services("a/b", "a/c")
	if r := <-got; r.GetTypeUrl() != resource.ListenerType || len(r.GetResources()) != 2 {
		t.Errorf("after a change came %d of %s, want both listeners", len(r.GetResources()), r.GetTypeUrl())
	}
}

func TestVersionsOfAnotherReplicaSayNothing(t *testing.T) {
	b := newBench(t)
	if err := b.server.Settle(); err != nil {
		t.Fatal(err)
	}
	send, got := sotwStream(t, b)
	send(&discovery.DiscoveryRequest{Node: &core.Node{Id: "app"}, TypeUrl: resource.ListenerType, ResourceNames: []string{"a/gone"}, VersionInfo: "OTHER.0"})
	if r := <-got; r.GetTypeUrl() != resource.ListenerType || len(r.GetResources()) != 0 {
		t.Errorf("answer = %v, want that there is no listener", r)
	}
}
