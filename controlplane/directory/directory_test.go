package directory

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
)

var options = Options{Grace: 10 * time.Second, Lease: 3 * time.Second, Offer: time.Minute}

func at(seconds int) time.Time { return time.Unix(int64(1000+seconds), 0) }

// sidecar is a Node as FromMetadata reads it.
func sidecar(t *testing.T, owner, service string, more map[string]any) Node {
	t.Helper()
	fields := map[string]any{"owner": owner, "incarnation": "1", "service": service, "inbound": "10.0.0.1:80", "peer": "10.0.0.1:81", "home": owner}
	maps.Copy(fields, more)
	s, err := structpb.NewStruct(fields)
	if err != nil {
		t.Fatal(err)
	}
	n, err := FromMetadata(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// shared is one whose journal lies on a shared store.
func shared(t *testing.T, owner, service string) Node {
	t.Helper()
	return sidecar(t, owner, service, map[string]any{"home": "~" + service})
}

func ownersOf(all map[string]*endpoint.ClusterLoadAssignment) map[string]string {
	out := map[string]string{}
	for service, a := range all {
		var owners []string
		for _, e := range a.GetEndpoints()[0].GetLbEndpoints() {
			owners = append(owners, e.GetMetadata().GetFilterMetadata()[MetadataKey].GetFields()["owner"].GetStringValue())
		}
		out[service] = strings.Join(owners, " ")
	}
	return out
}

func TestSidecarStaysForItsGraceTime(t *testing.T) {
	d := New(options)
	a, b := sidecar(t, "A", "x/y", nil), sidecar(t, "B", "x/y", nil)
	d.Join(at(0), Here("1"), a)
	d.Join(at(0), "replica", b)
	d.Leave(at(1), Here("1"), "A")
	for _, tt := range []struct {
		second int
		want   map[string]string
		next   time.Time
	}{
		{1, map[string]string{"x/y": "A B"}, at(4)}, // the end of the lease
		{10, map[string]string{"x/y": "A B"}, at(11)},
		{11, map[string]string{"x/y": "B"}, at(64)}, // the end of the offer
	} {
		v := d.View(at(tt.second))
		if diff := cmp.Diff(tt.want, ownersOf(v.Assignments)); diff != "" || !v.Next.Equal(tt.next) {
			t.Errorf("at %d s: next %v, want %v; owners (-want +got):\n%s", tt.second, v.Next, tt.next, diff)
		}
	}
	d.Leave(at(12), "replica", "B")
	if got := ownersOf(d.View(at(100)).Assignments); got["x/y"] != "" || len(got) != 1 {
		t.Errorf("a service without sidecars = %v, want it empty", got)
	}
	if next := d.View(at(100)).Next; !next.Equal(at(12 + 3600)) {
		t.Errorf("the service is forgotten %v, want an hour after its last sidecar, %v", next, at(12+3600))
	}
	if got := d.View(at(12 + 3600)).Assignments; len(got) != 0 {
		t.Errorf("after an hour = %v, want nothing", got)
	}
}

func TestServiceIsForgottenAnHourAfterItsLastSidecarWent(t *testing.T) {
	for _, tt := range []struct {
		name string
		left bool
		want time.Time
	}{{"it left and came back to another", true, at(1 + 3600)}, {"it became another's", false, at(5 + 3600)}} {
		d := New(options)
		d.Join(at(0), Here("1"), sidecar(t, "A", "x/y", nil))
		if tt.left {
			d.Leave(at(1), Here("1"), "A")
		}
		d.Join(at(5), Here("2"), sidecar(t, "A", "x/z", nil))
		v := d.View(at(5))
		if diff := cmp.Diff(map[string]string{"x/y": "", "x/z": "A"}, ownersOf(v.Assignments)); diff != "" || !v.Next.Equal(tt.want) {
			t.Errorf("%s: next %v, want %v; owners (-want +got):\n%s", tt.name, v.Next, tt.want, diff)
		}
	}
}

func TestOneOfTwoStreamsIsEnough(t *testing.T) {
	d := New(options)
	d.Join(at(0), Here("1"), sidecar(t, "A", "x/y", nil))
	d.Join(at(5), Here("2"), sidecar(t, "A", "x/y", map[string]any{"incarnation": "2", "inbound": "10.0.0.2:80"}))
	d.Leave(at(6), Here("1"), "A") // the old connection breaks last
	v := d.View(at(60))
	if got := v.Assignments["x/y"].GetEndpoints()[0].GetLbEndpoints(); len(got) != 1 || got[0].GetEndpoint().GetAddress().GetSocketAddress().GetAddress() != "10.0.0.2" {
		t.Errorf("endpoints = %v", got)
	}
	if got := ownersOf(v.Here); got["x/y"] != "A" {
		t.Errorf("here = %v", got)
	}
}

func TestOnlyWhatIsConnectedHereIsToldToReplicas(t *testing.T) {
	d := New(options)
	d.Join(at(0), Here("1"), sidecar(t, "A", "x/y", nil))
	d.Replace(at(0), "other:1", []Node{sidecar(t, "B", "x/y", nil), sidecar(t, "C", "x/z", nil)})
	if diff := cmp.Diff(map[string]string{"x/y": "A"}, ownersOf(d.View(at(1)).Here)); diff != "" {
		t.Errorf("here (-want +got):\n%s", diff)
	}
	d.Replace(at(2), "other:1", []Node{sidecar(t, "B", "x/y", nil)})
	if diff := cmp.Diff(map[string]string{"x/y": "A B", "x/z": ""}, ownersOf(d.View(at(12)).Assignments)); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
}

func TestOldNewsOfAReplicaChangeNothing(t *testing.T) {
	d := New(options)
	old := sidecar(t, "A", "x/y", nil)
	d.Replace(at(0), "other:1", []Node{old})
	d.Join(at(1), Here("1"), sidecar(t, "A", "x/y", map[string]any{"incarnation": "2", "inbound": "10.0.0.2:80"}))
	d.Replace(at(2), "other:1", []Node{old}) // it still has the stream of before
	e := d.View(at(2)).Assignments["x/y"].GetEndpoints()[0].GetLbEndpoints()[0]
	if got := e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress(); got != "10.0.0.2" {
		t.Errorf("address = %s, want that of the newer incarnation", got)
	}
}

func TestTakeoverIsOfferedAfterTheLease(t *testing.T) {
	want := map[string]Takeover{"A": {Owner: "A", Adopter: "B", Reason: "not connected since 1970-01-01T00:16:40Z"}}
	for _, tt := range []struct {
		second int
		want   map[string]Takeover
	}{{2, map[string]Takeover{}}, {3, want}, {62, want}, {63, map[string]Takeover{}}} {
		d := New(options)
		for i, n := range []Node{shared(t, "A", "x/y"), shared(t, "B", "x/y"), shared(t, "C", "x/z")} {
			d.Join(at(0), Here(fmt.Sprint(i)), n)
		}
		d.Leave(at(0), Here("0"), "A")
		if diff := cmp.Diff(tt.want, d.View(at(tt.second)).Takeovers); diff != "" {
			t.Errorf("takeovers at %d s (-want +got):\n%s", tt.second, diff)
		}
		d.Join(at(tt.second), Here("3"), shared(t, "A", "x/y"))
		if got := d.View(at(tt.second)).Takeovers; len(got) != 0 {
			t.Errorf("takeovers after the owner is back = %v", got)
		}
	}
}

func TestWhoAdopts(t *testing.T) {
	standby := func(owner string) Node {
		return sidecar(t, owner, "x/standby", map[string]any{"home": "~x/standby", "standby": true, "inbound": ""})
	}
	for _, tt := range []struct {
		name string
		gone Node
		live []Node
		want string
	}{
		{"one of its service", shared(t, "A", "x/y"), []Node{shared(t, "B", "x/y"), standby("S"), shared(t, "Z", "x/z")}, "B"},
		{"else a stand-by", shared(t, "A", "x/y"), []Node{standby("S"), shared(t, "Z", "x/z")}, "S"},
		{"else nobody", shared(t, "A", "x/y"), []Node{shared(t, "Z", "x/z")}, ""},
		{"nobody with a store of its own", shared(t, "A", "x/y"), []Node{sidecar(t, "B", "x/y", nil)}, ""},
		{"nobody can adopt an own store", sidecar(t, "A", "x/y", nil), []Node{shared(t, "B", "x/y")}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := New(options)
			d.Join(at(0), Here("0"), tt.gone)
			for i, n := range tt.live {
				d.Join(at(0), Here(fmt.Sprint(i+1)), n)
			}
			d.Leave(at(0), Here("0"), "A")
			if got := d.View(at(5)).Takeovers["A"].Adopter; got != tt.want {
				t.Errorf("adopter = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAdoptersShareTheWorkAndKeepIt(t *testing.T) {
	d := New(options)
	const live, gone = 5, 200
	for i := range live {
		d.Join(at(0), Here(fmt.Sprint("l", i)), shared(t, fmt.Sprint("LIVE", i), "x/y"))
	}
	for i := range gone {
		owner := fmt.Sprintf("GONE%04d", i)
		d.Join(at(0), Here(owner), shared(t, owner, "x/y"))
		d.Leave(at(0), Here(owner), owner)
	}
	before := d.View(at(5)).Takeovers
	share := map[string]int{}
	for _, to := range before {
		share[to.Adopter]++
	}
	if len(before) != gone || len(share) != live || slices.Min(slices.Collect(maps.Values(share))) < gone/live/2 {
		t.Errorf("%d takeovers, shares %v, want all alike", len(before), share)
	}
	d.Leave(at(5), Here("l0"), "LIVE0")
	for owner, to := range d.View(at(6)).Takeovers {
		if was := before[owner].Adopter; was != to.Adopter && was != "LIVE0" {
			t.Errorf("%s went from %s, which is there, to %s", owner, was, to.Adopter)
		}
	}
}

func TestStandbyIsAPeerButNoEndpoint(t *testing.T) {
	d := New(options)
	n := sidecar(t, "A", "x/y", map[string]any{"standby": true, "inbound": ""})
	d.Join(at(0), Here("1"), n)
	want := &endpoint.LbEndpoint{HealthStatus: core.HealthStatus_DRAINING,
		Metadata: &core.Metadata{FilterMetadata: map[string]*structpb.Struct{"txmesh": n.Metadata}},
		HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: &core.Address{Address: &core.Address_SocketAddress{
			SocketAddress: &core.SocketAddress{Address: "10.0.0.1", PortSpecifier: &core.SocketAddress_PortValue{PortValue: 81}}}}}}}
	if diff := cmp.Diff(want, d.View(at(0)).Assignments["x/y"].GetEndpoints()[0].GetLbEndpoints()[0], protocmp.Transform()); diff != "" {
		t.Errorf("endpoint (-want +got):\n%s", diff)
	}
}

func TestNodesThatCannotBeRead(t *testing.T) {
	good := map[string]any{"owner": "A", "incarnation": "1", "service": "x/y", "inbound": "h:1"}
	for _, tt := range []struct {
		name string
		node *core.Node
		edit map[string]any
		text string
	}{
		{"no owner", &core.Node{}, map[string]any{"owner": ""}, `owner "" is not an owner's id`},
		{"no incarnation", &core.Node{}, map[string]any{"incarnation": ""}, `incarnation "" is not one`},
		{"service", &core.Node{}, map[string]any{"service": "accounts"}, `service "accounts" is not namespace/name`},
		{"home of another", &core.Node{}, map[string]any{"home": "B"}, `home "B" is neither its owner, A, nor its service's, ~x/y`},
		{"home of another service", &core.Node{}, map[string]any{"home": "~x/z"}, `home "~x/z" is neither its owner, A, nor its service's, ~x/y`},
		{"certificate of another service", &core.Node{}, map[string]any{"spiffe": "spiffe://m/ns/x/sa/z"}, `spiffe "spiffe://m/ns/x/sa/z" is of service x/z, but its service is x/y`},
		{"inbound", &core.Node{}, map[string]any{"inbound": "h"}, `inbound "h" is not host:port`},
		{"port 0", &core.Node{}, map[string]any{"inbound": "h:0"}, `inbound "h:0" is not host:port`},
		{"name of a port", &core.Node{}, map[string]any{"inbound": "h:http"}, `inbound "h:http" is not host:port`},
		{"nowhere", &core.Node{}, map[string]any{"inbound": ""}, "names neither inbound nor peer"},
		{"id", &core.Node{Id: "B/1", Cluster: "x/y"}, nil, `node id "B/1" is not its owner and incarnation, A/1`},
		{"cluster", &core.Node{Id: "A/1", Cluster: "x/z"}, nil, `node cluster "x/z" is not its service, x/y`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fields := maps.Clone(good)
			maps.Copy(fields, tt.edit)
			s, err := structpb.NewStruct(fields)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Of(&core.Node{Id: tt.node.Id, Cluster: tt.node.Cluster, Metadata: s}); err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error = %v, want %q", err, tt.text)
			}
		})
	}
}

// acceptance is a made-up one.
func acceptance(text string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"accepted": structpb.NewStringValue(text)}}
}

