package etcd_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/tests/databases"
	"txmesh/txlog"
	"txmesh/txlog/etcd"
	"txmesh/txn"
)

const owner = "AAAAAAAAAAAAA"

func claim(tb testing.TB, e *etcd.Engine, owner string) txlog.Store {
	tb.Helper()
	l, err := e.Claim(tb.Context(), owner, 0, txlog.Holder{Sidecar: owner})
	if err != nil {
		tb.Fatal(err)
	}
	return e.As(l.Owner)
}

func began(id string, note int) txlog.Entry {
	return txlog.Entry{Tx: txn.ID(id), At: time.Unix(1, 0), Record: txn.Began{Spec: txn.Spec{ID: txn.ID(id), Mode: txn.Saga, Note: make([]byte, note)}}}
}

func ended(id string) txlog.Entry {
	return txlog.Entry{Tx: txn.ID(id), At: time.Unix(2, 0), Record: txn.Finished{Phase: txn.Committed}}
}

func TestWhatDoesNotFitIsRefusedWhole(t *testing.T) {
	s := claim(t, open(t, databases.StartEtcd(t, 1)), owner)
	var many []txlog.Entry
	for i := range 110 {
		many = append(many, began(fmt.Sprint("many", i), 0))
	}
	for name, es := range map[string][]txlog.Entry{"bytes": {began("small", 0), began("large", 3<<19)}, "transactions": many} {
		if err := s.Append(t.Context(), es, true); !errors.Is(err, txlog.ErrTooLarge) {
			t.Errorf("too many %s: %v, want ErrTooLarge", name, err)
		}
		for e, err := range s.History(t.Context(), es[0].Tx) {
			t.Errorf("too many %s left %v, %v", name, e, err)
		}
	}
	var rows []txlog.Row
	for i := range 129 {
		rows = append(rows, txlog.Row{Key: fmt.Sprint(i), Value: []byte("v")})
	}
	if err := s.Table("t").Put(t.Context(), rows, true); !errors.Is(err, txlog.ErrTooLarge) {
		t.Errorf("129 rows: %v, want ErrTooLarge", err)
	}
	// What just fits does fit the server as well, alone and beside others.
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if err := s.Append(t.Context(), []txlog.Entry{began(fmt.Sprint("l", i), 1400<<10)}, true); err != nil {
				t.Error(err)
			}
			var some []txlog.Entry
			for n := range 109 {
				some = append(some, began(fmt.Sprintf("s%d-%d", i, n), 10))
			}
			if err := s.Append(t.Context(), some, true); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := s.Table("t").Put(t.Context(), rows[:128], true); err != nil {
		t.Error(err)
	}
}

// TestAFullEtcdIsSaidAndSurvived: first nothing new is accepted, then nothing is written, and space makes all well.
func TestAFullEtcdIsSaidAndSurvived(t *testing.T) {
	t.Parallel()
	c := databases.StartEtcd(t, 1, fmt.Sprintf("--quota-backend-bytes=%d", 16<<20))
	e := open(t, c)
	s := claim(t, e, owner)
	refusedAt, n := 0, 0
	for ; ; n++ {
		id := fmt.Sprint("tx", n)
		err := s.Append(t.Context(), []txlog.Entry{began(id, 64<<10), ended(id)}, true)
		if refusedAt == 0 && s.Accepts() != nil {
			refusedAt = n
		}
		if errors.Is(err, txlog.ErrFull) {
			break
		}
		if err != nil || n > 10000 {
			t.Fatalf("append %d: %v", n, err)
		}
	}
	if err := s.Accepts(); !errors.Is(err, txlog.ErrFull) {
		t.Fatalf("full etcd: %v, want ErrFull", err)
	}
	forgotten, err := s.Trim(t.Context(), time.Unix(3, 0)) // removals are allowed
	if err != nil || forgotten < n {
		t.Fatalf("trim forgot %d of %d, %v", forgotten, n, err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints()})
	mustDo(t, err)
	defer func() { _ = client.Close() }() // every request has its answer
	r, err := client.Get(t.Context(), "x")
	mustDo(t, err)
	_, err = client.Compact(t.Context(), r.Header.Revision, clientv3.WithCompactPhysical())
	mustDo(t, err)
	_, err = client.Defragment(t.Context(), c.Endpoints()[0])
	mustDo(t, err)
	_, err = client.AlarmDisarm(t.Context(), &clientv3.AlarmMember{})
	mustDo(t, err)
	waitFor(t, "acceptance", func() bool { return s.Accepts() == nil })
	mustDo(t, s.Append(t.Context(), []txlog.Entry{began("after", 10)}, true))
	t.Logf("refused from %d on, full at %d", refusedAt, n)
}

