package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"txmesh/txlog"
	"txmesh/txn"
)

// entry is one record as the disk holds it.
type entry struct {
	tx      txn.ID
	record  txn.Record // decoded from the bytes, shares nothing with the machine
	encoded []byte
}

// disk is the journal of one sidecar. What is behind synced survives a power cut for certain; of the rest a random
// head does.
type disk struct {
	entries []entry
	synced  int
	byTx    map[txn.ID][]int      // positions in entries
	states  map[txn.ID]*txn.State // the fold of what is written
}

func newDisk() *disk { return &disk{byTx: map[txn.ID][]int{}, states: map[txn.ID]*txn.State{}} }

// append writes entries, not yet synced.
func (d *disk) append(es []txlog.Entry) {
	for _, e := range es {
		b, err := txlog.Encode(e)
		if err != nil {
			panic(fmt.Sprintf("sim: encode %T: %v", e.Record, err))
		}
		back, err := txlog.Decode(e.Tx, b)
		if err != nil {
			panic(fmt.Sprintf("sim: decode %T: %v", e.Record, err))
		}
		d.state(e.Tx).Apply(back.Record)
		d.byTx[e.Tx] = append(d.byTx[e.Tx], len(d.entries))
		d.entries = append(d.entries, entry{e.Tx, back.Record, b})
	}
}

func (d *disk) sync() {
	d.synced = len(d.entries)
}

// cut is a power cut.
func (d *disk) cut(rng *rand.Rand) {
	keep := d.synced + rng.IntN(len(d.entries)-d.synced+1)
	d.entries = d.entries[:keep]
	d.synced = keep
	clear(d.byTx)
	clear(d.states)
	for i, e := range d.entries {
		d.byTx[e.tx] = append(d.byTx[e.tx], i)
		d.state(e.tx).Apply(e.record)
	}
}

// state is the fold of what is written of one transaction.
func (d *disk) state(id txn.ID) *txn.State {
	st := d.states[id]
	if st == nil {
		st = &txn.State{}
		d.states[id] = st
	}
	return st
}

// records returns what is written of one transaction; with durable only what is synced.
func (d *disk) records(id txn.ID, durable bool) []txn.Record {
	var rs []txn.Record
	for _, i := range d.byTx[id] {
		if !durable || i < d.synced {
			rs = append(rs, d.entries[i].record)
		}
	}
	return rs
}

// transactions returns the ids in the order of their first record.
func (d *disk) transactions() []txn.ID {
	var ids []txn.ID
	for i, e := range d.entries {
		if d.byTx[e.tx][0] == i {
			ids = append(ids, e.tx)
		}
	}
	return ids
}

// decided returns the durable decision of a transaction.
func (d *disk) decided(id txn.ID) (txn.Decided, bool) {
	for _, i := range d.byTx[id] {
		if r, ok := d.entries[i].record.(txn.Decided); ok && i < d.synced {
			return r, true
		}
	}
	return txn.Decided{}, false
}

// enlisted returns a branch as it was first recorded durably.
func (d *disk) enlisted(id txn.ID, n string) (txn.Branch, bool) {
	for _, i := range d.byTx[id] {
		if i >= d.synced {
			break
		}
		switch r := d.entries[i].record.(type) {
		case txn.Began:
			if at := slices.IndexFunc(r.Spec.Branches, func(b txn.Branch) bool { return b.ID == n }); at >= 0 {
				return r.Spec.Branches[at], true
			}
		case txn.Enlisted:
			if r.Branch.ID == n {
				return r.Branch, true
			}
		}
	}
	return txn.Branch{}, false
}

// find is the newest transaction begun with this key.
func (d *disk) find(key string) (txn.ID, bool) {
	for i := len(d.entries) - 1; i >= 0; i-- {
		if b, ok := d.entries[i].record.(txn.Began); ok && b.Spec.Key == key {
			return d.entries[i].tx, true
		}
	}
	return "", false
}

// rows is the barrier's table of one sidecar, synced and lost apart from the journal.
type rows struct {
	now       map[string][]byte
	durable   map[string][]byte
	pending   []row
	forgetful bool   // finds nothing: see Options.NoBarrier
	point     func() // a place where the sidecar may die
	pause     func() // the time that a write takes
	broken    func() bool
}

type row struct {
	branch string
	data   []byte
}

func newRows() *rows { return &rows{now: map[string][]byte{}, durable: map[string][]byte{}} }

// Load implements interceptor.Rows.
func (r *rows) Load(_ context.Context, branch string) ([]byte, bool, error) {
	data, ok := r.now[branch]
	return data, ok && !r.forgetful, nil
}

// Save implements interceptor.Rows.
func (r *rows) Save(_ context.Context, branch string, _, data []byte, sync bool) error {
	r.point()
	r.pause()
	if r.broken() {
		return fmt.Errorf("save row %s: input/output error", branch)
	}
	w := row{branch, slices.Clone(data)}
	r.pending = append(r.pending, w)
	w.put(r.now)
	r.point()
	if sync {
		r.flush(len(r.pending))
	}
	r.point()
	return nil
}

func (w row) put(m map[string][]byte) {
	if w.data == nil {
		delete(m, w.branch)
	} else {
		m[w.branch] = w.data
	}
}

func (r *rows) flush(n int) {
	for _, w := range r.pending[:n] {
		w.put(r.durable)
	}
	r.pending = slices.Clone(r.pending[n:])
}

// cut is a power cut: of the writes that no sync has covered a random head survives.
func (r *rows) cut(rng *rand.Rand) {
	r.flush(rng.IntN(len(r.pending) + 1))
	r.pending = nil
	r.now = map[string][]byte{}
	for k, v := range r.durable {
		r.now[k] = v
	}
}

// Each implements interceptor.Rows, in an order that does not change.
func (r *rows) Each(_ context.Context, f func(branch string, data []byte) bool) error {
	keys := make([]string, 0, len(r.now))
	for k := range r.now {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if !f(k, r.now[k]) {
			return nil
		}
	}
	return nil
}
