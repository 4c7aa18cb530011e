package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/txlog"
	"txmesh/txn"
)

// trimMax is how many transactions are forgotten at once: few, because a member applies nothing else meanwhile.
const trimMax = 16

// victim is a finished transaction that is to be forgotten.
type victim struct {
	id       txn.ID
	row      string // its row f
	revision int64
	end      ended
}

// trim forgets batch after batch. When two sidecars trim at once, one of them stops: the row n lets only one go on.
func (e *Engine) trim(ctx context.Context, before time.Time) (int, error) {
	trimmed, err := e.readTrimmed(ctx)
	if err != nil {
		return 0, err
	}
	finished, err := e.finishedBytes(ctx)
	if err != nil {
		return 0, err
	}
	over := finished - trimmed.Bytes - e.opts.RetainBytes
	forgotten := 0
	for from := e.keys.finishedAll(); ; {
		batch, err := e.victims(ctx, from, before, over)
		if err != nil || len(batch) == 0 {
			return forgotten, err
		}
		done, err := e.forget(ctx, batch, &trimmed)
		if err != nil || done == nil {
			return forgotten, err
		}
		from = batch[len(batch)-1].row + "\x00" // from the first on, etcd would walk over all that has just been removed
		for i, v := range batch {
			if done[i] {
				over -= v.end.Bytes
				forgotten++
			}
		}
	}
}

// finishedBytes is what all owners have ever finished.
func (e *Engine) finishedBytes(ctx context.Context) (int64, error) {
	var sum int64
	for kv, err := range e.rows(ctx, e.usable, e.keys.groups(), 0, false) {
		if err != nil {
			return 0, err
		}
		var c counted
		if err := c.parse(kv); err != nil {
			return 0, err
		}
		sum += c.Bytes
	}
	return sum, nil
}

// victims returns the next to be forgotten from a key on: those that finished before the time, and the oldest as long as
// so many bytes are over the limit.
func (e *Engine) victims(ctx context.Context, from string, before time.Time, over int64) ([]victim, error) {
	end := clientv3.GetPrefixRangeEnd(e.keys.finishedAll())
	r, err := e.read(ctx, clientv3.OpGet(from, clientv3.WithRange(end), clientv3.WithLimit(trimMax)))
	if err != nil {
		return nil, err
	}
	var out []victim
	for _, kv := range r[0] {
		v := victim{row: string(kv.Key), revision: kv.ModRevision}
		at, id, err := e.keys.finishedParts(v.row)
		if err != nil {
			return nil, err
		}
		if err := decode(v.row, kv.Value, &v.end); err != nil {
			return nil, err
		}
		if over <= 0 && !at.Before(before) {
			break
		}
		v.id = id
		over -= v.end.Bytes
		out = append(out, v)
	}
	return out, nil
}

// forget removes the victims that nobody has touched meanwhile, each whole or not at all, and says which; nil when
// somebody else trims.
func (e *Engine) forget(ctx context.Context, batch []victim, trimmed *counted) ([]bool, error) {
	next := counted{Bytes: trimmed.Bytes}
	ops := make([]clientv3.Op, 0, len(batch)+1)
	for _, v := range batch {
		next.Bytes += v.end.Bytes
		ops = append(ops, e.forgetting(v))
	}
	ops = append(ops, clientv3.OpPut(e.keys.trimmed(), next.String()))
	r, err := e.forgetAll(ctx, trimmed.revision, ops)
	counts := true
	if errors.Is(err, txlog.ErrFull) { // removals alone are allowed even then; the count follows when there is space
		r, err = e.forgetAll(ctx, trimmed.revision, ops[:len(batch)])
		counts = false
	}
	if err != nil || !r.Succeeded {
		return nil, err
	}
	done := make([]bool, len(batch))
	for i := range batch {
		if done[i] = r.Responses[i].GetResponseTxn().Succeeded; !done[i] {
			next.Bytes -= batch[i].end.Bytes
		}
	}
	trimmed.Bytes = next.Bytes
	if counts {
		trimmed.revision = r.Header.Revision
	}
	return done, nil
}

func (e *Engine) forgetAll(ctx context.Context, trimmed int64, ops []clientv3.Op) (r *clientv3.TxnResponse, err error) {
	err = e.once(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		r, err = c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(e.keys.trimmed()), "=", trimmed)).Then(ops...).Commit()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("forget %d transactions: %w", len(ops), err)
	}
	return r, nil
}

func (e *Engine) forgetting(v victim) clientv3.Op {
	untouched := clientv3.Compare(clientv3.ModRevision(v.row), "=", v.revision)
	ops := []clientv3.Op{
		clientv3.OpDelete(e.keys.entries(v.id), clientv3.WithPrefix()),
		clientv3.OpDelete(e.keys.listed(v.end.Begun, v.id)),
		clientv3.OpDelete(v.row),
	}
	if v.end.Key != "" {
		key := e.keys.spec(v.end.Key)
		still := clientv3.Compare(clientv3.Value(key), "=", string(v.id))
		ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{still}, []clientv3.Op{clientv3.OpDelete(key)}, nil))
	}
	return clientv3.OpTxn([]clientv3.Cmp{untouched}, ops, nil)
}
