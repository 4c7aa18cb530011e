package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/txlog"
)

// holder is how a holder is kept: as text, for whoever looks with etcdctl.
type holder struct {
	Sidecar string `json:"sidecar"`
	Service string `json:"service"`
	Peer    string `json:"peer"`
}

// free is the value of a released owner's beat.
const free = "free"

func (e *Engine) held(o txlog.Owner) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(e.keys.lease(o.ID)), "=", int64(o.Epoch))
}

// Claim implements txlog.Leases.
func (e *Engine) Claim(ctx context.Context, owner string, known uint64, h txlog.Holder) (txlog.Lease, error) {
	value, err := json.Marshal(holder(h))
	if err != nil {
		return txlog.Lease{}, fmt.Errorf("claim %s: %w", owner, err)
	}
	r, err := e.fenced(ctx, e.once, txlog.Owner{ID: owner, Epoch: known},
		clientv3.OpPut(e.keys.lease(owner), string(value)), clientv3.OpPut(e.keys.beat(owner), ""))
	if err != nil {
		return txlog.Lease{}, fmt.Errorf("claim %s at epoch %d: %w", owner, known, err)
	}
	return txlog.Lease{Owner: txlog.Owner{ID: owner, Epoch: uint64(r)}, Holder: h, Beat: uint64(r)}, nil
}

// Renew implements txlog.Leases.
func (e *Engine) Renew(ctx context.Context, o txlog.Owner) error {
	if o.Epoch == 0 {
		return fmt.Errorf("renew %s at epoch 0: %w", o.ID, txlog.ErrFenced)
	}
	if _, err := e.fenced(ctx, e.retry, o, clientv3.OpPut(e.keys.beat(o.ID), "")); err != nil {
		return fmt.Errorf("renew %s at epoch %d: %w", o.ID, o.Epoch, err)
	}
	return nil
}

// Release implements txlog.Leases.
func (e *Engine) Release(ctx context.Context, o txlog.Owner) error {
	if o.Epoch == 0 {
		return fmt.Errorf("release %s at epoch 0: %w", o.ID, txlog.ErrFenced)
	}
	if _, err := e.fenced(ctx, e.retry, o, clientv3.OpPut(e.keys.beat(o.ID), free)); err != nil {
		return fmt.Errorf("release %s at epoch %d: %w", o.ID, o.Epoch, err)
	}
	return nil
}

// ask makes a request: Engine.once for what may be done once only, Engine.retry for what may be done twice.
type ask func(ctx context.Context, request func(context.Context, *clientv3.Client) error) error

// fenced writes if the owner has the epoch, 0 meaning that it is not there, and returns the revision.
func (e *Engine) fenced(ctx context.Context, ask ask, o txlog.Owner, ops ...clientv3.Op) (int64, error) {
	if err := e.usable(); err != nil {
		return 0, err
	}
	var r *clientv3.TxnResponse
	err := ask(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		r, err = c.Txn(ctx).If(e.held(o)).Then(ops...).Else(clientv3.OpGet(e.keys.lease(o.ID), clientv3.WithKeysOnly())).Commit()
		return err
	})
	if err != nil {
		return 0, err
	}
	if !r.Succeeded {
		return 0, fmt.Errorf("it is %d: %w", revision(r.Responses[0].GetResponseRange().Kvs), txlog.ErrFenced)
	}
	return r.Header.Revision, nil
}

// revision is that of the only row of an answer, 0 if there is none.
func revision(rows []*mvccpb.KeyValue) int64 {
	if len(rows) == 0 {
		return 0
	}
	return rows[0].ModRevision
}

// Retire implements txlog.Leases. What the owner has finished stays, and so does what it has finished count for Trim.
func (e *Engine) Retire(ctx context.Context, o txlog.Owner) error {
	for {
		done, err := e.retire(ctx, o)
		if err != nil {
			return fmt.Errorf("retire %s at epoch %d: %w", o.ID, o.Epoch, err)
		}
		if done {
			return nil
		}
	}
}

