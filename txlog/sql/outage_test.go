package sql_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/tests/databases"
	"txmesh/txlog"
	shared "txmesh/txlog/sql"
	"txmesh/txn"
)

func claim(t testing.TB, e *shared.Engine, owner string) txlog.Store {
	t.Helper()
	l, err := e.Claim(t.Context(), owner, 0, txlog.Holder{Sidecar: owner, Service: "bank/accounts", Peer: "a:1"})
	if err != nil {
		t.Fatal(err)
	}
	return e.As(l.Owner)
}

// load appends from many goroutines until it is stopped. Each append goes to two transactions, so that a torn one is
// seen. After a failed append its pair is left as it is.
type load struct {
	store txlog.Store
	stop  chan struct{}
	all   sync.WaitGroup

	acked, failed atomic.Int64

	mu    sync.Mutex // guards pairs
	pairs []*pair
	wrong []error // failures that are not ErrUnavailable
}

// pair is two transactions with the same entries.
type pair struct {
	twins [2]string
	acked int
	next  int
}

func (p *pair) entries(n int) []txlog.Entry {
	var es []txlog.Entry
	for _, id := range p.twins {
		e := txlog.Entry{Tx: txn.ID(id), At: time.Unix(int64(n), 0).UTC(), Record: txn.Settled{Branch: fmt.Sprint(n)}}
		if n == 0 {
			e.Record = txn.Began{Spec: txn.Spec{ID: e.Tx, Mode: txn.Saga}}
		}
		es = append(es, e)
	}
	return es
}

const pairLength = 20

func startLoad(store txlog.Store, name string, writers int) *load {
	l := &load{store: store, stop: make(chan struct{})}
	for w := range writers {
		l.all.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%s-%d-%d", name, w, i)
				p := &pair{twins: [2]string{id + "a", id + "b"}}
				l.mu.Lock()
				l.pairs = append(l.pairs, p)
				l.mu.Unlock()
				if !l.write(p) {
					return
				}
			}
		})
	}
	return l
}

// write appends to a pair until an append fails or it is long enough, and reports whether to go on.
func (l *load) write(p *pair) bool {
	for p.next < pairLength {
		select {
		case <-l.stop:
			return false
		default:
		}
		err := l.store.Append(context.Background(), p.entries(p.next), true)
		if errors.Is(err, txlog.ErrClosed) {
			return false // the test has failed
		}
		p.next++
		if err != nil {
			l.failed.Add(1)
			if !errors.Is(err, txlog.ErrUnavailable) {
				l.mu.Lock()
				l.wrong = append(l.wrong, err)
				l.mu.Unlock()
			}
			return true
		}
		l.acked.Add(1)
		p.acked++
	}
	return true
}

func (l *load) end() {
	close(l.stop)
	l.all.Wait()
}

// check reads everything back: what was acknowledged, once and in order, and of the rest whole appends or nothing.
func (l *load) check(t *testing.T) {
	t.Helper()
	for _, err := range l.wrong {
		t.Errorf("append failed with %v, want ErrUnavailable", err)
	}
	unknown := 0
	for _, p := range l.pairs {
		var lengths [2]int
		for twin, id := range p.twins {
			var got []txlog.Entry
			for e, err := range l.store.History(t.Context(), txn.ID(id)) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e)
			}
			var want []txlog.Entry
			for n := range got {
				want = append(want, p.entries(n)[twin])
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("history of %s (-want +got):\n%s", id, diff)
			}
			lengths[twin] = len(got)
		}
		if lengths[0] != lengths[1] || lengths[0] < p.acked || lengths[0] > p.next {
			t.Fatalf("%v have %v entries, %d were acknowledged of %d", p.twins, lengths, p.acked, p.next)
		}
		unknown += lengths[0] - p.acked
	}
	t.Logf("%d acknowledged, %d failed of which %d were found", l.acked.Load(), l.failed.Load(), unknown)
}

// until polls a condition that another process brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// outages are the ways in which a database goes away and comes back.
var outages = []struct {
	name string
	ways func(databases.Outage) (away, back func())
}{
	{"frozen", func(o databases.Outage) (away, back func()) { return o.Freeze, o.Thaw }},
	{"killed", func(o databases.Outage) (away, back func()) { return o.Kill, o.Restart }},
}

// outage is a place in a database that only tests like this use, one after the other. It has its tables already: making
// them takes longer than the time-outs of these tests on a machine that is busy.
func outage(t *testing.T, kind string) (dsn string, o databases.Outage) {
	t.Helper()
	if kind == "postgres" {
		dsn, o = postgresPlace(t, &durable), durable.PostgresOutage(t)
	} else {
		dsn, o = mariadbPlace(t, &durable), durable.MariaDBOutage(t)
	}
	t.Cleanup(o.Thaw) // a test that failed may have left it frozen
	e, err := shared.Open(t.Context(), shared.Options{DSN: dsn})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return dsn, o
}

