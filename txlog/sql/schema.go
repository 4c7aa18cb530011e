package sql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"txmesh/txlog"
)

// schemaVersion is what this release reads and writes. A later one adds a case to migrate.
const schemaVersion = 1

// tables are those of version 1. {64} is the type of up to 64 bytes, {long} that of any number.
func tables() []string {
	return []string{
		`CREATE TABLE IF NOT EXISTS txmesh_leases (owner {64} NOT NULL, epoch BIGINT NOT NULL, beat BIGINT NOT NULL,
free BIGINT NOT NULL, sidecar {255} NOT NULL, service {512} NOT NULL, peer {255} NOT NULL, PRIMARY KEY (owner))`,
		`CREATE TABLE IF NOT EXISTS txmesh_fences (owner {64} NOT NULL, epoch BIGINT NOT NULL, turn BIGINT NOT NULL, PRIMARY KEY (owner))`,
		`CREATE TABLE IF NOT EXISTS txmesh_transactions (id {1024} NOT NULL, owner {64} NOT NULL, done BIGINT NOT NULL,
finished BIGINT NOT NULL, begun BIGINT NOT NULL, phase BIGINT NOT NULL, mode {32} NOT NULL, name {1024} NOT NULL,
spec_key {2048}, branches BIGINT NOT NULL, size BIGINT NOT NULL, reason {1024} NOT NULL, PRIMARY KEY (id){indexes})`,
		`CREATE TABLE IF NOT EXISTS txmesh_entries (tx {1024} NOT NULL, seq BIGINT NOT NULL, body {long} NOT NULL, PRIMARY KEY (tx, seq))`,
		`CREATE TABLE IF NOT EXISTS txmesh_rows (tab {128} NOT NULL, k {2048} NOT NULL, v {long} NOT NULL, PRIMARY KEY (tab, k))`,
		`CREATE TABLE IF NOT EXISTS txmesh_store (id BIGINT NOT NULL, version BIGINT NOT NULL, epoch BIGINT NOT NULL, PRIMARY KEY (id))`,
	}
}

// indexes of txmesh_transactions: for Open, Trim, List and Find.
func indexes() [][2]string {
	return [][2]string{
		{"txmesh_transactions_open", "owner, done, id"}, {"txmesh_transactions_done", "done, finished"},
		{"txmesh_transactions_begun", "begun, id"}, {"txmesh_transactions_key", "spec_key, begun"},
	}
}

func (postgres) schema() []string {
	var out []string
	for _, t := range tables() {
		out = append(out, typed(strings.ReplaceAll(t, "{indexes}", ""), func(string) string { return "BYTEA" }))
	}
	for _, i := range indexes() {
		out = append(out, fmt.Sprintf("CREATE INDEX IF NOT EXISTS %s ON txmesh_transactions (%s)", i[0], i[1]))
	}
	return out
}

func (*mariadb) schema() []string {
	var inner strings.Builder
	for _, i := range indexes() {
		fmt.Fprintf(&inner, ", INDEX %s (%s)", i[0], i[1])
	}
	var out []string
	for _, t := range tables() {
		t = typed(strings.ReplaceAll(t, "{indexes}", inner.String()), func(size string) string {
			if size == "long" {
				return "LONGBLOB"
			}
			return "VARBINARY(" + size + ")"
		})
		out = append(out, t+" ENGINE=InnoDB")
	}
	return out
}

// typed replaces {size} by the type of bytes.
func typed(table string, of func(size string) string) string {
	for {
		before, rest, found := strings.Cut(table, "{")
		if !found {
			return table
		}
		size, after, _ := strings.Cut(rest, "}")
		table = before + of(size) + after
	}
}

// migrate makes what is missing. Many sidecars may do it at once: each statement is safe to repeat, and who is in
// the other's way tries again. A user who may not change tables needs nothing here once they are there.
func (e *Engine) migrate(ctx context.Context) error {
	var err error
	for pause := range pauses(ctx) {
		var version int64
		version, err = e.version(ctx)
		switch {
		case err != nil:
		case version > schemaVersion:
			return fmt.Errorf("schema version %d, this release knows %d: %w; run the release that migrated it, or a later one",
				version, schemaVersion, txlog.ErrNewer)
		case version == schemaVersion:
			return nil
		default:
			err = e.create(ctx)
		}
		if err == nil {
			return nil
		}
		pause()
	}
	return fmt.Errorf("migrate the schema: %w", err)
}

// version is 0 when there is nothing.
func (e *Engine) version(ctx context.Context) (int64, error) {
	var version int64
	err := e.row(ctx, "SELECT version FROM txmesh_store WHERE id = ?", []any{int64(1)}, &version)
	if errors.Is(err, txlog.ErrNotFound) || e.d.code(err) == codeAbsent {
		return 0, nil
	}
	return version, err
}

func (e *Engine) create(ctx context.Context) error {
	for _, s := range e.d.schema() {
		if _, err := e.db.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%.60s...: %w", s, err)
		}
	}
	_, err := e.db.ExecContext(ctx, e.d.bind("INSERT INTO txmesh_store (id, version, epoch) VALUES (?, ?, ?)"), int64(1), int64(schemaVersion), int64(0))
	if e.d.code(err) == codeDuplicate {
		return nil
	}
	return err
}

// row reads one row, or says ErrNotFound.
func (e *Engine) row(ctx context.Context, query string, args []any, into ...any) error {
	err := e.db.QueryRowContext(ctx, e.d.bind(query), args...).Scan(into...)
	if errors.Is(err, sql.ErrNoRows) {
		return txlog.ErrNotFound
	}
	return err
}

// connect opens the pool of the family that the DSN names. Nothing is sent yet.
func connect(o Options) (*sql.DB, dialect, error) {
	open := map[string]func(Options) (*sql.DB, dialect, error){"postgres": connectPostgres, "postgresql": connectPostgres, "mysql": connectMySQL}
	scheme, _, _ := strings.Cut(o.DSN, "://")
	if open[scheme] == nil {
		return nil, nil, errors.New("dsn: want one that begins with postgres:// or mysql://")
	}
	db, d, err := open[scheme](o)
	if err != nil {
		return nil, nil, err
	}
	db.SetMaxOpenConns(o.Conns)
	db.SetMaxIdleConns(o.Conns)
	db.SetConnMaxIdleTime(max(o.Timeout/3, time.Second/3)) // before the server ends it, by wait_timeout
	return db, d, nil
}
