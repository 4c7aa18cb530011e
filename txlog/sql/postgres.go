package sql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// postgres is the family of PostgreSQL, CockroachDB and YugabyteDB.
type postgres struct{}

// Bounds of what one message carries. The protocol allows 1 GiB.
const (
	postgresStatementMax = 4 << 20
	postgresBodyMax      = 64 << 20
)

func connectPostgres(o Options) (*sql.DB, dialect, error) {
	c, err := pgx.ParseConfig(o.DSN)
	if err != nil {
		return nil, nil, fmt.Errorf("dsn: %w", err) // it keeps the password out
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = o.Timeout
	}
	c.DialFunc = o.Dial
	// Who is cut off in the midst of a transaction must not hold its locks.
	if _, ok := c.RuntimeParams["idle_in_transaction_session_timeout"]; !ok {
		c.RuntimeParams["idle_in_transaction_session_timeout"] = strconv.FormatInt(o.Timeout.Milliseconds(), 10)
	}
	return stdlib.OpenDB(*c), postgres{}, nil
}

func (postgres) bind(query string) string {
	var b strings.Builder
	for n, part := range strings.Split(query, "?") {
		if n > 0 {
			b.WriteString("$" + strconv.Itoa(n))
		}
		b.WriteString(part)
	}
	return b.String()
}

func (postgres) limits(context.Context, *sql.DB) error { return nil }

func (postgres) bodyMax() int { return postgresBodyMax }

// insert passes columns as arrays, so that the statement is the same for any number of rows, and prepared once.
func (postgres) insert(r relation, rows [][]any) []statement {
	var places []string
	for i, t := range r.types {
		places = append(places, fmt.Sprintf("$%d::%s[]", i+1, t))
	}
	query := fmt.Sprintf("INSERT INTO %s (%s) SELECT * FROM unnest(%s)", r.name, strings.Join(r.columns, ", "), strings.Join(places, ", "))
	if r.replace {
		query += fmt.Sprintf(" ON CONFLICT (%s) DO UPDATE SET %s", strings.Join(r.columns[:r.key], ", "), r.assign("%s = excluded.%s"))
	}
	var out []statement
	for _, some := range portions(rows, postgresStatementMax) {
		args := make([]any, len(r.columns))
		for i, t := range r.types {
			args[i] = column(some, i, t)
		}
		out = append(out, statement{query, args})
	}
	return out
}

func column(rows [][]any, i int, typ string) any {
	if typ == "bigint" {
		out := make([]int64, len(rows))
		for n, r := range rows {
			out[n] = r[i].(int64)
		}
		return out
	}
	out := make([][]byte, len(rows))
	for n, r := range rows {
		out[n], _ = r[i].([]byte) // nil is NULL
	}
	return out
}

func (postgres) pipelines() bool { return true }

// divided fails with a division by zero where the fence does not let pass, so that nothing behind it is done.
const divided = `WITH passed AS (UPDATE txmesh_fences SET turn = $1 WHERE owner = $2 AND epoch = $3 AND turn = $4 RETURNING 1)
SELECT 1 / count(*) FROM passed`

// pipeline sends all at once; what the server gets before one Sync is one transaction.
func (p postgres) pipeline(ctx context.Context, db *sql.DB, f *fence, stmts []statement) error {
	var b pgx.Batch
	if f != nil {
		b.Queue(divided, f.next, []byte(f.owner.ID), int64(f.owner.Epoch), f.turn)
	}
	for _, s := range stmts {
		b.Queue(s.query, s.args...)
	}
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	err = c.Raw(func(driver any) error { return driver.(*stdlib.Conn).Conn().SendBatch(ctx, &b).Close() })
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "22012" {
		err = errFence
	}
	// A connection that broke is dropped by the pool when it is next asked for.
	return errors.Join(err, c.Close())
}

func (postgres) code(err error) code {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return codeAway
	}
	switch pg.Code {
	case "57P01", "57P02", "57P03", "53300", "25006": // shut down, crashed, starting, full, reads only since a failover
		return codeAway
	case "40001", "40P01": // serialization failure, deadlock
		return codeConflict
	case "23505":
		return codeDuplicate
	case "42P01", "3F000":
		return codeAbsent
	case "54000", "53200": // program limit, out of memory
		return codeTooLarge
	}
	return codeRefused
}