func TestAppendsWaitThroughAnOutageAndNoneIsLost(t *testing.T) {
	for _, k := range kinds {
		for _, way := range outages {
			t.Run(k.name+"/"+way.name, func(t *testing.T) {
				dsn, o := outage(t, k.name)
				e := open(t, shared.Options{DSN: dsn, Timeout: time.Minute, SlowAfter: 300 * time.Millisecond})
				s := claim(t, e, "AAAAAAAAAAAAA")
				l := startLoad(s, "x", 16)
				until(t, "the load runs", func() bool { return l.acked.Load() > 200 })
				away, back := way.ways(o)
				away()
				until(t, "new transactions are refused", func() bool { return errors.Is(s.Accepts(), txlog.ErrUnavailable) })
				during := l.acked.Load()
				back()
				until(t, "new transactions are taken again", func() bool { return s.Accepts() == nil })
				until(t, "the load goes on", func() bool { return l.acked.Load() > during+200 })
				l.end()
				if n := l.failed.Load(); n > 0 {
					t.Errorf("%d appends failed, although they had the time to wait", n)
				}
				l.check(t)
			})
		}
	}
}

func TestAppendsFailInALongOutageAndNoneIsTorn(t *testing.T) {
	for _, k := range kinds {
		for _, way := range outages {
			t.Run(k.name+"/"+way.name, func(t *testing.T) {
				dsn, o := outage(t, k.name)
				e := open(t, shared.Options{DSN: dsn, Timeout: time.Second, SlowAfter: 300 * time.Millisecond})
				s := claim(t, e, "AAAAAAAAAAAAA")
				l := startLoad(s, "x", 16)
				until(t, "the load runs", func() bool { return l.acked.Load() > 200 })
				away, back := way.ways(o)
				away()
				until(t, "appends fail", func() bool { return l.failed.Load() > 20 })
				if err := s.Accepts(); !errors.Is(err, txlog.ErrUnavailable) {
					t.Errorf("accepts %v, want ErrUnavailable", err)
				}
				back()
				until(t, "new transactions are taken again", func() bool { return s.Accepts() == nil })
				during := l.acked.Load()
				until(t, "the load goes on", func() bool { return l.acked.Load() > during+200 })
				l.end()
				l.check(t)
			})
		}
	}
}

// An append that was given up while the database hung must not come later than an Open that followed it.
func TestNothingComesBehindAnOpen(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			dsn, o := outage(t, k.name)
			e := open(t, shared.Options{DSN: dsn, Timeout: 500 * time.Millisecond, SlowAfter: 100 * time.Millisecond})
			s := claim(t, e, "AAAAAAAAAAAAA")
			for round := range 4 {
				l := startLoad(s, fmt.Sprint("r", round), 8)
				until(t, "the load runs", func() bool { return l.acked.Load() > 50 })
				o.Freeze()
				until(t, "appends fail", func() bool { return l.failed.Load() > 0 })
				close(l.stop)
				l.all.Wait()
				o.Thaw()
				first := countOpen(t, s)
				until(t, "it is well", func() bool { return s.Accepts() == nil })
				time.Sleep(200 * time.Millisecond) // for what might still come
				if diff := cmp.Diff(first, countOpen(t, s)); diff != "" {
					t.Fatalf("round %d: entries came behind an open (-first +later):\n%s", round, diff)
				}
				l.check(t)
			}
		})
	}
}

// countOpen opens the journal, again while the database is not there yet.
func countOpen(t *testing.T, s txlog.Store) map[txn.ID]int {
	t.Helper()
	var counts map[txn.ID]int
	until(t, "the journal opens", func() bool {
		counts = map[txn.ID]int{}
		for e, err := range s.Open(t.Context(), txlog.Owner{}) {
			if err != nil {
				return false
			}
			counts[e.Tx]++
		}
		return true
	})
	return counts
}

func TestSixteenOwnersAppendAtOnce(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			e := open(t, shared.Options{DSN: k.place(t, &set)})
			var loads []*load
			for i := range 16 {
				loads = append(loads, startLoad(claim(t, e, fmt.Sprintf("AAAAAAAAAAAA%X", i)), fmt.Sprint("o", i), 4))
			}
			for _, l := range loads {
				until(t, "each owner appends", func() bool { return l.acked.Load() > 200 })
			}
			for _, l := range loads {
				l.end() // all, for the checks take longer the more there is
			}
			for i, l := range loads {
				l.check(t)
				if l.failed.Load() > 0 {
					t.Errorf("%d appends of owner %d failed", l.failed.Load(), i)
				}
				var want, got int
				for _, p := range l.pairs {
					want += 2 * p.acked
				}
				for _, n := range countOpen(t, l.store) {
					got += n
				}
				if got != want {
					t.Errorf("owner %d opens %d entries, want %d", i, got, want)
				}
			}
		})
	}
}
