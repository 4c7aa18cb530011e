package etcd

import (
	"context"
	"fmt"
	"iter"

	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/txlog"
)

// table is a txlog.Table. Its rows belong to no owner.
type table struct {
	store  *store
	prefix string
}

// Get implements txlog.Table.
func (t table) Get(ctx context.Context, key string) ([]byte, error) {
	v, err := t.store.get(ctx, t.prefix+key)
	if err != nil {
		return nil, fmt.Errorf("get row %q: %w", key, err)
	}
	return v, nil
}

// Put implements txlog.Table. The rows are one transaction of etcd, and refused with txlog.ErrTooLarge if they do not
// fit into it.
func (t table) Put(ctx context.Context, rows []txlog.Row, _ bool) error {
	if err := t.put(ctx, rows); err != nil {
		return fmt.Errorf("put %d rows: %w", len(rows), err)
	}
	return nil
}

func (t table) put(ctx context.Context, rows []txlog.Row) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.store.usable(); err != nil {
		return err
	}
	e, bytes, at := t.store.engine, 0, map[string]int{}
	var ops []clientv3.Op
	for _, r := range rows {
		i, again := at[r.Key]
		if !again { // the last word counts
			i = len(ops)
			at[r.Key] = i
			ops = append(ops, clientv3.Op{})
		}
		ops[i] = t.write(r.Key, r.Value)
		bytes += len(t.prefix) + len(r.Key) + len(r.Value) + rowBytes
	}
	if len(ops) > e.opts.OpsMax || bytes > e.bytesMax() {
		return fmt.Errorf("%d rows of %d bytes, at most %d and %d; put fewer at once: %w", len(ops), bytes, e.opts.OpsMax, e.bytesMax(), txlog.ErrTooLarge)
	}
	return e.once(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Txn(ctx).Then(ops...).Commit()
		return err
	})
}

func (t table) write(key string, value []byte) clientv3.Op {
	if value == nil {
		return clientv3.OpDelete(t.prefix + key)
	}
	return clientv3.OpPut(t.prefix+key, string(value))
}

// Swap implements txlog.Table.
func (t table) Swap(ctx context.Context, key string, old, new []byte) error {
	if err := t.swap(ctx, key, old, new); err != nil {
		return fmt.Errorf("swap row %q: %w", key, err)
	}
	return nil
}

func (t table) swap(ctx context.Context, key string, old, new []byte) error {
	if err := t.store.usable(); err != nil {
		return err
	}
	e, row := t.store.engine, t.prefix+key
	if bytes := len(row) + len(old) + len(new) + rowBytes; bytes > e.bytesMax() {
		return fmt.Errorf("%d bytes, at most %d: %w", bytes, e.bytesMax(), txlog.ErrTooLarge)
	}
	expected := clientv3.Compare(clientv3.CreateRevision(row), "=", 0)
	if old != nil {
		expected = clientv3.Compare(clientv3.Value(row), "=", string(old))
	}
	return e.once(ctx, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Txn(ctx).If(expected).Then(t.write(key, new)).Commit()
		if err == nil && !r.Succeeded {
			return txlog.ErrChanged
		}
		return err
	})
}

// Scan implements txlog.Table. It sees each page as it is when the page is read.
func (t table) Scan(ctx context.Context, prefix string) iter.Seq2[txlog.Row, error] {
	return func(yield func(txlog.Row, error) bool) {
		for kv, err := range t.store.engine.rows(ctx, t.store.usable, t.prefix+prefix, 0, false) {
			if err != nil {
				yield(txlog.Row{}, fmt.Errorf("scan rows %q: %w", prefix, err))
				return
			}
			if !yield(txlog.Row{Key: string(kv.Key[len(t.prefix):]), Value: append([]byte{}, kv.Value...)}, nil) {
				return
			}
		}
	}
}
