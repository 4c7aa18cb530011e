package badger

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// move asks the committer to write a live value anew, so that its segment can go.
type move struct {
	ref  []byte // the row that refers to it
	from pointer
}

// movePage bounds the bytes that one batch moves, so that appends do not wait long behind it.
const movePage = 256 << 10

// collect removes segments of the value log. One without values goes at once; the values of one that is mostly
// dead are moved first. A file goes only after a sync has made the rows durable that no longer refer to it.
func (s *Store) collect(ctx context.Context) error {
	segments, err := s.values.segments()
	if err != nil {
		return err
	}
	for _, segment := range segments {
		if segment >= s.values.current() {
			return nil
		}
		live, err := s.live(ctx, segment)
		if err != nil {
			return err
		}
		if live.bytes > s.opts.SegmentBytes/2 {
			if err := s.shrinkSegment(ctx, segment, live.end); err != nil {
				return err
			}
			continue
		}
		if err := s.moveAll(ctx, live.moves); err != nil {
			return err
		}
		if err := s.removeSegment(ctx, segment); err != nil {
			return err
		}
	}
	return nil
}

// living is what a segment still holds.
type living struct {
	moves []move
	stale [][]byte // references of rows that have another value by now
	bytes int64
	end   int64
}

func (s *Store) live(ctx context.Context, segment uint32) (living, error) {
	var l living
	err := s.view(ctx, func(tx *badger.Txn) error {
		l = living{}
		it := tx.NewIterator(badger.IteratorOptions{Prefix: livePrefix(segment)})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			ref, err := it.Item().ValueCopy(nil)
			if err != nil {
				return err
			}
			if err := l.look(tx, it.Item().KeyCopy(nil), ref); err != nil {
				return fmt.Errorf("reference %x: %w", it.Item().Key(), err)
			}
		}
		return nil
	})
	return l, err
}

// look adds one reference: the row that it names still refers to the value, or it does not.
func (l *living) look(tx *badger.Txn, key, ref []byte) error {
	item, err := tx.Get(ref)
	if errors.Is(err, badger.ErrKeyNotFound) {
		l.stale = append(l.stale, key)
		return nil
	}
	if err != nil {
		return err
	}
	v, err := item.ValueCopy(nil)
	if err != nil {
		return err
	}
	p, err := decodePointer(v)
	if item.UserMeta() != metaPointer || err == nil && !bytes.Equal(liveKey(p), key) {
		l.stale = append(l.stale, key)
		return nil
	}
	if err != nil {
		return err
	}
	l.moves = append(l.moves, move{ref: ref, from: p})
	l.bytes += int64(p.length)
	l.end = max(l.end, int64(p.offset)+int64(p.length))
	return nil
}

func (s *Store) moveAll(ctx context.Context, moves []move) error {
	for len(moves) > 0 {
		r := &request{done: make(chan error, 1)}
		for len(moves) > 0 && (len(r.moves) == 0 || r.values+int64(moves[0].from.length) <= movePage) {
			m := moves[0]
			moves = moves[1:]
			r.moves = append(r.moves, m)
			r.values += int64(m.from.length)
			r.rows += 3
			r.bytes += int64(2*len(m.ref)+64) + 3*rowBytes
		}
		if err := s.submit(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// shrinkSegment gives back what lies behind the last value. First it syncs, so that no row can come back that was
// forgotten only in memory and refers to a value further on.
func (s *Store) shrinkSegment(ctx context.Context, segment uint32, end int64) error {
	longer, err := s.values.longer(segment, end)
	if err != nil || !longer {
		return err
	}
	if err := s.submit(ctx, &request{sync: true, done: make(chan error, 1)}); err != nil {
		return err
	}
	return s.values.shrink(segment, end)
}

// removeSegment drops what is left of the references, syncs, looks once more and removes the file.
func (s *Store) removeSegment(ctx context.Context, segment uint32) error {
	l, err := s.live(ctx, segment)
	if err != nil || len(l.moves) > 0 {
		return err // something refers to it again; next time
	}
	r := &request{stale: l.stale, rows: len(l.stale), bytes: int64(len(l.stale)) * (rowBytes + 16), sync: true, done: make(chan error, 1)}
	if err := s.submit(ctx, r); err != nil {
		return err
	}
	return s.values.remove(segment)
}

// move writes the value anew if the row still refers to it.
func (b *batch) move(r *request, m move) error {
	item, err := b.before().Get(m.ref)
	if errors.Is(err, badger.ErrKeyNotFound) {
		r.skipped++
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at moved row: %w", err)
	}
	v, err := item.ValueCopy(nil)
	if err != nil {
		return fmt.Errorf("look at moved row: %w", err)
	}
	if item.UserMeta() != metaPointer || !bytes.Equal(v, m.from.encode()) || b.writes(m.ref) {
		r.skipped++
		return nil
	}
	value, err := b.s.values.read(m.from)
	if err != nil {
		return fmt.Errorf("move value: %w", err)
	}
	b.remove(liveKey(m.from))
	b.put(m.ref, value)
	return nil
}

// writes reports whether the batch has a row with this key.
func (b *batch) writes(key []byte) bool {
	for _, r := range b.rows {
		if bytes.Equal(r.key, key) {
			return true
		}
	}
	return false
}
