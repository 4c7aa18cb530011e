package sql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// mariadb is the family of MySQL, MariaDB and TiDB.
type mariadb struct{ packet int }

func connectMySQL(o Options) (*sql.DB, dialect, error) {
	u, err := url.Parse(o.DSN)
	if err != nil {
		return nil, nil, errors.New("dsn: not a URL; write mysql://user:password@host:port/database") // the cause shows the password
	}
	c, err := mysql.ParseDSN("/?" + u.RawQuery)
	if err != nil {
		return nil, nil, fmt.Errorf("dsn: options %q: %w", u.RawQuery, err)
	}
	c.User = u.User.Username()
	c.Passwd, _ = u.User.Password() // none is fine
	c.Net, c.Addr, c.DBName = "tcp", u.Host, strings.TrimPrefix(u.Path, "/")
	if u.Port() == "" {
		c.Addr += ":3306"
	}
	if c.DBName == "" {
		return nil, nil, errors.New("dsn: no database; write mysql://user:password@host:port/database")
	}
	if c.Timeout == 0 {
		c.Timeout = o.Timeout
	}
	c.DialFunc = o.Dial
	c.InterpolateParams, c.ClientFoundRows, c.MaxAllowedPacket = true, true, 0
	c.Logger = log.New(io.Discard, "", 0) // what it would say comes as an error too
	if c.Params == nil {
		c.Params = map[string]string{}
	}
	c.Params["sql_mode"] = "'STRICT_ALL_TABLES'"
	// Who is cut off in the midst of a transaction must not hold its locks.
	c.Params["wait_timeout"] = strconv.Itoa(max(int(o.Timeout/time.Second), 1))
	c.Params["innodb_lock_wait_timeout"] = c.Params["wait_timeout"]
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, nil, fmt.Errorf("dsn: %w", err)
	}
	return sql.OpenDB(readCommitted{connector}), &mariadb{}, nil
}

// readCommitted makes connections whose transactions see what was committed before each statement. The name of the
// variable differs between the databases, the statement does not.
type readCommitted struct{ driver.Connector }

// Connect implements driver.Connector.
func (r readCommitted) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := r.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	_, err = c.(driver.ExecerContext).ExecContext(ctx, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", nil)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (*mariadb) bind(query string) string { return query }

func (m *mariadb) limits(ctx context.Context, db *sql.DB) error {
	if err := db.QueryRowContext(ctx, "SELECT @@max_allowed_packet").Scan(&m.packet); err != nil {
		return fmt.Errorf("read max_allowed_packet: %w", err)
	}
	return nil
}

// headBytes is more than what stands around a value in its packet.
const headBytes = 64 << 10

func (m *mariadb) bodyMax() int { return max(m.packet-headBytes, m.packet/2) }

// statementMax leaves room for every byte of a statement to be escaped.
func (m *mariadb) statementMax() int { return min(m.packet/4, 4<<20) }

func (m *mariadb) insert(r relation, rows [][]any) []statement {
	var out []statement
	for _, some := range portions(rows, m.statementMax()) {
		one := marks(len(r.columns))
		query := fmt.Sprintf("INSERT INTO %s (%s) VALUES %s", r.name, strings.Join(r.columns, ", "), one+strings.Repeat(", "+one, len(some)-1))
		if r.replace {
			query += " ON DUPLICATE KEY UPDATE " + r.assign("%s = VALUES(%s)")
		}
		var args []any
		for _, row := range some {
			args = append(args, row...)
		}
		out = append(out, statement{query, args})
	}
	return out
}

func (*mariadb) pipelines() bool { return false }

func (*mariadb) pipeline(context.Context, *sql.DB, *fence, []statement) error {
	panic("sql: the protocol of MySQL has no pipeline")
}

func (*mariadb) code(err error) code {
	if errors.Is(err, mysql.ErrPktTooLarge) {
		return codeTooLarge
	}
	e, ok := errors.AsType[*mysql.MySQLError](err)
	if !ok {
		return codeAway
	}
	switch e.Number {
	case 1040, 1053, 1203, 1290, 1317, 1836, 1927: // full, shut down, reads only since a failover, killed
		return codeAway
	case 1213, 1205, 1020, 8002, 8022, 8028, 9007: // deadlock, lock wait, changed since read; TiDB: conflicts and retries
		return codeConflict
	case 1062:
		return codeDuplicate
	case 1146:
		return codeAbsent
	case 1153:
		return codeTooLarge
	}
	return codeRefused
}
