package badger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"txmesh/txlog"
	"txmesh/txn"
)

// Append implements txlog.Journal. What does not fit into one batch is ErrTooLarge; small entries fit up to half a
// megabyte together with the default memtable, large ones up to a segment.
func (s *Store) Append(ctx context.Context, es []txlog.Entry, sync bool) error {
	r, err := s.appendRequest(es, sync)
	if err == nil {
		err = s.submit(ctx, r)
	}
	if err != nil {
		return fmt.Errorf("append %d entries: %w", len(es), err)
	}
	return nil
}

// Open implements txlog.Journal. The zero owner means the store's own; another's transactions are not here.
func (s *Store) Open(ctx context.Context, owner txlog.Owner) iter.Seq2[txlog.Entry, error] {
	return func(yield func(txlog.Entry, error) bool) {
		if owner != (txlog.Owner{}) && owner.ID != s.owner {
			yield(txlog.Entry{}, fmt.Errorf("open journal of %s: this store belongs to %s: %w",
				owner.ID, s.owner, txlog.ErrFenced))
			return
		}
		ids, err := s.ids()
		if err != nil {
			yield(txlog.Entry{}, fmt.Errorf("open journal: %w", err))
			return
		}
		for _, id := range ids {
			for e, err := range s.History(ctx, id) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// ids returns the unfinished transactions.
func (s *Store) ids() ([]txn.ID, error) {
	leave, err := s.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.unfinished)), nil
}

// History implements txlog.Journal.
func (s *Store) History(ctx context.Context, id txn.ID) iter.Seq2[txlog.Entry, error] {
	return func(yield func(txlog.Entry, error) bool) {
		es, err := s.history(ctx, id)
		if err != nil {
			yield(txlog.Entry{}, fmt.Errorf("history of %s: %w", id, err))
			return
		}
		for _, e := range es {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (s *Store) history(ctx context.Context, id txn.ID) ([]txlog.Entry, error) {
	if len(id) > idBytesMax {
		return nil, nil // Append took no such id
	}
	es, whole, err := s.read(ctx, id)
	if err == nil && !whole { // begun or ended between the two looks of read; the second time it is settled
		es, whole, err = s.read(ctx, id)
	}
	if err == nil && !whole {
		err = fmt.Errorf("%d entries found, more were written: %w; %s", len(es), txlog.ErrCorrupt, remedyCorrupt)
	}
	return es, err
}

// read also reports whether the entries are as many as can be expected: as were there before it read, or up to the
// end. A row in a damaged block reads as if it were not there.
func (s *Store) read(ctx context.Context, id txn.ID) (es []txlog.Entry, whole bool, err error) {
	s.mu.Lock()
	o := s.unfinished[id]
	s.mu.Unlock()
	ended, rows := false, uint32(0)
	err = s.view(ctx, func(tx *badger.Txn) error {
		es, ended, rows = nil, false, 0
		return s.replay(tx, id, func(row []txlog.Entry, _ int) {
			rows++
			for _, e := range row {
				es = append(es, e)
				_, last := e.Record.(txn.Finished)
				ended = ended || last
			}
		})
	})
	return es, ended || len(es) == 0 || o != nil && rows >= o.next, err
}

// view reads. A value that was moved between the look at its row and the look at its segment is looked up again.
func (s *Store) view(ctx context.Context, read func(tx *badger.Txn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	err = s.db.View(read)
	if errors.Is(err, fs.ErrNotExist) {
		err = s.db.View(read)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w; %s", err, txlog.ErrCorrupt, remedyCorrupt)
	}
	return err
}

// enter keeps Close waiting until the reader leaves. After a failed write nothing is read either: it could be what
// the disk has not kept.
func (s *Store) enter() (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, txlog.ErrClosed
	case s.broken != nil:
		return nil, s.broken
	}
	s.readers.Add(1)
	return s.readers.Done, nil
}

// Find implements txlog.Journal.
func (s *Store) Find(ctx context.Context, key string) (txn.ID, error) {
	var id txn.ID
	err := s.view(ctx, func(tx *badger.Txn) error {
		b, err := valueOf(tx, specKey(key))
		id = txn.ID(b)
		return err
	})
	if key == "" || len(key) > keyBytesMax || errors.Is(err, badger.ErrKeyNotFound) {
		err = txlog.ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("find transaction by key %q: %w", key, err)
	}
	return id, nil
}
