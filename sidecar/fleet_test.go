package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txn"
)

// line is one sidecar's way to the shared store, which can be cut.
type line struct {
	txlog.Shared
	cut atomic.Bool
}

var errCut = errors.New("the store is not reachable")

func (l *line) down() error {
	if l.cut.Load() {
		return errCut
	}
	return nil
}

func (l *line) Renew(ctx context.Context, o txlog.Owner) error {
	if err := l.down(); err != nil {
		return err
	}
	return l.Shared.Renew(ctx, o)
}

func (l *line) Leases(ctx context.Context, service string) ([]txlog.Lease, error) {
	if err := l.down(); err != nil {
		return nil, err
	}
	return l.Shared.Leases(ctx, service)
}

func (l *line) As(o txlog.Owner) txlog.Store { return lineStore{l.Shared.As(o), l} }

type lineStore struct {
	txlog.Store
	line *line
}

func (s lineStore) Append(ctx context.Context, es []txlog.Entry, sync bool) error {
	if err := s.line.down(); err != nil {
		return err
	}
	return s.Store.Append(ctx, es, sync)
}

// fleet is a service of two replicas that calls accounts, which has two as well, over one shared store.
type fleet struct {
	store          txlog.Shared
	lines          map[*running]*line
	transfers      *service
	accounts       [2]*service
	t1, t2, a1, a2 *running
}

func newFleet(t *testing.T) *fleet {
	f := &fleet{store: memory.NewShared(memory.Options{}), lines: map[*running]*line{}, transfers: newService(t),
		accounts: [2]*service{newService(t), newService(t)}}
	f.a1 = f.start(t, "bank/accounts", f.accounts[0].address())
	f.a2 = f.start(t, "bank/accounts", f.accounts[1].address(), f.a1)
	f.t1 = f.start(t, "bank/transfers", f.transfers.address(), f.a1, f.a2)
	f.t2 = f.start(t, "bank/transfers", f.transfers.address(), f.a1, f.a2)
	f.transfers.then = func(r *http.Request) int {
		return callOn(t, r, "http://"+f.t1.Upstreams["bank/accounts"]+"/accounts/alice/withdrawals")
	}
	return f
}

func (f *fleet) start(t *testing.T, service, app string, peers ...*running) *running {
	cfg := config(t, service, app, transferPolicy)
	cfg.Store, cfg.Lease = "memory", 300*time.Millisecond
	for _, p := range peers {
		cfg.Peers = append(cfg.Peers, p.Peer)
	}
	if service == "bank/transfers" {
		cfg.Upstreams = []Upstream{{Service: "bank/accounts", Listen: "127.0.0.1:0", To: []string{peers[0].Inbound, peers[1].Inbound}}}
	}
	l := &line{Shared: f.store}
	r := startOn(t, l, cfg)
	f.lines[r] = l
	return r
}

// begun opens a transaction at a replica of transfers whose only branch is undone at accounts.
func begun(t *testing.T, at *running) txn.ID {
	t.Helper()
	status, text := at.api("POST", "/v1/transactions", `{"name":"t","timeout":"1m"}`)
	if status != 201 {
		t.Fatalf("begin = %d %s", status, text)
	}
	var made struct{ ID, Context string }
	if err := json.Unmarshal([]byte(text), &made); err != nil {
		t.Fatal(err)
	}
	res, body := call(t, "POST", "http://"+at.Upstreams["bank/accounts"]+"/accounts/alice/withdrawals", "{}", "tx-context", made.Context)
	if res.StatusCode >= 300 {
		t.Fatalf("call = %d %s", res.StatusCode, body)
	}
	return txn.ID(made.ID)
}

