package interceptor

import (
	"fmt"
	"testing"

	"txmesh/txn"
)

// unsent is a forwarder's error that knows what was sent.
type unsent bool

func (u unsent) Error() string { return "connection refused" }
func (u unsent) NotSent() bool { return bool(u) }

// TestCallThatWasNotSentLeavesNoRow: an application that is down was asked nothing. A call that may have reached it
// stays started, and only somebody else can say what it did.
func TestCallThatWasNotSentLeavesNoRow(t *testing.T) {
	for _, tt := range []struct {
		err  unsent
		want txn.Outcome
	}{{true, txn.Refused}, {false, txn.None}} {
		w := newWorld(t, "bank/accounts")
		w.after(w.in(w.forward("/accounts/a/withdrawals")), nil, fmt.Errorf("forward: %w", tt.err))
		if got := w.settleOp(txn.Ask, txn.None); got.Outcome != tt.want {
			t.Errorf("ask after a call with NotSent %v = %v (%s), want %v", bool(tt.err), got.Outcome, got.Cause, tt.want)
		}
	}
}

// TestBranchThatWasNotSentIsRefused: what certainly did not leave needs no query and no undo. Where a home speaks for all
// calls of the branch, only it may say so: another call may have arrived.
func TestBranchThatWasNotSentIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name, service, path string
		err                 unsent
		want                txn.Outcome
	}{
		{"not sent", "bank/legacy", "/entries", true, txn.Refused},
		{"perhaps sent", "bank/legacy", "/entries", false, txn.None},
		{"not sent to a home", "bank/accounts", "/accounts/a/withdrawals", true, txn.None},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "bank/transfers")
			_, root := w.root()
			r := newRequest("POST", "http://x"+tt.path, "baggage", root.Header("baggage"))
			r.body = []byte(`{"ref":"r1"}`)
			w.after(w.out(tt.service, r), nil, fmt.Errorf("forward: %w", tt.err))
			if got := w.machines[w.lastID()].State().Branches[0].Known[txn.Forward].Outcome; got != tt.want {
				t.Errorf("outcome = %v, want %v", got, tt.want)
			}
		})
	}
}
