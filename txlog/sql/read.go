package sql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// nanos is how times are stored; of the zero time it is what no clock shows.
func nanos(t time.Time) int64 { return t.UnixNano() }

func fromNanos(n int64) time.Time {
	if n == (time.Time{}).UnixNano() {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// Open implements txlog.Journal. The zero owner means the store's own. It passes the fence first: what an earlier append
// left on its way cannot come behind it.
func (s *Store) Open(ctx context.Context, owner txlog.Owner) iter.Seq2[txlog.Entry, error] {
	return func(yield func(txlog.Entry, error) bool) {
		err := s.open(ctx, owner, func(e txlog.Entry) bool { return yield(e, nil) })
		if err != nil {
			yield(txlog.Entry{}, fmt.Errorf("open journal of %s: %w", s.owner.ID, err))
		}
	}
}

func (s *Store) open(ctx context.Context, owner txlog.Owner, yield func(txlog.Entry) bool) error {
	if owner != (txlog.Owner{}) && owner != s.owner {
		return fmt.Errorf("it belongs to %s at epoch %d, not to %s at epoch %d: %w", s.owner.ID, s.owner.Epoch, owner.ID, owner.Epoch, txlog.ErrFenced)
	}
	if err := s.submit(ctx, &request{fence: true}); err != nil {
		return err
	}
	for last := txn.ID(""); ; {
		ids, err := s.unfinished(ctx, last)
		if err != nil || len(ids) == 0 {
			return err
		}
		var es []entry
		err = s.e.read(ctx, func(ctx context.Context) (err error) {
			es, err = s.e.entries(ctx, s.e.db, ids)
			return err
		})
		if err != nil {
			return err
		}
		for _, e := range es {
			if !yield(e.Entry) {
				return nil
			}
		}
		last = ids[len(ids)-1]
	}
}

// pageBytesMax bounds what is read into memory at once, beyond the first row.
const pageBytesMax = 16 << 20

// unfinished returns the next ones behind an id, as many as make a page.
func (s *Store) unfinished(ctx context.Context, after txn.ID) (ids []txn.ID, err error) {
	err = s.e.read(ctx, func(ctx context.Context) error {
		ids = nil
		query := "SELECT id, size FROM txmesh_transactions WHERE owner = ? AND done = 0 AND id > ? ORDER BY id LIMIT 128"
		total := int64(0)
		return s.e.query(ctx, s.e.db, query, []any{[]byte(s.owner.ID), []byte(after)}, func(rows *sql.Rows) error {
			var id []byte
			var size int64
			if err := rows.Scan(&id, &size); err != nil {
				return err
			}
			if total += size; len(ids) == 0 || total <= pageBytesMax {
				ids = append(ids, txn.ID(id))
			}
			return nil
		})
	})
	return ids, err
}

// History implements txlog.Journal. It reads all before it yields the first.
func (s *Store) History(ctx context.Context, id txn.ID) iter.Seq2[txlog.Entry, error] {
	return func(yield func(txlog.Entry, error) bool) {
		var es []entry
		err := s.usable()
		if err == nil {
			err = s.e.read(ctx, func(ctx context.Context) (err error) {
				es, err = s.e.entries(ctx, s.e.db, []txn.ID{id})
				return err
			})
		}
		if err != nil {
			yield(txlog.Entry{}, fmt.Errorf("history of %s: %w", id, err))
			return
		}
		for _, e := range es {
			if !yield(e.Entry, nil) {
				return
			}
		}
	}
}

// Find implements txlog.Journal.
func (s *Store) Find(ctx context.Context, key string) (txn.ID, error) {
	var id []byte
	err := s.usable()
	if err == nil {
		err = s.e.read(ctx, func(ctx context.Context) error {
			query := "SELECT id FROM txmesh_transactions WHERE spec_key = ? ORDER BY begun DESC, id DESC LIMIT 1"
			return s.e.row(ctx, query, []any{[]byte(key)}, &id)
		})
	}
	if err != nil {
		return "", fmt.Errorf("find transaction by key %q: %w", key, err)
	}
	return txn.ID(id), nil
}

// List implements txlog.Journal.
func (s *Store) List(ctx context.Context, q txlog.Query) ([]txlog.Summary, txlog.Cursor, error) {
	query, args, err := listing(q)
	err = errors.Join(err, s.usable())
	var page []txlog.Summary
	if err == nil {
		err = s.e.read(ctx, func(ctx context.Context) error {
			page = make([]txlog.Summary, 0, min(q.Max(), 1000))
			return s.e.query(ctx, s.e.db, query, args, func(rows *sql.Rows) error {
				sum, err := summary(rows)
				page = append(page, sum)
				return err
			})
		})
	}
	if err != nil {
		return nil, "", fmt.Errorf("list transactions: %w", err)
	}
	if len(page) <= q.Max() {
		return page, "", nil
	}
	page = page[:q.Max()]
	return page, txlog.After(page[len(page)-1]), nil
}

// listing makes the query for a page and one more.
func listing(q txlog.Query) (query string, args []any, err error) {
	from, started, err := q.From.Position()
	var where []string
	add := func(condition string, values ...any) {
		where, args = append(where, condition), append(args, values...)
	}
	if started {
		add("begun <= ?", nanos(from.Begun)) // alone it says where the index is to begin
		add("(begun < ? OR id < ?)", nanos(from.Begun), []byte(from.ID))
	}
	if len(q.Phases) > 0 {
		var phases []any
		for _, p := range q.Phases {
			phases = append(phases, int64(p))
		}
		add("phase IN "+marks(len(phases)), phases...)
	}
	if q.Name != "" {
		add("name = ?", []byte(q.Name))
	}
	if !q.Begun.After.IsZero() {
		add("begun >= ?", nanos(q.Begun.After))
	}
	if !q.Begun.Before.IsZero() {
		add("begun < ?", nanos(q.Begun.Before))
	}
	query = "SELECT id, mode, name, phase, begun, finished, branches, reason FROM txmesh_transactions"
	if len(where) > 0 {
		query += " WHERE " + strings.Join(where, " AND ")
	}
	return query + fmt.Sprintf(" ORDER BY begun DESC, id DESC LIMIT %d", q.Max()+1), args, err
}

func summary(rows *sql.Rows) (txlog.Summary, error) {
	var s txlog.Summary
	var id, name, reason []byte
	var begun, finished int64
	if err := rows.Scan(&id, &s.Mode, &name, &s.Phase, &begun, &finished, &s.Branches, &reason); err != nil {
		return s, err
	}
	s.ID, s.Name, s.Reason, s.Begun, s.Finished = txn.ID(id), string(name), string(reason), fromNanos(begun), fromNanos(finished)
	return s, nil
}
