package xds

import (
	"fmt"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/credentials/insecure"

	"txmesh/controlplane/xdstest"
)

// What the pinned release of go-control-plane does and we and our clients rely on. A new release that fails here wants
// the rules of docs/reference/controlplane.md looked at again.

const policyType = resource.ExtensionConfigType

func docs(pairs ...string) map[string]string {
	out := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = pairs[i+1]
	}
	return out
}

func set(t *testing.T, s *Server, version string, pairs ...string) {
	t.Helper()
	if err := s.SetPolicies(version, docs(pairs...)); err != nil {
		t.Fatal(err)
	}
}

// subscribed is a client that holds the policies a and b.
func subscribed(t *testing.T, names ...string) (*bench, *xdstest.Client) {
	t.Helper()
	b := newBench(t)
	set(t, b.server, "v1", "a", "1", "b", "1")
	c := b.client("A")
	c.Subscribe(policyType, names...)
	c.Ack(c.Next())
	return b, c
}

func wantNone(t *testing.T, what string, got []*xdstest.Response) {
	t.Helper()
	for _, r := range got {
		t.Errorf("%s: the server sent %v, removed %v, want nothing", what, xdstest.Names(r), r.GetRemovedResources())
	}
}

func wantOne(t *testing.T, what string, got []*xdstest.Response, names, removed []string) {
	t.Helper()
	if len(got) != 1 {
		t.Fatalf("%s: %d responses, want one", what, len(got))
	}
	if d := cmp.Diff(names, xdstest.Names(got[0])); d != "" {
		t.Errorf("%s: resources (-want +got):\n%s", what, d)
	}
	if d := cmp.Diff(removed, append([]string{}, got[0].GetRemovedResources()...)); d != "" {
		t.Errorf("%s: removed (-want +got):\n%s", what, d)
	}
}

func TestWildcardOnNothingIsAnsweredAtOnce(t *testing.T) { // row 1
	b := newBench(t)
	set(t, b.server, "v1")
	c := b.client("A")
	c.Subscribe(policyType, "*")
	wantOne(t, "wildcard", c.Rest(), []string{}, []string{})
}

func TestUnknownNameIsNeverAnswered(t *testing.T) { // row 2
	b := newBench(t)
	set(t, b.server, "v1", "a", "1")
	c := b.client("A")
	c.Subscribe(policyType, "nobody")
	wantNone(t, "named", c.Rest())
}

func TestRefusedIsNotSentAgain(t *testing.T) { // rows 3, 4 and 5
	b := newBench(t)
	set(t, b.server, "v1", "a", "1", "b", "1")
	c := b.client("A")
	c.Subscribe(policyType, "*")
	c.Nack(c.Next(), "no")
	wantNone(t, "after the NACK", c.Rest())
	c.Subscribe(policyType, "b")
	for _, r := range c.Rest() {
		if len(r.GetResources()) > 0 {
			t.Errorf("subscribing again brought %v", xdstest.Names(r))
		}
		c.Ack(r)
	}
	c.Send(&xdstest.Request{TypeUrl: policyType, ResourceNamesSubscribe: []string{"b"}, ResourceNamesUnsubscribe: []string{"b"}})
	got := c.Rest()
	wantOne(t, "subscribe and unsubscribe in one", got, []string{"b"}, []string{})
	c.Ack(got[0])
	set(t, b.server, "v2", "a", "2", "b", "1")
	wantOne(t, "after a change", c.Rest(), []string{"a"}, []string{})
}

func TestNamedSubscriptionIsSentAgainAfterAPause(t *testing.T) { // row 6
	_, c := subscribed(t, "a")
	c.Subscribe(policyType, "a")
	wantNone(t, "subscribe again", c.Rest())
	c.Send(&xdstest.Request{TypeUrl: policyType, ResourceNamesUnsubscribe: []string{"a"}})
	for _, r := range c.Rest() {
		c.Ack(r)
	}
	c.Subscribe(policyType, "a")
	wantOne(t, "unsubscribe, then subscribe", c.Rest(), []string{"a"}, []string{})
}

func TestLeavingTheWildcardRemoves(t *testing.T) { // row 7
	_, c := subscribed(t, "*", "a")
	c.Send(&xdstest.Request{TypeUrl: policyType, ResourceNamesUnsubscribe: []string{"*"}})
	wantOne(t, "unsubscribe *", c.Rest(), []string{}, []string{"b"})
}

