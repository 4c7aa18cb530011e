package sql

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// dialect is where the two families of databases differ.
type dialect interface {
	// bind puts the family's placeholders in the place of question marks.
	bind(query string) string
	// schema is the statements that make version 1, each safe to repeat.
	schema() []string
	// insert returns statements that insert rows, or replace them where the relation says so.
	insert(r relation, rows [][]any) []statement
	// limits asks the server what it takes.
	limits(ctx context.Context, db *sql.DB) error
	// bodyMax is the size of the largest value that it takes.
	bodyMax() int
	// pipeline makes the fence and the statements one transaction and one round trip; errFence says that the fence held.
	// Only where pipelines says so.
	pipeline(ctx context.Context, db *sql.DB, f *fence, stmts []statement) error
	pipelines() bool
	code(err error) code
}

// code is what an error of a database means here.
type code uint8

const (
	codeRefused   code = iota // the server does not want it
	codeAway                  // it is not there, or not for us: nobody knows what became of the statement
	codeConflict              // rolled back for others' sake: repeat
	codeDuplicate             // a row of this key is there
	codeAbsent                // the table is not there
	codeTooLarge              // the server takes no packet of this size
)

// statement is one to be executed.
type statement struct {
	query string // with the family's own placeholders
	args  []any
}

// relation is a table that rows are inserted into in bulk. Values are int64 or []byte, nil is NULL.
type relation struct {
	name    string
	columns []string
	types   []string // of PostgreSQL
	key     int      // so many columns identify a row
	replace bool
}

func entriesTable() relation {
	return relation{name: "txmesh_entries", columns: []string{"tx", "seq", "body"}, types: []string{"bytea", "bigint", "bytea"}, key: 2}
}

// transactionsTable inserts those that are new, or, with replace, writes those that are there.
func transactionsTable(replace bool) relation {
	return relation{
		name: "txmesh_transactions",
		columns: []string{"id", "owner", "done", "finished", "begun", "phase", "mode", "name", "spec_key",
			"branches", "size", "reason"},
		types: []string{"bytea", "bytea", "bigint", "bigint", "bigint", "bigint", "bytea", "bytea", "bytea",
			"bigint", "bigint", "bytea"},
		key: 1, replace: replace,
	}
}

func rowsTable() relation {
	return relation{name: "txmesh_rows", columns: []string{"tab", "k", "v"}, types: []string{"bytea", "bytea", "bytea"}, key: 2, replace: true}
}

// portions cuts rows so that no statement is larger than most bytes, unless one row alone is.
func portions(rows [][]any, most int) [][][]any {
	var out [][][]any
	from, size := 0, 0
	for i, r := range rows {
		n := 16 * len(r)
		for _, v := range r {
			if b, ok := v.([]byte); ok {
				n += len(b)
			}
		}
		if i > from && size+n > most {
			out = append(out, rows[from:i])
			from, size = i, 0
		}
		size += n
	}
	if from < len(rows) {
		out = append(out, rows[from:])
	}
	return out
}

// marks is (?, ?, ...) of n.
func marks(n int) string { return "(?" + strings.Repeat(", ?", n-1) + ")" }

// assign lists the columns beside the key as assignments of what was to be inserted.
func (r relation) assign(form string) string {
	var out []string
	for _, c := range r.columns[r.key:] {
		out = append(out, fmt.Sprintf(form, c, c))
	}
	return strings.Join(out, ", ")
}
