// Package chaos is the proof that money which clients of DTM move between MariaDB and PostgreSQL is neither lost nor made
// while the sidecar and the bank are killed -9 again and again. The package itself holds the accounts of one database; it
// decides nothing about a transaction and knows no door. Start at chaos_test.go for the run, at check_test.go for what
// must hold after it; bank is the service that is killed.
package chaos

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"

	_ "github.com/go-sql-driver/mysql" // the driver mysql
	_ "github.com/jackc/pgx/v5/stdlib" // the driver pgx

	"txmesh/sdk/dtm"
	"txmesh/sdk/dtm/dtmsql"
)

// Accounts with a meaning of their own; all others are open and rich.
const (
	Poor   = 0 // has nothing
	Closed = 1 // takes and gives nothing
)

// Rich is what an open account begins with.
const Rich = 1_000_000

// lockWait is how many seconds a statement waits for a row. A prepared XA transaction may hold one for as long as the
// sidecar is down; who waits longer than a call may take would do its work for nobody.
const lockWait = 2

// Move is what a branch does to one account. It is the payload of all calls to the bank.
type Move struct {
	Account int   `json:"account"`
	Delta   int64 `json:"delta"`
}

// Ledger is the accounts of one database, and an entry for every change of one, in the same transaction.
type Ledger struct{ dtmsql.Database }

// OpenMariaDB returns the ledger in a database that tests/databases has started.
func OpenMariaDB(dsn string) (Ledger, error) {
	// Rows that match count, also if nothing of them changes.
	return open("mysql", fmt.Sprintf("%s&clientFoundRows=true&innodb_lock_wait_timeout=%d", dsn, lockWait), dtmsql.MySQL)
}

// OpenPostgres returns the ledger in a database that tests/databases has started.
func OpenPostgres(dsn string) (Ledger, error) {
	return open("pgx", fmt.Sprintf("%s&lock_timeout=%ds", dsn, lockWait), dtmsql.Postgres)
}

func open(driver, dsn string, dialect dtmsql.Dialect) (Ledger, error) {
	const connectionsMax = 40 // twice of it is less than PostgreSQL allows
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return Ledger{}, err
	}
	db.SetMaxOpenConns(connectionsMax)
	db.SetMaxIdleConns(connectionsMax)
	return Ledger{dtmsql.Database{DB: db, Dialect: dialect}}, nil
}

// Create makes the tables, and so many accounts.
func (l Ledger) Create(ctx context.Context, accounts int) error {
	if err := l.CreateTable(ctx); err != nil {
		return err
	}
	for _, text := range []string{
		"create table account (id int primary key, amount bigint not null, held bigint not null, closed boolean not null)",
		"create table entry (gid varchar(128) not null, op varchar(45) not null, amount bigint not null, held bigint not null)",
	} {
		if _, err := l.DB.ExecContext(ctx, text); err != nil {
			return fmt.Errorf("create the ledger: %w", err)
		}
	}
	for id := range accounts {
		amount := Rich
		if id == Poor {
			amount = 0
		}
		if _, err := l.DB.ExecContext(ctx, l.bind("insert into account values (?, ?, 0, ?)"), id, amount, id == Closed); err != nil {
			return fmt.Errorf("open account %d: %w", id, err)
		}
	}
	return nil
}

// Serve does the work of one call to a branch, behind the barrier or in XA.
func (l Ledger) Serve(ctx context.Context, b dtm.Branch, payload []byte) error {
	var m Move
	phase2 := b.TransType == dtm.TypeXA && b.Op != dtm.OpAction // it comes without
	if err := json.Unmarshal(payload, &m); err != nil && !phase2 {
		return fmt.Errorf("payload %q: %w", payload, err)
	}
	if b.TransType == dtm.TypeXA {
		return l.HandleXA(ctx, b, func(ctx context.Context, conn *sql.Conn) error { return l.book(ctx, conn, b, m) })
	}
	return dtmsql.NewBarrier(b).Call(ctx, l.Database, func(tx *sql.Tx) error { return l.book(ctx, tx, b, m) })
}

// execer is a transaction or a connection.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// change is what an op does to an account. What a try takes is held until it is confirmed or cancelled; what it brings is
// owed until then, and counts less than nothing.
func change(op string, delta int64) (amount, held int64, err error) {
	switch op {
	case dtm.OpAction, dtm.OpMsg:
		return delta, 0, nil
	case dtm.OpCompensate, dtm.OpRollback:
		return -delta, 0, nil
	case dtm.OpTry:
		return min(delta, 0), -delta, nil
	case dtm.OpConfirm:
		return max(delta, 0), delta, nil
	case dtm.OpCancel:
		return -min(delta, 0), delta, nil
	}
	return 0, 0, fmt.Errorf("op %q: is none that a bank knows", op)
}

// book changes the account. Only what goes forward may be refused.
func (l Ledger) book(ctx context.Context, tx execer, b dtm.Branch, m Move) error {
	amount, held, err := change(b.Op, m.Delta)
	if err != nil {
		return err
	}
	query := "update account set amount = amount + ?, held = held + ? where id = ?"
	args := []any{amount, held, m.Account}
	if b.Op == dtm.OpTry || b.Op == dtm.OpAction || b.Op == dtm.OpMsg {
		query += " and not closed and amount >= ?"
		args = append(args, -amount)
	}
	res, err := tx.ExecContext(ctx, l.bind(query), args...)
	if err != nil {
		return fmt.Errorf("change account %d: %w", m.Account, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("account %d is closed, or has no %d: %w", m.Account, -amount, dtm.ErrFailure)
	}
	_, err = tx.ExecContext(ctx, l.bind("insert into entry values (?, ?, ?, ?)"), b.GID, b.Op, amount, held)
	return err
}

// bind writes the places for values as the database wants them.
func (l Ledger) bind(query string) string {
	for n := 1; l.Dialect == dtmsql.Postgres && strings.Contains(query, "?"); n++ {
		query = strings.Replace(query, "?", fmt.Sprintf("$%d", n), 1)
	}
	return query
}
