package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/tests/databases"
	"txmesh/txlog"
	"txmesh/txlog/etcd"
	"txmesh/txn"
)

// appender is an owner that appends without end, and remembers what was acknowledged.
type appender struct {
	engine *etcd.Engine
	store  txlog.Store
	name   string

	acknowledged []atomic.Int64 // by writer: the records that must be there
	submitted    []atomic.Int64
	total        atomic.Int64
}

const (
	owners        = 8
	writersOfEach = 4
	ofTransaction = 10 // records of one
)

func startAppender(t *testing.T, c *databases.Etcd, n int, change ...func(*etcd.Options)) *appender {
	a := &appender{engine: open(t, c, change...), name: fmt.Sprintf("OWNER%08d", n)}
	a.acknowledged, a.submitted = make([]atomic.Int64, writersOfEach), make([]atomic.Int64, writersOfEach)
	l, err := a.engine.Claim(t.Context(), a.name, 0, txlog.Holder{Sidecar: a.name})
	if err != nil {
		t.Fatal(err)
	}
	a.store = a.engine.As(l.Owner)
	return a
}

func (a *appender) id(w int, n int64) txn.ID {
	return txn.ID(fmt.Sprintf("%s-%d-%d", a.name, w, n/ofTransaction))
}

// record is the nth record of a writer.
func (a *appender) record(w int, n int64) txlog.Entry {
	e := txlog.Entry{Tx: a.id(w, n), At: time.Unix(n, 0).UTC()}
	switch n % ofTransaction {
	case 0:
		e.Record = txn.Began{Spec: txn.Spec{ID: e.Tx, Mode: txn.Saga}}
	case ofTransaction - 1:
		e.Record = txn.Finished{Phase: txn.Committed}
	default:
		e.Record = txn.Left{Branch: fmt.Sprint(n)}
	}
	return e
}

// write appends until the context ends.
func (a *appender) write(ctx context.Context, t *testing.T, w int) {
	for n := int64(0); ctx.Err() == nil; n++ {
		a.submitted[w].Store(n + 1)
		err := a.store.Append(context.WithoutCancel(ctx), []txlog.Entry{a.record(w, n)}, true)
		if err != nil {
			t.Errorf("record %d of writer %d of %s: %v", n, w, a.name, err)
			return
		}
		a.acknowledged[w].Store(n + 1)
		a.total.Add(1)
	}
}

// check finds everything acknowledged, in order and once, and nothing that was never submitted.
func (a *appender) check(t *testing.T) {
	for w := range writersOfEach {
		acknowledged, submitted := a.acknowledged[w].Load(), a.submitted[w].Load()
		var found int64
		for found < submitted {
			id, begin := a.id(w, found), found
			for e, err := range a.store.History(t.Context(), id) {
				if err != nil {
					t.Fatal(err)
				}
				if want := a.record(w, found); !cmp.Equal(e, want) {
					t.Fatalf("record %d of %s is %v, want %v", found, id, e, want)
				}
				found++
			}
			if found-begin < ofTransaction {
				break
			}
		}
		if found < acknowledged || found > submitted {
			t.Errorf("writer %d of %s: %d records found, %d acknowledged, %d submitted", w, a.name, found, acknowledged, submitted)
		}
	}
}

func leader(t *testing.T, c *databases.Etcd) int {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), DialTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }() // every request has its answer
	for range 100 {
		for i, endpoint := range c.Endpoints() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			s, err := client.Status(ctx, endpoint)
			cancel()
			if err == nil && s.Leader == s.Header.MemberId {
				return i
			}
		}
	}
	t.Fatal("no member is the leader")
	return 0
}

// await waits until every owner has appended more: the cluster goes on.
func await(t *testing.T, all []*appender) time.Duration {
	t.Helper()
	start := time.Now()
	for _, a := range all {
		for goal := a.total.Load() + 3*writersOfEach; a.total.Load() < goal; time.Sleep(5 * time.Millisecond) {
			if time.Since(start) > 30*time.Second {
				t.Fatalf("%s is stuck at %d records", a.name, a.total.Load())
			}
		}
	}
	return time.Since(start)
}

func mustDo(t *testing.T, what error) {
	t.Helper()
	if what != nil {
		t.Fatal(what)
	}
}

