package sql

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"

	"txmesh/txlog"
)

// Table implements txlog.Store.
func (s *Store) Table(name string) txlog.Table { return table{s, name} }

type table struct {
	s    *Store
	name string
}

// Get implements txlog.Table.
func (t table) Get(ctx context.Context, key string) ([]byte, error) {
	var v []byte
	err := t.s.usable()
	if err == nil {
		err = t.s.e.read(ctx, func(ctx context.Context) error {
			return t.s.e.row(ctx, "SELECT v FROM txmesh_rows WHERE tab = ? AND k = ?", []any{[]byte(t.name), []byte(key)}, &v)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("get row %q: %w", key, err)
	}
	return v, nil
}

// Put implements txlog.Table. The rows go with the appends of the same moment, in one transaction.
func (t table) Put(ctx context.Context, rows []txlog.Row, _ bool) error {
	r := &request{}
	err := errors.Join()
	for _, row := range rows {
		err = errors.Join(err, t.fits(row.Key), t.s.fitsValue(len(row.Value)))
		// The committer may write after ctx has ended, so the value is copied. Nil removes, unlike empty.
		r.rows = append(r.rows, tableRow{t.name, row.Key, bytes.Clone(row.Value)})
		r.bytes += len(row.Key) + len(row.Value)
	}
	if err == nil {
		err = t.s.submit(ctx, r)
	}
	if err != nil {
		return fmt.Errorf("put %d rows: %w", len(rows), err)
	}
	return nil
}

func (t table) fits(key string) error {
	if len(t.name) > tableBytesMax || len(key) > keyBytesMax {
		return fmt.Errorf("table and key of %d and %d bytes, want at most %d and %d", len(t.name), len(key), tableBytesMax, keyBytesMax)
	}
	return nil
}

// Swap implements txlog.Table. It compares the value in the statement that replaces it.
func (t table) Swap(ctx context.Context, key string, old, new []byte) error {
	err := errors.Join(t.s.usable(), t.fits(key), t.s.fitsValue(len(new)))
	if err == nil {
		err = t.s.e.once(ctx, func(ctx context.Context) error { return t.swap(ctx, key, old, new) })
	}
	if err != nil {
		return fmt.Errorf("swap row %q: %w", key, err)
	}
	return nil
}

func (t table) swap(ctx context.Context, key string, old, new []byte) error {
	e := t.s.e
	tab, k := []byte(t.name), []byte(key)
	var n int64
	var err error
	switch {
	case old == nil && new == nil:
		var there int64
		if err = e.row(ctx, "SELECT COUNT(*) FROM txmesh_rows WHERE tab = ? AND k = ?", []any{tab, k}, &there); there == 0 {
			return err
		}
	case old == nil:
		n, err = e.change(ctx, e.db, "INSERT INTO txmesh_rows (tab, k, v) VALUES (?, ?, ?)", tab, k, new)
		if e.duplicate(err) {
			err = nil
		}
	case new == nil:
		n, err = e.change(ctx, e.db, "DELETE FROM txmesh_rows WHERE tab = ? AND k = ? AND v = ?", tab, k, old)
	default:
		n, err = e.change(ctx, e.db, "UPDATE txmesh_rows SET v = ? WHERE tab = ? AND k = ? AND v = ?", new, tab, k, old)
	}
	if err == nil && n == 0 {
		err = txlog.ErrChanged
	}
	return err
}

// Scan implements txlog.Table, page after page.
func (t table) Scan(ctx context.Context, prefix string) iter.Seq2[txlog.Row, error] {
	return func(yield func(txlog.Row, error) bool) {
		last, first := prefix, true
		for {
			page, err := t.page(ctx, prefix, last, first)
			if err != nil {
				yield(txlog.Row{}, fmt.Errorf("scan rows %q: %w", prefix, err))
				return
			}
			for _, row := range page {
				if !yield(row, nil) {
					return
				}
			}
			if len(page) == 0 {
				return
			}
			last, first = page[len(page)-1].Key, false
		}
	}
}

// pageRowsMax is how many rows a page of a scan has at most.
const pageRowsMax = 256

// errPageFull ends the reading of a page.
var errPageFull = errors.New("sql: the page is full")

// page reads rows behind a key, or from it on.
func (t table) page(ctx context.Context, prefix, last string, from bool) (page []txlog.Row, err error) {
	query, args := "SELECT k, v FROM txmesh_rows WHERE tab = ? AND k > ?", []any{[]byte(t.name), []byte(last)}
	if from {
		query = "SELECT k, v FROM txmesh_rows WHERE tab = ? AND k >= ?"
	}
	if end := after([]byte(prefix)); end != nil {
		query, args = query+" AND k < ?", append(args, end)
	}
	query += fmt.Sprintf(" ORDER BY k LIMIT %d", pageRowsMax)
	if err := t.s.usable(); err != nil {
		return nil, err
	}
	err = t.s.e.read(ctx, func(ctx context.Context) error {
		page = nil
		size := 0
		err := t.s.e.query(ctx, t.s.e.db, query, args, func(rows *sql.Rows) error {
			var k, v []byte
			if err := rows.Scan(&k, &v); err != nil {
				return err
			}
			page = append(page, txlog.Row{Key: string(k), Value: v})
			if size += len(v); size > pageBytesMax {
				return errPageFull
			}
			return nil
		})
		if errors.Is(err, errPageFull) {
			return nil
		}
		return err
	})
	return page, err
}

// after returns the first key behind all that begin with prefix; nil: there is none.
func after(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return append(bytes.Clone(prefix[:i]), prefix[i]+1)
		}
	}
	return nil
}
