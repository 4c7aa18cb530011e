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