func TestNothingIsLostWithAMinority(t *testing.T) {
	c := databases.StartEtcd(t, 3)
	ctx, stop := context.WithCancel(t.Context())
	var all []*appender
	var writing sync.WaitGroup
	for n := range owners {
		a := startAppender(t, c, n)
		all = append(all, a)
		for w := range writersOfEach {
			writing.Go(func() { a.write(ctx, t, w) })
		}
	}
	await(t, all)
	for _, loss := range []struct {
		name       string
		leader     bool
		lose, back func(int) error
	}{
		{"kill the leader", true, c.Kill, c.Restart},
		{"kill a follower", false, c.Kill, c.Restart},
		{"halt the leader", true, c.Pause, c.Resume},
		{"halt a follower", false, c.Pause, c.Resume},
		{"kill the leader again", true, c.Kill, c.Restart},
	} {
		i := leader(t, c)
		if !loss.leader {
			i = (i + 1) % 3
		}
		mustDo(t, loss.lose(i))
		without := await(t, all)
		mustDo(t, loss.back(i))
		mustDo(t, c.Await(i))
		t.Logf("%s: all owners went on after %v, and after %v once it was back", loss.name, without, await(t, all))
	}
	stop()
	writing.Wait()
	var total int64
	for _, a := range all {
		total += a.total.Load()
	}
	for _, a := range all {
		a.check(t)
	}
	t.Logf("%d records of %d owners", total, owners)
}

// TestALostMajorityIsSaidAndSurvived: without a majority nothing is acknowledged and Accepts says no; with it all goes on.
func TestALostMajorityIsSaidAndSurvived(t *testing.T) {
	t.Parallel()
	for _, loss := range []struct {
		name       string
		lose, back func(*databases.Etcd, int) error
	}{
		{"killed", (*databases.Etcd).Kill, (*databases.Etcd).Restart},
		{"halted", (*databases.Etcd).Pause, (*databases.Etcd).Resume},
	} {
		t.Run(loss.name, func(t *testing.T) {
			t.Parallel()
			c := databases.StartEtcd(t, 3)
			a := startAppender(t, c, 1)
			b := startAppender(t, c, 2) // appends nothing meanwhile
			mustDo(t, a.store.Append(t.Context(), []txlog.Entry{a.record(0, 0)}, true))
			for _, i := range []int{0, 1} {
				mustDo(t, loss.lose(c, i))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			err := a.store.Append(ctx, []txlog.Entry{a.record(0, 1)}, true)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("append without a majority: %v, want DeadlineExceeded", err)
			}
			waiting := make(chan error, 1)
			go func() { waiting <- a.store.Append(t.Context(), []txlog.Entry{a.record(1, 0)}, true) }()
			for _, s := range []txlog.Store{a.store, b.store} {
				waitFor(t, "refusal", func() bool { return errors.Is(s.Accepts(), txlog.ErrUnavailable) })
			}
			_, _, err = b.store.List(ctx, txlog.Query{})
			if err == nil {
				t.Fatal("a list without a majority")
			}
			for _, i := range []int{0, 1} {
				mustDo(t, loss.back(c, i))
			}
			for _, s := range []txlog.Store{a.store, b.store} {
				waitFor(t, "acceptance", func() bool { return s.Accepts() == nil })
			}
			if err := <-waiting; err != nil && !errors.Is(err, txlog.ErrUnavailable) {
				t.Fatalf("append that waited: %v", err)
			}
			mustDo(t, a.store.Append(t.Context(), []txlog.Entry{a.record(0, 2)}, true))
			checkUnknown(t, a)
		})
	}
}

// checkUnknown wants the acknowledged records, and the one that was given up once or not at all, in order.
func checkUnknown(t *testing.T, a *appender) {
	t.Helper()
	var got []int64
	for e, err := range a.store.History(t.Context(), a.id(0, 0)) {
		mustDo(t, err)
		got = append(got, e.At.Unix())
	}
	if !slices.Equal(got, []int64{0, 1, 2}) && !slices.Equal(got, []int64{0, 2}) {
		t.Errorf("records %v, want 0, perhaps 1, and 2", got)
	}
}

func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for start := time.Now(); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 30*time.Second {
			t.Fatalf("no %s within 30 s", what)
		}
	}
}
