package peer

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txlog"
	"txmesh/txlog/memory"
)

// world answers for peers.
type world struct {
	mu    sync.Mutex // guards all below
	peers map[string]Identity
	asked int
	block chan struct{} // not nil: answers wait for it
}

func (w *world) ask(ctx context.Context, address string) (Identity, error) {
	w.mu.Lock()
	w.asked++
	id, ok := w.peers[address]
	block := w.block
	w.mu.Unlock()
	if block != nil {
		<-block
	}
	if !ok {
		return Identity{}, errors.New("connection refused")
	}
	return id, nil
}

func (w *world) names(_ context.Context, host string) ([]string, error) {
	return map[string][]string{"accounts": {"10.0.0.7", "10.0.0.8"}}[host], nil
}

func newTestDirectory(t *testing.T, w *world, rows txlog.Table, now func() time.Time, peers ...string) *Directory {
	t.Helper()
	d, err := NewDirectory(t.Context(), DirectoryOptions{Peers: peers, Ask: w.ask, Names: w.names, Rows: rows, Now: now,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDirectoryKnowsPeersByAllTheirNames(t *testing.T) {
	w := &world{peers: map[string]Identity{
		"accounts:15808": {Owner: ownerA, Service: "bank/accounts", Inbound: "0.0.0.0:15806"},
		"127.0.0.1:2":    {Owner: ownerB, Service: "bank/savings", Inbound: "127.0.0.1:1"}}}
	d := newTestDirectory(t, w, memory.New(memory.Options{}).Table("peers"), nil, "accounts:15808", "127.0.0.1:2")
	d.SetSelf(Identity{Owner: "S", Inbound: "127.0.0.1:9"})
	for endpoint, want := range map[string]string{"accounts:15806": ownerA, "10.0.0.7:15806": ownerA, "10.0.0.8:15806": ownerA,
		"127.0.0.1:1": ownerB, "127.0.0.1:9": "S", "0.0.0.0:15806": "", "api.pay.example:80": ""} {
		if got, _ := d.HomeOf(endpoint); got != want {
			t.Errorf("HomeOf(%s) = %q, want %q", endpoint, got, want)
		}
	}
	for owner, want := range map[string]string{ownerA: "accounts:15806", ownerB: "127.0.0.1:1", "S": "127.0.0.1:9", "X": ""} {
		if got, ok := d.EndpointOf(owner); got != want || ok != (want != "") {
			t.Errorf("EndpointOf(%s) = %q, want %q", owner, got, want)
		}
	}
	if got, err := d.AddressOf(t.Context(), ownerA); got != "accounts:15808" || err != nil {
		t.Errorf("AddressOf = %s, %v", got, err)
	}
	if got := d.EndpointsOf("bank/savings"); !cmp.Equal(got, []string{"127.0.0.1:1"}) {
		t.Errorf("EndpointsOf = %v", got)
	}
	if w.asked != 2 {
		t.Errorf("peers were asked %d times, want once each", w.asked)
	}
}

func TestUnknownOwnerIsNotReachable(t *testing.T) {
	d := newTestDirectory(t, &world{}, memory.New(memory.Options{}).Table("peers"), nil, "127.0.0.1:2")
	_, err := d.AddressOf(t.Context(), ownerA)
	want := "peer: not reachable: none of the 1 configured peers says that it is owner " + ownerA
	if !errors.Is(err, ErrUnreachable) || err.Error() != want {
		t.Errorf("AddressOf = %v, want %s", err, want)
	}
	if got := d.Unanswered(); !cmp.Equal(got, []string{"127.0.0.1:2"}) {
		t.Errorf("Unanswered = %v", got)
	}
}

func TestPeersAreRememberedWhileTheyAreDown(t *testing.T) {
	rows := memory.New(memory.Options{}).Table("peers")
	w := &world{peers: map[string]Identity{"127.0.0.1:2": {Owner: ownerB, Inbound: "127.0.0.1:1"}}}
	newTestDirectory(t, w, rows, nil, "127.0.0.1:2").Refresh(t.Context())
	clear(w.peers)
	d := newTestDirectory(t, w, rows, nil, "127.0.0.1:2")
	d.Refresh(t.Context())
	if got, ok := d.HomeOf("127.0.0.1:1"); got != ownerB || !ok {
		t.Errorf("HomeOf after a restart of both = %q", got)
	}
	gone := newTestDirectory(t, w, rows, nil, "127.0.0.1:3")
	if got, ok := gone.HomeOf("127.0.0.1:1"); got != "" || ok {
		t.Errorf("HomeOf = %q, %v, though the peer is not configured any more and another was never heard", got, ok)
	}
}

func TestMissesShareOneRoundAndDoNotPileUp(t *testing.T) {
	w := &world{peers: map[string]Identity{}, block: make(chan struct{})}
	c := &clock{time.UnixMilli(1_800_000_000_000)}
	d := newTestDirectory(t, w, memory.New(memory.Options{}).Table("peers"), c.now, "127.0.0.1:2")
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { d.HomeOf("127.0.0.1:1") })
	}
	close(w.block)
	all.Wait()
	w.mu.Lock()
	first := w.asked
	w.mu.Unlock()
	d.HomeOf("127.0.0.1:1") // too soon
	if w.asked != first || first != 1 {
		t.Errorf("asked %d times, then %d; want 1 and 1", first, w.asked)
	}
	c.at = c.at.Add(pauseMin)
	d.HomeOf("127.0.0.1:1")
	if w.asked != 2 {
		t.Errorf("asked %d times after a pause, want 2", w.asked)
	}
}

func TestAPeerThatMovesIsFoundAgain(t *testing.T) {
	w := &world{peers: map[string]Identity{"127.0.0.1:2": {Owner: ownerB, Inbound: "127.0.0.1:1"}}}
	d := newTestDirectory(t, w, memory.New(memory.Options{}).Table("peers"), nil, "127.0.0.1:2")
	d.Refresh(t.Context())
	w.peers["127.0.0.1:2"] = Identity{Owner: ownerB, Incarnation: "2", Inbound: "127.0.0.1:7"}
	d.Refresh(t.Context())
	if got, _ := d.EndpointOf(ownerB); got != "127.0.0.1:7" {
		t.Errorf("EndpointOf = %s, want the new one", got)
	}
	if got, ok := d.HomeOf("127.0.0.1:1"); got != "" || !ok {
		t.Errorf("the old endpoint has home %q, known %v; want none, for certain", got, ok)
	}
}

// An endpoint may belong to a peer that is still starting. Only when all have been heard of it belongs to nobody.
func TestEndpointsOfPeersThatWereNeverHeardAreNotKnown(t *testing.T) {
	w := &world{peers: map[string]Identity{"127.0.0.1:2": {Owner: ownerA, Inbound: "127.0.0.1:1"}}}
	d := newTestDirectory(t, w, memory.New(memory.Options{}).Table("peers"), nil, "127.0.0.1:2", "127.0.0.1:4", "127.0.0.1:4")
	for _, tt := range []struct {
		endpoint, owner string
		known           bool
	}{{"127.0.0.1:1", ownerA, true}, {"127.0.0.1:3", "", false}} {
		if got, known := d.HomeOf(tt.endpoint); got != tt.owner || known != tt.known {
			t.Errorf("HomeOf(%s) = %q, %v; want %q, %v", tt.endpoint, got, known, tt.owner, tt.known)
		}
	}
	w.peers["127.0.0.1:4"] = Identity{Owner: ownerB, Inbound: "127.0.0.1:3"}
	d.Refresh(t.Context())
	for endpoint, want := range map[string]string{"127.0.0.1:3": ownerB, "127.0.0.1:5": ""} {
		if got, known := d.HomeOf(endpoint); got != want || !known {
			t.Errorf("HomeOf(%s) = %q, %v; want %q, true", endpoint, got, known, want)
		}
	}
}