// retire is one try; done is false when a count has changed in the midst of it.
func (e *Engine) retire(ctx context.Context, o txlog.Owner) (done bool, err error) {
	if err := e.usable(); err != nil {
		return false, err
	}
	g, err := e.readGroup(ctx, o.ID)
	if err != nil {
		return false, err
	}
	n, err := e.readTrimmed(ctx)
	if err != nil {
		return false, err
	}
	group, lease := e.keys.group(o.ID), e.keys.lease(o.ID)
	var r *clientv3.TxnResponse
	err = e.once(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		r, err = c.Txn(ctx).If(
			e.held(o),
			clientv3.Compare(clientv3.CreateRevision(lease), ">", 0),
			clientv3.Compare(clientv3.CreateRevision(e.keys.unfinishedOf(o.ID)), "=", 0).WithPrefix(),
			clientv3.Compare(clientv3.ModRevision(group), "=", g.revision),
			clientv3.Compare(clientv3.ModRevision(e.keys.trimmed()), "=", n.revision),
		).Then(
			clientv3.OpDelete(lease), clientv3.OpDelete(e.keys.beat(o.ID)), clientv3.OpDelete(group),
			clientv3.OpPut(e.keys.trimmed(), n.minus(g.Bytes)),
		).Else(
			clientv3.OpGet(lease, clientv3.WithKeysOnly()),
			clientv3.OpGet(e.keys.unfinishedOf(o.ID), clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly()),
		).Commit()
		return err
	})
	switch {
	case err != nil:
		return false, err
	case r.Succeeded:
		return true, nil
	}
	if now := revision(r.Responses[0].GetResponseRange().Kvs); now == 0 || now != int64(o.Epoch) {
		return false, fmt.Errorf("it is %d: %w", now, txlog.ErrFenced)
	}
	if open := r.Responses[1].GetResponseRange().Kvs; len(open) > 0 {
		return false, fmt.Errorf("%s is there: %w", open[0].Key, txlog.ErrUnfinished)
	}
	return false, nil
}

// Lease implements txlog.Leases.
func (e *Engine) Lease(ctx context.Context, owner string) (txlog.Lease, error) {
	found, err := e.leases(ctx, clientv3.OpGet(e.keys.lease(owner)), clientv3.OpGet(e.keys.beat(owner)))
	if err == nil && len(found) == 0 {
		err = txlog.ErrNotFound
	}
	if err != nil {
		return txlog.Lease{}, fmt.Errorf("lease of %s: %w", owner, err)
	}
	return found[0], nil
}

// Leases implements txlog.Leases.
func (e *Engine) Leases(ctx context.Context, service string) ([]txlog.Lease, error) {
	found, err := e.leases(ctx, clientv3.OpGet(e.keys.leases(), clientv3.WithPrefix()), clientv3.OpGet(e.keys.beats(), clientv3.WithPrefix()))
	if err != nil {
		return nil, fmt.Errorf("leases of service %q: %w", service, err)
	}
	found = slices.DeleteFunc(found, func(l txlog.Lease) bool { return service != "" && l.Holder.Service != service })
	if len(found) == 0 {
		return nil, nil
	}
	slices.SortFunc(found, func(a, b txlog.Lease) int { return strings.Compare(a.Owner.ID, b.Owner.ID) })
	return found, nil
}

// leases reads holders and beats of one moment.
func (e *Engine) leases(ctx context.Context, holders, beats clientv3.Op) ([]txlog.Lease, error) {
	r, err := e.read(ctx, holders, beats)
	if err != nil {
		return nil, err
	}
	beat := map[string]*mvccpb.KeyValue{}
	for _, kv := range r[1] {
		beat[string(kv.Key[len(e.keys.beats()):])] = kv
	}
	var out []txlog.Lease
	for _, kv := range r[0] {
		owner, err := e.keys.leaseOwner(string(kv.Key))
		if err != nil {
			return nil, err
		}
		var h holder
		if err := json.Unmarshal(kv.Value, &h); err != nil {
			return nil, fmt.Errorf("row %q: %w: %w", kv.Key, err, txlog.ErrCorrupt)
		}
		b := beat[string(kv.Key[len(e.keys.leases()):])]
		if b == nil {
			return nil, fmt.Errorf("row %q has no beat beside it: %w", kv.Key, txlog.ErrCorrupt)
		}
		out = append(out, txlog.Lease{
			Owner: txlog.Owner{ID: owner, Epoch: uint64(kv.ModRevision)}, Holder: txlog.Holder(h),
			Beat: uint64(b.ModRevision), Free: string(b.Value) == free,
		})
	}
	return out, nil
}

// read reads several ranges at one moment, what all members agree on.
func (e *Engine) read(ctx context.Context, gets ...clientv3.Op) ([][]*mvccpb.KeyValue, error) {
	if err := e.usable(); err != nil {
		return nil, err
	}
	return e.readAlways(ctx, gets...)
}

// readAlways reads while the engine is being closed as well.
func (e *Engine) readAlways(ctx context.Context, gets ...clientv3.Op) ([][]*mvccpb.KeyValue, error) {
	var r *clientv3.TxnResponse
	err := e.retry(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		r, err = c.Txn(ctx).Then(gets...).Commit()
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([][]*mvccpb.KeyValue, len(gets))
	for i, part := range r.Responses {
		out[i] = part.GetResponseRange().Kvs
	}
	return out, nil
}
