package badger_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txlog/memory"
	"txmesh/txn"
)

// pair is the store and the reference, written alike.
type pair struct {
	t        *testing.T
	rng      *rand.Rand
	opts     badger.Options
	store    *badger.Store
	ref      *memory.Store
	now      time.Time
	bytes    []byte
	finished map[txn.ID]bool
}

func TestBadgerAgreesWithTheReference(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			const retain = 256 << 10
			p := &pair{
				t: t, rng: rand.New(rand.NewPCG(seed, 7)), now: time.Unix(1_700_000_000, 0), bytes: noise(4 << 10), finished: map[txn.ID]bool{},
				opts: badger.Options{Dir: t.TempDir(), ReserveBytes: -1, RetainBytes: retain, MemtableBytes: 1 << 20, SegmentBytes: 1 << 20, InlineBytes: 512},
				ref:  memory.New(memory.Options{RetainBytes: retain}),
			}
			p.open()
			defer func() { p.check(p.store.Close()) }()
			for i := range 400 {
				p.step()
				if i%80 == 79 {
					p.compare()
				}
			}
		})
	}
}

func (p *pair) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) open() {
	s, err := badger.Open(p.opts)
	p.check(err)
	p.store = s
}

// noise returns n bytes, most often unlike the last ones.
func (p *pair) noise(n int) []byte {
	from := p.rng.IntN(len(p.bytes) - n)
	return p.bytes[from : from+n]
}

func (p *pair) id() txn.ID { return txn.ID(fmt.Sprintf("tx-%02d", p.rng.IntN(60))) }

func (p *pair) step() {
	p.now = p.now.Add(time.Duration(p.rng.IntN(3)) * time.Second)
	switch n := p.rng.IntN(100); {
	case n < 70:
		p.append()
	case n < 90:
		p.put()
	case n < 97:
		before := p.now.Add(-time.Duration(p.rng.IntN(200)) * time.Second)
		got, err := p.store.Trim(p.t.Context(), before)
		p.check(err)
		want, err := p.ref.Trim(p.t.Context(), before)
		p.check(err)
		if got != want {
			p.t.Fatalf("trim forgot %d, the reference %d", got, want)
		}
		p.forgetTrimmed()
	default:
		p.check(p.store.Close())
		p.open()
	}
}

// forgetTrimmed lets ids that were forgotten begin anew.
func (p *pair) forgetTrimmed() {
	for id := range p.finished {
		if len(p.history(p.ref, id)) == 0 {
			delete(p.finished, id)
		}
	}
}

// append writes entries of a few transactions at once.
func (p *pair) append() {
	var es []txlog.Entry
	for range 1 + p.rng.IntN(5) {
		id := p.id()
		if p.finished[id] {
			continue
		}
		e := txlog.Entry{Tx: id, At: p.now}
		switch n := p.rng.IntN(10); {
		case len(p.history(p.ref, id)) == 0 && !slices.ContainsFunc(es, func(o txlog.Entry) bool { return o.Tx == id }):
			e.Record = txn.Began{Spec: txn.Spec{ID: id, Mode: txn.Saga, Key: fmt.Sprint("k", p.rng.IntN(20)), Note: p.noise(p.rng.IntN(1500))}}
		case n < 5:
			e.Record = txn.Settled{Branch: "b", Result: p.noise(p.rng.IntN(3000))}
		case n < 6:
			e.Record = txn.Decided{Commit: n%2 == 0, Reason: "r"}
		case n < 8:
			e.Record = txn.Enlisted{Branch: txn.Branch{ID: "x"}}
		default:
			e.Record = txn.Finished{Phase: txn.Aborted}
			p.finished[id] = true
		}
		es = append(es, e)
	}
	sync := p.rng.IntN(2) == 0
	p.check(p.store.Append(p.t.Context(), es, sync))
	p.check(p.ref.Append(p.t.Context(), es, sync))
}

func (p *pair) put() {
	var rows []txlog.Row
	for range 1 + p.rng.IntN(4) {
		r := txlog.Row{Key: fmt.Sprint("r", p.rng.IntN(30))}
		if p.rng.IntN(4) > 0 {
			r.Value = p.noise(p.rng.IntN(3000))
		}
		rows = append(rows, r)
	}
	table := fmt.Sprint("t", p.rng.IntN(2))
	p.check(p.store.Table(table).Put(p.t.Context(), rows, false))
	p.check(p.ref.Table(table).Put(p.t.Context(), rows, false))
}

func (p *pair) history(s txlog.Store, id txn.ID) []txlog.Entry {
	var out []txlog.Entry
	for e, err := range s.History(p.t.Context(), id) {
		p.check(err)
		out = append(out, e)
	}
	return out
}

// view is all that a store shows.
type view struct {
	Open    []txlog.Entry
	Entries map[txn.ID][]txlog.Entry
	Keys    map[string]txn.ID
	List    []txlog.Summary
	Rows    []txlog.Row
}

func (p *pair) view(s txlog.Store) view {
	v := view{Entries: map[txn.ID][]txlog.Entry{}, Keys: map[string]txn.ID{}}
	for e, err := range s.Open(p.t.Context(), txlog.Owner{}) {
		p.check(err)
		v.Open = append(v.Open, e)
	}
	for i := range 60 {
		id := txn.ID(fmt.Sprintf("tx-%02d", i))
		v.Entries[id] = p.history(s, id)
	}
	for i := range 20 {
		key := fmt.Sprint("k", i)
		if id, err := s.Find(p.t.Context(), key); err == nil {
			v.Keys[key] = id
		}
	}
	q := txlog.Query{Limit: 7}
	for {
		page, next, err := s.List(p.t.Context(), q)
		p.check(err)
		v.List = append(v.List, page...)
		if q.From = next; next == "" {
			break
		}
	}
	for _, table := range []string{"t0", "t1"} {
		for r, err := range s.Table(table).Scan(p.t.Context(), "r") {
			p.check(err)
			v.Rows = append(v.Rows, r)
		}
	}
	return v
}

func (p *pair) compare() {
	p.t.Helper()
	want, got := p.view(p.ref), p.view(p.store)
	if !reflect.DeepEqual(want, got) { // cmp takes seconds over so many bytes
		p.t.Fatalf("reference and store differ (-reference +store):\n%.3000s", cmp.Diff(want, got))
	}
}