func TestSameContentIsNotSent(t *testing.T) { // row 8
	b, c := subscribed(t, "*")
	set(t, b.server, "v1", "a", "1", "b", "1")
	wantNone(t, "the same set", c.Rest())
	same, _ := listenerOf("x/y")
	for range 2 { // beside our own comparison, the library's
		if err := b.server.caches.listeners.cache.UpdateResource("x/y", same); err != nil {
			t.Fatal(err)
		}
	}
	c.Subscribe(resource.ListenerType, "*")
	c.Ack(c.Next())
	if err := b.server.caches.listeners.cache.UpdateResource("x/y", same); err != nil {
		t.Fatal(err)
	}
	wantNone(t, "the same resource", c.Rest())
}

func TestClientThatComesBackGetsTheDifference(t *testing.T) { // row 9, and another replica
	b := newBench(t)
	set(t, b.server, "v1", "a", "1", "b", "1", "c", "1")
	c := b.client("A")
	c.Subscribe(policyType, "*")
	held := map[string]string{}
	for _, r := range c.Next().GetResources() {
		held[r.GetName()] = r.GetVersion()
	}
	c.Close()
	other := newBench(t)
	set(t, other.server, "w", "a", "1", "b", "2")
	c = other.client("A")
	c.Send(&xdstest.Request{TypeUrl: policyType, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: held})
	wantOne(t, "after coming back", c.Rest(), []string{"b"}, []string{"c"})
}

func TestOneResponseIsOwedPerType(t *testing.T) { // row 10
	b := newBench(t)
	set(t, b.server, "v1", "a", "1")
	c := b.client("A")
	c.Subscribe(policyType, "*")
	first := c.Next()
	set(t, b.server, "v2", "a", "2")
	set(t, b.server, "v3", "a", "3")
	wantNone(t, "before the ACK", c.Rest())
	c.Ack(first)
	wantOne(t, "after the ACK", c.Rest(), []string{"a"}, []string{})
}

func TestClientThatReadsNothingBlocksNobody(t *testing.T) { // row 11
	b := newBench(t)
	set(t, b.server, "v", "a", "0")
	stuck := b.open("A", b.node("A"))
	types := []string{policyType, resource.EndpointType, resource.SecretType, resource.RuntimeType, resource.ListenerType, resource.ClusterType, "t1", "t2", "t3", "t4"}
	for range 3 { // more requests than answers are read
		for _, typ := range types {
			stuck.Subscribe(typ, "*")
		}
	}
	c := b.client("B")
	c.Subscribe(policyType, "*")
	c.Ack(c.Next())
	large := strings.Repeat("x", 200_000) // beyond what the transport takes without a reader
	done := make(chan error, 1)
	go func() {
		for n := range 20 {
			err := b.server.SetPolicies(fmt.Sprint(n), docs("a", fmt.Sprint(n, large)))
			if err == nil {
				err = b.server.SetHeartbeat(int64(n), time.Now())
			}
			if err == nil {
				err = b.server.SetEndpoints(map[string]*endpoint.ClusterLoadAssignment{fmt.Sprint("n/s", n): {ClusterName: "x"}}, nil)
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("updates hang because one client reads nothing")
	}
	c.Until("the last policies", func(r *xdstest.Response) bool {
		return len(r.GetResources()) == 1 && strings.Contains(string(r.GetResources()[0].GetResource().GetValue()), "19x")
	})
}

// The channel of responses has two places for each type that the library knows. typesMax depends on that.
func TestLibraryKnowsTenTypes(t *testing.T) {
	if int(types.UnknownType) != typesMax {
		t.Errorf("the library knows %d types, typesMax is %d", types.UnknownType, typesMax)
	}
}

func TestTooManyTypesEndTheStream(t *testing.T) {
	b := newBench(t)
	c := b.client("A")
	for n := range typesMax {
		c.Subscribe(fmt.Sprint("type-", n), "*")
		c.Next()
	}
	c.Subscribe("one-more", "*")
	if err := c.End(); err == nil || !strings.Contains(err.Error(), "more than 10 types") {
		t.Errorf("end = %v", err)
	}
	if b.refused[CauseTypes] != 1 {
		t.Errorf("refused = %v", b.refused)
	}
}

// bench is a Server on a port, with what its hooks were told.
type bench struct {
	t       *testing.T
	server  *Server
	address string
	refused map[Cause]int
	joined  chan *core.Node
	left    chan *core.Node
	changed chan string // ids of nodes
}

func (b *bench) node(owner string) *core.Node {
	return xdstest.Node(owner, "bank/accounts", "127.0.0.1:1000", nil)
}

func (b *bench) open(_ string, n *core.Node) *xdstest.Client {
	return xdstest.Open(b.t, b.address, insecure.NewCredentials(), n)
}

func (b *bench) client(owner string) *xdstest.Client {
	b.t.Helper()
	return b.open(owner, b.node(owner)).Read()
}
