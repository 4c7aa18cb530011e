package badger

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
	"github.com/fxamacker/cbor/v2"

	"txmesh/txlog"
	"txmesh/txn"
)

// batch is the rows that a number of requests add up to, and the state in memory after it. Nothing outside of it
// changes until it is written.
type batch struct {
	s      *Store
	rows   []row
	bytes  int64 // bound of what the rows take in a memtable
	sync   bool
	staged map[txn.ID]*open
	gone   map[txn.ID]bool // forgotten by this batch: what follows finds nothing of them
	begun  map[string]bool // Spec.Keys that this batch has given to another transaction
	stats  stats
	read   *badger.Txn // the state before the batch; nil until needed
}

// row is one write; a nil value deletes.
type row struct {
	key   []byte
	value []byte
	meta  byte
	ref   bool // the value may lie in the value log, referred to by key
}

// newBatch has room for what the requests write.
func newBatch(s *Store, reqs []*request) *batch {
	rows := 1 // of the counters
	for _, r := range reqs {
		rows += r.rows
	}
	return &batch{s: s, rows: make([]row, 0, rows), staged: make(map[txn.ID]*open, len(reqs)), gone: make(map[txn.ID]bool), begun: make(map[string]bool),
		stats: s.stats}
}

// set adds a row that stays in the tree.
func (b *batch) set(key, value []byte) {
	b.rows = append(b.rows, row{key: key, value: value})
	b.bytes += int64(len(key)+len(value)) + rowBytes
}

func (b *batch) remove(key []byte) { b.set(key, nil) }

// put adds a row whose value may be large.
func (b *batch) put(key, value []byte) {
	b.rows = append(b.rows, row{key: key, value: value, ref: true})
	b.bytes += int64(len(key)+min(len(value), b.s.opts.InlineBytes)) + rowBytes
}

// large returns the rows whose values go to the value log.
func (b *batch) large() []int {
	var out []int
	for i, r := range b.rows {
		if r.ref && len(r.value) > b.s.opts.InlineBytes {
			out = append(out, i)
		}
	}
	return out
}

// point replaces a row's value by a pointer to it, and adds the reference back.
func (b *batch) point(i int, p pointer) {
	b.rows[i].value, b.rows[i].meta, b.rows[i].ref = p.encode(), metaPointer, false
	b.set(liveKey(p), b.rows[i].key)
}

func (b *batch) add(r *request) error {
	b.sync = b.sync || r.sync
	for _, e := range r.entries {
		if err := b.entry(e); err != nil {
			return err
		}
	}
	for _, p := range r.puts {
		if err := b.row(p); err != nil {
			return err
		}
	}
	for _, v := range r.victims {
		if err := b.forget(r, v); err != nil {
			return err
		}
	}
	if r.padding > 0 {
		b.set([]byte{prefixPadding}, make([]byte, r.padding))
	}
	for _, key := range r.stale {
		b.remove(key)
	}
	for _, m := range r.moves {
		if err := b.move(r, m); err != nil {
			return err
		}
	}
	return nil
}

// finish adds the row of the counters if they changed.
func (b *batch) finish() {
	if b.stats == b.s.stats {
		return
	}
	v, err := cbor.Marshal(b.stats)
	if err != nil {
		panic(fmt.Sprintf("badger: encode %+v: %v", b.stats, err)) // two integers
	}
	b.set([]byte{prefixStats}, v)
}

// discard ends the look at the state before: while it is held, Badger keeps every version of every row.
func (b *batch) discard() {
	if b.read != nil {
		b.read.Discard()
	}
}

// before returns the state before the batch, to read from.
func (b *batch) before() *badger.Txn {
	if b.read == nil {
		b.read = b.s.db.NewTransaction(false)
	}
	return b.read
}

