package engine

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// Errors of a Shard that callers branch on.
var (
	ErrBusy     = errors.New("engine: too many open transactions")
	ErrBranches = errors.New("engine: too many branches in one transaction")
	ErrTooLarge = errors.New("engine: too large for the journal")
	ErrBroken   = errors.New("engine: the records of this transaction cannot be followed")
)

// Limits bound what a Shard holds. 0 means no limit.
type Limits struct {
	Open     int // transactions
	Branches int // of one transaction
	Bytes    int // of one event: targets, notes, answers, keys
}

// live is one transaction in memory.
type live struct {
	id     txn.ID
	m      *txn.Machine
	begun  time.Time
	at     time.Time // of its alarm; zero: none
	alarm  int       // index in alarms; -1: none
	broken error     // its machine panicked: it is kept as it is, for people
}

// Ready is what the driver must do next, in this order: append Entries, durably if Sync says so; hand Ready back
// to Appended; make Calls.
type Ready struct {
	Entries []txlog.Entry
	Sync    bool
	Calls   []txn.Call
	Broken  []error // transactions that cannot go on, for the log

	ended []txn.ID
}

// Shard owns many machines and keeps the one rule of order: records first, then calls (L1). It has no goroutine,
// clock or I/O of its own: the same inputs give the same outputs. It is not safe for many goroutines.
type Shard struct {
	limits Limits
	txs    map[txn.ID]*live
	alarms alarms
	rd     Ready
}

// NewShard returns an empty shard.
func NewShard(l Limits) *Shard { return &Shard{limits: l, txs: map[txn.ID]*live{}} }

// Load restores unfinished transactions from their entries, those of one transaction in order and together, and
// wakes each. What a killed process wrote may have been read back without ever having been synced, and everything
// that is answered or called from now on rests on it: so the next Ready asks for a sync, records or not.
func (s *Shard) Load(now time.Time, entries []txlog.Entry) {
	for len(entries) > 0 {
		n := 1
		for n < len(entries) && entries[n].Tx == entries[0].Tx {
			n++
		}
		s.load(now, entries[:n])
		entries = entries[n:]
	}
	s.rd.Sync = true
}

func (s *Shard) load(now time.Time, entries []txlog.Entry) {
	id := entries[0].Tx
	t := &live{id: id, begun: entries[0].At, alarm: -1}
	records := make([]txn.Record, len(entries))
	for i, e := range entries {
		records[i] = e.Record
	}
	s.txs[id] = t
	if !s.guard(t, func() { t.m = txn.Restore(records) }) {
		return
	}
	if t.m.Phase().Done() {
		delete(s.txs, id)
		return
	}
	if err := s.Step(now, id, txn.Wake{}); err != nil && t.broken == nil {
		s.breakDown(t, err)
	}
}

// Step feeds one event. A refused event changes nothing.
func (s *Shard) Step(now time.Time, id txn.ID, e txn.Event) error {
	t, err := s.admit(id, e)
	if err != nil {
		return fmt.Errorf("transaction %s: %w", id, err)
	}
	now = now.UTC().Round(0)
	var out txn.Output
	if !s.guard(t, func() { out, err = t.m.Step(now, e) }) {
		return fmt.Errorf("transaction %s: %w", id, t.broken)
	}
	if err != nil {
		return fmt.Errorf("transaction %s: %w", id, err)
	}
	if _, begin := e.(txn.Begin); begin && s.txs[id] == nil {
		s.txs[id], t.begun = t, now
	}
	for _, r := range out.Records {
		s.rd.Entries = append(s.rd.Entries, txlog.Entry{Tx: id, At: now, Record: r})
	}
	s.rd.Sync = s.rd.Sync || out.Sync
	s.rd.Calls = append(s.rd.Calls, out.Calls...)
	s.alarms.set(t, out.Wake)
	if len(out.Records) > 0 && t.m.Phase().Done() {
		s.rd.ended = append(s.rd.ended, id)
	}
	return nil
}

