package peer

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txn"
)

// Each event that travels arrives as it was sent.
func TestEventsTravelWhole(t *testing.T) {
	for _, e := range []txn.Event{
		txn.Begin{Spec: txn.Spec{ID: "g", Mode: txn.Saga, Plan: txn.Saga.Plan(), Branches: []txn.Branch{{ID: "1", Ops: [txn.NumOps][]byte{txn.Undo: {}}}}, Timeout: time.Minute},
			Known: []txn.Settled{{Branch: "1", Outcome: txn.OK}}, Age: time.Second, Decide: &txn.Decide{Commit: true}},
		txn.Enlist{Branch: txn.Branch{Key: "k", Note: []byte("n")}, Answered: txn.OK, Result: []byte("r"), Call: "c"},
		txn.Leave{Branch: "1"}, txn.Extend{Timeout: time.Hour}, txn.Decide{Commit: true, Reason: "r", Answer: []byte("a"), Delay: 1},
		txn.Returned{Branch: "1", Op: txn.Undo, Outcome: txn.Refused, Cause: "c"}, txn.Hasten{},
		txn.Force{Branch: "1", Op: txn.Undo, Act: txn.ActSkip, By: "me", Why: "paid"}, txn.Stop{By: "me", Why: "sold"},
	} {
		m := newMesh(t)
		var got txn.Event
		m.server.opt.Local = recorder{held{m.engine, ownerA}, &got}
		if err := m.client.Do(t.Context(), ownerA, "gid", e); err != nil {
			t.Fatalf("%T: %v", e, err)
		}
		if diff := cmp.Diff(e, got); diff != "" {
			t.Errorf("%T (-sent +got):\n%s", e, diff)
		}
	}
}

func TestEventsForAJournalThatIsNotHeldAreMisdirected(t *testing.T) {
	m := newMesh(t)
	if err := m.client.Do(t.Context(), ownerB, "gid", txn.Hasten{}); !errors.Is(err, ErrMisdirected) {
		t.Errorf("event for %s at %s: %v, want ErrMisdirected", ownerB, ownerA, err)
	}
	if err := m.client.Do(t.Context(), ownerA, "gid", txn.Wake{}); err == nil {
		t.Error("a wake was sent to another sidecar")
	}
	if err := m.client.Do(t.Context(), ownerA, ownerA+".01", txn.Hasten{}); !errors.Is(err, txn.ErrUnknown) {
		t.Errorf("event for an unknown transaction: %v, want ErrUnknown", err)
	}
}

func TestAnOfferReachesWhoSharesTheStore(t *testing.T) {
	m := newMesh(t)
	at := m.http.Listener.Addr().String()
	if err := m.client.Offer(t.Context(), at, ownerB, 7); !errors.Is(err, ErrMisdirected) {
		t.Errorf("offer to an embedded store: %v, want ErrMisdirected", err)
	}
	var got wireOffer
	m.server.opt.Offered = func(owner string, epoch uint64) { got = wireOffer{owner, epoch} }
	if err := m.client.Offer(t.Context(), at, ownerB, 7); err != nil || got != (wireOffer{ownerB, 7}) {
		t.Errorf("offer arrived as %+v, %v", got, err)
	}
}

// recorder keeps the last event.
type recorder struct {
	held
	got *txn.Event
}

// Do implements Local.
func (r recorder) Do(_ context.Context, _ txn.ID, e txn.Event) (txn.State, error) {
	*r.got = e
	return txn.State{}, nil
}
