package etcd_test

import (
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
