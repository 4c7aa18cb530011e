package dtmsql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"txmesh/sdk/dtm"
)

// xaBarrier is the id of the row that an XA branch writes in its own transaction. Whether the row is there tells what
// has become of the branch when its database no longer knows the xid.
const xaBarrier = "01"

const (
	cleanMax = 10 * time.Second // for what must be done at a database although the caller's context has ended
	waitMax  = 5 * time.Second  // for an action that is under way to end; the door asks again
)

// HandleXA serves all calls of an XA branch. For the action it runs do on a connection of its own, inside of a
// transaction that is prepared before HandleXA returns; do must neither begin nor end one. For commit and rollback it
// ends that transaction and does not run do. Any error but one of the action is repeated by the door.
func (d Database) HandleXA(ctx context.Context, b dtm.Branch, do func(ctx context.Context, conn *sql.Conn) error) error {
	if err := b.Check(); err != nil {
		return err
	}
	x, err := d.xid(b)
	if err != nil {
		return err
	}
	switch b.Op {
	case dtm.OpAction:
		err = d.prepareXA(ctx, x, b, do)
	case dtm.OpCommit:
		err = d.commitXA(ctx, x, b)
	case dtm.OpRollback:
		err = d.rollbackXA(ctx, x, b)
	default:
		err = errors.New("op is none of action, commit, rollback")
	}
	if err != nil {
		return fmt.Errorf("%s of xa branch %s of %s: %w", b.Op, b.ID, b.GID, err)
	}
	return nil
}

func rowOf(b dtm.Branch, reason string) row {
	return row{dtm.TypeXA, b.GID, b.ID, dtm.OpAction, xaBarrier, reason}
}

// prepareXA is the first phase.
//
// 1. The row comes first: it waits for a rollback that is under way, and meets one that has been.
// 2. The door knows the branch before it is prepared, so that a crash after that leaves nobody's transaction.
// 3. The answer comes last, after the database has let go of the connection: only then can another one commit.
func (d Database) prepareXA(ctx context.Context, x xid, b dtm.Branch, do func(context.Context, *sql.Conn) error) error {
	conn, err := d.DB.Conn(ctx)
	if err != nil {
		return fmt.Errorf("take a connection: %w", err)
	}
	prepared := false
	session, err := x.session(ctx, conn)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	// Also for a panic of do: the connection must not go back with a transaction on it.
	defer func() {
		if !prepared {
			x.abandon(ctx, conn)
		}
	}()
	if err := x.exec(ctx, conn, x.begin); err != nil {
		return err
	}
	first, err := d.insert(ctx, conn, rowOf(b, dtm.OpAction))
	if err != nil {
		return err
	}
	if !first {
		return fmt.Errorf("the branch is decided already: %w", dtm.ErrFailure)
	}
	if err := do(ctx, conn); err != nil {
		return err
	}
	if err := b.RegisterXA(ctx); err != nil {
		return err
	}
	for _, text := range x.prepare {
		if err := x.exec(ctx, conn, text); err != nil {
			return err
		}
	}
	prepared = true
	discard(conn)
	return x.released(ctx, d.DB, session)
}

// commitXA is the second phase. That the xid is unknown may mean that it was committed before, or that its connection
// still holds it, or that it never was: the row of the branch tells.
func (d Database) commitXA(ctx context.Context, x xid, b dtm.Branch) error {
	_, err := d.DB.ExecContext(ctx, x.commit)
	if err == nil || !unknownXID(err) {
		return err
	}
	reason, readErr := d.reason(ctx, d.DB, rowOf(b, ""))
	switch {
	case readErr == nil && reason == dtm.OpAction:
		return nil
	case readErr == nil:
		return fmt.Errorf("it was rolled back before: %w", err)
	case noRow(readErr):
		return fmt.Errorf("nothing of it is committed: %w", err)
	}
	return readErr
}

// rollbackXA is the other second phase. Its row keeps an action away that is late, and waits for one that is under way;
// if that one prepares, only another rollback ends the wait.
func (d Database) rollbackXA(ctx context.Context, x xid, b dtm.Branch) error {
	ctx, stop := context.WithTimeout(ctx, waitMax)
	defer stop()
	if _, err := d.DB.ExecContext(ctx, x.rollback); err != nil && !unknownXID(err) {
		return err
	}
	r := rowOf(b, dtm.OpRollback)
	if _, err := d.insert(ctx, d.DB, r); err != nil {
		return err
	}
	reason, err := d.reason(ctx, d.DB, r)
	if err == nil && reason != dtm.OpRollback {
		return errors.New("it is committed, and cannot be rolled back")
	}
	return err
}