func TestAFullQueueRefuses(t *testing.T) {
	c := databases.StartEtcd(t, 1)
	s := claim(t, open(t, c, func(o *etcd.Options) { o.QueueMax = 4 }), owner)
	mustDo(t, c.Pause(0))
	results := make(chan error, 5)
	for i := range 5 {
		go func() { results <- s.Append(t.Context(), []txlog.Entry{began(fmt.Sprint("q", i), 1)}, true) }()
	}
	if err := <-results; !errors.Is(err, txlog.ErrUnavailable) {
		t.Errorf("one too many: %v, want ErrUnavailable", err)
	}
	mustDo(t, c.Resume(0))
	for range 4 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestTrimsBesideEachOtherForgetOnce: what two engines trim at once is counted once, and the limit is kept.
func TestTrimsBesideEachOtherForgetOnce(t *testing.T) {
	c := databases.StartEtcd(t, 1)
	const n = 200
	var engines []*etcd.Engine
	for range 3 {
		engines = append(engines, open(t, c, func(o *etcd.Options) { o.RetainBytes = n / 2 << 10 }))
	}
	s := claim(t, engines[0], owner)
	for i := range n {
		id := fmt.Sprint("tx", i)
		mustDo(t, s.Append(t.Context(), []txlog.Entry{began(id, 1<<10), ended(id)}, true))
	}
	results := make(chan int, len(engines))
	for i, e := range engines {
		go func() {
			k, err := e.As(txlog.Owner{ID: fmt.Sprint("T", i)}).Trim(t.Context(), time.Time{})
			if err != nil {
				t.Error(err)
			}
			results <- k
		}()
	}
	forgotten := 0
	for range engines {
		forgotten += <-results
	}
	rest, err := s.Trim(t.Context(), time.Time{})
	mustDo(t, err)
	left, _, err := s.List(t.Context(), txlog.Query{Limit: 2 * n})
	mustDo(t, err)
	if len(left) != n-forgotten-rest || len(left) < n*4/10 || len(left) > n*5/10 {
		t.Errorf("%d left after %d and %d were forgotten of %d", len(left), forgotten, rest, n)
	}
}

// TestOpenFindsLongAndMany: transactions that one read does not take, in number or in length, are found whole.
func TestOpenFindsLongAndMany(t *testing.T) {
	s := claim(t, open(t, databases.StartEtcd(t, 1)), owner)
	want := map[txn.ID]int{"long": 300}
	all := []txlog.Entry{began("long", 0)}
	for i := range 70 {
		id := fmt.Sprint("short", i)
		all, want[txn.ID(id)] = append(all, began(id, 0)), 1
	}
	mustDo(t, s.Append(t.Context(), all, true))
	for i := range want["long"] - 1 {
		e := txlog.Entry{Tx: "long", At: time.Unix(2, int64(i)), Record: txn.Enlisted{Branch: txn.Branch{ID: fmt.Sprint(i)}}}
		mustDo(t, s.Append(t.Context(), []txlog.Entry{e}, true))
	}
	got := map[txn.ID]int{}
	for e, err := range s.Open(t.Context(), txlog.Owner{}) {
		mustDo(t, err)
		if r, ok := e.Record.(txn.Enlisted); ok && r.Branch.ID != fmt.Sprint(got[e.Tx]-1) {
			t.Fatalf("entry %d of %s is branch %s", got[e.Tx], e.Tx, r.Branch.ID)
		}
		got[e.Tx]++
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries found (-want +got):\n%s", diff)
	}
}
