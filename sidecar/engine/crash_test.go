package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txlog/txlogtest"
	"txmesh/txn"
)

// TestCrashAtEveryAppend cuts the power at each append of a run and goes on from what is left: every transaction
// that was acknowledged is found, ends, and keeps its decision.
func TestCrashAtEveryAppend(t *testing.T) {
	for at := 2; ; at++ {
		reached := false
		t.Run(fmt.Sprint("append ", at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { reached = crashAt(t, at) })
		})
		if !reached {
			if at < 8 {
				t.Errorf("only %d appends", at-1)
			}
			return
		}
	}
}

func crashAt(t *testing.T, at int) (reached bool) {
	store := memory.New(memory.Options{})
	rng := rand.New(rand.NewPCG(uint64(at), 1))
	s := txlogtest.Faulty(store, txlogtest.Rule{On: txlogtest.OnAppend, From: at, To: -1, Err: errDisk, Written: rng.IntN(2) == 0})
	e := start(t, s, &book{})
	var begun, committed []txn.ID
	for i := range 4 {
		id := txn.ID(fmt.Sprint("x", i))
		mode := []txn.Mode{txn.Saga, txn.Explicit, txn.Intercepted, txn.TCC}[i]
		var bs []txn.Branch
		if mode == txn.Saga {
			bs = []txn.Branch{branch("", txn.Forward, txn.Undo), branch("", txn.Forward, txn.Undo)}
		}
		if _, err := e.Do(t.Context(), id, begin(id, mode, bs...)); err != nil {
			break
		}
		begun = append(begun, id)
		if mode == txn.Saga {
			continue
		}
		_, err := e.Do(t.Context(), id, txn.Enlist{Branch: branch("a", txn.Undo, txn.Commit), Answered: txn.OK})
		if err == nil {
			_, err = e.Do(t.Context(), id, txn.Decide{Commit: true})
		}
		if err == nil {
			committed = append(committed, id)
		}
	}
	synctest.Wait()
	reached = s.Calls(txlogtest.OnAppend) >= at
	stop(t, e)
	store.Crash(rng)

	e = start(t, store, &book{})
	defer stop(t, e)
	for _, id := range begun {
		st, err := e.State(t.Context(), id)
		if err != nil {
			t.Errorf("L14: %s was acknowledged and is lost: %v", id, err)
			continue
		}
		if !st.Phase.Done() {
			st = wait(t, e, id, ended)
		}
		if slices.Contains(committed, id) && st.Phase != txn.Committed {
			t.Errorf("L3: the commit of %s was acknowledged, and it ended %s: %s", id, st.Phase, st.Reason)
		}
	}
	return reached
}

