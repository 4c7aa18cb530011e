// Package late opens a shared engine when it can be reached, so that a sidecar starts without it: until then everything
// says txlog.ErrUnavailable. It decides nothing and keeps nothing. Start at Open.
package late

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// Shared is a txlog.Shared behind another that is opened as soon as it can be.
type Shared struct {
	stop context.CancelFunc
	done chan struct{} // closed when nobody tries to open it any more

	mu     sync.Mutex // guards what follows
	engine txlog.Shared
	why    error // it is not open
}

var _ txlog.Shared = (*Shared)(nil)

// How long the pause between two tries is.
const (
	pauseMin = 200 * time.Millisecond
	pauseMax = 3 * time.Second
)

// Open opens an engine. Where that fails with txlog.ErrUnavailable, it is tried again until Close; any other error is
// the caller's.
func Open(ctx context.Context, open func(context.Context) (txlog.Shared, error), log *slog.Logger) (*Shared, error) {
	engine, err := open(ctx)
	if err != nil && !errors.Is(err, txlog.ErrUnavailable) {
		return nil, err
	}
	s := &Shared{done: make(chan struct{})}
	again, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	if err == nil {
		s.engine = engine
		close(s.done)
		return s, nil
	}
	s.why = err
	log.Warn("shared store is not reachable, going on without", "error", err)
	go s.retry(again, open, log)
	return s, nil
}

func (s *Shared) retry(ctx context.Context, open func(context.Context) (txlog.Shared, error), log *slog.Logger) {
	defer close(s.done)
	for pause := pauseMin; ; pause = min(2*pause, pauseMax) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		engine, err := open(ctx)
		s.mu.Lock()
		if s.why = err; err == nil { // beside an error it may be a nil of its own type
			s.engine = engine
		}
		s.mu.Unlock()
		switch {
		case err == nil:
			log.Info("shared store is open")
			return
		case !errors.Is(err, txlog.ErrUnavailable):
			log.Error("shared store cannot be opened", "error", err)
		}
	}
}

// get returns the engine, or why there is none yet.
func (s *Shared) get() (txlog.Shared, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine == nil {
		return nil, fmt.Errorf("%w: it was not reached yet: %w", txlog.ErrUnavailable, s.why)
	}
	return s.engine, nil
}

// Close implements txlog.Shared.
func (s *Shared) Close() error {
	s.stop()
	<-s.done
	engine, err := s.get()
	if err != nil {
		return nil //nolint:nilerr // it was never open
	}
	return engine.Close()
}

// OwnerOf implements txlog.Shared.
func (s *Shared) OwnerOf(ctx context.Context, id txn.ID) (string, error) {
	e, err := s.get()
	if err != nil {
		return "", err
	}
	return e.OwnerOf(ctx, id)
}

// Claim implements txlog.Leases.
func (s *Shared) Claim(ctx context.Context, owner string, known uint64, h txlog.Holder) (txlog.Lease, error) {
	e, err := s.get()
	if err != nil {
		return txlog.Lease{}, err
	}
	return e.Claim(ctx, owner, known, h)
}

// Renew implements txlog.Leases.
func (s *Shared) Renew(ctx context.Context, o txlog.Owner) error {
	return s.with(func(e txlog.Shared) error { return e.Renew(ctx, o) })
}

// Release implements txlog.Leases.
func (s *Shared) Release(ctx context.Context, o txlog.Owner) error {
	return s.with(func(e txlog.Shared) error { return e.Release(ctx, o) })
}

// Retire implements txlog.Leases.
func (s *Shared) Retire(ctx context.Context, o txlog.Owner) error {
	return s.with(func(e txlog.Shared) error { return e.Retire(ctx, o) })
}

func (s *Shared) with(f func(txlog.Shared) error) error {
	e, err := s.get()
	if err != nil {
		return err
	}
	return f(e)
}

// Lease implements txlog.Leases.
func (s *Shared) Lease(ctx context.Context, owner string) (txlog.Lease, error) {
	e, err := s.get()
	if err != nil {
		return txlog.Lease{}, err
	}
	return e.Lease(ctx, owner)
}

// Leases implements txlog.Leases.
func (s *Shared) Leases(ctx context.Context, service string) ([]txlog.Lease, error) {
	e, err := s.get()
	if err != nil {
		return nil, err
	}
	return e.Leases(ctx, service)
}

