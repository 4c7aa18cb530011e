package peer

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txlog/memory"
)

func newFleetDirectory(t *testing.T, w *world, peers ...string) *Directory {
	t.Helper()
	d := newTestDirectory(t, w, memory.New(memory.Options{}).Table("peers"), nil, peers...)
	d.opt.Fleet = true
	return d
}

func TestTheControlPlaneSaysWhoIsThere(t *testing.T) {
	d := newFleetDirectory(t, &world{})
	d.SetSelf(Identity{Owner: "S", Inbound: "10.0.0.1:9"})
	d.SetFleet([]Member{{"10.0.0.7:15808", Identity{Owner: ownerA, Service: "bank/accounts", Inbound: "10.0.0.7:15806"}},
		{"10.0.0.9:15808", Identity{Owner: ownerB, Service: "bank/savings", Inbound: "10.0.0.9:15806", Home: "~bank/savings"}},
		{"10.0.0.2:15808", Identity{Owner: "standby", Service: "bank/savings"}},
		{"10.0.0.1:15808", Identity{Owner: "S", Inbound: "10.0.0.1:9"}}}, false)
	for _, tt := range []struct {
		endpoint, home string
		known, live    bool
	}{
		{"10.0.0.7:15806", ownerA, true, false}, {"10.0.0.9:15806", "~bank/savings", true, false}, {"10.0.0.1:9", "S", true, false},
		{"accounts:15806", ownerA, true, false}, // its name means 10.0.0.7
		{"10.0.0.3:80", "", false, false}, {"10.0.0.3:80", "", true, true},
		{"accounts:80", "", true, true},
		{"accounts:15806", ownerA, true, true},
	} {
		if tt.live {
			d.live = true
		}
		if home, known := d.HomeOf(tt.endpoint); home != tt.home || known != tt.known {
			t.Errorf("HomeOf(%s) = %q, %v; want %q, %v (live %v)", tt.endpoint, home, known, tt.home, tt.known, tt.live)
		}
	}
	d.opt.Names = func(context.Context, string) ([]string, error) { return nil, errors.New("no such host") }
	if home, known := d.HomeOf("other:80"); home != "" || known {
		t.Errorf("HomeOf a name that does not resolve = %q, %v; want not known", home, known)
	}
	if got, err := d.AddressOf(t.Context(), ownerB); got != "10.0.0.9:15808" || err != nil {
		t.Errorf("AddressOf = %s, %v", got, err)
	}
	if got, ok := d.EndpointOf(ownerA); got != "10.0.0.7:15806" || !ok {
		t.Errorf("EndpointOf = %s, %v", got, ok)
	}
	if got := d.EndpointsOf("bank/savings"); !cmp.Equal(got, []string{"10.0.0.9:15806"}) {
		t.Errorf("EndpointsOf = %v, want no stand-by", got)
	}
	if got := d.AddressesOf("~bank/savings"); !cmp.Equal(got, []string{"10.0.0.9:15808"}) {
		t.Errorf("AddressesOf = %v", got)
	}
}

func TestWhoLeavesTheFleetIsForgotten(t *testing.T) {
	w := &world{peers: map[string]Identity{"127.0.0.1:2": {Owner: ownerB, Inbound: "127.0.0.1:1"}}}
	d := newFleetDirectory(t, w, "127.0.0.1:2")
	d.Refresh(t.Context())
	d.SetFleet([]Member{{"10.0.0.7:15808", Identity{Owner: ownerA, Inbound: "10.0.0.7:15806"}},
		{"127.0.0.1:2", Identity{Owner: ownerB, Inbound: "127.0.0.1:1"}}}, true)
	d.SetFleet(nil, true)
	if home, known := d.HomeOf("10.0.0.8:15806"); home != "" || !known {
		t.Errorf("HomeOf = %q, %v; want nobody, for certain", home, known)
	}
	if home, known := d.HomeOf("127.0.0.1:1"); home != ownerB || !known {
		t.Errorf("HomeOf = %q, %v; want the configured peer as before", home, known)
	}
}

// A sidecar is cut off from the control plane, or dead, or its address is another's: only the first one is a home.
func TestWhoLeftTheFleetIsAskedBeforeItsEndpointHasNoSidecar(t *testing.T) {
	const endpoint, address = "10.0.0.7:15806", "10.0.0.7:15808"
	self := Identity{Owner: ownerA, Inbound: endpoint, Home: "~bank/accounts"}
	for _, tt := range []struct {
		name  string
		peers map[string]Identity
		home  string
		known bool
	}{
		{"it answers", map[string]Identity{address: self}, "~bank/accounts", true},
		{"it does not answer", nil, "", false},
		{"another has its address", map[string]Identity{address: {Owner: ownerB, Inbound: endpoint}}, "", false},
		{"it moved", map[string]Identity{address: {Owner: ownerA, Inbound: "10.0.0.7:1"}}, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Now()
			d := newFleetDirectory(t, &world{peers: tt.peers})
			d.opt.Now = func() time.Time { return now }
			d.SetFleet([]Member{{address, self}}, true)
			d.SetFleet(nil, true)
			if home, known := d.HomeOf(endpoint); home != tt.home || known != tt.known {
				t.Errorf("HomeOf = %q, %v; want %q, %v", home, known, tt.home, tt.known)
			}
			now = now.Add(goneFor)
			if home, known := d.HomeOf(endpoint); home != "" || !known {
				t.Errorf("HomeOf after %v = %q, %v; want nobody, for certain", goneFor, home, known)
			}
		})
	}
}

func TestAnOwnerThatIsToldLateIsWaitedFor(t *testing.T) {
	d := newFleetDirectory(t, &world{})
	d.SetFleet(nil, true)
	got := make(chan string, 1)
	go func() {
		a, err := d.AddressOf(context.Background(), ownerA)
		if err != nil {
			a = err.Error()
		}
		got <- a
	}()
	d.SetFleet([]Member{{"10.0.0.9:15808", Identity{Owner: ownerB}}}, true)
	d.SetFleet([]Member{{"10.0.0.7:15808", Identity{Owner: ownerA}}}, true)
	if a := <-got; a != "10.0.0.7:15808" {
		t.Errorf("AddressOf = %s", a)
	}
	began := time.Now()
	_, err := d.AddressOf(t.Context(), ownerB)
	if want := "peer: not reachable: neither the control plane nor one of 0 configured peers knows owner " + ownerB; !errors.Is(err, ErrUnreachable) || err.Error() != want {
		t.Errorf("AddressOf = %v, want %s", err, want)
	}
	if took := time.Since(began); took < roundMax {
		t.Errorf("gave up after %v, want %v", took, roundMax)
	}
}
