package etcd_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"txmesh/tests/databases"
	"txmesh/txlog"
	"txmesh/txn"
)

// TestAppendsOfOneTransactionShareAGroup: whatever comes together, each append is there once, and the list knows all.
func TestAppendsOfOneTransactionShareAGroup(t *testing.T) {
	s := claim(t, open(t, databases.StartEtcd(t, 1)), owner)
	together := func(n int, entry func(i int) txlog.Entry) {
		t.Helper()
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				if err := s.Append(t.Context(), []txlog.Entry{entry(i)}, true); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	const n = 60
	together(n, func(i int) txlog.Entry { // the same one begun again and again, and others with the same key
		e := txlog.Entry{Tx: "same", At: time.Unix(1, 0)}
		if i%2 == 0 {
			e.Tx = txn.ID(fmt.Sprint("other", i))
		}
		e.Record = txn.Began{Spec: txn.Spec{ID: e.Tx, Mode: txn.Saga, Key: "key"}}
		return e
	})
	together(n, func(i int) txlog.Entry {
		return txlog.Entry{Tx: "same", At: time.Unix(2, 0), Record: txn.Enlisted{Branch: txn.Branch{ID: fmt.Sprint(i)}}}
	})
	together(n, func(i int) txlog.Entry { // most of them are late
		return txlog.Entry{Tx: "same", At: time.Unix(3, 0), Record: txn.Finished{Phase: txn.Committed}}
	})
	if got := count(t, s, "same"); got != n/2+2*n {
		t.Errorf("%d entries, want %d", got, n/2+2*n)
	}
	all, _, err := s.List(t.Context(), txlog.Query{Phases: []txn.Phase{txn.Committed}})
	mustDo(t, err)
	if len(all) != 1 || all[0].ID != "same" || all[0].Branches != n {
		t.Errorf("committed are %+v, want one of %d branches", all, n)
	}
	if all, _, err = s.List(t.Context(), txlog.Query{}); err != nil || len(all) != 1+n/2 {
		t.Errorf("%d in the list, %v; want %d", len(all), err, 1+n/2)
	}
	if id, err := s.Find(t.Context(), "key"); err != nil || count(t, s, id) == 0 {
		t.Errorf("find gives %q, %v", id, err)
	}
}

func count(t *testing.T, s txlog.Store, id txn.ID) int {
	t.Helper()
	n := 0
	for _, err := range s.History(t.Context(), id) {
		mustDo(t, err)
		n++
	}
	return n
}

// TestARefusedAppendTakesNothingAlong: those that come with one that is refused, and touch the same transactions, are
// written as if it had never been there.
func TestARefusedAppendTakesNothingAlong(t *testing.T) {
	c := databases.StartEtcd(t, 1)
	e := open(t, c)
	mustDo(t, claim(t, e, "BBBBBBBBBBBBB").Append(t.Context(), []txlog.Entry{began("taken", 0)}, true))
	s := claim(t, e, owner)
	mustDo(t, s.Append(t.Context(), []txlog.Entry{began("known", 0)}, true))
	enlisted := func(i int) txlog.Entry {
		return txlog.Entry{Tx: "known", At: time.Unix(2, 0), Record: txn.Enlisted{Branch: txn.Branch{ID: fmt.Sprint(i)}}}
	}
	const n = 80
	var all sync.WaitGroup
	for i := range n {
		fresh := began(fmt.Sprint("fresh", i/2), 0)
		all.Go(func() {
			if i%2 == 0 {
				err := s.Append(t.Context(), []txlog.Entry{enlisted(i), fresh, began("taken", 0)}, true)
				if !errors.Is(err, txlog.ErrTaken) {
					t.Errorf("append with a taken id: %v, want ErrTaken", err)
				}
				return
			}
			if err := s.Append(t.Context(), []txlog.Entry{fresh, enlisted(i)}, true); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i := range n / 2 {
		id := txn.ID(fmt.Sprint("fresh", i))
		if of, err := e.OwnerOf(t.Context(), id); err != nil || of != owner || count(t, s, id) != 1 {
			t.Errorf("%s has %d entries, owner %q, %v; want 1", id, count(t, s, id), of, err)
		}
	}
	// What a list shows is written by the last of a group, which must not be a refused one.
	for round := range 40 {
		for i := range 6 {
			all.Go(func() {
				es := []txlog.Entry{enlisted(i)}
				if i == 5 {
					es = append(es, began("taken", 0))
				}
				if err := s.Append(t.Context(), es, true); (err != nil) != (i == 5) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		found, _, err := s.List(t.Context(), txlog.Query{Limit: 2 * n})
		mustDo(t, err)
		for _, sum := range found {
			if want := n/2 + 5*(round+1); sum.ID == "known" && sum.Branches != want {
				t.Fatalf("%d branches in the list, want %d", sum.Branches, want)
			}
		}
	}
}
