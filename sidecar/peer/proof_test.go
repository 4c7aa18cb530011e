package peer

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/interceptor"
	"txmesh/txn"
)

// proves gives both sides of a mesh a certificate by word: that of who asks, and that of the owner A.
func (m *mesh) proves(caller, callee string) *Proof {
	m.server.opt.Caller = func(*http.Request) string { return caller }
	p := Proof{Service: "bank/b", Dial: (&net.Dialer{}).DialContext, Of: func(net.Conn) string { return callee },
		Serves: func(string) string { return "bank/a" }, Refused: func(cause, _ string, _ error) { m.refused = append(m.refused, "here: "+cause) }}
	m.client.Secured(p)
	return m.client.proof
}

const certificateOfA, certificateOfB = "spiffe://mesh/ns/bank/sa/a", "spiffe://mesh/ns/bank/sa/b"

// mismatched fails unless an error says that a service was named that is not the certificate's.
func mismatched(t *testing.T, what string, err error, names ...string) {
	t.Helper()
	if !errors.Is(err, interceptor.ErrMismatch) {
		t.Errorf("%s = %v, want ErrMismatch", what, err)
		return
	}
	for _, n := range names {
		if !strings.Contains(err.Error(), n) {
			t.Errorf("%s = %v, want one that names %s", what, err, n)
		}
	}
}

func TestWhoAsksIsTheServiceOfItsCertificate(t *testing.T) {
	m := newMesh(t)
	const id = ownerA + ".1"
	m.begin(id)
	m.proves("spiffe://mesh/ns/bank/sa/c", certificateOfA)
	_, enlist := m.relay.Enlist(t.Context(), id, txn.Enlist{Branch: txn.Branch{Key: "k"}})
	_, settle := m.client.Settle(t.Context(), interceptor.HomeCall{Home: ownerA, Deadline: time.Now()})
	_, status := m.client.Status(t.Context(), ownerA, []txn.ID{id})
	_, who := m.client.Identity(t.Context(), m.http.Listener.Addr().String())
	asked := []struct {
		what string
		err  error
	}{
		{"Enlist", enlist}, {"Settle", settle}, {"Status", status}, {"Identity", who},
		{"Returned", m.relay.Returned(t.Context(), id, txn.Returned{Branch: "0", Op: txn.Forward, Outcome: txn.OK}, true)},
		{"Do", m.client.Do(t.Context(), ownerA, id, txn.Decide{Commit: true})},
		{"Offer", m.client.Offer(t.Context(), m.http.Listener.Addr().String(), ownerB, 1)},
	}
	var want []string
	for _, a := range asked {
		mismatched(t, a.what, a.err, "bank/b", "bank/c")
		want = append(want, causeMismatch)
	}
	if diff := cmp.Diff(want, m.refused); diff != "" {
		t.Errorf("counted differs (-want +got):\n%s", diff)
	}
	if st, err := m.engine.State(t.Context(), id); err != nil || len(st.Branches) != 0 || st.Phase != txn.Open {
		t.Errorf("the transaction has %d branches and is %v, %v; want none and open", len(st.Branches), st.Phase, err)
	}
}

func TestWhatACertificateDoesNotContradictIsBelieved(t *testing.T) {
	for _, tt := range []struct {
		name           string
		caller, callee string
		silent         bool
	}{
		{"as they say", certificateOfB, certificateOfA, false},
		{"no certificates", "", "", false},
		{"ids that name no service", "spiffe://mesh/b", "spiffe://mesh/workload/x/y/z", false},
		{"a release that does not name itself", "spiffe://mesh/ns/bank/sa/c", certificateOfA, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMesh(t)
			const id = ownerA + ".1"
			m.begin(id)
			if p := m.proves(tt.caller, tt.callee); tt.silent {
				p.Service = ""
			}
			if _, err := m.relay.Enlist(t.Context(), id, txn.Enlist{Branch: txn.Branch{Key: "k"}}); err != nil {
				t.Errorf("Enlist = %v", err)
			}
			if got, err := m.client.Identity(t.Context(), m.http.Listener.Addr().String()); err != nil || got.Service != "bank/a" {
				t.Errorf("Identity = %+v, %v", got, err)
			}
			if m.refused != nil {
				t.Errorf("counted %v", m.refused)
			}
		})
	}
}

