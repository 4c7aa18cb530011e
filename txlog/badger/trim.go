package badger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/fxamacker/cbor/v2"

	"txmesh/txlog"
	"txmesh/txn"
)

// ended is the row f. Numbers are for ever.
type ended struct {
	Begun   int64  `cbor:"1,keyasint"` // nanoseconds since 1970
	Bytes   int64  `cbor:"2,keyasint"` // of the encoded entries
	Entries uint32 `cbor:"3,keyasint"`
	Key     string `cbor:"4,keyasint,omitempty"`
}

// victim is a finished transaction to forget, as its row f was when Trim looked.
type victim struct {
	id    txn.ID
	at    time.Time
	key   []byte
	value []byte
	ended ended
}

func (v victim) begun() time.Time { return time.Unix(0, v.ended.Begun).UTC() }

// compactAfter is how many forgotten bytes make a compaction worth while, at least.
const compactAfter = 8 << 20

// Trim implements txlog.Journal. The limit is RetainBytes of encoded entries. It gives space back to the disk:
// segments of the value log whose values are gone, and tables, once a quarter of the tree has been forgotten.
// Appends go on meanwhile.
func (s *Store) Trim(ctx context.Context, finishedBefore time.Time) (int, error) {
	s.trimming.Lock()
	defer s.trimming.Unlock()
	n, bytes, err := s.forgetAll(ctx, finishedBefore)
	if err == nil {
		err = s.collect(ctx)
	}
	if err == nil {
		err = s.compact(ctx, bytes)
	}
	if err != nil {
		return n, fmt.Errorf("trim: %w", err)
	}
	return n, nil
}

// forgetAll forgets page after page.
func (s *Store) forgetAll(ctx context.Context, before time.Time) (n int, bytes int64, err error) {
	for {
		victims, err := s.oldest(ctx, before)
		if err != nil || len(victims) == 0 {
			return n, bytes, err
		}
		r := &request{victims: victims, done: make(chan error, 1)}
		for _, v := range victims {
			r.rows, r.bytes = r.rows+v.rows(), r.bytes+v.bytes()
			bytes += v.bytes() + v.ended.Bytes
		}
		if err := s.submit(ctx, r); err != nil {
			return n, bytes, err
		}
		n += len(victims) - r.skipped
		if r.skipped == len(victims) {
			return n, bytes, nil // all touched just now; next time
		}
	}
}

// rows bounds what forgetting writes: two for each entry, one being its reference in the value log.
func (v victim) rows() int { return 2*int(v.ended.Entries) + 6 }

func (v victim) bytes() int64 { return int64(v.rows()) * int64(len(v.id)+16+rowBytes) }

// oldest returns finished transactions to forget, as many as fit into a quarter of a batch.
func (s *Store) oldest(ctx context.Context, before time.Time) ([]victim, error) {
	over := s.retained() - s.opts.RetainBytes
	bytesMax, rowsMax := s.batchLimits()
	var out []victim
	var rows int
	var bytes int64
	err := s.view(ctx, func(tx *badger.Txn) error {
		it := tx.NewIterator(badger.IteratorOptions{Prefix: []byte{prefixFinished}, PrefetchSize: 64, PrefetchValues: true})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			v, err := readVictim(it.Item())
			if err != nil {
				return err
			}
			rows, bytes = rows+v.rows(), bytes+v.bytes()
			full := len(out) > 0 && (rows > rowsMax/4 || bytes > bytesMax/4)
			if full || over <= 0 && !v.at.Before(before) {
				return nil
			}
			over -= v.ended.Bytes
			out = append(out, v)
		}
		return nil
	})
	return out, err
}

func readVictim(item *badger.Item) (victim, error) {
	v := victim{key: item.KeyCopy(nil)}
	var err error
	if v.at, v.id, err = finishedKeyParts(v.key); err != nil {
		return victim{}, err
	}
	if v.value, err = item.ValueCopy(nil); err != nil {
		return victim{}, err
	}
	if err := cbor.Unmarshal(v.value, &v.ended); err != nil {
		return victim{}, fmt.Errorf("row %x: %w: %w; %s", v.key, err, txlog.ErrCorrupt, remedyCorrupt)
	}
	return v, nil
}

// retained returns the bytes of all encoded entries.
func (s *Store) retained() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := s.stats.FinishedBytes
	for _, o := range s.unfinished {
		total += o.bytes
	}
	return total
}

// compact merges the levels when so much has been forgotten that it pays. Badger's own compaction counts sizes,
// not what is dead in them, so an idle store would keep its dead for ever.
func (s *Store) compact(ctx context.Context, forgotten int64) error {
	s.forgotten += forgotten
	var tree int64
	for _, l := range s.db.Levels() {
		tree += l.Size
	}
	if s.forgotten < max(compactAfter, tree/4) {
		return nil
	}
	if err := s.space.atLeast(s.floor()); errors.Is(err, txlog.ErrFull) {
		return nil // the gate has told; compaction would need what open transactions need
	}
	s.forgotten = 0
	if err := s.beginLog(ctx); err != nil {
		return err
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := s.db.Flatten(1); err != nil {
		return fmt.Errorf("compact: %w", err)
	}
	return nil
}

// beginLog makes Badger write its memtable out, which it offers no call for: what has been forgotten is there, and
// compaction sees tables only. So it writes padding until the log is full, and waits for the table.
func (s *Store) beginLog(ctx context.Context) error {
	before := s.mem.active()
	bytes, _ := s.batchLimits()
	for range 2 * s.opts.MemtableBytes / bytes {
		r := &request{padding: int(bytes / 2), bytes: bytes/2 + rowBytes, rows: 1, done: make(chan error, 1)}
		if err := s.submit(ctx, r); err != nil {
			return err
		}
		if s.mem.active() > before {
			break
		}
	}
	return s.mem.written(ctx, before)
}