// TestLoadedStateIsMadeDurable: what a killed process left in the page cache may have been read back without ever
// having been synced. Before anything is called or answered, it is.
func TestLoadedStateIsMadeDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		e := start(t, store, &book{})
		do(t, e, "x", begin("x", txn.Msg, branch("", txn.Commit)))
		stop(t, e)
		// The decision was written, and the process died before its sync.
		entry := txlog.Entry{Tx: "x", At: time.Now().UTC(), Record: txn.Decided{Commit: true, Stand: []string{"0"}}}
		if err := store.Append(t.Context(), []txlog.Entry{entry}, false); err != nil {
			t.Fatal(err)
		}
		e = start(t, store, callerFunc(func(context.Context, txn.Call) (txn.Outcome, []byte, string) {
			return txn.Pending, nil, ""
		}))
		synctest.Wait()
		stop(t, e)
		store.Crash(rand.New(rand.NewPCG(1, 1)))
		e = start(t, store, &book{})
		defer stop(t, e)
		if s, err := e.State(t.Context(), "x"); err != nil || !s.Commit {
			t.Errorf("L3: the commit went out, and after the power cut it is %s, %v", s.Phase, err)
		}
	})
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := txlogtest.Faulty(memory.New(memory.Options{}), txlogtest.Rule{On: txlogtest.OnAccepts, From: 4, Err: txlog.ErrFull})
		e := start(t, s, &book{}, func(c *Config) { c.Limits = Limits{Open: 2, Branches: 2, Bytes: 1000} })
		defer stop(t, e)
		do(t, e, "x", begin("x", txn.TCC, branch("a")))
		do(t, e, "y", begin("y", txn.TCC))
		do(t, e, "x", txn.Enlist{Branch: branch("b")})
		do(t, e, "x", txn.Enlist{Branch: branch("b")}) // a repeat is no new branch
		large := begin("z", txn.TCC)
		large.Spec.Note = make([]byte, 2000)
		longKey := begin("z", txn.TCC)
		longKey.Spec.Key = strings.Repeat("k", 2000)
		for _, tt := range []struct {
			id   txn.ID
			ev   txn.Event
			want string
		}{
			{"x", txn.Enlist{Branch: branch("c")}, "transaction x: engine: too many branches in one transaction: there are 2, max-branches"},
			{"z", begin("z", txn.TCC), "transaction z: engine: too many open transactions: 2 are open, max-open"},
			{"z", begin("z", txn.TCC), "transaction z: txlog: not enough free space"},
			{"x", txn.Decide{Answer: make([]byte, 2000)}, "transaction x: engine: too large for the journal: 2000 bytes in one event, at most 1000"},
			{"z", large, "transaction z: engine: too large for the journal: 2000 bytes in one event, at most 1000"},
			{"z", longKey, "transaction z: engine: too large for the journal: id, key and name have 1, 2000 and 0 bytes, at most 512, 1024 and 512"},
			{"z", begin("y", txn.TCC), `transaction z: begin names "y": txn: repeated with other content`},
		} {
			_, err := e.Do(t.Context(), tt.id, tt.ev)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		}
	})
}

// TestAnswerTooLargeToKeepIsNone: it must not leave the call without an answer.
func TestAnswerTooLargeToKeepIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := 2000
		e := start(t, memory.New(memory.Options{}), callerFunc(func(context.Context, txn.Call) (txn.Outcome, []byte, string) {
			return txn.OK, make([]byte, size), ""
		}), func(c *Config) { c.Limits.Bytes = 1000 })
		defer stop(t, e)
		do(t, e, "x", begin("x", txn.Saga, branch("", txn.Forward)))
		s := wait(t, e, "x", func(s txn.State) bool { return s.Branches[0].Known[txn.Forward].Attempt > 0 })
		want := "transaction x: engine: too large for the journal: 2000 bytes in one event, at most 1000"
		if got := s.Branches[0].Known[txn.Forward].Cause; got != want {
			t.Errorf("cause %q, want %q", got, want)
		}
		size = 10
		wait(t, e, "x", ended)
	})
}

// TestLargeLoadIsAppendedInPortions when the store finds it too large at once.
func TestLargeLoadIsAppendedInPortions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		var es []txlog.Entry
		for i := range 300 {
			id := txn.ID(fmt.Sprintf("x%03d", i))
			b := branch("", txn.Undo)
			b.ID = "0"
			es = append(es, txlog.Entry{Tx: id, At: time.Now().UTC(), Record: txn.Began{Spec: begin(id, txn.Intercepted, b).Spec}})
		}
		if err := store.Append(t.Context(), es, true); err != nil {
			t.Fatal(err)
		}
		most := 0
		s := txlogtest.Faulty(store, txlogtest.Rule{On: txlogtest.OnAppend, To: -1, Err: txlog.ErrTooLarge, If: func(es []txlog.Entry) bool {
			if len(es) > 50 {
				return true
			}
			most = max(most, len(es))
			return false
		}})
		e := start(t, s, &book{}, func(c *Config) { c.BatchMax = 200 })
		defer stop(t, e)
		for i := range 300 {
			id := txn.ID(fmt.Sprintf("x%03d", i))
			if st := wait(t, e, id, ended); st.Phase != txn.Aborted || st.Reason != "sidecar restarted" {
				t.Fatalf("%s is %s: %s", id, st.Phase, st.Reason)
			}
		}
		if most != 50 {
			t.Errorf("at most %d entries at once, want portions of 50", most)
		}
	})
}