// As implements txlog.Shared.
func (s *Shared) As(o txlog.Owner) txlog.Store { return &store{shared: s, owner: o} }

// store is one owner's, opened with the engine.
type store struct {
	shared *Shared
	owner  txlog.Owner

	mu     sync.Mutex // guards both
	inner  txlog.Store
	closed bool
}

// Owner names who appends.
func (s *store) Owner() txlog.Owner { return s.owner }

func (s *store) get() (txlog.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.inner != nil:
		return s.inner, nil
	case s.closed:
		return nil, txlog.ErrClosed
	}
	e, err := s.shared.get()
	if err != nil {
		return nil, err
	}
	s.inner = e.As(s.owner)
	return s.inner, nil
}

// Append implements txlog.Journal.
func (s *store) Append(ctx context.Context, es []txlog.Entry, sync bool) error {
	in, err := s.get()
	if err != nil {
		return err
	}
	return in.Append(ctx, es, sync)
}

// Open implements txlog.Journal.
func (s *store) Open(ctx context.Context, o txlog.Owner) iter.Seq2[txlog.Entry, error] {
	return sequence(s, func(in txlog.Store) iter.Seq2[txlog.Entry, error] { return in.Open(ctx, o) })
}

// History implements txlog.Journal.
func (s *store) History(ctx context.Context, id txn.ID) iter.Seq2[txlog.Entry, error] {
	return sequence(s, func(in txlog.Store) iter.Seq2[txlog.Entry, error] { return in.History(ctx, id) })
}

// sequence yields what the inner store yields, or why there is none.
func sequence[V any](s *store, of func(txlog.Store) iter.Seq2[V, error]) iter.Seq2[V, error] {
	in, err := s.get()
	if err == nil {
		return of(in)
	}
	return func(yield func(V, error) bool) {
		var none V
		yield(none, err)
	}
}

// Find implements txlog.Journal.
func (s *store) Find(ctx context.Context, key string) (txn.ID, error) {
	in, err := s.get()
	if err != nil {
		return "", err
	}
	return in.Find(ctx, key)
}

// List implements txlog.Journal.
func (s *store) List(ctx context.Context, q txlog.Query) ([]txlog.Summary, txlog.Cursor, error) {
	in, err := s.get()
	if err != nil {
		return nil, "", err
	}
	return in.List(ctx, q)
}

// Trim implements txlog.Journal.
func (s *store) Trim(ctx context.Context, before time.Time) (int, error) {
	in, err := s.get()
	if err != nil {
		return 0, err
	}
	return in.Trim(ctx, before)
}

// Accepts implements txlog.Journal.
func (s *store) Accepts() error {
	in, err := s.get()
	if err != nil {
		return err
	}
	return in.Accepts()
}

// Close implements txlog.Journal.
func (s *store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.inner == nil {
		return nil
	}
	return s.inner.Close()
}

// Table implements txlog.Store.
func (s *store) Table(name string) txlog.Table { return table{s, name} }

type table struct {
	store *store
	name  string
}

func (t table) get() (txlog.Table, error) {
	in, err := t.store.get()
	if err != nil {
		return nil, err
	}
	return in.Table(t.name), nil
}

// Get implements txlog.Table.
func (t table) Get(ctx context.Context, key string) ([]byte, error) {
	in, err := t.get()
	if err != nil {
		return nil, err
	}
	return in.Get(ctx, key)
}

// Put implements txlog.Table.
func (t table) Put(ctx context.Context, rows []txlog.Row, sync bool) error {
	in, err := t.get()
	if err != nil {
		return err
	}
	return in.Put(ctx, rows, sync)
}

// Swap implements txlog.Table.
func (t table) Swap(ctx context.Context, key string, old, new []byte) error {
	in, err := t.get()
	if err != nil {
		return err
	}
	return in.Swap(ctx, key, old, new)
}

// Scan implements txlog.Table.
func (t table) Scan(ctx context.Context, prefix string) iter.Seq2[txlog.Row, error] {
	return sequence(t.store, func(in txlog.Store) iter.Seq2[txlog.Row, error] { return in.Table(t.name).Scan(ctx, prefix) })
}
