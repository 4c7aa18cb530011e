package interceptor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// sharedRows are the barrier rows of all replicas of a service.
type sharedRows struct {
	mu     sync.Mutex // guards all below
	rows   map[string][]byte
	silent bool // writes are done, and nobody hears so
}

var errSilent = errors.New("no answer")

func (s *sharedRows) Load(_ context.Context, branch string) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.rows[branch]
	return b, ok, nil
}

func (s *sharedRows) Save(_ context.Context, branch string, old, row []byte, _ bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.Equal(old, s.rows[branch]) {
		return txlog.ErrChanged
	}
	if row == nil {
		delete(s.rows, branch)
	} else {
		s.rows[branch] = row
	}
	if s.silent {
		return errSilent
	}
	return nil
}

func (s *sharedRows) Each(context.Context, func(string, []byte) bool) error { return nil }

// runner names one replica, and knows which others are gone.
type runner struct {
	name string
	gone map[string]bool
}

func (r runner) Name() (string, error)                 { return r.name, nil }
func (r runner) Gone(_ context.Context, n string) bool { return r.gone[n] }

// newReplica is a sidecar of bank/accounts beside others that share rows and gone.
func newReplica(t *testing.T, name string, shared *sharedRows, gone map[string]bool) *world {
	w := newWorld(t, "bank/accounts")
	w.gate.Self, w.gate.Home = name, SharedHome("bank/accounts")
	w.gate.Rows, w.gate.Runners = shared, runner{name + "/1", gone}
	return w
}

func newReplicas(t *testing.T) (a, b *world, gone map[string]bool) {
	shared, gone := &sharedRows{rows: map[string][]byte{}}, map[string]bool{}
	return newReplica(t, "AAAAAAAAAAAAA", shared, gone), newReplica(t, "BBBBBBBBBBBBB", shared, gone), gone
}

