// Package txlogtest holds what every store must pass: one conformance suite, a decorator that injects faults, and
// a harness that kills a writing process. It decides nothing about a store's inside and reads no clock. Start at
// Run.
package txlogtest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txlog"
	"txmesh/txn"
)

// RetainBytes is the byte limit that a store under test is opened with.
const RetainBytes = 64 << 10

// opener opens the same store again and again; the one before is closed.
type opener func() txlog.Store

// Run puts a kind of store through the suite. New returns, for an empty place, a function that opens the store
// there; it is called again after Close and must find everything that was appended.
func Run(t *testing.T, empty func(t *testing.T) (open func() txlog.Store)) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, opener)
	}{
		{"entries keep their order", entriesKeepTheirOrder},
		{"appends are whole", appendsAreWhole},
		{"callers may reuse their memory", callersMayReuseTheirMemory},
		{"unfinished transactions come back", unfinishedTransactionsComeBack},
		{"another owner gets nothing", anotherOwnerGetsNothing},
		{"the newest with a key is found", theNewestWithAKeyIsFound},
		{"lists are filtered and in order", listsAreFilteredAndInOrder},
		{"pages cover a list", pagesCoverAList},
		{"summaries follow the records", summariesFollowTheRecords},
		{"trim forgets the finished by age", trimForgetsTheFinishedByAge},
		{"trim forgets the oldest over the limit", trimForgetsTheOldestOverTheLimit},
		{"a late record is kept", aLateRecordIsKept},
		{"rows are put whole", rowsArePutWhole},
		{"a swap replaces what it expects", aSwapReplacesWhatItExpects},
		{"one of many swaps wins", oneOfManySwapsWins},
		{"tables do not mix", tablesDoNotMix},
		{"scans are in order", scansAreInOrder},
		{"large values survive", largeValuesSurvive},
		{"a closed store refuses", aClosedStoreRefuses},
		{"an ended context refuses", anEndedContextRefuses},
		{"many goroutines", manyGoroutines},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) { c.run(t, empty(t)) })
	}
}

var epoch = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC)

// at returns a moment so many seconds into the test.
func at(seconds int) time.Time { return epoch.Add(time.Duration(seconds) * time.Second) }

func entry(id string, seconds int, r txn.Record) txlog.Entry {
	return txlog.Entry{Tx: txn.ID(id), At: at(seconds), Record: r}
}

func begun(id string, seconds int) txlog.Entry {
	return entry(id, seconds, txn.Began{Spec: txn.Spec{ID: txn.ID(id), Mode: txn.Saga, Name: "transfer"}})
}

func finished(id string, seconds int, p txn.Phase) txlog.Entry {
	return entry(id, seconds, txn.Finished{Phase: p})
}

func appendAll(t *testing.T, s txlog.Store, sync bool, es ...txlog.Entry) {
	t.Helper()
	if err := s.Append(t.Context(), es, sync); err != nil {
		t.Fatal(err)
	}
}

