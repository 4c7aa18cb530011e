package etcd

import (
	"fmt"
	"maps"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/txlog"
	"txmesh/txn"
)

// Bounds of what becomes part of a key or an index row.
const (
	idBytesMax   = 1 << 10
	keyBytesMax  = 2 << 10
	nameBytesMax = 1 << 10
)

// Bounds of what a row, and the index rows of a transaction, add to a request beside ids, keys and values.
const (
	rowBytes   = 128
	indexBytes = 4<<10 + 8*rowBytes
	stepOps    = 7  // u or l and f, those that they replace, and an entry row and k
	chunkOps   = 16 // writes of a long append that share a transaction nested in it
	headOps    = 3  // comparisons of a group
	headBytes  = 64 << 10
)

// request encodes an append, or refuses what could not be written even alone.
func (e *Engine) request(es []txlog.Entry) (*request, error) {
	r := &request{done: make(chan error, 1)}
	at := map[txn.ID]int{}
	for _, entry := range es {
		if len(entry.Tx) == 0 || len(entry.Tx) > idBytesMax {
			return nil, fmt.Errorf("transaction id of %d bytes, want 1 to %d", len(entry.Tx), idBytesMax)
		}
		if b, ok := entry.Record.(txn.Began); ok && (len(b.Spec.Key) > keyBytesMax || len(b.Spec.Name) > nameBytesMax) {
			return nil, fmt.Errorf("key and name of %s have %d and %d bytes, want at most %d and %d",
				entry.Tx, len(b.Spec.Key), len(b.Spec.Name), keyBytesMax, nameBytesMax)
		}
		body, err := txlog.Encode(entry)
		if err != nil {
			return nil, err
		}
		i, found := at[entry.Tx]
		if !found {
			i = len(r.steps)
			at[entry.Tx] = i
			r.steps = append(r.steps, step{tx: entry.Tx})
			r.bytes += 12*len(entry.Tx) + indexBytes // an escaped id is up to three times as long
		}
		r.steps[i].entries = append(r.steps[i].entries, entry)
		r.steps[i].bodies = append(r.steps[i].bodies, body)
		r.bytes += len(body) + 8
	}
	if stepsMax := max((e.opts.OpsMax-headOps)/stepOps, e.opts.OpsMax-headOps-chunkOps); len(r.steps) > stepsMax {
		return nil, fmt.Errorf("%d transactions in one append, at most %d; raise --max-txn-ops and ops-max: %w",
			len(r.steps), stepsMax, txlog.ErrTooLarge)
	}
	if r.bytes > e.bytesMax() {
		return nil, fmt.Errorf("%d bytes in one append, at most %d; raise --max-request-bytes and bytes-max: %w",
			r.bytes, e.bytesMax(), txlog.ErrTooLarge)
	}
	return r, nil
}

func (e *Engine) bytesMax() int { return e.opts.BytesMax - headBytes }

// group is what becomes one transaction of etcd.
type group struct {
	parts    []*part
	states   map[txn.ID]*state // as they will be
	writer   map[string]*part  // of each index row: the last one counts
	touched  map[string]bool   // transactions and keys of any part
	closed   map[string]bool   // those of a conditional one: whether they are written is not known yet
	bytes    int
	opsMax   int // of one part
	finished int64
}

// part is one append within a group.
type part struct {
	req      *request
	cmps     []clientv3.Cmp
	entries  []clientv3.Op
	index    map[string]clientv3.Op
	first    string // the key of its first entry row
	states   map[txn.ID]*state
	finished int64 // bytes that it finishes
}

// group makes as large a group of the first requests as fits, and returns how many it took.
func (j *journal) group(rs []*request) (*group, int) {
	g := &group{states: map[txn.ID]*state{}, writer: map[string]*part{}, touched: map[string]bool{}, closed: map[string]bool{}}
	for i, r := range rs {
		p := j.stage(g, r)
		if !g.takes(j.engine, p) {
			return g, i
		}
		g.add(p)
	}
	return g, len(rs)
}

// takes reports whether the part fits beside those that are there. A conditional part is written or not by itself, so
// nothing in the group may build on it, and it may replace no row of another. The first part always fits.
func (g *group) takes(e *Engine, p *part) bool {
	if len(g.parts) == 0 {
		return true
	}
	ops := max(g.opsMax, p.opsMax())
	if len(g.parts)+2+ops > e.opts.OpsMax || g.bytes+p.req.bytes > e.bytesMax() {
		return false
	}
	for name := range p.touches() {
		if g.closed[name] || len(p.cmps) > 0 && g.touched[name] {
			return false
		}
	}
	return true
}

// opsMax is what the part takes of --max-txn-ops, which the levels of nesting share.
func (p *part) opsMax() int {
	ops, _ := p.shape()
	return ops
}

