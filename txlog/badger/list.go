package badger

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/fxamacker/cbor/v2"

	"txmesh/txlog"
	"txmesh/txn"
)

// listed is the row l. Numbers are for ever, as in package txn.
type listed struct {
	ID       txn.ID    `cbor:"1,keyasint"`
	Mode     txn.Mode  `cbor:"2,keyasint"`
	Name     string    `cbor:"3,keyasint,omitempty"`
	Phase    txn.Phase `cbor:"4,keyasint"`
	Begun    int64     `cbor:"5,keyasint"` // nanoseconds since 1970
	Finished int64     `cbor:"6,keyasint"`
	Branches int       `cbor:"7,keyasint"`
	Reason   string    `cbor:"8,keyasint,omitempty"`
}

func listing(s txlog.Summary) listed {
	return listed{
		ID: s.ID, Mode: s.Mode, Name: s.Name, Phase: s.Phase, Begun: s.Begun.UnixNano(),
		Finished: s.Finished.UnixNano(), Branches: s.Branches, Reason: s.Reason,
	}
}

func (l listed) summary() txlog.Summary {
	return txlog.Summary{
		ID: l.ID, Mode: l.Mode, Name: l.Name, Phase: l.Phase, Begun: time.Unix(0, l.Begun).UTC(),
		Finished: time.Unix(0, l.Finished).UTC(), Branches: l.Branches, Reason: l.Reason,
	}
}

// List implements txlog.Journal. It merges the unfinished transactions, which are in memory, with the rows of the
// finished ones.
func (s *Store) List(ctx context.Context, q txlog.Query) ([]txlog.Summary, txlog.Cursor, error) {
	from, started, err := q.From.Position()
	if err != nil {
		return nil, "", fmt.Errorf("list transactions: %w", err)
	}
	// One that ends between the two looks is in both: its row is newer. The other order could miss it.
	found := s.listUnfinished(q, from, started)
	if !q.Begun.Before.IsZero() && (!started || from.Begun.After(q.Begun.Before)) {
		from, started = txlog.Summary{Begun: q.Begun.Before}, true
	}
	err = s.view(ctx, func(tx *badger.Txn) error { return listFinished(tx, q, from, started, found) })
	if err != nil {
		return nil, "", fmt.Errorf("list transactions: %w", err)
	}
	page := make([]txlog.Summary, 0, len(found))
	for _, sum := range found {
		page = append(page, sum)
	}
	slices.SortFunc(page, func(a, b txlog.Summary) int {
		if txlog.Newer(a, b) {
			return -1
		}
		return 1
	})
	if len(page) <= q.Max() {
		return page, "", nil
	}
	page = page[:q.Max()]
	return page, txlog.After(page[len(page)-1]), nil
}

func (s *Store) listUnfinished(q txlog.Query, from txlog.Summary, started bool) map[txn.ID]txlog.Summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := make(map[txn.ID]txlog.Summary)
	for id, o := range s.unfinished {
		sum := o.digest.Summary
		if q.Selects(sum) && (!started || txlog.Newer(from, sum)) {
			found[id] = sum
		}
	}
	return found
}

// listFinished adds the first finished ones behind the position, one more than a page holds.
func listFinished(tx *badger.Txn, q txlog.Query, from txlog.Summary, started bool, found map[txn.ID]txlog.Summary) error {
	it := tx.NewIterator(badger.IteratorOptions{Prefix: []byte{prefixListed}, PrefetchSize: 16, PrefetchValues: true})
	defer it.Close()
	seek := []byte{prefixListed}
	if started {
		seek = listedKey(from.Begun, from.ID)
	}
	n := 0
	for it.Seek(seek); it.Valid() && n <= q.Max(); it.Next() {
		var l listed
		if err := it.Item().Value(func(b []byte) error { return cbor.Unmarshal(b, &l) }); err != nil {
			return fmt.Errorf("row %x: %w: %w; %s", it.Item().Key(), err, txlog.ErrCorrupt, remedyCorrupt)
		}
		sum := l.summary()
		if !q.Begun.After.IsZero() && sum.Begun.Before(q.Begun.After) {
			return nil // and so are all behind it
		}
		if started && !txlog.Newer(from, sum) {
			continue
		}
		delete(found, sum.ID)
		if q.Selects(sum) {
			found[sum.ID] = sum
			n++
		}
	}
	return nil
}