// A call that one replica has served is settled by another as by itself; what it still runs is left alone until it is
// gone.
func TestAnyReplicaSettles(t *testing.T) {
	for _, tt := range []struct {
		state string // at a
		gone  bool   // a, by now
		op    txn.Op
		want  string // at b
	}{
		{"nothing", false, txn.Undo, "ok"},
		{"done", false, txn.Undo, "ok"},
		{"done", true, txn.Undo, "ok"},
		{"refused", false, txn.Undo, "ok"},
		{"undone", false, txn.Undo, "ok"},
		{"running", false, txn.Undo, "pending"},
		{"running", true, txn.Undo, "refused"}, // crashed, and nobody can know
		{"crashed", false, txn.Undo, "refused"},
		{"crashed, keyed", false, txn.Undo, "ok"},
		{"running", false, txn.Ask, "pending"},
		{"done", true, txn.Ask, "ok"},
		{"running", false, txn.Forward, string(CodeRunning)},
		{"running", true, txn.Forward, string(CodeCrashed)},
		{"done", true, txn.Forward, "201"},
		{"undone", true, txn.Forward, string(CodeLate)},
	} {
		t.Run(fmt.Sprintf("%s, gone %v, %s", tt.state, tt.gone, tt.op), func(t *testing.T) {
			a, b, gone := newReplicas(t)
			a.put(tt.state)
			gone["AAAAAAAAAAAAA/1"] = tt.gone
			got := "runs"
			if tt.op != txn.Forward {
				got = b.settleOp(tt.op, txn.None).Outcome.String()
			} else if v := b.in(b.forward("/accounts/a/withdrawals")); v.Ticket == nil {
				got = code(v.Answer)
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// While one replica undoes, another does not, and afterwards it is done.
func TestOneReplicaUndoesAtATime(t *testing.T) {
	a, b, _ := newReplicas(t)
	a.put("done")
	var meanwhile HomeReply
	a.app = func(*Outgoing) (*Reply, error) {
		meanwhile = b.settleOp(txn.Undo, txn.OK)
		return &Reply{Status: 200}, nil
	}
	if got := a.settleOp(txn.Undo, txn.OK); got.Outcome != txn.OK {
		t.Errorf("undo = %v, want ok", got)
	}
	if meanwhile.Outcome != txn.Pending {
		t.Errorf("undo at the other replica meanwhile = %+v, want pending", meanwhile)
	}
	if got := b.settleOp(txn.Undo, txn.OK); got.Outcome != txn.OK || len(b.sent) > 0 {
		t.Errorf("undo afterwards = %+v and sent %v, want ok and nothing", got, b.sent)
	}
}

// A replica that was believed gone comes back with its answer: the row is another by now, and nobody is told that the
// call stands.
func TestAReplicaThatWasJudgedGoneDoesNotAnswer(t *testing.T) {
	a, b, gone := newReplicas(t)
	v := a.in(a.forward("/accounts/a/withdrawals"))
	gone["AAAAAAAAAAAAA/1"] = true
	c := HomeCall{Home: b.gate.Home, Branch: branchName, Op: txn.Ask, Attempt: 1, Deadline: b.now.Add(time.Minute)}
	if got := b.gate.Settle(context.Background(), c); got.Outcome != txn.None {
		t.Fatalf("ask = %+v, want that nobody can know", got)
	}
	// The owner gives up on it and buries the branch by hand of an operator, or by its query: the row changes.
	row, _, err := b.gate.load(t.Context(), branchName)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.gate.bury(t.Context(), c, row, txn.OK, ""); got.Outcome != txn.OK {
		t.Fatal(got)
	}
	if got := a.gate.After(t.Context(), v.Ticket, newResponse(201, `{"id":"w-1"}`), nil); got == nil || code(got) != string(CodeJournal) {
		t.Errorf("the late answer passes as %+v, want %s", got, CodeJournal)
	}
}

// No empty undo is answered for a call that runs, wherever both arrive, and no call runs after one.
func TestForwardAndUndoNeverBothWin(t *testing.T) {
	for range 1000 {
		a, b, _ := newReplicas(t)
		var ran bool
		var undo HomeReply
		var both sync.WaitGroup
		both.Go(func() { ran = a.in(a.forward("/accounts/a/withdrawals")).Ticket != nil })
		both.Go(func() { undo = b.settleOp(txn.Undo, txn.None) })
		both.Wait()
		if ran && undo.Outcome == txn.OK {
			t.Fatal("the call runs, and its undo was answered as having nothing to undo")
		}
	}
}

// A row that was written although nobody heard so names a runner that runs nothing. It is taken back: the other replica
// does not wait for ever.
func TestARowInDoubtIsTakenBack(t *testing.T) {
	for _, tt := range []struct {
		name   string
		broken func(a *world, shared *sharedRows) // at a, whose writes are not answered
		op     txn.Op
		want   string // at b, afterwards
	}{
		{"the call did not leave", func(a *world, _ *sharedRows) {
			if v := a.in(a.forward("/accounts/a/withdrawals")); v.Ticket != nil || code(v.Answer) != string(CodeJournal) {
				t.Errorf("forward = %+v, want %s", v, CodeJournal)
			}
		}, txn.Undo, "ok"},
		{"its end is not known", func(a *world, shared *sharedRows) {
			shared.silent = false
			v := a.in(a.forward("/accounts/a/withdrawals"))
			shared.silent = true
			a.after(v, nil, errors.New("reset"))
		}, txn.Undo, "refused"}, // crashed: nobody knows
		{"an undo was not noted", func(a *world, shared *sharedRows) {
			shared.silent = false
			a.put("done")
			shared.silent = true
			a.settleOp(txn.Undo, txn.OK)
		}, txn.Undo, "ok"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			shared, gone := &sharedRows{rows: map[string][]byte{}, silent: true}, map[string]bool{}
			a, b := newReplica(t, "AAAAAAAAAAAAA", shared, gone), newReplica(t, "BBBBBBBBBBBBB", shared, gone)
			tt.broken(a, shared)
			a.gate.Tidy(t.Context()) // too early, and nothing is answered
			shared.silent = false
			a.now = a.now.Add(doubtPauseMin)
			a.gate.Tidy(t.Context())
			if got := b.settleOp(tt.op, txn.None).Outcome.String(); got != tt.want {
				t.Errorf("%s at the other replica = %s, want %s", tt.op, got, tt.want)
			}
			a.now = a.now.Add(doubtMax)
			a.gate.Tidy(t.Context())
			if len(a.gate.doubts) > 0 {
				t.Errorf("%d rows are still in doubt after %v", len(a.gate.doubts), doubtMax)
			}
		})
	}
}
