// Package sql is the journal on PostgreSQL, MySQL or MariaDB: a txlog.Shared that many sidecars use at once. It keeps to
// what these and the databases that speak their protocols have in common: no triggers, no stored code, no advisory
// locks, no sequences. It compares no clocks, and never writes without its fence: every transaction that appends begins
// with a compare-and-swap on the owner's row of txmesh_fences, by which a newer epoch refuses it, and by which a group
// that was cut off is found to be written or not. Start at Open, then group.go. docs/reference/store-sql.md shows the
// tables.
package sql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// Options configures an engine. All but the DSN have defaults.
type Options struct {
	DSN         string        // postgres://user:pw@host:port/db?... or mysql://user:pw@host:port/db?...
	RetainBytes int64         // of encoded entries of all owners, before Trim forgets the oldest finished; 0: no limit
	Conns       int           // connections at most; 0: 16
	Timeout     time.Duration // of one operation, and how long an append waits for a database that is away; 0: 10 s
	SlowAfter   time.Duration // an append under way for longer makes Accepts refuse; 0: 2 s
	QueueBytes  int           // of one owner, that wait while the database is slow; 0: 64 MiB
	Log         *slog.Logger  // nil: none
	// Dial opens each connection, within the context's deadline; nil: a plain one.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (o Options) withDefaults() Options {
	if o.Conns == 0 {
		o.Conns = 16
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.SlowAfter == 0 {
		o.SlowAfter = 2 * time.Second
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 64 << 20
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Engine is a txlog.Shared. All methods are safe for many goroutines.
type Engine struct {
	opts   Options
	db     *sql.DB
	d      dialect
	health *health

	mu     sync.Mutex // guards the fields below
	stores map[*Store]struct{}
	closed bool
}

var _ txlog.Shared = (*Engine)(nil)

// Open connects, and makes or migrates the tables as far as it is needed. ErrNewer says that a later release has
// migrated them, txlog.ErrUnavailable that the database cannot be reached at present.
func Open(ctx context.Context, o Options) (*Engine, error) {
	o = o.withDefaults()
	db, d, err := connect(o)
	if err != nil {
		return nil, fmt.Errorf("open shared store: %w", err)
	}
	e := &Engine{opts: o, db: db, d: d, stores: map[*Store]struct{}{}}
	setup := func() error {
		ctx, stop := context.WithTimeout(ctx, o.Timeout)
		defer stop()
		if err := e.migrate(ctx); err != nil {
			return err
		}
		return e.d.limits(ctx, db)
	}
	if err := setup(); err != nil {
		if unreachable(err) {
			err = fmt.Errorf("%w: %w", txlog.ErrUnavailable, err)
		}
		return nil, fmt.Errorf("open shared store: %w", errors.Join(err, db.Close()))
	}
	e.health = watch(e.probe, o.Log)
	return e, nil
}

// As implements txlog.Shared.
func (e *Engine) As(o txlog.Owner) txlog.Store {
	s := newStore(e, o)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		s.closed = true
	}
	e.stores[s] = struct{}{}
	go s.commitLoop()
	s.signal()
	return s
}

// OwnerOf implements txlog.Shared.
func (e *Engine) OwnerOf(ctx context.Context, id txn.ID) (string, error) {
	var owner []byte
	err := e.read(ctx, func(ctx context.Context) error {
		return e.row(ctx, "SELECT owner FROM txmesh_transactions WHERE id = ?", []any{[]byte(id)}, &owner)
	})
	if err != nil {
		return "", fmt.Errorf("owner of transaction %s: %w", id, err)
	}
	return string(owner), nil
}

// Close closes the stores, after what was submitted to them, and the connections.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	var open []*Store
	for s := range e.stores {
		open = append(open, s)
	}
	e.mu.Unlock()
	var all sync.WaitGroup
	for _, s := range open {
		all.Go(func() { _ = s.Close() }) // it has no error
	}
	all.Wait()
	e.health.close()
	if err := e.db.Close(); err != nil {
		return fmt.Errorf("close shared store: %w", err)
	}
	return nil
}

func (e *Engine) forget(s *Store) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.stores, s)
}

func (e *Engine) usable() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return txlog.ErrClosed
	}
	return nil
}

// probe writes something that changes nothing: a database that only reads is no good.
func (e *Engine) probe(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, e.opts.SlowAfter)
	defer stop()
	_, err := e.db.ExecContext(ctx, e.d.bind("UPDATE txmesh_store SET epoch = epoch WHERE id = 1"))
	return err
}
