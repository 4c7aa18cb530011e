// Package memory is the reference store: a txlog.Store, and a txlog.Shared, without a disk, for simulations and tests.
// It keeps what the seams promise and nothing more: Crash drops what no sync has covered. It never blocks, and nothing
// in it survives the process. Start at New; shared.go has owners and leases.
package memory

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// Options configures a store. The zero value is useful.
type Options struct {
	Owner       string // the id of the store's owner; empty: 13 zeros
	RetainBytes int64  // of encoded entries, for Trim; 0: no limit
}

// Store is a txlog.Store. All methods are safe for many goroutines.
type Store struct {
	opts   Options
	owner  txlog.Owner
	shared bool // appends are fenced by the owner's epoch

	*core
	closed bool // guarded by mu
}

// core is what stores of one engine have in common.
type core struct {
	mu      sync.Mutex // guards the fields below
	now     *state     // what readers see
	durable *state     // what a power cut leaves for certain
	pending []change   // between the two, in order
	leases  map[string]txlog.Lease
	epoch   uint64 // the newest of all
}

func newCore() *core {
	return &core{now: newState(), durable: newState(), leases: map[string]txlog.Lease{}}
}

var _ txlog.Store = (*Store)(nil)

// New returns an empty store.
func New(o Options) *Store {
	if o.Owner == "" {
		o.Owner = strings.Repeat("0", 13)
	}
	return &Store{opts: o, owner: txlog.Owner{ID: o.Owner, Epoch: 1}, core: newCore()}
}

// Owner names who appends.
func (s *Store) Owner() txlog.Owner { return s.owner }

// Crash is a power cut and a restart: a random number of the newest batches that no sync has covered is gone.
// The store is open again, also after Close.
func (s *Store) Crash(rng *rand.Rand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := rng.IntN(len(s.pending) + 1)
	for _, c := range s.pending[:kept] {
		s.durable.apply(c)
	}
	s.pending = nil
	s.now = s.durable.clone()
	s.closed = false
}

// Reopen is a restart of the process without a power cut: everything is still there.
func (s *Store) Reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = false
}

// Append implements txlog.Journal.
func (s *Store) Append(ctx context.Context, es []txlog.Entry, sync bool) error {
	c := change{owner: s.owner.ID, entries: make([]entry, len(es))}
	for i, e := range es {
		b, err := txlog.Encode(e)
		if err != nil {
			return fmt.Errorf("append %d entries: %w", len(es), err)
		}
		d, err := txlog.Decode(e.Tx, b) // a copy that shares nothing with the caller
		if err != nil {
			return fmt.Errorf("append %d entries: %w", len(es), err)
		}
		c.entries[i] = entry{Entry: d, encoded: b}
	}
	if err := s.commit(ctx, c, sync); err != nil {
		return fmt.Errorf("append %d entries: %w", len(es), err)
	}
	return nil
}

func (s *Store) commit(ctx context.Context, c change, sync bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return txlog.ErrClosed
	case len(c.entries) > 0 && s.shared && s.leases[s.owner.ID].Owner != s.owner:
		return fmt.Errorf("epoch %d of %s is over: %w", s.owner.Epoch, s.owner.ID, txlog.ErrFenced)
	case s.now.taken(c):
		return txlog.ErrTaken
	case !s.now.meets(c):
		return txlog.ErrChanged
	}
	c.expect = nil // met for good: what is before it in pending is applied before it
	s.now.apply(c)
	s.pending = append(s.pending, c)
	if sync {
		for _, p := range s.pending {
			s.durable.apply(p)
		}
		s.pending = nil
	}
	return nil
}