func collect[V any](t *testing.T, seq iter.Seq2[V, error]) []V {
	t.Helper()
	var out []V
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

func history(t *testing.T, s txlog.Store, id string) []txlog.Entry {
	t.Helper()
	return collect(t, s.History(t.Context(), txn.ID(id)))
}

// reopen is a restart.
func reopen(t *testing.T, s txlog.Store, open opener) txlog.Store {
	t.Helper()
	closeStore(t, s)
	return open()
}

func closeStore(t *testing.T, s txlog.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func same[V any](t *testing.T, what string, got, want V) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

func entriesKeepTheirOrder(t *testing.T, open opener) {
	s := open()
	var want []txlog.Entry
	for i := range 20 {
		e := begun("a", 0)
		if i > 0 {
			e = entry("a", i, txn.Left{Branch: fmt.Sprint(i)})
		}
		want = append(want, e)
		appendAll(t, s, i%3 == 0, e, entry("b", i, txn.Left{Branch: "x"}))
	}
	same(t, "history", history(t, s, "a"), want)
	s = reopen(t, s, open)
	defer closeStore(t, s)
	same(t, "history after a restart", history(t, s, "a"), want)
	same(t, "history of an unknown one", history(t, s, "aa"), nil)
}

func appendsAreWhole(t *testing.T, open opener) {
	s := open()
	defer func() { closeStore(t, s) }()
	bad := []txlog.Entry{begun("a", 0), entry("a", 1, nil)}
	if err := s.Append(t.Context(), bad, true); err == nil {
		t.Fatal("an entry without a record was taken")
	}
	same(t, "history after a refused append", history(t, s, "a"), nil)
	good := []txlog.Entry{begun("a", 0), begun("b", 0), entry("a", 1, txn.Left{Branch: "1"})}
	appendAll(t, s, true, good...)
	s = reopen(t, s, open)
	same(t, "history", history(t, s, "a"), []txlog.Entry{good[0], good[2]})
	same(t, "the other's", history(t, s, "b"), good[1:2])
}

func callersMayReuseTheirMemory(t *testing.T, open opener) {
	s := open()
	defer closeStore(t, s)
	result, value := []byte("one"), []byte("uno")
	es := []txlog.Entry{entry("a", 0, txn.Settled{Branch: "x", Outcome: txn.OK, Result: result})}
	appendAll(t, s, false, es...)
	rows := []txlog.Row{{Key: "k", Value: value}}
	if err := s.Table("t").Put(t.Context(), rows, false); err != nil {
		t.Fatal(err)
	}
	copy(result, "two")
	copy(value, "dos")
	es[0], rows[0] = txlog.Entry{}, txlog.Row{}
	got := history(t, s, "a")
	same(t, "entry", got[0].Record, txn.Record(txn.Settled{Branch: "x", Outcome: txn.OK, Result: []byte("one")}))
	v, err := s.Table("t").Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "row", string(v), "uno")
	copy(v, "dos")
	if v, err = s.Table("t").Get(t.Context(), "k"); err != nil || string(v) != "uno" {
		t.Fatalf("row = %q, %v after its copy was changed", v, err)
	}
}

func unfinishedTransactionsComeBack(t *testing.T, open opener) {
	s := open()
	want := map[txn.ID]int{}
	for i := range 30 {
		id := fmt.Sprintf("tx-%02d", i)
		appendAll(t, s, false, begun(id, i), entry(id, i, txn.Left{Branch: "b"}))
		want[txn.ID(id)] = 2
		if i%3 == 0 {
			appendAll(t, s, i%2 == 0, finished(id, i, txn.Aborted))
			delete(want, txn.ID(id))
		}
	}
	for range 2 {
		same(t, "entries by unfinished transaction", openCounts(t, s), want)
		s = reopen(t, s, open)
	}
	closeStore(t, s)
}

// openCounts opens the journal and checks that each transaction's entries come together.
func openCounts(t *testing.T, s txlog.Store) map[txn.ID]int {
	t.Helper()
	counts := map[txn.ID]int{}
	last := txn.ID("")
	for _, e := range collect(t, s.Open(t.Context(), txlog.Owner{})) {
		if e.Tx != last && counts[e.Tx] > 0 {
			t.Fatalf("entries of %s are apart", e.Tx)
		}
		if _, ok := e.Record.(txn.Began); ok != (e.Tx != last) {
			t.Fatalf("entry %d of %s is a %T", counts[e.Tx], e.Tx, e.Record)
		}
		last = e.Tx
		counts[e.Tx]++
	}
	return counts
}

// owned is a store that has one owner.
type owned interface{ Owner() txlog.Owner }

func anotherOwnerGetsNothing(t *testing.T, open opener) {
	s := open()
	appendAll(t, s, true, begun("a", 0))
	o, ok := s.(owned)
	if !ok {
		t.Fatalf("%T has no Owner", s)
	}
	owner := o.Owner()
	if len(owner.ID) != 13 || strings.Trim(owner.ID, "0123456789ABCDEFGHJKMNPQRSTVWXYZ") != "" {
		t.Errorf("owner %q is not 13 Crockford characters", owner.ID)
	}
	if n := len(collect(t, s.Open(t.Context(), owner))); n != 1 {
		t.Errorf("the owner gets %d entries, want 1", n)
	}
	for _, err := range s.Open(t.Context(), txlog.Owner{ID: "ZZZZZZZZZZZZZ"}) {
		if !errors.Is(err, txlog.ErrFenced) {
			t.Errorf("another owner gets %v, want ErrFenced", err)
		}
	}
	s = reopen(t, s, open)
	defer closeStore(t, s)
	if again := s.(owned).Owner(); again.ID != owner.ID || again.Epoch < owner.Epoch {
		t.Errorf("owner after a restart = %v, want %v", again, owner)
	}
}

func theNewestWithAKeyIsFound(t *testing.T, open opener) {
	s := open()
	defer func() { closeStore(t, s) }()
	keyed := func(id, key string, seconds int) txlog.Entry {
		return entry(id, seconds, txn.Began{Spec: txn.Spec{ID: txn.ID(id), Mode: txn.Saga, Key: key}})
	}
	appendAll(t, s, true, keyed("a", "k", 0), keyed("b", "k2", 0))
	appendAll(t, s, true, finished("a", 1, txn.Aborted))
	appendAll(t, s, true, keyed("c", "k", 2))
	for range 2 {
		for key, want := range map[string]txn.ID{"k": "c", "k2": "b"} {
			if id, err := s.Find(t.Context(), key); err != nil || id != want {
				t.Errorf("find %q = %q, %v; want %q", key, id, err, want)
			}
		}
		for _, key := range []string{"", "K", "k22"} {
			if id, err := s.Find(t.Context(), key); !errors.Is(err, txlog.ErrNotFound) {
				t.Errorf("find %q = %q, %v; want ErrNotFound", key, id, err)
			}
		}
		s = reopen(t, s, open)
	}
	if _, err := s.Trim(t.Context(), at(9)); err != nil { // forgets a, not the key, which is c's
		t.Fatal(err)
	}
	if id, err := s.Find(t.Context(), "k"); err != nil || id != "c" {
		t.Errorf("find after trim = %q, %v; want c", id, err)
	}
	appendAll(t, s, true, finished("c", 3, txn.Committed))
	if _, err := s.Trim(t.Context(), at(9)); err != nil {
		t.Fatal(err)
	}
	if id, err := s.Find(t.Context(), "k"); !errors.Is(err, txlog.ErrNotFound) {
		t.Errorf("find after both are forgotten = %q, %v; want ErrNotFound", id, err)
	}
}

func aClosedStoreRefuses(t *testing.T, open opener) {
	s := open()
	closeStore(t, s)
	closeStore(t, s) // again is harmless
	ctx := context.Background()
	_, find := s.Find(ctx, "k")
	_, _, list := s.List(ctx, txlog.Query{})
	_, trim := s.Trim(ctx, at(0))
	_, get := s.Table("t").Get(ctx, "k")
	for name, err := range map[string]error{
		"append": s.Append(ctx, []txlog.Entry{begun("a", 0)}, true), "accepts": s.Accepts(), "find": find, "list": list,
		"trim": trim, "get": get, "put": s.Table("t").Put(ctx, []txlog.Row{{Key: "k"}}, true),
		"history": first(s.History(ctx, "a")), "scan": first(s.Table("t").Scan(ctx, "")),
	} {
		if !errors.Is(err, txlog.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
}

func first[V any](seq iter.Seq2[V, error]) error {
	for _, err := range seq {
		return err
	}
	return nil
}

func anEndedContextRefuses(t *testing.T, open opener) {
	s := open()
	defer closeStore(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Append(ctx, []txlog.Entry{begun("a", 0)}, true); !errors.Is(err, context.Canceled) {
		t.Errorf("append: %v, want Canceled", err)
	}
	if err := s.Table("t").Put(ctx, []txlog.Row{{Key: "k", Value: []byte("v")}}, true); !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v, want Canceled", err)
	}
	if err := first(s.History(ctx, "a")); !errors.Is(err, context.Canceled) {
		t.Errorf("history: %v, want Canceled", err)
	}
	same(t, "what was written", history(t, s, "a"), nil)
}

// ids returns the ids of a page.
func ids(sums []txlog.Summary) []string {
	out := make([]string, 0, len(sums))
	for _, s := range sums {
		out = append(out, string(s.ID))
	}
	return out
}

func sorted(in []string) []string {
	slices.Sort(in)
	return in
}
