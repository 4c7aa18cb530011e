package dtmsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	"txmesh/sdk/dtm"
)

// Barrier guards the local transactions of one call to a branch. Make one for each request, and use the same for all
// local transactions of it: they are told apart by their order, which must be the same whenever the request is repeated.
type Barrier struct {
	branch dtm.Branch
	calls  atomic.Int32
}

// NewBarrier returns the barrier of one request.
func NewBarrier(b dtm.Branch) *Barrier { return &Barrier{branch: b} }

// originOf names the op that an op takes back, or nothing.
func originOf(op string) string {
	switch op {
	case dtm.OpCancel:
		return dtm.OpTry
	case dtm.OpCompensate, dtm.OpRollback:
		return dtm.OpAction
	}
	return ""
}

// Call runs do in a transaction of the database, together with the rows that remember it. It returns nil without
// running do if this op was done before, if what it takes back was never done, or if it comes after it was taken back.
// A message whose end is decided gives ErrDuplicated instead. If do returns an error nothing has happened. do neither
// commits nor rolls back; it may be waiting for a row that another call of the same branch has written.
func (b *Barrier) Call(ctx context.Context, d Database, do func(tx *sql.Tx) error) (err error) {
	if err := b.branch.Check(); err != nil {
		return err
	}
	tx, err := d.DB.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin %s of branch %s of %s: %w", b.branch.Op, b.branch.ID, b.branch.GID, err)
	}
	// Also for a panic of do. After the commit it does nothing.
	defer func() { _ = tx.Rollback() }()
	run, err := b.pass(ctx, d, tx)
	if err == nil && run {
		err = do(tx)
	}
	if err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit %s of branch %s of %s: %w", b.branch.Op, b.branch.ID, b.branch.GID, err)
	}
	return nil
}

// pass writes the rows of a call and reports whether its work must be done.
func (b *Barrier) pass(ctx context.Context, d Database, tx execer) (bool, error) {
	r := row{b.branch.TransType, b.branch.GID, b.branch.ID, b.branch.Op, fmt.Sprintf("%02d", b.calls.Add(1)), b.branch.Op}
	empty := false
	if origin := originOf(r.op); origin != "" {
		// 1. The forward call has not been here: its row is written in its name, so that it does nothing if it comes.
		// 2. It is here just now: this waits until it has ended.
		undone := r
		undone.op = origin
		var err error
		if empty, err = d.insert(ctx, tx, undone); err != nil {
			return false, err
		}
	}
	first, err := d.insert(ctx, tx, r)
	if err != nil {
		return false, err
	}
	if !first && r.op == dtm.OpMsg {
		return false, fmt.Errorf("message %s: %w", r.gid, dtm.ErrDuplicated)
	}
	return first && !empty, nil
}

// QueryPrepared answers the question about a message of this database: nil if the sender's transaction has committed,
// ErrFailure if it has not, and then it never will.
func (d Database) QueryPrepared(ctx context.Context, b dtm.Branch) error {
	if err := b.Check(); err != nil {
		return err
	}
	r := row{b.TransType, b.GID, "00", dtm.OpMsg, "01", dtm.OpRollback}
	if _, err := d.insert(ctx, d.DB, r); err != nil {
		return err
	}
	reason, err := d.reason(ctx, d.DB, r)
	if err != nil {
		return err
	}
	if reason == dtm.OpRollback {
		return fmt.Errorf("message %s: its sender has not committed: %w", b.GID, dtm.ErrFailure)
	}
	return nil
}

// noRow reports whether an error of Database.reason says that there is none.
func noRow(err error) bool { return errors.Is(err, sql.ErrNoRows) }
