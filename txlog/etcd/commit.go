package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/txlog"
)

// commit writes the group and answers its requests. It returns those that are to be tried again, because their
// transactions are not what the committer believed. An error is for all that it returns.
func (j *journal) commit(g *group) (again []*request, err error) {
	j.number++
	mark := counted{Epoch: j.owner.Epoch, Number: j.number, Bytes: j.finished + g.finished}
	r, err := j.send(j.transaction(g, mark))
	if err != nil {
		return g.requests(), err
	}
	if r.Succeeded {
		mark.revision = r.Header.Revision
		done := make([]bool, len(g.parts))
		for i := range g.parts {
			done[i] = r.Responses[1+i].GetResponseTxn().Succeeded
		}
		return j.settle(g, mark, done), nil
	}
	return j.explain(g, mark, r)
}

// transaction is what the package comment shows.
func (j *journal) transaction(g *group, mark counted) func(context.Context, *clientv3.Client) (*clientv3.TxnResponse, error) {
	k, owner := j.engine.keys, j.owner.ID
	ops := []clientv3.Op{clientv3.OpPut(k.group(owner), mark.String())}
	for _, p := range g.parts {
		ops = append(ops, clientv3.OpTxn(p.cmps, p.writes(), nil))
	}
	return func(ctx context.Context, c *clientv3.Client) (*clientv3.TxnResponse, error) {
		return c.Txn(ctx).If(
			j.engine.held(j.owner),
			clientv3.Compare(clientv3.CreateRevision(k.lease(owner)), ">", 0),
			clientv3.Compare(clientv3.ModRevision(k.group(owner)), "=", j.last.revision),
		).Then(ops...).Else(
			clientv3.OpGet(k.lease(owner), clientv3.WithKeysOnly()), clientv3.OpGet(k.group(owner)),
		).Commit()
	}
}

// send sends the same transaction until it is answered: by its comparisons it happens once at most. It stops for
// nothing but Close, since what follows depends on it; callers leave when they will.
func (j *journal) send(commit func(context.Context, *clientv3.Client) (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error) {
	e := j.engine
	for pause := pauseMin; ; pause = min(2*pause, pauseMax) {
		var r *clientv3.TxnResponse
		err := e.try(e.ctx, e.opts.Try, func(ctx context.Context, c *clientv3.Client) (err error) {
			r, err = commit(ctx, c)
			return err
		})
		if err == nil || e.ctx.Err() != nil || !errors.Is(err, txlog.ErrUnavailable) {
			return r, err
		}
		select {
		case <-e.ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// explain finds out why the comparisons of a group failed: an earlier try of it has been done, somebody else has the
// journal, or a group that was given up has been done after all.
func (j *journal) explain(g *group, mark counted, r *clientv3.TxnResponse) (again []*request, err error) {
	now, err := parseCounted(r.Responses[1].GetResponseRange().Kvs)
	if err != nil {
		return g.requests(), err
	}
	epoch := uint64(revision(r.Responses[0].GetResponseRange().Kvs))
	if now.Epoch == mark.Epoch && now.Number == mark.Number {
		mark.revision = now.revision
		done, err := j.done(g, mark.revision)
		if err != nil {
			j.lose()
			return g.requests(), err
		}
		return j.settle(g, mark, done), nil
	}
	if epoch != j.owner.Epoch {
		return g.requests(), fmt.Errorf("append to the journal of %s at epoch %d, it is %d: %w", j.owner.ID, j.owner.Epoch, epoch, txlog.ErrFenced)
	}
	j.lose()
	return g.requests(), nil
}

// done reads which parts of a group were written at this revision.
func (j *journal) done(g *group, at int64) ([]bool, error) {
	gets := make([]clientv3.Op, len(g.parts))
	for i, p := range g.parts {
		gets[i] = clientv3.OpGet(p.first, clientv3.WithKeysOnly())
	}
	rows, err := j.engine.readAlways(j.engine.ctx, gets...)
	if err != nil {
		return nil, err
	}
	out := make([]bool, len(g.parts))
	for i := range out {
		out[i] = revision(rows[i]) == at
	}
	return out, nil
}

// settle remembers what was written and answers. A part that was not is tried again with what is really there.
func (j *journal) settle(g *group, mark counted, done []bool) (again []*request) {
	j.last, j.finished = mark, mark.Bytes
	for i, p := range g.parts {
		if !done[i] {
			j.finished -= p.finished
			for id := range p.states {
				delete(j.txs, id)
			}
			p.req.load = true
			again = append(again, p.req)
			continue
		}
		for id, s := range p.states {
			s.ended = 0
			j.txs[id] = s
			if s.digest.Summary.Phase.Done() {
				delete(j.txs, id)
			}
		}
		j.answer(p.req, nil)
	}
	return again
}

func (g *group) requests() []*request {
	out := make([]*request, len(g.parts))
	for i, p := range g.parts {
		out[i] = p.req
	}
	return out
}
