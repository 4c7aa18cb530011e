package etcd

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/txlog"
	"txmesh/txn"
)

// store is the journal of one owner at one epoch, and everybody's tables.
type store struct {
	engine  *Engine
	journal *journal
	closed  atomic.Bool
}

// pageRows is how many rows are read at once.
const pageRows = 256

func (s *store) usable() error {
	if s.closed.Load() {
		return txlog.ErrClosed
	}
	return s.engine.usable()
}

// Owner names who appends.
func (s *store) Owner() txlog.Owner { return s.journal.owner }

// Append implements txlog.Journal. Everything is durable at a majority of the members before it returns, whatever sync
// says.
func (s *store) Append(ctx context.Context, es []txlog.Entry, _ bool) error {
	err := s.usable()
	if err == nil {
		err = s.journal.append(ctx, es)
	}
	if err != nil {
		return fmt.Errorf("append %d entries: %w", len(es), err)
	}
	return nil
}

// Open implements txlog.Journal. The zero owner means the store's own.
func (s *store) Open(ctx context.Context, o txlog.Owner) iter.Seq2[txlog.Entry, error] {
	return func(yield func(txlog.Entry, error) bool) {
		own := s.journal.owner.ID
		if o != (txlog.Owner{}) && o.ID != own {
			yield(txlog.Entry{}, fmt.Errorf("open journal of %s: this store is of %s: %w", o.ID, own, txlog.ErrFenced))
			return
		}
		var ids []txn.ID
		for kv, err := range s.engine.rows(ctx, s.usable, s.engine.keys.unfinishedOf(own), 0, true) {
			if err != nil {
				yield(txlog.Entry{}, fmt.Errorf("open journal of %s: %w", own, err))
				return
			}
			id, err := s.engine.keys.unfinishedID(own, string(kv.Key))
			if err != nil {
				yield(txlog.Entry{}, err)
				return
			}
			if ids = append(ids, id); len(ids) == loadMax {
				if !s.histories(ctx, ids, yield) {
					return
				}
				ids = nil
			}
		}
		s.histories(ctx, ids, yield)
	}
}

// histories yields the entries of some transactions, which it reads at once, and reports whether to go on.
func (s *store) histories(ctx context.Context, ids []txn.ID, yield func(txlog.Entry, error) bool) bool {
	if len(ids) == 0 {
		return true
	}
	gets := make([]clientv3.Op, len(ids))
	for i, id := range ids {
		gets[i] = clientv3.OpGet(s.engine.keys.entries(id), clientv3.WithPrefix(), clientv3.WithLimit(pageRows))
	}
	err := s.usable()
	var rows [][]*mvccpb.KeyValue
	if err == nil {
		rows, err = s.engine.read(ctx, gets...)
	}
	if err != nil {
		yield(txlog.Entry{}, fmt.Errorf("open journal of %s: %w", s.journal.owner.ID, err))
		return false
	}
	for i, id := range ids {
		history := decodeRows(id, rows[i])
		if len(rows[i]) == pageRows { // there may be more
			history = s.History(ctx, id)
		}
		for e, err := range history {
			if !yield(e, err) || err != nil {
				return false
			}
		}
	}
	return true
}

// decodeRows yields the entries in the rows of a transaction.
func decodeRows(id txn.ID, rows []*mvccpb.KeyValue) iter.Seq2[txlog.Entry, error] {
	return func(yield func(txlog.Entry, error) bool) {
		for _, kv := range rows {
			_, es, err := decodeRow(id, kv.Value)
			if err != nil {
				yield(txlog.Entry{}, fmt.Errorf("history of %s: %w", id, err))
				return
			}
			for _, e := range es {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// History implements txlog.Journal.
func (s *store) History(ctx context.Context, id txn.ID) iter.Seq2[txlog.Entry, error] {
	return func(yield func(txlog.Entry, error) bool) {
		for kv, err := range s.engine.rows(ctx, s.usable, s.engine.keys.entries(id), 0, false) {
			var es []txlog.Entry
			if err == nil {
				_, es, err = decodeRow(id, kv.Value)
			}
			if err != nil {
				yield(txlog.Entry{}, fmt.Errorf("history of %s: %w", id, err))
				return
			}
			for _, e := range es {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// Find implements txlog.Journal.
func (s *store) Find(ctx context.Context, key string) (txn.ID, error) {
	v, err := s.get(ctx, s.engine.keys.spec(key))
	if err == nil && key == "" {
		err = txlog.ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("find transaction by key %q: %w", key, err)
	}
	return txn.ID(v), nil
}

func (s *store) get(ctx context.Context, key string) ([]byte, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	r, err := s.engine.read(ctx, clientv3.OpGet(key))
	if err != nil {
		return nil, err
	}
	if len(r[0]) == 0 {
		return nil, txlog.ErrNotFound
	}
	return append([]byte{}, r[0][0].Value...), nil
}

// Trim implements txlog.Journal. It forgets what any owner has finished.
func (s *store) Trim(ctx context.Context, finishedBefore time.Time) (int, error) {
	if err := s.usable(); err != nil {
		return 0, fmt.Errorf("trim: %w", err)
	}
	n, err := s.engine.trim(ctx, finishedBefore)
	if err != nil {
		return n, fmt.Errorf("trim after %d transactions: %w", n, err)
	}
	return n, nil
}

// Accepts implements txlog.Journal. It says no while etcd does not answer, and by itself yes again.
func (s *store) Accepts() error {
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.engine.accepts(); err != nil {
		return err
	}
	return s.journal.accepts()
}

// Close implements txlog.Journal. The engine stays open.
func (s *store) Close() error {
	s.closed.Store(true)
	return nil
}

// Table implements txlog.Store.
func (s *store) Table(name string) txlog.Table {
	return table{store: s, prefix: s.engine.keys.table(name)}
}

// OwnerOf implements txlog.Shared.
func (e *Engine) OwnerOf(ctx context.Context, id txn.ID) (string, error) {
	r, err := e.read(ctx, clientv3.OpGet(e.keys.entry(id, 0)))
	owner := ""
	switch {
	case err != nil:
	case len(r[0]) == 0:
		err = txlog.ErrNotFound
	default:
		owner, _, err = decodeRow(id, r[0][0].Value)
	}
	if err != nil {
		return "", fmt.Errorf("owner of transaction %s: %w", id, err)
	}
	return owner, nil
}

// rows yields the rows of a prefix in byte order, page by page. A revision of 0 means the present, for each page anew.
func (e *Engine) rows(ctx context.Context, usable func() error, prefix string, at int64, keysOnly bool) iter.Seq2[*mvccpb.KeyValue, error] {
	return e.between(ctx, usable, prefix, clientv3.GetPrefixRangeEnd(prefix), at, keysOnly)
}

func (e *Engine) between(ctx context.Context, usable func() error, from, to string, at int64, keysOnly bool) iter.Seq2[*mvccpb.KeyValue, error] {
	opts := []clientv3.OpOption{clientv3.WithRange(to), clientv3.WithLimit(pageRows), clientv3.WithRev(at)}
	if keysOnly {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	return func(yield func(*mvccpb.KeyValue, error) bool) {
		for {
			err := usable()
			var r [][]*mvccpb.KeyValue
			if err == nil {
				r, err = e.read(ctx, clientv3.OpGet(from, opts...))
			}
			if err != nil {
				yield(nil, err)
				return
			}
			for _, kv := range r[0] {
				if !yield(kv, nil) {
					return
				}
			}
			if len(r[0]) < pageRows {
				return
			}
			from = string(r[0][len(r[0])-1].Key) + "\x00"
		}
	}
}