func (f *fleet) phase(t *testing.T, at *running, id txn.ID) txn.Phase {
	t.Helper()
	st, err := at.owners.State(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return st.Phase
}

func (f *fleet) undos() (n int) {
	for _, a := range f.accounts {
		n += strings.Count(a.saw(), "DELETE")
	}
	return n
}

// A sidecar that loses the store is fenced by a replica that goes on with what it has begun. It takes no transactions,
// says so, and passes what belongs to none. Afterwards it takes its journal back.
func TestAReplicaGoesOnWithWhatAnotherHasBegun(t *testing.T) {
	f := newFleet(t)
	id := begun(t, f.t1)
	f.lines[f.t1].cut.Store(true)
	eventually(t, "the replica holds the journal", func() bool { return f.t2.owners.Holds(f.t1.owner) })
	if got := f.phase(t, f.t2, id); got != txn.Open {
		t.Errorf("phase after the takeover = %v, want open", got)
	}
	if status, text := f.t2.api("POST", "/v1/transactions/"+string(id)+"/abort", `{"reason":"test"}`); status >= 300 {
		t.Fatalf("abort at the adopter = %d %s", status, text)
	}
	eventually(t, "it is aborted", func() bool { return f.phase(t, f.t2, id) == txn.Aborted })
	if n := f.undos(); n != 1 {
		t.Errorf("accounts saw %d undos, want 1", n)
	}

	f.lines[f.t1].cut.Store(false)
	eventually(t, "the fenced one has stepped back, or has its journal again", func() bool {
		status, _ := f.t1.api("POST", "/v1/transactions", `{"name":"t"}`)
		return status == 503 || f.t1.epoch.Load() > 0
	})
	if res, _ := call(t, "GET", "http://"+f.t1.Inbound+"/anything", ""); res.StatusCode != 200 {
		t.Errorf("untagged request at a sidecar without journal = %d, want what the application says", res.StatusCode)
	}
	eventually(t, "the journal is back where it belongs", func() bool {
		return f.t1.owners.Holds(f.t1.owner) && !f.t2.owners.Holds(f.t1.owner) && len(f.t1.notReady()) == 0
	})
	begun(t, f.t1)
}

// A planned end hands over at once, without waiting for a lease.
func TestAnEndHandsOver(t *testing.T) {
	f := newFleet(t)
	id := begun(t, f.t1)
	owner := f.t1.owner
	at := time.Now()
	if err := f.t1.end(); err != nil {
		t.Errorf("the end of a sidecar with a shared store and one open = %v, want none", err)
	}
	eventually(t, "the replica holds the journal", func() bool { return f.t2.owners.Holds(owner) })
	t.Logf("handed over %v after the end began", time.Since(at))
	if got := f.phase(t, f.t2, id); got != txn.Open {
		t.Errorf("phase after the hand-over = %v, want open", got)
	}
	if status, text := f.t2.api("POST", "/v1/transactions/"+string(id)+"/abort", `{"reason":"test"}`); status >= 300 {
		t.Fatalf("abort at the adopter = %d %s", status, text)
	}
	eventually(t, "it is aborted", func() bool { return f.phase(t, f.t2, id) == txn.Aborted })
}

// What one replica holds is driven and seen from any other.
func TestAnyReplicaDrivesATransaction(t *testing.T) {
	f := newFleet(t)
	id := begun(t, f.t1)
	if got := f.phase(t, f.t2, id); got != txn.Open {
		t.Errorf("phase seen by the other replica = %v, want open", got)
	}
	if status, text := f.t2.api("POST", "/v1/transactions/"+string(id)+"/abort", `{"reason":"test"}`); status >= 300 {
		t.Errorf("abort at the other replica = %d %s", status, text)
	}
	eventually(t, "it is aborted", func() bool { return f.phase(t, f.t2, id) == txn.Aborted })
	if status, text := f.t2.api("POST", "/v1/transactions/"+string(id)+"/commit", ``); status != 409 {
		t.Errorf("commit after that = %d %s, want 409", status, text)
	}
}

// The undo goes to the other replica of accounts when the one that served the call is gone, and finds the row there.
func TestAnUndoReachesTheReplicaThatIsLeft(t *testing.T) {
	f := newFleet(t)
	id := begun(t, f.t1)
	served := f.a1
	if f.accounts[0].saw() == "" {
		served = f.a2
	}
	if err := served.end(); err != nil {
		t.Fatal(err)
	}
	if status, text := f.t1.api("POST", "/v1/transactions/"+string(id)+"/abort", `{"reason":"test"}`); status >= 300 {
		t.Fatalf("abort = %d %s", status, text)
	}
	eventually(t, "it is aborted", func() bool { return f.phase(t, f.t1, id) == txn.Aborted })
	if n := f.undos(); n != 1 {
		t.Errorf("accounts saw %d undos, want 1 and no empty one", n)
	}
}

// A stand-by goes on for a service that has no sidecar left.
func TestAStandByGoesOnForAServiceWithoutSidecars(t *testing.T) {
	f := newFleet(t)
	cfg := config(t, "mesh/standby", "127.0.0.1:1", transferPolicy)
	cfg.App, cfg.Store, cfg.Lease, cfg.Standby = "", "memory", 300*time.Millisecond, true
	cfg.Peers = []string{f.a1.Peer, f.a2.Peer}
	standby := startOn(t, f.store, cfg)
	id := begun(t, f.t1)
	f.lines[f.t2].cut.Store(true)
	f.lines[f.t1].cut.Store(true)
	eventually(t, "the stand-by holds the journal", func() bool { return standby.owners.Holds(f.t1.owner) })
	if status, text := standby.api("POST", "/v1/transactions/"+string(id)+"/abort", `{"reason":"test"}`); status >= 300 {
		t.Fatalf("abort = %d %s", status, text)
	}
	eventually(t, "it is aborted", func() bool { return f.phase(t, standby, id) == txn.Aborted })
	if n := f.undos(); n != 1 {
		t.Errorf("accounts saw %d undos, want 1", n)
	}
}
