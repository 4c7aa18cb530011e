package sql

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// Store is the journal of one owner, and the tables of the engine. Safe for many goroutines.
type Store struct {
	e     *Engine
	owner txlog.Owner

	mu     sync.Mutex // guards the fields below
	queue  []*request
	queued int       // bytes of the queue
	since  time.Time // when the oldest request that is being written came; zero: none is
	fenced bool      // an append met a newer epoch, and every later one will
	closed bool

	wake    chan struct{} // holds one token when the queue may have work
	done    chan struct{} // closed when the committer has ended
	ctx     context.Context
	abandon context.CancelFunc // ends what the committer waits for

	// The committer's own.
	turn int64 // of the fence, as of the last look; -1: never looked
	live map[txn.ID]*live
}

func newStore(e *Engine, o txlog.Owner) *Store {
	ctx, abandon := context.WithCancel(context.Background())
	return &Store{e: e, owner: o, turn: -1, live: map[txn.ID]*live{}, wake: make(chan struct{}, 1), done: make(chan struct{}), ctx: ctx, abandon: abandon}
}

// Owner names who appends.
func (s *Store) Owner() txlog.Owner { return s.owner }

// request is what one caller wants written: all of it or nothing.
type request struct {
	entries []entry
	rows    []tableRow
	fence   bool // refused under a newer epoch
	bytes   int
	at      time.Time
	done    chan error
}

// entry is one of the caller's, and its encoding.
type entry struct {
	txlog.Entry
	body []byte
}

type tableRow struct {
	table, key string
	value      []byte // nil: remove
}

// Bounds of what the columns of keys take.
const (
	idBytesMax    = 1 << 10
	keyBytesMax   = 2 << 10 // of a transaction, and of a row
	nameBytesMax  = 1 << 10
	tableBytesMax = 128
)

// Append implements txlog.Journal. What is appended while the database writes goes into its next transaction, and so
// does what it could not write yet: an append waits up to Timeout for a database that is away. Every append is durable
// as the database is set up to make it, with sync or without.
func (s *Store) Append(ctx context.Context, es []txlog.Entry, _ bool) error {
	r := &request{fence: true, entries: make([]entry, len(es))}
	for i, e := range es {
		b, err := txlog.Encode(e)
		if err == nil {
			err = s.fits(e, len(b))
		}
		if err != nil {
			return fmt.Errorf("append %d entries: %w", len(es), err)
		}
		r.entries[i] = entry{e, b}
		r.bytes += len(b) + len(e.Tx)
	}
	if err := s.submit(ctx, r); err != nil {
		return fmt.Errorf("append %d entries: %w", len(es), err)
	}
	return nil
}

func (s *Store) fits(e txlog.Entry, body int) error {
	if len(e.Tx) == 0 || len(e.Tx) > idBytesMax {
		return fmt.Errorf("transaction id of %d bytes, want 1 to %d", len(e.Tx), idBytesMax)
	}
	if r, ok := e.Record.(txn.Began); ok && (len(r.Spec.Key) > keyBytesMax || len(r.Spec.Name) > nameBytesMax) {
		return fmt.Errorf("key and name of %s have %d and %d bytes, want at most %d and %d",
			e.Tx, len(r.Spec.Key), len(r.Spec.Name), keyBytesMax, nameBytesMax)
	}
	return s.fitsValue(body)
}

func (s *Store) fitsValue(n int) error {
	if most := s.e.d.bodyMax(); n > most {
		return fmt.Errorf("value of %d bytes, the database takes %d: %w", n, most, txlog.ErrTooLarge)
	}
	return nil
}

// submit hands a request to the committer and waits. When ctx ends first, it may still be written.
func (s *Store) submit(ctx context.Context, r *request) error {
	if err := errors.Join(s.e.usable(), ctx.Err()); err != nil {
		return err
	}
	r.at, r.done = time.Now(), make(chan error, 1)
	if err := s.enqueue(r); err != nil {
		return err
	}
	s.signal()
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the commit: %w", ctx.Err())
	}
}

func (s *Store) enqueue(r *request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return txlog.ErrClosed
	case s.fenced && r.fence:
		return txlog.ErrFenced
	case len(s.queue) > 0 && s.queued+r.bytes > s.e.opts.QueueBytes:
		return fmt.Errorf("%d bytes wait for the database: %w", s.queued, txlog.ErrUnavailable)
	}
	s.queue = append(s.queue, r)
	s.queued += r.bytes
	return nil
}

// signal tells the committer that there is something to do.
func (s *Store) signal() {
	select {
	case s.wake <- struct{}{}:
	default: // it has been told
	}
}

// Accepts implements txlog.Journal: ErrUnavailable while the database is away or an append takes longer than
// SlowAfter, and nil again once it answers.
func (s *Store) Accepts() error {
	if err := s.e.usable(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	slow := time.Duration(0)
	if !s.since.IsZero() {
		slow = time.Since(s.since)
	}
	switch {
	case s.closed:
		return txlog.ErrClosed
	case s.fenced:
		return fmt.Errorf("refuse new transactions: %w", txlog.ErrFenced)
	case slow > s.e.opts.SlowAfter:
		return fmt.Errorf("refuse new transactions, an append takes %v so far: %w", slow.Round(time.Millisecond), txlog.ErrUnavailable)
	}
	if err := s.e.health.err(); err != nil {
		return fmt.Errorf("refuse new transactions: %w", err)
	}
	return nil
}

// Close ends the committer after what was submitted, which takes Timeout at most. The engine stays open.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.signal()
	late := time.AfterFunc(s.e.opts.Timeout, s.abandon)
	<-s.done
	late.Stop()
	s.abandon()
	s.e.forget(s)
	return nil
}

// usable returns why the store is not, if it is not.
func (s *Store) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return txlog.ErrClosed
	}
	return nil
}
