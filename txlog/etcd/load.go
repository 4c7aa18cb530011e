package etcd

import (
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/txlog"
	"txmesh/txn"
)

// loadMax is how many transactions are read at once.
const loadMax = 32

// load reads the transactions that the next requests go on with and the committer does not know, which is so after a
// claim and for late records. Requests for those of another owner are refused; the others are returned.
func (j *journal) load(rs []*request) ([]*request, error) {
	wanted := map[txn.ID]bool{}
	for _, r := range rs {
		for _, s := range r.steps {
			if _, begins := s.entries[0].Record.(txn.Began); j.txs[s.tx] == nil && (r.load || !begins) {
				wanted[s.tx] = true
			}
		}
	}
	foreign := map[txn.ID]string{}
	var ids []txn.ID
	for id := range wanted {
		if ids = append(ids, id); len(ids) == loadMax {
			if err := j.loadAll(ids, foreign); err != nil {
				return rs, err
			}
			ids = nil
		}
	}
	if err := j.loadAll(ids, foreign); err != nil {
		return rs, err
	}
	return j.refuseForeign(rs, foreign), nil
}

func (j *journal) loadAll(ids []txn.ID, foreign map[txn.ID]string) error {
	if len(ids) == 0 {
		return nil
	}
	var gets []clientv3.Op
	for _, id := range ids {
		gets = append(gets, clientv3.OpGet(j.engine.keys.entries(id), clientv3.WithPrefix()))
	}
	rows, err := j.engine.readAlways(j.engine.ctx, gets...)
	if err != nil {
		return err
	}
	for i, id := range ids {
		s, owner, err := fold(id, rows[i])
		switch {
		case err != nil:
			return err
		case owner != "" && owner != j.owner.ID:
			foreign[id] = owner
		case owner != "":
			if err := j.know(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// know keeps a transaction that was read. A finished one needs what its row f says; without it, it has just been
// forgotten.
func (j *journal) know(s *state) error {
	sum := s.digest.Summary
	if !sum.Phase.Done() {
		j.txs[sum.ID] = s
		return nil
	}
	f := j.engine.keys.finished(sum.Finished, sum.ID)
	rows, err := j.engine.readAlways(j.engine.ctx, clientv3.OpGet(f))
	if err != nil || len(rows[0]) == 0 {
		return err
	}
	var end ended
	if err := decode(f, rows[0][0].Value, &end); err != nil {
		return err
	}
	s.ended, s.bytes = rows[0][0].ModRevision, end.Bytes
	j.txs[sum.ID] = s
	j.late = append(j.late, sum.ID)
	return nil
}

// fold makes the state of a transaction of its rows; the owner is empty if there are none.
func fold(id txn.ID, rows []*mvccpb.KeyValue) (*state, string, error) {
	s, owner := &state{}, ""
	for i, kv := range rows {
		named, es, err := decodeRow(id, kv.Value)
		if err != nil {
			return nil, "", err
		}
		if i == 0 {
			owner = named
		}
		for _, e := range es {
			s.digest.Apply(e)
		}
		s.next++
		s.bytes += int64(len(kv.Value))
	}
	return s, owner, nil
}

func (j *journal) refuseForeign(rs []*request, foreign map[txn.ID]string) []*request {
	var out []*request
	for _, r := range rs {
		if id, owner := r.foreign(foreign); owner != "" {
			j.answer(r, fmt.Errorf("append to the journal of %s: transaction %s is of %s: %w", j.owner.ID, id, owner, txlog.ErrTaken))
			continue
		}
		out = append(out, r)
	}
	return out
}

func (r *request) foreign(owners map[txn.ID]string) (txn.ID, string) {
	for _, s := range r.steps {
		if owner := owners[s.tx]; owner != "" {
			return s.tx, owner
		}
	}
	return "", ""
}
