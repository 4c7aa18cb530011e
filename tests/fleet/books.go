package fleet

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver pgx
)

// Books are the accounts of one service, in a database that its replicas share. They are safe for many goroutines and
// many processes.
type Books struct{ db *sql.DB }

// Accounts with a meaning of their own; all others are open and rich.
const (
	Poor   = 0 // has nothing
	Closed = 1 // is refused everything
	Rich   = 1_000_000
)

// Errors that a caller is told.
var (
	ErrRefused = errors.New("the account is closed or has too little")
	ErrUnknown = errors.New("there is no such change")
)

// OpenBooks opens the books that a data source name, for the driver pgx, leads to.
func OpenBooks(dsn string) (Books, error) {
	const connsMax = 12 // PostgreSQL has 100 for all
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return Books{}, fmt.Errorf("open the books at %q: %w", dsn, err)
	}
	db.SetMaxOpenConns(connsMax)
	db.SetMaxIdleConns(connsMax)
	return Books{db}, nil
}

// Close closes the database.
func (b Books) Close() error { return b.db.Close() }

// Create makes the tables and so many accounts. A change is what a key did, for ever; an effect is a line for each time
// that money moved, so that what is done twice is seen.
func (b Books) Create(ctx context.Context, accounts int) error {
	_, err := b.db.ExecContext(ctx, `
		create table account (id int primary key, balance bigint not null, closed bool not null);
		create table change (id bigserial primary key, key text not null unique, tx text not null, transfer text not null,
			account int not null, amount bigint not null, refused bool not null default false, undone bool not null default false);
		create table effect (id bigserial primary key, change bigint not null references change, account int not null, amount bigint not null);
		create index on effect (change)`)
	if err == nil {
		_, err = b.db.ExecContext(ctx, `insert into account select i, case i when $1 then 0 else $2 end, i = $3 from generate_series(0, $4) i`,
			Poor, Rich, Closed, accounts-1)
	}
	if err != nil {
		return fmt.Errorf("create the books: %w", err)
	}
	return nil
}

// Change is a wish to add an amount, which may be negative, to an account.
type Change struct {
	Key, Tx, Transfer string
	Account           int
	Amount            int64
}

// Do does a change, or what its key did before: the id of the change, or ErrRefused. Any other error leaves it open
// whether it was done.
func (b Books) Do(ctx context.Context, c Change) (id int64, err error) {
	refused := false
	err = b.in(ctx, func(tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `insert into change (key, tx, transfer, account, amount) values ($1, $2, $3, $4, $5)
			on conflict do nothing returning id`, c.Key, c.Tx, c.Transfer, c.Account, c.Amount).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return tx.QueryRowContext(ctx, "select id, refused from change where key = $1", c.Key).Scan(&id, &refused)
		}
		if err != nil {
			return err
		}
		r, err := tx.ExecContext(ctx, "update account set balance = balance + $1 where id = $2 and not closed and balance + $1 >= 0", c.Amount, c.Account)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			refused = true
			_, updateErr := tx.ExecContext(ctx, "update change set refused = true where id = $1", id)
			return errors.Join(err, updateErr)
		}
		_, err = tx.ExecContext(ctx, "insert into effect (change, account, amount) values ($1, $2, $3)", id, c.Account, c.Amount)
		return err
	})
	if err == nil && refused {
		err = ErrRefused
	}
	return id, err
}

// Undo takes a change of an account back, once, or says ErrUnknown.
func (b Books) Undo(ctx context.Context, account int, id int64) error {
	return b.in(ctx, func(tx *sql.Tx) error {
		var amount int64
		var undone, refused bool
		err := tx.QueryRowContext(ctx, "select amount, undone, refused from change where id = $1 and account = $2 for update", id, account).
			Scan(&amount, &undone, &refused)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return ErrUnknown
		case err != nil || undone || refused:
			return err
		}
		if _, err := tx.ExecContext(ctx, "update account set balance = balance - $1 where id = $2", amount, account); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "insert into effect (change, account, amount) values ($1, $2, $3)", id, account, -amount); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "update change set undone = true where id = $1", id)
		return err
	})
}

func (b Books) in(ctx context.Context, f func(tx *sql.Tx) error) error {
	tx, err := b.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// Effect is what one change did in all.
type Effect struct {
	Key, Tx, Transfer string
	Net               int64 // what it moved and did not take back
	Lines             int   // how often it moved money
}

// Effects returns what every change did.
func (b Books) Effects(ctx context.Context) ([]Effect, error) {
	rows, err := b.db.QueryContext(ctx, `select key, tx, transfer, coalesce(sum(e.amount), 0), count(e.id)
		from change c left join effect e on e.change = c.id group by c.id order by c.id`)
	if err != nil {
		return nil, fmt.Errorf("read the effects: %w", err)
	}
	defer rows.Close()
	var all []Effect
	for rows.Next() {
		var e Effect
		if err := rows.Scan(&e.Key, &e.Tx, &e.Transfer, &e.Net, &e.Lines); err != nil {
			return nil, fmt.Errorf("read the effects: %w", err)
		}
		all = append(all, e)
	}
	return all, rows.Err()
}

// Sum is the money in all accounts.
func (b Books) Sum(ctx context.Context) (sum int64, err error) {
	if err := b.db.QueryRowContext(ctx, "select sum(balance) from account").Scan(&sum); err != nil {
		return 0, fmt.Errorf("read the balances: %w", err)
	}
	return sum, nil
}
