package sql

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// Trim implements txlog.Journal, for the finished transactions of all owners: whoever comes by forgets what is old. Each
// batch is a transaction of its own.
func (s *Store) Trim(ctx context.Context, finishedBefore time.Time) (int, error) {
	total := 0
	for {
		n, err := s.trimBatch(ctx, nanos(finishedBefore))
		total += n
		if err != nil {
			return total, fmt.Errorf("trim: %w", err)
		}
		if n == 0 {
			return total, nil
		}
	}
}

// trimMax is how many transactions one batch forgets.
const trimMax = 100

func (s *Store) trimBatch(ctx context.Context, before int64) (n int, err error) {
	if err := s.usable(); err != nil {
		return 0, err
	}
	err = s.e.read(ctx, func(ctx context.Context) error {
		over, err := s.e.over(ctx)
		if err != nil {
			return err
		}
		return s.e.within(ctx, func(tx *sql.Conn) error {
			ids, err := s.e.oldest(ctx, tx, before, over)
			n = len(ids)
			if err != nil || n == 0 {
				return err
			}
			if _, err := s.e.change(ctx, tx, "DELETE FROM txmesh_entries WHERE tx IN "+marks(n), idArgs(ids)...); err != nil {
				return err
			}
			_, err = s.e.change(ctx, tx, "DELETE FROM txmesh_transactions WHERE id IN "+marks(n), idArgs(ids)...)
			return err
		})
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// over returns by how many bytes the limit is exceeded, if there is one.
func (e *Engine) over(ctx context.Context) (int64, error) {
	if e.opts.RetainBytes == 0 {
		return 0, nil
	}
	var total int64
	// A decimal in both families, whose text both can turn into an integer.
	err := e.row(ctx, "SELECT COALESCE(SUM(size), 0) FROM txmesh_transactions", nil, &total)
	return total - e.opts.RetainBytes, err
}

// oldest locks the finished transactions to forget.
func (e *Engine) oldest(ctx context.Context, tx *sql.Conn, before, over int64) (ids []txn.ID, err error) {
	query, args := "SELECT id, finished, size FROM txmesh_transactions WHERE done = 1", []any{}
	if over <= 0 {
		query, args = query+" AND finished < ?", []any{before}
	}
	query += fmt.Sprintf(" ORDER BY finished, id LIMIT %d FOR UPDATE", trimMax)
	err = e.query(ctx, tx, query, args, func(rows *sql.Rows) error {
		var id []byte
		var finished, size int64
		if err := rows.Scan(&id, &finished, &size); err != nil {
			return err
		}
		if over > 0 || finished < before {
			ids = append(ids, txn.ID(id))
			over -= size
		}
		return nil
	})
	return ids, err
}

var _ txlog.Store = (*Store)(nil)
