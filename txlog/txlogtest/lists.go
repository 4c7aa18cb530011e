package txlogtest

import (
	"fmt"
	"testing"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

func list(t *testing.T, s txlog.Store, q txlog.Query) []txlog.Summary {
	t.Helper()
	sums, _, err := s.List(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

func listsAreFilteredAndInOrder(t *testing.T, open opener) {
	s := open()
	named := func(id, name string, seconds int) txlog.Entry {
		return entry(id, seconds, txn.Began{Spec: txn.Spec{ID: txn.ID(id), Mode: txn.TCC, Name: name}})
	}
	// c and d begin at the same moment; a and d are finished, e is stuck.
	appendAll(t, s, true, named("a", "x", 1), named("b", "y", 2), named("c", "x", 3), named("d", "y", 3), named("e", "x", 4))
	appendAll(t, s, true, finished("a", 9, txn.Committed), finished("d", 9, txn.Aborted))
	appendAll(t, s, true, entry("e", 5, txn.Decided{}), entry("e", 5, txn.Halted{Branch: "1", Op: txn.Undo, Cause: "404"}))
	between := txlog.Query{}
	between.Begun.After, between.Begun.Before = at(2), at(4)
	for range 2 {
		for _, c := range []struct {
			name string
			q    txlog.Query
			want []string
		}{
			{"all", txlog.Query{}, []string{"e", "d", "c", "b", "a"}},
			{"by name", txlog.Query{Name: "x"}, []string{"e", "c", "a"}},
			{"by phase", txlog.Query{Phases: []txn.Phase{txn.Committed, txn.Stuck}}, []string{"e", "a"}},
			{"open", txlog.Query{Phases: []txn.Phase{txn.Open}}, []string{"c", "b"}},
			{"by time", between, []string{"d", "c", "b"}},
			{"first two", txlog.Query{Limit: 2}, []string{"e", "d"}},
			{"none", txlog.Query{Name: "z"}, []string{}},
		} {
			same(t, c.name, ids(list(t, s, c.q)), c.want)
		}
		s = reopen(t, s, open)
	}
	if _, _, err := s.List(t.Context(), txlog.Query{From: "nonsense"}); err == nil {
		t.Error("a cursor that no listing gave was taken")
	}
	closeStore(t, s)
}

func pagesCoverAList(t *testing.T, open opener) {
	s := open()
	defer closeStore(t, s)
	const n = 57
	var want []string
	for i := range n {
		id := fmt.Sprintf("tx-%03d", i)
		want = append(want, id)
		appendAll(t, s, false, begun(id, i/4)) // four at each moment
		if i%2 == 0 {
			appendAll(t, s, false, finished(id, 100, txn.Committed))
		}
	}
	for _, limit := range []int{1, 5, 10, n, n + 1} {
		var got []string
		q := txlog.Query{Limit: limit}
		for pages := 0; ; pages++ {
			sums, next, err := s.List(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			if len(sums) > limit || pages > n {
				t.Fatalf("page %d of %d holds %d", pages, limit, len(sums))
			}
			for i := 1; i < len(sums); i++ {
				if !txlog.Newer(sums[i-1], sums[i]) {
					t.Fatalf("%v comes before %v", sums[i-1], sums[i])
				}
			}
			got = append(got, ids(sums)...)
			if next == "" {
				break
			}
			q.From = next
		}
		same(t, fmt.Sprintf("all pages of %d", limit), sorted(got), want)
	}
}

func summariesFollowTheRecords(t *testing.T, open opener) {
	s := open()
	defer func() { closeStore(t, s) }()
	spec := txn.Spec{ID: "a", Mode: txn.Saga, Name: "n", Branches: []txn.Branch{{ID: "0"}, {ID: "1"}}}
	want := txlog.Summary{ID: "a", Mode: txn.Saga, Name: "n", Begun: at(0), Branches: 2}
	for i, step := range []struct {
		r      txn.Record
		change func()
	}{
		{txn.Began{Spec: spec}, func() {}},
		{txn.Enlisted{Branch: txn.Branch{ID: "2"}}, func() { want.Branches = 3 }},
		{txn.Left{Branch: "1"}, func() { want.Branches = 2 }},
		{txn.Settled{Branch: "0", Op: txn.Forward, Outcome: txn.Refused}, func() {}},
		{txn.Decided{Reason: "refused"}, func() { want.Phase, want.Reason = txn.Aborting, "refused" }},
		{txn.Halted{Branch: "0", Op: txn.Undo, Cause: "404"}, func() { want.Phase = txn.Stuck }},
		{txn.Forced{Branch: "0", Op: txn.Undo, Act: txn.ActSkip}, func() { want.Phase = txn.Aborting }},
		{txn.Finished{Phase: txn.Aborted}, func() { want.Phase, want.Finished = txn.Aborted, at(7) }},
	} {
		appendAll(t, s, true, entry("a", i, step.r))
		step.change()
		same(t, fmt.Sprintf("summary after %T", step.r), list(t, s, txlog.Query{}), []txlog.Summary{want})
		s = reopen(t, s, open)
		same(t, fmt.Sprintf("summary after %T and a restart", step.r), list(t, s, txlog.Query{}), []txlog.Summary{want})
	}
}

func trimForgetsTheFinishedByAge(t *testing.T, open opener) {
	s := open()
	for i := range 20 {
		id := fmt.Sprintf("tx-%02d", i)
		appendAll(t, s, false, begun(id, i), entry(id, i, txn.Left{Branch: "b"}))
		if i%2 == 0 {
			appendAll(t, s, false, finished(id, 100+i, txn.Committed))
		}
	}
	n, err := s.Trim(t.Context(), at(110))
	if err != nil || n != 5 {
		t.Fatalf("trim = %d, %v; want 5", n, err)
	}
	for range 2 {
		for i := range 20 {
			id := fmt.Sprintf("tx-%02d", i)
			want := 2 + (i+1)%2
			if i%2 == 0 && i < 10 {
				want = 0
			}
			if got := len(history(t, s, id)); got != want {
				t.Errorf("%s has %d entries after trim, want %d", id, got, want)
			}
		}
		same(t, "listed", len(list(t, s, txlog.Query{})), 15)
		s = reopen(t, s, open)
	}
	if n, err := s.Trim(t.Context(), at(110)); err != nil || n != 0 {
		t.Errorf("second trim = %d, %v; want 0", n, err)
	}
	closeStore(t, s)
}

func trimForgetsTheOldestOverTheLimit(t *testing.T, open opener) {
	s := open()
	defer closeStore(t, s)
	body := make([]byte, 1<<10)
	appendAll(t, s, false, entry("open", 0, txn.Began{Spec: txn.Spec{ID: "open", Mode: txn.Saga, Note: body}}))
	const n = 100 // of a kilobyte and some: over RetainBytes
	for i := range n {
		id := fmt.Sprintf("tx-%02d", i)
		appendAll(t, s, false, entry(id, i, txn.Began{Spec: txn.Spec{ID: txn.ID(id), Mode: txn.Saga, Note: body}}),
			finished(id, 2*n-i, txn.Committed)) // the last begun ends first
	}
	forgotten, err := s.Trim(t.Context(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	kept := list(t, s, txlog.Query{Limit: 2 * n})
	if len(kept) != n+1-forgotten || forgotten < 30 || forgotten > 60 {
		t.Fatalf("%d forgotten and %d kept of %d", forgotten, len(kept), n+1)
	}
	for i, id := range sorted(ids(kept))[1:] { // the first is the open one
		if want := fmt.Sprintf("tx-%02d", i); id != want {
			t.Fatalf("kept %q, want %q: not the oldest end was forgotten", id, want)
		}
	}
	if kept[len(kept)-1].ID != "tx-00" && kept[len(kept)-1].ID != "open" {
		t.Errorf("last of the list is %s", kept[len(kept)-1].ID)
	}
	same(t, "history of the open one", len(history(t, s, "open")), 1)
	if n, err := s.Trim(t.Context(), time.Time{}); err != nil || n != 0 {
		t.Errorf("second trim = %d, %v; want 0", n, err)
	}
}

// aLateRecordIsKept appends to a finished transaction, which the machine may do when it is forced.
func aLateRecordIsKept(t *testing.T, open opener) {
	s := open()
	want := []txlog.Entry{begun("a", 0), finished("a", 1, txn.Committed), entry("a", 2, txn.Forced{Branch: "b", By: "op"})}
	appendAll(t, s, true, want[:2]...)
	s = reopen(t, s, open)
	appendAll(t, s, true, want[2])
	same(t, "history", history(t, s, "a"), want)
	if n, err := s.Trim(t.Context(), at(9)); err != nil {
		t.Fatal(n, err)
	}
	s = reopen(t, s, open)
	defer closeStore(t, s)
	if n := len(history(t, s, "a")); n != 0 && n != len(want) {
		t.Errorf("%d entries after trim, want all or none", n)
	}
}
