package memory

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// state is what the store holds at one moment. Encoded entries and values are never changed once they are in it,
// so two states may share them.
type state struct {
	txs  map[txn.ID]*history
	keys map[string]txn.ID // the newest transaction begun with a Spec.Key
	rows map[string][]byte // by table and key
}

type history struct {
	owner   string
	digest  txlog.Digest
	entries [][]byte
	bytes   int64
}

// change is one batch: applied as a whole or not at all.
type change struct {
	owner   string // of the entries
	entries []entry
	rows    []txlog.Row // keys name the table too; a nil Value deletes
	forget  []txn.ID
	expect  *expectation // of its only row; nil: none
}

// expectation is the value that a row must have, nil for none, before a change.
type expectation struct{ value []byte }

type entry struct {
	txlog.Entry
	encoded []byte
}

func newState() *state {
	return &state{txs: map[txn.ID]*history{}, keys: map[string]txn.ID{}, rows: map[string][]byte{}}
}

func (s *state) clone() *state {
	c := &state{txs: make(map[txn.ID]*history, len(s.txs)), keys: maps.Clone(s.keys), rows: maps.Clone(s.rows)}
	for id, h := range s.txs {
		c.txs[id] = &history{owner: h.owner, digest: h.digest.Clone(), entries: slices.Clone(h.entries), bytes: h.bytes}
	}
	return c
}

// meets reports whether the change finds the row that it expects.
func (s *state) meets(c change) bool {
	if c.expect == nil {
		return true
	}
	v, found := s.rows[c.rows[0].Key]
	return found == (c.expect.value != nil) && bytes.Equal(v, c.expect.value)
}

// taken reports whether the change is about a transaction of another owner.
func (s *state) taken(c change) bool {
	return slices.ContainsFunc(c.entries, func(e entry) bool {
		h := s.txs[e.Tx]
		return h != nil && h.owner != c.owner
	})
}

func (s *state) apply(c change) {
	for _, e := range c.entries {
		h := s.txs[e.Tx]
		if h == nil {
			h = &history{owner: c.owner}
			s.txs[e.Tx] = h
		}
		h.digest.Apply(e.Entry)
		h.entries = append(h.entries, e.encoded)
		h.bytes += int64(len(e.encoded))
		if b, ok := e.Record.(txn.Began); ok && b.Spec.Key != "" {
			s.keys[b.Spec.Key] = e.Tx
		}
	}
	for _, r := range c.rows {
		if r.Value == nil {
			delete(s.rows, r.Key)
		} else {
			s.rows[r.Key] = r.Value
		}
	}
	for _, id := range c.forget {
		s.forget(id)
	}
}

func (s *state) forget(id txn.ID) {
	h := s.txs[id]
	if h == nil {
		return
	}
	if key := h.digest.Key; s.keys[key] == id {
		delete(s.keys, key)
	}
	delete(s.txs, id)
}

// trimmable returns the finished transactions to forget: those that ended before the time, and the oldest while
// the store holds more than retain bytes.
func (s *state) trimmable(before time.Time, retain int64) []txn.ID {
	var done []*history
	var total int64
	for _, h := range s.txs {
		total += h.bytes
		if h.digest.Summary.Phase.Done() {
			done = append(done, h)
		}
	}
	slices.SortFunc(done, func(a, b *history) int {
		x, y := a.digest.Summary, b.digest.Summary
		if c := x.Finished.Compare(y.Finished); c != 0 {
			return c
		}
		return bytes.Compare([]byte(x.ID), []byte(y.ID))
	})
	var ids []txn.ID
	for _, h := range done {
		over := retain > 0 && total > retain
		if !over && !h.digest.Summary.Finished.Before(before) {
			break
		}
		total -= h.bytes
		ids = append(ids, h.digest.Summary.ID)
	}
	return ids
}