// entry adds a row of entries of one transaction, and what the index has of it.
func (b *batch) entry(e encoded) error {
	o, err := b.transaction(e.tx)
	if err != nil {
		return err
	}
	first := o.next == 0
	wasDone := o.digest.Summary.Phase.Done()
	if wasDone { // a late record: the index follows it
		b.remove(finishedKey(o.digest.Summary.Finished, e.tx))
		b.stats.FinishedBytes -= o.bytes
	}
	for _, x := range e.entries {
		o.digest.Apply(x)
		if began, ok := x.Record.(txn.Began); ok && began.Spec.Key != "" {
			b.set(specKey(began.Spec.Key), []byte(e.tx))
			b.begun[began.Spec.Key] = true
		}
	}
	b.put(entryKey(e.tx, o.next), e.body)
	o.next++
	o.bytes += int64(len(e.body))
	if !wasDone {
		b.stats.OpenEntries++
	}
	isDone := o.digest.Summary.Phase.Done()
	if first && !isDone {
		b.set(unfinishedKey(e.tx), []byte{})
		b.stats.Unfinished++
	}
	if !isDone {
		return nil
	}
	if !wasDone {
		b.stats.OpenEntries -= int64(o.next)
	}
	if !first && !wasDone {
		b.remove(unfinishedKey(e.tx))
		b.stats.Unfinished--
	}
	b.stats.FinishedBytes += o.bytes
	return b.finished(o)
}

// finished writes the index rows of a finished transaction.
func (b *batch) finished(o *open) error {
	sum := o.digest.Summary
	listed, err := cbor.Marshal(listing(sum))
	if err != nil {
		return fmt.Errorf("encode summary of %s: %w", sum.ID, err)
	}
	done, err := cbor.Marshal(ended{Begun: sum.Begun.UnixNano(), Bytes: o.bytes, Entries: o.next, Key: o.digest.Key})
	if err != nil {
		return fmt.Errorf("encode end of %s: %w", sum.ID, err)
	}
	b.set(listedKey(sum.Begun, sum.ID), listed)
	b.set(finishedKey(sum.Finished, sum.ID), done)
	return nil
}

// transaction returns a copy of what is known of the transaction, to change.
func (b *batch) transaction(id txn.ID) (*open, error) {
	if o := b.staged[id]; o != nil {
		return o, nil
	}
	o := &open{}
	if known := b.s.unfinished[id]; known != nil {
		*o = open{digest: known.digest.Clone(), next: known.next, bytes: known.bytes}
	} else if err := b.revive(id, o); err != nil {
		return nil, err
	}
	b.staged[id] = o
	return o, nil
}

// revive reads a transaction that is not in memory: one that is new, which costs one look, or a finished one.
func (b *batch) revive(id txn.ID, o *open) error {
	if b.gone[id] {
		return nil
	}
	_, err := b.before().Get(entryKey(id, 0))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for %s: %w", id, err)
	}
	return b.s.replay(b.before(), id, func(es []txlog.Entry, encoded int) { o.add(es, encoded) })
}

// row writes a row of a table. The value that it replaces may lie in the value log.
func (b *batch) row(p txlog.Row) error {
	key := []byte(p.Key)
	if err := b.release(key); err != nil {
		return err
	}
	if p.Value == nil {
		b.remove(key)
	} else {
		b.put(key, p.Value)
	}
	return nil
}

// release removes the reference to a row's large value, if it has one before this batch. One that the same batch
// wrote stays, and is found to lead nowhere when its segment is looked at.
func (b *batch) release(key []byte) error {
	item, err := b.before().Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at row: %w", err)
	}
	if item.UserMeta() != metaPointer {
		return nil
	}
	v, err := item.ValueCopy(nil)
	if err != nil {
		return fmt.Errorf("look at row: %w", err)
	}
	p, err := decodePointer(v)
	if err != nil {
		return err
	}
	b.remove(liveKey(p))
	return nil
}

// forget removes a finished transaction, unless something was added to it since Trim looked.
func (b *batch) forget(r *request, v victim) error {
	now, err := valueOf(b.before(), v.key)
	if _, touched := b.staged[v.id]; touched || errors.Is(err, badger.ErrKeyNotFound) || err == nil && !bytes.Equal(now, v.value) {
		r.skipped++
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at finished %s: %w", v.id, err)
	}
	for seq := range v.ended.Entries {
		key := entryKey(v.id, seq)
		if err := b.release(key); err != nil {
			return err
		}
		b.remove(key)
	}
	b.gone[v.id] = true
	b.remove(v.key)
	b.remove(listedKey(v.begun(), v.id))
	b.stats.FinishedBytes -= v.ended.Bytes
	if v.ended.Key == "" || b.begun[v.ended.Key] {
		return nil
	}
	id, err := valueOf(b.before(), specKey(v.ended.Key))
	if err == nil && string(id) == string(v.id) {
		b.remove(specKey(v.ended.Key))
	}
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil
	}
	return err
}
