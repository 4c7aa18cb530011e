package sql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"

	"txmesh/txlog"
)

// read does what may be done again whatever became of it: it waits for a database that is away.
func (e *Engine) read(ctx context.Context, f func(context.Context) error) error {
	return e.op(ctx, func(c code) bool { return c == codeConflict || c == codeAway }, f)
}

// once does what must not be done again unless it was rolled back.
func (e *Engine) once(ctx context.Context, f func(context.Context) error) error {
	return e.op(ctx, func(c code) bool { return c == codeConflict }, f)
}

func (e *Engine) op(ctx context.Context, again func(code) bool, f func(context.Context) error) error {
	if err := errors.Join(e.usable(), ctx.Err()); err != nil {
		return err
	}
	own, stop := context.WithTimeout(ctx, e.opts.Timeout)
	defer stop()
	var err error
	for pause := range pauses(own) {
		if err = f(own); err == nil || answers(err) || !again(e.d.code(err)) {
			break
		}
		pause()
	}
	switch {
	case err == nil || answers(err):
		return err
	case ctx.Err() != nil:
		return errors.Join(ctx.Err(), err)
	case e.d.code(err) == codeTooLarge:
		return fmt.Errorf("%w: %w", txlog.ErrTooLarge, err)
	}
	e.health.failed(err)
	return fmt.Errorf("%w: %w", txlog.ErrUnavailable, err)
}

// answers reports whether the error says something about what is stored, and nothing about the database.
func answers(err error) bool {
	for _, is := range []error{txlog.ErrNotFound, txlog.ErrFenced, txlog.ErrChanged, txlog.ErrUnfinished, txlog.ErrCorrupt, txlog.ErrNewer} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// within does f in one transaction. Neither an error of f nor one before the commit leaves anything. It commits by a
// statement of its own: the Commit of database/sql takes no context, and would wait for ever for a database that hangs.
func (e *Engine) within(ctx context.Context, f func(*sql.Conn) error) error {
	c, err := e.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // back into the pool
	do := func(statement string) error {
		_, err := c.ExecContext(ctx, statement)
		return err
	}
	err = do("BEGIN")
	if err == nil {
		err = f(c)
	}
	if err == nil {
		err = do("COMMIT")
	}
	if err != nil && do("ROLLBACK") != nil {
		_ = c.Raw(func(any) error { return driver.ErrBadConn }) // the server rolls back what has no connection
	}
	return err
}

// change executes a statement and returns how many rows it fitted.
func (e *Engine) change(ctx context.Context, tx execer, query string, args ...any) (int64, error) {
	res, err := tx.ExecContext(ctx, e.d.bind(query), args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// execer is a transaction, or the pool.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// query calls each for every row of a result.
func (e *Engine) query(ctx context.Context, tx execer, query string, args []any, each func(*sql.Rows) error) error {
	rows, err := tx.QueryContext(ctx, e.d.bind(query), args...)
	if err != nil {
		return err
	}
	for rows.Next() {
		if err := each(rows); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// pauses yields, at least once and until ctx ends, a function that waits before the next try, longer each time.
func pauses(ctx context.Context) iter.Seq[func()] {
	const first, last = 2 * time.Millisecond, 200 * time.Millisecond
	return func(yield func(func()) bool) {
		wait := first
		pause := func() {
			t := time.NewTimer(wait/2 + rand.N(wait/2))
			defer t.Stop()
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			wait = min(2*wait, last)
		}
		for yield(pause) && ctx.Err() == nil {
		}
	}
}
