package badger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"

	"github.com/dgraph-io/badger/v4"

	"txmesh/txlog"
)

// Table implements txlog.Store.
func (s *Store) Table(name string) txlog.Table {
	return rowTable{store: s, prefix: string(tablePrefix(name))}
}

type rowTable struct {
	store  *Store
	prefix string
}

// Get implements txlog.Table.
func (t rowTable) Get(ctx context.Context, key string) ([]byte, error) {
	var v []byte
	err := t.store.view(ctx, func(tx *badger.Txn) error {
		var err error
		v, err = t.store.resolve(tx, []byte(t.prefix+key))
		return err
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		err = txlog.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("get row %q: %w", key, err)
	}
	return v, nil
}

// tableKeyBytesMax bounds a row's key with its table's name; Badger refuses 65,000 bytes.
const tableKeyBytesMax = 16 << 10

// Put implements txlog.Table.
func (t rowTable) Put(ctx context.Context, rows []txlog.Row, sync bool) error {
	r, err := t.request(rows, sync)
	if err == nil {
		err = t.store.submit(ctx, r)
	}
	if err != nil {
		return fmt.Errorf("put %d rows: %w", len(rows), err)
	}
	return nil
}

func (t rowTable) request(rows []txlog.Row, sync bool) (*request, error) {
	r := &request{puts: make([]txlog.Row, len(rows)), sync: sync, done: make(chan error, 1)}
	for i, row := range rows {
		key := t.prefix + row.Key
		if len(key) > tableKeyBytesMax {
			return nil, fmt.Errorf("key of %d bytes with its table, want at most %d", len(key), tableKeyBytesMax)
		}
		// The committer writes before submit returns, unless ctx ends first: so the value is copied.
		r.puts[i] = txlog.Row{Key: key, Value: clone(row.Value)}
		r.count(t.store, len(key), len(row.Value))
		r.rows++ // the reference that an earlier value leaves
		r.bytes += rowBytes
	}
	return r, t.store.fits(r)
}

// clone keeps nil, which deletes, apart from empty.
func clone(b []byte) []byte {
	if b == nil {
		return nil
	}
	return append([]byte{}, b...)
}

// Swap implements txlog.Table. Only this process writes the store, so a lock of its own is enough.
func (t rowTable) Swap(ctx context.Context, key string, old, new []byte) error {
	lock := &t.store.swapping[maphash.String(t.store.swapSeed, t.prefix+key)%uint64(len(t.store.swapping))]
	lock.Lock()
	defer lock.Unlock()
	v, err := t.Get(ctx, key)
	switch {
	case errors.Is(err, txlog.ErrNotFound):
		v = nil
	case err != nil:
		return err
	}
	if (v == nil) != (old == nil) || !bytes.Equal(v, old) {
		return fmt.Errorf("swap row %q: %w", key, txlog.ErrChanged)
	}
	return t.Put(ctx, []txlog.Row{{Key: key, Value: new}}, true)
}

// scanPage is how many rows a scan reads at once, so that a slow consumer holds no old state of the store.
const scanPage = 64

// Scan implements txlog.Table. Rows that are put while it runs may be yielded or not.
func (t rowTable) Scan(ctx context.Context, prefix string) iter.Seq2[txlog.Row, error] {
	return func(yield func(txlog.Row, error) bool) {
		from := t.prefix + prefix
		for {
			page, err := t.page(ctx, t.prefix+prefix, from)
			if err != nil {
				yield(txlog.Row{}, fmt.Errorf("scan rows %q: %w", prefix, err))
				return
			}
			for _, r := range page {
				from = r.Key + "\x00"
				r.Key = r.Key[len(t.prefix):]
				if !yield(r, nil) {
					return
				}
			}
			if len(page) < scanPage {
				return
			}
		}
	}
}

// page reads rows with the prefix from a key on.
func (t rowTable) page(ctx context.Context, prefix, from string) ([]txlog.Row, error) {
	var rows []txlog.Row
	err := t.store.view(ctx, func(tx *badger.Txn) error {
		rows = nil
		it := tx.NewIterator(badger.IteratorOptions{Prefix: []byte(prefix)})
		defer it.Close()
		for it.Seek([]byte(from)); it.Valid() && len(rows) < scanPage; it.Next() {
			v, err := t.store.itemValue(it.Item())
			if err != nil {
				return fmt.Errorf("row %q: %w", it.Item().Key(), err)
			}
			rows = append(rows, txlog.Row{Key: string(it.Item().Key()), Value: v})
		}
		return nil
	})
	return rows, err
}
