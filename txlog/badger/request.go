package badger

import (
	"context"
	"fmt"

	"txmesh/txlog"
	"txmesh/txn"
)

// request is what one caller wants written: all of it or nothing.
type request struct {
	entries []encoded
	puts    []txlog.Row // keys are whole; a nil Value deletes
	victims []victim
	moves   []move
	stale   [][]byte // references to delete
	padding int      // bytes of a row that is there only to fill the log
	sync    bool

	rows   int   // at most so many rows come of it
	bytes  int64 // of at most so many bytes
	values int64 // bytes that go to the value log

	skipped int // of victims and moves: those that something else had touched meanwhile
	done    chan error
}

// ErrTooLarge refuses what does not fit into one batch.
var ErrTooLarge = fmt.Errorf("badger: %w", txlog.ErrTooLarge)

// rowBytes is what a row costs beside its key and value: the node of the memtable's skip list or the heads of the
// log, whichever is more.
const rowBytes = 150

// indexBytes is what beginning and finishing a transaction add beside ids and keys.
const indexBytes = 6*rowBytes + 4<<10

func (s *Store) appendRequest(es []txlog.Entry, sync bool) (*request, error) {
	r := &request{sync: sync, done: make(chan error, 1)}
	var err error
	if r.entries, err = s.pack(es); err != nil {
		return nil, err
	}
	for _, row := range r.entries {
		r.count(s, len(row.tx)+8, len(row.body))
	}
	for _, e := range es {
		if len(e.Tx) == 0 || len(e.Tx) > idBytesMax {
			return nil, fmt.Errorf("transaction id of %d bytes, want 1 to %d", len(e.Tx), idBytesMax)
		}
		switch rec := e.Record.(type) {
		case txn.Began:
			if len(rec.Spec.Key) > keyBytesMax || len(rec.Spec.Name) > nameBytesMax {
				return nil, fmt.Errorf("key and name of %s have %d and %d bytes, want at most %d and %d",
					e.Tx, len(rec.Spec.Key), len(rec.Spec.Name), keyBytesMax, nameBytesMax)
			}
			r.index(4*len(e.Tx) + len(rec.Spec.Key))
		case txn.Finished:
			r.index(4*len(e.Tx) + keyBytesMax)
		case txn.Enlisted, txn.Left, txn.Extended, txn.Decided, txn.Settled, txn.Deferred, txn.Halted, txn.Forced, txn.Stopped:
			// in a row, counted
		}
	}
	return r, s.fits(r)
}

// count adds one row to the bounds.
func (r *request) count(s *Store, key, value int) {
	r.rows++
	if value <= s.opts.InlineBytes {
		r.bytes += int64(key+value) + rowBytes
		return
	}
	r.rows++ // the reference from the value log
	r.bytes += int64(2*key+pointerBytes) + 2*rowBytes
	r.values += int64(value)
}

func (r *request) index(bytes int) {
	r.rows += 6
	r.bytes += indexBytes + int64(bytes)
}

// fits refuses what could not be written even alone.
func (s *Store) fits(r *request) error {
	bytes, rows := s.batchLimits()
	switch {
	case r.bytes > bytes:
		return fmt.Errorf("%d bytes of rows, at most %d at once; use fewer entries or a larger memtable: %w", r.bytes, bytes, ErrTooLarge)
	case r.rows > rows:
		return fmt.Errorf("%d rows, at most %d at once; use fewer entries or a larger memtable: %w", r.rows, rows, ErrTooLarge)
	case r.values > s.opts.SegmentBytes:
		return fmt.Errorf("%d bytes of large values, at most %d at once; use larger segments: %w", r.values, s.opts.SegmentBytes, ErrTooLarge)
	}
	return nil
}

// batchLimits stay below Badger's: 15 % of the memtable, and as many rows as nodes of a skip list fit there.
func (s *Store) batchLimits() (bytes int64, rows int) {
	const nodeBytes = 96
	return s.opts.batchBytes() * 9 / 10, int(s.opts.batchBytes()/nodeBytes) * 9 / 10
}

// submit hands the request to the committer and waits. When ctx ends first, the request may still be written.
func (s *Store) submit(ctx context.Context, r *request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return txlog.ErrClosed
	case s.broken != nil:
		s.mu.Unlock()
		return s.broken
	}
	s.queue = append(s.queue, r)
	s.mu.Unlock()
	s.signal()
	select {
	case err := <-r.done:
		return err
	case <-s.stop:
		return s.usableByCommitter()
	case <-ctx.Done():
		return fmt.Errorf("wait for the commit: %w", ctx.Err())
	}
}

// signal tells the committer that there is something to do.
func (s *Store) signal() {
	select {
	case s.wake <- struct{}{}:
	default: // it has been told
	}
}