// shape is opsMax, and how many writes share a transaction nested in the part; none is nested if those are all.
func (p *part) shape() (ops, chunk int) {
	writes := len(p.entries) + len(p.index)
	flat, nested := max(len(p.cmps), writes), max(len(p.cmps), (writes+chunkOps-1)/chunkOps)+chunkOps
	if flat <= nested {
		return flat, writes
	}
	return nested, chunkOps
}

// writes are the operations of the part, nested where one level does not take them all.
func (p *part) writes() []clientv3.Op {
	ops := slices.Clone(p.entries)
	for _, row := range slices.Sorted(maps.Keys(p.index)) {
		ops = append(ops, p.index[row])
	}
	_, chunk := p.shape()
	if len(ops) <= chunk {
		return ops
	}
	var nested []clientv3.Op
	for some := range slices.Chunk(ops, chunk) {
		nested = append(nested, clientv3.OpTxn(nil, some, nil))
	}
	return nested
}

// touches yields the transactions and keys that the part writes.
func (p *part) touches() map[string]bool {
	out := map[string]bool{}
	for _, s := range p.req.steps {
		out["e"+string(s.tx)] = true
		for _, e := range s.entries {
			if b, ok := e.Record.(txn.Began); ok && b.Spec.Key != "" {
				out["k"+b.Spec.Key] = true
			}
		}
	}
	return out
}

func (g *group) add(p *part) {
	for row := range p.index {
		if earlier := g.writer[row]; earlier != nil {
			delete(earlier.index, row)
		}
		g.writer[row] = p
	}
	names := p.touches()
	maps.Copy(g.touched, names)
	if len(p.cmps) > 0 {
		maps.Copy(g.closed, names)
	}
	maps.Copy(g.states, p.states)
	g.parts = append(g.parts, p)
	g.bytes += p.req.bytes
	g.opsMax = max(g.opsMax, p.opsMax())
	g.finished += p.finished
}

// stage makes the rows of an append on top of what the group holds.
func (j *journal) stage(g *group, r *request) *part {
	p := &part{req: r, index: map[string]clientv3.Op{}, states: map[txn.ID]*state{}}
	for _, s := range r.steps {
		before := g.states[s.tx]
		if before == nil {
			before = j.txs[s.tx]
		}
		if before == nil {
			before = &state{}
		}
		p.step(j, s, before)
	}
	return p
}

// step adds what is appended to one transaction.
func (p *part) step(j *journal, s step, before *state) {
	k, owner := j.engine.keys, j.owner.ID
	after := &state{digest: before.digest.Clone(), next: before.next + 1, bytes: before.bytes, ended: before.ended}
	for i, e := range s.entries {
		after.digest.Apply(e)
		after.bytes += int64(len(s.bodies[i]))
		if b, ok := e.Record.(txn.Began); ok && b.Spec.Key != "" {
			p.index[k.spec(b.Spec.Key)] = clientv3.OpPut(k.spec(b.Spec.Key), string(s.tx))
		}
	}
	named := ""
	if before.next == 0 {
		named = owner
		p.cmps = append(p.cmps, clientv3.Compare(clientv3.CreateRevision(k.entry(s.tx, 0)), "=", 0))
	}
	row := k.entry(s.tx, before.next)
	if p.first == "" {
		p.first = row
	}
	p.entries = append(p.entries, clientv3.OpPut(row, string(encodeRow(named, s.bodies))))
	p.states[s.tx] = after
	p.reindex(j, s.tx, before, after)
}

// reindex moves a transaction between the rows of the unfinished and those of the finished.
func (p *part) reindex(j *journal, id txn.ID, before, after *state) {
	k, owner := j.engine.keys, j.owner.ID
	was, is := before.digest.Summary, after.digest.Summary
	u := k.unfinished(owner, id)
	if was.Phase.Done() { // a late record: not for one that is being forgotten
		f, l := k.finished(was.Finished, id), k.listed(was.Begun, id)
		if before.ended > 0 {
			p.cmps = append(p.cmps, clientv3.Compare(clientv3.ModRevision(f), "=", before.ended))
		}
		p.index[f], p.index[l] = clientv3.OpDelete(f), clientv3.OpDelete(l)
		p.finished -= before.bytes
	}
	if !is.Phase.Done() {
		if before.next == 0 || was != is {
			p.index[u] = clientv3.OpPut(u, string(encodeSummary(is)))
		}
		return
	}
	if before.next > 0 && !was.Phase.Done() {
		p.index[u] = clientv3.OpDelete(u)
	}
	f, l := k.finished(is.Finished, id), k.listed(is.Begun, id)
	end := ended{Begun: is.Begun, Key: after.digest.Key, Bytes: after.bytes}
	p.index[f], p.index[l] = clientv3.OpPut(f, string(encode(end))), clientv3.OpPut(l, string(encodeSummary(is)))
	p.finished += after.bytes
}