func TestWhoAnswersIsTheServiceOfItsCertificate(t *testing.T) {
	for _, tt := range []struct {
		name string
		id   Identity
		want string // that is not borne out; empty: all is
	}{
		{"as it says", Identity{Service: "bank/a"}, ""},
		{"its own home", Identity{Service: "bank/a", Home: ownerA}, ""},
		{"the home of its replicas", Identity{Service: "bank/a", Home: "~bank/a"}, ""},
		{"another service", Identity{Service: "bank/x"}, "bank/x"},
		{"the home of another service", Identity{Service: "bank/a", Home: "~bank/x"}, "bank/x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMesh(t)
			m.proves(certificateOfB, certificateOfA)
			tt.id.Owner = ownerA
			m.server.opt.Identity = func() Identity { return tt.id }
			got, err := m.client.Identity(t.Context(), m.http.Listener.Addr().String())
			if tt.want == "" {
				if err != nil || got != tt.id {
					t.Errorf("Identity = %+v, %v, want %+v", got, err, tt.id)
				}
				return
			}
			mismatched(t, "Identity", err, tt.want, certificateOfA)
			if diff := cmp.Diff([]string{"here: mismatch"}, m.refused); diff != "" || got != (Identity{}) {
				t.Errorf("got %+v, counted differs (-want +got):\n%s", got, diff)
			}
		})
	}
}

// Whoever took over the address of another service gets to know nothing that was meant for that one.
func TestNothingIsSentToAnotherServiceThanMeant(t *testing.T) {
	m := newMesh(t)
	var asked atomic.Int32
	m.http.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		m.server.ServeHTTP(w, r)
	})
	known := m.proves(certificateOfB, "spiffe://mesh/ns/bank/sa/x")
	const id = ownerA + ".1"
	m.begin(id)
	_, err := m.client.Enlist(t.Context(), ownerA, id, txn.Enlist{Branch: txn.Branch{Key: "k"}}, nil)
	mismatched(t, "Enlist", err, "bank/a", "bank/x")
	if !errors.Is(err, ErrUnreachable) || asked.Load() != 0 {
		t.Errorf("Enlist = %v after %d requests, want ErrUnreachable after none", err, asked.Load())
	}
	if diff := cmp.Diff([]string{"here: mismatch"}, m.refused); diff != "" {
		t.Errorf("counted differs (-want +got):\n%s", diff)
	}

	// Who it is now can be asked, and what was asked is carried by that connection alone.
	m.server.opt.Identity = func() Identity { return Identity{Owner: ownerA, Service: "bank/x"} }
	if got, err := m.client.Identity(t.Context(), m.http.Listener.Addr().String()); err != nil || got.Service != "bank/x" {
		t.Errorf("Identity = %+v, %v, want that of bank/x", got, err)
	}
	_, err = m.client.Enlist(t.Context(), ownerA, id, txn.Enlist{Branch: txn.Branch{Key: "k"}}, nil)
	mismatched(t, "Enlist after Identity", err)
	known.Serves = func(string) string { return "bank/x" }
	if _, err := m.client.Enlist(t.Context(), ownerA, id, txn.Enlist{Branch: txn.Branch{Key: "k"}}, nil); err != nil {
		t.Errorf("Enlist at who is known to be there = %v", err)
	}
}

func TestDirectoryKnowsTheServiceOfAPeerPort(t *testing.T) {
	w := &world{peers: map[string]Identity{"10.0.0.1:1": {Owner: ownerA, Service: "bank/a", Inbound: "10.0.0.1:2"}}}
	d := newTestDirectory(t, w, nil, nil, "10.0.0.1:1")
	if got := d.ServiceOfPeer("10.0.0.1:1"); got != "" {
		t.Errorf("service of a peer that was not asked = %q", got)
	}
	d.Refresh(context.Background())
	d.SetFleet([]Member{{"10.0.0.3:1", Identity{Owner: ownerB, Service: "bank/b"}}}, true)
	for address, want := range map[string]string{"10.0.0.1:1": "bank/a", "10.0.0.3:1": "bank/b", "10.0.0.1:2": ""} {
		if got := d.ServiceOfPeer(address); got != want {
			t.Errorf("service at %s = %q, want %q", address, got, want)
		}
	}
}
