// Package txlog remembers transactions. It appends entries, all or none, and gives back the unfinished ones
// after a crash; beside them it keeps tables of rows for barriers and the like, written by the same committer.
// It does not decide anything. Start at Journal.
package txlog

import (
	"context"
	"errors"
	"iter"
	"time"

	"txmesh/txn"
)

// Errors that callers branch on.
var (
	ErrNotFound = errors.New("txlog: not found")
	ErrFull     = errors.New("txlog: not enough free space")
	ErrFenced   = errors.New("txlog: another owner holds a newer epoch")
	ErrClosed   = errors.New("txlog: closed")
	ErrTooLarge = errors.New("txlog: too large for one append") // nothing was written: append less at once
)

// Entry is one record of one transaction and the time it was decided at.
type Entry struct {
	Tx     txn.ID
	At     time.Time
	Record txn.Record
}

// Owner names who appends. Embedded stores have one owner for ever; shared ones fence by the epoch.
type Owner struct {
	ID    string
	Epoch uint64
}

// Journal is the seam to a store. All methods are safe for many goroutines.
type Journal interface {
	// Append writes all entries or none, in order. With sync it returns when they, and every entry and row
	// acknowledged or submitted before them, survive a power cut. An error means unknown: they may or may not
	// be found later. Entries are not kept after return.
	Append(ctx context.Context, es []Entry, sync bool) error
	// Open yields the entries of the owner's unfinished transactions, those of one transaction in order and
	// together.
	Open(ctx context.Context, owner Owner) iter.Seq2[Entry, error]
	// History yields the entries of one transaction in order; none means that it is not known (any more).
	History(ctx context.Context, id txn.ID) iter.Seq2[Entry, error]
	// Find returns the newest transaction begun with this Spec.Key, or ErrNotFound.
	Find(ctx context.Context, key string) (txn.ID, error)
	// List returns summaries, newest first.
	List(ctx context.Context, q Query) ([]Summary, Cursor, error)
	// Trim forgets transactions finished before the given time, and the oldest finished ones while the store
	// is over its byte limit. It never touches unfinished ones. It returns how many it forgot.
	Trim(ctx context.Context, finishedBefore time.Time) (int, error)
	// Accepts is nil while new transactions may begin, else ErrFull or what makes the store refuse them.
	// Appends for open transactions still work then, out of reserved space.
	Accepts() error
	Close() error
}

// Table is a set of rows beside the journal, in the same store and under the same committer.
type Table interface {
	// Get returns a copy of the row's value, or ErrNotFound.
	Get(ctx context.Context, key string) ([]byte, error)
	// Put writes all rows or none; a nil Value deletes. sync as in Journal.Append.
	Put(ctx context.Context, rows []Row, sync bool) error
	// Swap replaces the value of a row if it still is old, durably, or returns ErrChanged. A nil old means that there
	// is no row, a nil new removes it. Nobody puts a row that others swap.
	Swap(ctx context.Context, key string, old, new []byte) error
	// Scan yields the rows whose key begins with prefix, in key order.
	Scan(ctx context.Context, prefix string) iter.Seq2[Row, error]
}

// Row is one row of a Table.
type Row struct {
	Key   string
	Value []byte
}

// Store is a journal with its tables. A table's name is part of its rows' keys.
type Store interface {
	Journal
	Table(name string) Table
}

// Query selects transactions for List. The zero value selects all.
type Query struct {
	Phases []txn.Phase // none: all
	Name   string      // Spec.Name; empty: all
	Begun  struct{ After, Before time.Time }
	Limit  int // 0: 100
	From   Cursor
}

// Cursor continues a listing; empty: from the start, or no more.
type Cursor string

// Summary is a transaction in a list.
type Summary struct {
	ID       txn.ID
	Mode     txn.Mode
	Name     string
	Phase    txn.Phase
	Begun    time.Time
	Finished time.Time // zero: not yet
	Branches int
	Reason   string
}