// admit returns the transaction that e is for, a new one for a Begin, or why it may not have e.
func (s *Shard) admit(id txn.ID, e txn.Event) (*live, error) {
	t := s.txs[id]
	b, begin := e.(txn.Begin)
	if err := s.limits.fits(id, e); err != nil {
		return nil, err
	}
	switch {
	case begin && b.Spec.ID != id:
		return nil, fmt.Errorf("begin names %q: %w", b.Spec.ID, txn.ErrConflict)
	case t != nil && t.broken != nil:
		return nil, t.broken
	case t != nil:
		enlist, ok := e.(txn.Enlist)
		if n := s.limits.Branches; ok && n > 0 && t.m.Branches() >= n && !t.m.Has(enlist.Branch) {
			return nil, fmt.Errorf("%w: there are %d, max-branches", ErrBranches, n)
		}
		return t, nil
	case !begin:
		return nil, txn.ErrUnknown
	case s.limits.Open > 0 && len(s.txs) >= s.limits.Open:
		return nil, fmt.Errorf("%w: %d are open, max-open", ErrBusy, len(s.txs))
	case s.limits.Branches > 0 && len(b.Spec.Branches) > s.limits.Branches:
		return nil, fmt.Errorf("%w: %d of at most %d, max-branches", ErrBranches, len(b.Spec.Branches), s.limits.Branches)
	}
	return &live{id: id, m: txn.Restore(nil), alarm: -1}, nil
}

// guard runs f on one machine. A panic there is a broken invariant of that transaction; it must not take the
// others with it.
func (s *Shard) guard(t *live, f func()) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			s.breakDown(t, fmt.Errorf("%v", p))
			ok = false
		}
	}()
	f()
	return true
}

func (s *Shard) breakDown(t *live, why error) {
	t.broken = fmt.Errorf("%w: %w", ErrBroken, why)
	s.alarms.set(t, time.Time{})
	s.rd.Broken = append(s.rd.Broken, fmt.Errorf("transaction %s: %w", t.id, t.broken))
}

// Tick wakes what is due.
func (s *Shard) Tick(now time.Time) {
	now = now.UTC().Round(0)
	for len(s.alarms) > 0 && !s.alarms[0].at.After(now) {
		t := s.alarms[0]
		s.alarms.set(t, time.Time{})
		if err := s.Step(now, t.id, txn.Wake{}); err != nil && t.broken == nil {
			s.breakDown(t, err) // no transaction in memory refuses to be woken
		}
	}
}

// Next reports when Tick is due; zero: never.
func (s *Shard) Next() time.Time {
	if len(s.alarms) == 0 {
		return time.Time{}
	}
	return s.alarms[0].at
}

// Ready takes the work that has gathered.
func (s *Shard) Ready() Ready {
	rd := s.rd
	s.rd = Ready{}
	return rd
}

// Gathered returns how many entries wait for Ready.
func (s *Shard) Gathered() int { return len(s.rd.Entries) }

// Appended says that the entries of rd are in the journal: transactions that ended with it leave the memory. It
// returns their ids.
func (s *Shard) Appended(rd Ready) []txn.ID {
	for _, id := range rd.ended {
		delete(s.txs, id)
	}
	return rd.ended
}

// Has reports whether the transaction is in memory.
func (s *Shard) Has(id txn.ID) bool { return s.txs[id] != nil }

// Len returns how many transactions are in memory.
func (s *Shard) Len() int { return len(s.txs) }

// State returns a snapshot of a transaction in memory. It may be ahead of the journal.
func (s *Shard) State(id txn.ID) (txn.State, error) {
	t := s.txs[id]
	switch {
	case t == nil:
		return txn.State{}, fmt.Errorf("transaction %s: %w", id, txn.ErrUnknown)
	case t.broken != nil:
		return txn.State{}, fmt.Errorf("transaction %s: %w", id, t.broken)
	}
	return t.m.State(), nil
}

// peek is State without the copy: read only, and gone with the next Step.
func (s *Shard) peek(id txn.ID) (txn.State, error) {
	if t := s.txs[id]; t != nil && t.broken == nil {
		return t.m.Peek(), nil
	}
	return s.State(id)
}

// IDs returns the transactions in memory, in order.
func (s *Shard) IDs() []txn.ID { return slices.Sorted(maps.Keys(s.txs)) }

// Oldest returns when the oldest transaction in memory that has not ended was begun.
func (s *Shard) Oldest() (begun time.Time, ok bool) {
	for _, t := range s.txs {
		if t.m != nil && t.broken == nil && t.m.Phase().Done() {
			continue
		}
		if !ok || t.begun.Before(begun) {
			begun, ok = t.begun, true
		}
	}
	return begun, ok
}

// Begun returns when a transaction in memory was begun; zero if it is not there.
func (s *Shard) Begun(id txn.ID) time.Time {
	if t := s.txs[id]; t != nil {
		return t.begun
	}
	return time.Time{}
}

func (s *Shard) mode(id txn.ID) txn.Mode {
	if t := s.txs[id]; t != nil && t.m != nil {
		return t.m.Mode()
	}
	return ""
}