// xid is the name of a branch's transaction in its database, and the statements that move it.
type xid struct {
	dialect          Dialect
	begin            string
	prepare          []string
	abort            []string
	commit, rollback string
}

func (d Database) xid(b dtm.Branch) (xid, error) {
	name := b.GID + "-" + b.ID
	switch d.Dialect {
	case MySQL:
		const bytesMax = 64
		if len(name) > bytesMax {
			return xid{}, fmt.Errorf("xid %q: is longer than the %d bytes that MySQL allows; choose a shorter gid", name, bytesMax)
		}
		quoted := fmt.Sprintf("X'%X'", name) // the same bytes, without questions of quoting
		return xid{
			dialect: MySQL, begin: "xa start " + quoted,
			prepare: []string{"xa end " + quoted, "xa prepare " + quoted},
			abort:   []string{"xa end " + quoted, "xa rollback " + quoted},
			commit:  "xa commit " + quoted, rollback: "xa rollback " + quoted,
		}, nil
	case Postgres:
		const bytesMax = 199
		if len(name) > bytesMax || strings.ContainsAny(name, "\x00\\") {
			return xid{}, fmt.Errorf("xid %q: must have at most %d bytes and no backslash; choose another gid", name, bytesMax)
		}
		quoted := "'" + strings.ReplaceAll(name, "'", "''") + "'"
		// In a transaction that a failed statement has broken, prepare rolls back and is no error; a select is one.
		prepare := []string{"select 1", "prepare transaction " + quoted}
		return xid{
			dialect: Postgres, begin: "begin", prepare: prepare, abort: []string{"rollback"},
			commit: "commit prepared " + quoted, rollback: "rollback prepared " + quoted,
		}, nil
	}
	panic(fmt.Sprintf("dtmsql: dialect %d", d.Dialect))
}

func (x xid) exec(ctx context.Context, conn *sql.Conn, text string) error {
	if _, err := conn.ExecContext(ctx, text); err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	return nil
}

// session is the number of the connection at a MySQL server; Postgres needs none.
func (x xid) session(ctx context.Context, conn *sql.Conn) (int64, error) {
	if x.dialect != MySQL {
		return 0, nil
	}
	var id int64
	if err := conn.QueryRowContext(ctx, "select connection_id()").Scan(&id); err != nil {
		return 0, fmt.Errorf("ask for the connection's number: %w", err)
	}
	return id, nil
}

// released returns when no connection holds the prepared transaction. MySQL gives it to others only after it has seen
// the connection close, some time after we have closed it. Postgres lets go at once.
func (x xid) released(ctx context.Context, db *sql.DB, session int64) error {
	if x.dialect != MySQL {
		return nil
	}
	const pause = 2 * time.Millisecond
	ctx, stop := context.WithTimeout(ctx, cleanMax)
	defer stop()
	for {
		var n int
		if err := db.QueryRowContext(ctx, "select count(*) from information_schema.processlist where id = ?", session).Scan(&n); err != nil {
			return fmt.Errorf("wait for connection %d to be gone: %w", session, err)
		}
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for connection %d to be gone: %w", session, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// abandon takes back what is not prepared. Nothing depends on it but how soon its locks are free: without its
// connection the database does the same. If it was prepared after all, the door has the branch and will roll it back.
func (x xid) abandon(ctx context.Context, conn *sql.Conn) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanMax)
	defer stop()
	for _, text := range x.abort {
		_, _ = conn.ExecContext(ctx, text)
	}
	discard(conn)
}

// discard closes a connection instead of giving it back to its pool.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // the error is what closes it
	_ = conn.Close()                                           // ErrConnDone
}

// unknownXID reports whether a database says that it has no prepared transaction of that name, or will not give it.
func unknownXID(err error) bool {
	if state := (interface{ SQLState() string })(nil); errors.As(err, &state) {
		const undefinedObject = "42704"
		return state.SQLState() == undefinedObject
	}
	return strings.Contains(err.Error(), "XAER_NOTA") || strings.Contains(err.Error(), "does not exist")
}