// Open implements txlog.Journal. The zero owner means the store's own.
func (s *Store) Open(ctx context.Context, owner txlog.Owner) iter.Seq2[txlog.Entry, error] {
	return func(yield func(txlog.Entry, error) bool) {
		if owner != (txlog.Owner{}) && owner.ID != s.owner.ID {
			yield(txlog.Entry{}, fmt.Errorf("open journal of %s: this store belongs to %s; %w",
				owner.ID, s.owner.ID, txlog.ErrFenced))
			return
		}
		for _, id := range s.unfinished() {
			for e, err := range s.History(ctx, id) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

func (s *Store) unfinished() []txn.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []txn.ID
	for id, h := range s.now.txs {
		if h.owner == s.owner.ID && !h.digest.Summary.Phase.Done() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// History implements txlog.Journal.
func (s *Store) History(ctx context.Context, id txn.ID) iter.Seq2[txlog.Entry, error] {
	return func(yield func(txlog.Entry, error) bool) {
		encoded, err := s.entries(ctx, id)
		if err != nil {
			yield(txlog.Entry{}, fmt.Errorf("history of %s: %w", id, err))
			return
		}
		for _, b := range encoded {
			e, err := txlog.Decode(id, b)
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (s *Store) entries(ctx context.Context, id txn.ID) ([][]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, txlog.ErrClosed
	}
	if h := s.now.txs[id]; h != nil {
		return slices.Clone(h.entries), nil
	}
	return nil, nil
}

// Find implements txlog.Journal.
func (s *Store) Find(_ context.Context, key string) (txn.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return "", fmt.Errorf("find transaction by key %q: %w", key, txlog.ErrClosed)
	}
	id, ok := s.now.keys[key]
	if !ok || key == "" {
		return "", fmt.Errorf("find transaction by key %q: %w", key, txlog.ErrNotFound)
	}
	return id, nil
}

// List implements txlog.Journal.
func (s *Store) List(_ context.Context, q txlog.Query) ([]txlog.Summary, txlog.Cursor, error) {
	from, started, err := q.From.Position()
	if err != nil {
		return nil, "", fmt.Errorf("list transactions: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, "", fmt.Errorf("list transactions: %w", txlog.ErrClosed)
	}
	var found []txlog.Summary
	for _, h := range s.now.txs {
		sum := h.digest.Summary
		if q.Selects(sum) && (!started || txlog.Newer(from, sum)) {
			found = append(found, sum)
		}
	}
	slices.SortFunc(found, func(a, b txlog.Summary) int {
		if txlog.Newer(a, b) {
			return -1
		}
		return 1
	})
	if len(found) <= q.Max() {
		return found, "", nil
	}
	found = found[:q.Max()]
	return found, txlog.After(found[len(found)-1]), nil
}

// Trim implements txlog.Journal.
func (s *Store) Trim(ctx context.Context, finishedBefore time.Time) (int, error) {
	s.mu.Lock()
	ids := s.now.trimmable(finishedBefore, s.opts.RetainBytes)
	s.mu.Unlock()
	if err := s.commit(ctx, change{forget: ids}, false); err != nil {
		return 0, fmt.Errorf("trim %d transactions: %w", len(ids), err)
	}
	return len(ids), nil
}

// Accepts implements txlog.Journal: nil until Close.
func (s *Store) Accepts() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return txlog.ErrClosed
	}
	return nil
}

// Close implements txlog.Journal. What was appended stays for Reopen and Crash.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

// Table implements txlog.Store.
func (s *Store) Table(name string) txlog.Table { return table{store: s, prefix: name + "\x00"} }

type table struct {
	store  *Store
	prefix string
}

// Get implements txlog.Table.
func (t table) Get(_ context.Context, key string) ([]byte, error) {
	s := t.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("get row %q: %w", key, txlog.ErrClosed)
	}
	v, ok := s.now.rows[t.prefix+key]
	if !ok {
		return nil, fmt.Errorf("get row %q: %w", key, txlog.ErrNotFound)
	}
	return bytes.Clone(v), nil
}

// Put implements txlog.Table.
func (t table) Put(ctx context.Context, rows []txlog.Row, sync bool) error {
	c := change{rows: make([]txlog.Row, len(rows))}
	for i, r := range rows {
		c.rows[i] = txlog.Row{Key: t.prefix + r.Key, Value: bytes.Clone(r.Value)}
	}
	if err := t.store.commit(ctx, c, sync); err != nil {
		return fmt.Errorf("put %d rows: %w", len(rows), err)
	}
	return nil
}

// Swap implements txlog.Table.
func (t table) Swap(ctx context.Context, key string, old, new []byte) error {
	c := change{rows: []txlog.Row{{Key: t.prefix + key, Value: bytes.Clone(new)}}, expect: &expectation{value: old}}
	if err := t.store.commit(ctx, c, true); err != nil {
		return fmt.Errorf("swap row %q: %w", key, err)
	}
	return nil
}

// Scan implements txlog.Table.
func (t table) Scan(ctx context.Context, prefix string) iter.Seq2[txlog.Row, error] {
	return func(yield func(txlog.Row, error) bool) {
		rows, err := t.store.scan(ctx, t.prefix+prefix)
		if err != nil {
			yield(txlog.Row{}, fmt.Errorf("scan rows %q: %w", prefix, err))
			return
		}
		for _, r := range rows {
			r.Key = r.Key[len(t.prefix):]
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (s *Store) scan(ctx context.Context, prefix string) ([]txlog.Row, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, txlog.ErrClosed
	}
	var rows []txlog.Row
	for k, v := range s.now.rows {
		if strings.HasPrefix(k, prefix) {
			rows = append(rows, txlog.Row{Key: k, Value: bytes.Clone(v)})
		}
	}
	slices.SortFunc(rows, func(a, b txlog.Row) int { return strings.Compare(a.Key, b.Key) })
	return rows, nil
}