func TestOnlyWhatChangedIsMadeAnew(t *testing.T) {
	d := New(options)
	for i, service := range []string{"x/y", "x/z"} {
		d.Join(at(0), Here(fmt.Sprint(i)), sidecar(t, string(rune('A'+i)), service, nil))
	}
	same := func(was, is map[string]*endpoint.ClusterLoadAssignment) (out []string) {
		for service, a := range was {
			if is[service] == a {
				out = append(out, service)
			}
		}
		slices.Sort(out)
		return out
	}
	both := []string{"x/y", "x/z"}
	for _, tt := range []struct {
		name      string
		second    int
		change    func(second int)
		all, here []string // services that are as they were
	}{
		{"nothing", 1, func(int) {}, both, both},
		{"an acceptance", 2, func(int) { d.Accept("A", acceptance("v1")) }, both, both[1:]},
		{"a sidecar comes", 3, func(s int) { d.Join(at(s), Here("2"), sidecar(t, "C", "x/y", nil)) }, both[1:], both[1:]},
		{"a sidecar goes", 4, func(s int) { d.Leave(at(s), Here("2"), "C") }, both[1:], both[1:]},
		{"time that changes nothing", 13, func(int) {}, both, both},
		{"its grace time ends", 14, func(int) {}, both[1:], both},
		{"a sidecar is of another service", 15, func(s int) { d.Join(at(s), Here("3"), sidecar(t, "A", "x/z", nil)) }, nil, nil},
	} {
		was := d.View(at(tt.second - 1))
		tt.change(tt.second)
		is := d.View(at(tt.second))
		if diff := cmp.Diff(tt.all, same(was.Assignments, is.Assignments)); diff != "" {
			t.Errorf("%s: same assignments (-want +got):\n%s", tt.name, diff)
		}
		if diff := cmp.Diff(tt.here, same(was.Here, is.Here)); diff != "" {
			t.Errorf("%s: same for replicas (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestViewsOfBeforeDoNotShow: a view is that of a directory to which the same has been said and which was never asked.
func TestViewsOfBeforeDoNotShow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		asked, other := New(options), New(options)
		second, next, log := 0, time.Time{}, []string(nil)
		for range 40 {
			second += []int{0, 1, 2, 3, 5, 5, 20, 100, 3700}[r.IntN(9)]
			owner, stream, service := string(rune('A'+r.IntN(4))), fmt.Sprint(r.IntN(3)), []string{"x/y", "x/z"}[r.IntN(2)]
			n := sidecar(t, owner, service, map[string]any{"incarnation": fmt.Sprint(r.IntN(2)), "home": "~" + service})
			kind := r.IntN(6) // the last two: nothing, but it is asked
			log = append(log, fmt.Sprintf("%d s: %d %s %s %s", second, kind, owner, stream, service))
			for _, d := range []*Directory{asked, other} {
				switch kind {
				case 0:
					d.Join(at(second), Here(stream), n)
					d.Accept(owner, acceptance(log[len(log)-1]))
				case 1:
					d.Leave(at(second), Here(stream), owner)
				case 2:
					d.Replace(at(second), "replica", []Node{n})
					d.Accept(owner, acceptance(""))
				case 3:
					d.Replace(at(second), "replica", nil)
				}
			}
			next = asked.View(at(second)).Next
		}
		if !next.IsZero() && r.IntN(2) == 0 {
			second = int(next.Unix()) - 1000
		}
		if diff := cmp.Diff(other.View(at(second)), asked.View(at(second)), protocmp.Transform()); diff != "" {
			t.Fatalf("at %d s (-never asked before +asked):\n%s\n%s", second, diff, strings.Join(log, "\n"))
		}
	}
}
