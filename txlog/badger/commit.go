package badger

import (
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"txmesh/txlog"
)

// commitLoop is the committer: it writes what is queued, batch after batch, until the store is closed and the
// queue is empty.
func (s *Store) commitLoop() {
	defer close(s.done)
	for range s.wake {
		for {
			reqs, closed := s.take()
			if len(reqs) == 0 && closed {
				return
			}
			if len(reqs) == 0 {
				break
			}
			for len(reqs) > 0 {
				n := s.fill(reqs)
				s.commitAll(reqs[:n])
				reqs = reqs[n:]
			}
		}
	}
}

func (s *Store) take() ([]*request, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reqs := s.queue
	s.queue = nil
	return reqs, s.closed
}

// fill returns how many of the requests, at least one, fit into a batch.
func (s *Store) fill(reqs []*request) int {
	bytesMax, rowsMax := s.batchLimits()
	var bytes, values int64
	var rows int
	for i, r := range reqs {
		bytes, rows, values = bytes+r.bytes, rows+r.rows, values+r.values
		if i > 0 && (bytes > bytesMax || rows > rowsMax || values > s.opts.SegmentBytes) {
			return i
		}
	}
	return len(reqs)
}

// commitAll writes the requests as one batch and answers them.
func (s *Store) commitAll(reqs []*request) {
	err := s.usableByCommitter()
	if err == nil {
		err = s.commit(reqs)
	}
	s.values.settle()
	for _, r := range reqs {
		r.done <- err
	}
}

// usableByCommitter is usable but for Close, which waits for what was submitted before it.
func (s *Store) usableByCommitter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// commit makes the batch visible and, if any request wants it, durable. An error before write leaves the store as
// it was; one after it stops the store, because nobody knows what is on the disk.
func (s *Store) commit(reqs []*request) error {
	b := newBatch(s, reqs)
	defer b.discard()
	for _, r := range reqs {
		if err := b.add(r); err != nil {
			return err
		}
	}
	b.finish()
	if err := s.room(b.bytes); err != nil {
		return err
	}
	if err := s.writeValues(b); err != nil {
		return err
	}
	tx, err := s.build(b)
	if err != nil {
		return err
	}
	if err := s.write(b, tx); err != nil {
		s.fail(err)
		return s.usableByCommitter()
	}
	s.publish(b)
	return nil
}

// writeValues puts the large values into the value log and their pointers into the rows. They are durable before
// any row refers to them.
func (s *Store) writeValues(b *batch) error {
	large := b.large()
	if len(large) == 0 {
		return nil
	}
	vals := make([][]byte, len(large))
	for i, row := range large {
		vals[i] = b.rows[row].value
	}
	ps, err := s.values.add(vals)
	if errors.Is(err, txlog.ErrFull) && s.space.giveUp() == nil {
		ps, err = s.values.add(vals)
	}
	switch {
	case errors.Is(err, txlog.ErrFull):
		return err
	case err != nil:
		s.fail(err)
		return s.usableByCommitter()
	}
	for i, row := range large {
		b.point(row, ps[i])
	}
	return nil
}

// build makes the transaction of the rows. Nothing is written yet.
func (s *Store) build(b *batch) (*badger.Txn, error) {
	tx := s.db.NewTransaction(true)
	entries := make([]badger.Entry, len(b.rows)) // one piece of memory for all
	for i, r := range b.rows {
		var err error
		if r.value == nil {
			err = tx.Delete(r.key)
		} else {
			entries[i].Key, entries[i].Value = r.key, r.value
			err = tx.SetEntry(entries[i].WithMeta(r.meta))
		}
		if err != nil {
			tx.Discard()
			return nil, fmt.Errorf("build batch of %d rows and %d bytes: %w", len(b.rows), b.bytes, err)
		}
	}
	return tx, nil
}

// write commits the rows, looks after a log that was begun, and syncs if a request wants it.
func (s *Store) write(b *batch, tx *badger.Txn) error {
	if err := s.settleLog(); err != nil {
		tx.Discard()
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit %d rows: %w", len(b.rows), err)
	}
	s.dirty = true
	s.filled += b.bytes
	rotated, err := s.mem.rotated()
	if err != nil {
		return err
	}
	if rotated { // this batch is the first of the new log
		s.filled = b.bytes
	}
	if s.filled > logsUnseenMax*s.opts.MemtableBytes {
		return fmt.Errorf("%d bytes written and log %d is still the active one: badger names its logs in another way than v4.9, and syncs miss it",
			s.filled, s.mem.active())
	}
	if b.sync && s.dirty {
		if err := s.mem.sync(); err != nil {
			return err
		}
		s.dirty = false
	}
	return nil
}

// logsUnseenMax times a memtable is more than a log can take by the bound of rowBytes, which for tiny rows is four
// times of what they take.
const logsUnseenMax = 8

// mayRotate reports whether the next write may begin a log. The bound is above what is really there, never below.
func (s *Store) mayRotate() bool { return s.filled >= s.opts.MemtableBytes }

// settleLog makes what the active log holds durable before a write that may begin the next one. Were it done after
// the write, a power cut between the two could keep the new log's first batch and lose the old one's last.
func (s *Store) settleLog() error {
	if !s.dirty || !s.mayRotate() {
		return nil
	}
	if err := s.mem.sync(); err != nil {
		return err
	}
	s.dirty = false
	return nil
}

// publish lets List, and the next batch, see what was written.
func (s *Store) publish(b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, o := range b.staged {
		if o.digest.Summary.Phase.Done() {
			delete(s.unfinished, id)
		} else {
			s.unfinished[id] = o
		}
	}
	s.stats = b.stats
}

// compactionBytes is what a compaction may need beside what it replaces, at most: the new tables and the level below.
func (o Options) compactionBytes() int64 { return 16<<20 + o.levelBytes }

// floor is the room that Badger's goroutines may need at any time after a log is full: they write the tables of
// two memtables, and compact, all through mappings.
func (s *Store) floor() uint64 {
	var tree int64
	for _, l := range s.db.Levels() {
		tree += l.Size
	}
	return uint64(2*s.opts.MemtableBytes + s.opts.logBytes() + min(tree, s.opts.compactionBytes()))
}

// gate is what must be free beside the reserve for new transactions. It is never below the floor: a change of log would
// give the reserve up, and were it taken again at once, the tables that it made room for would meet a full disk.
func (s *Store) gate() uint64 { return max(uint64(s.opts.GateBytes), s.floor()) }

// room makes sure that the write of a batch, and what it sets off, cannot meet a full disk inside a mapping. The
// active log has its blocks, so only a write that may begin the next one asks.
func (s *Store) room(bytes int64) error {
	if !s.mayRotate() {
		return nil
	}
	if err := s.flushable(); err != nil {
		return fmt.Errorf("write %d bytes: %w", bytes, err)
	}
	return s.mem.ready()
}

// flushable gives up the reserve if it must, and returns ErrFull if that is not enough to write tables.
func (s *Store) flushable() error {
	floor := s.floor()
	err := s.space.atLeast(floor)
	if !errors.Is(err, txlog.ErrFull) {
		return err
	}
	if err := s.space.giveUp(); err != nil {
		return err
	}
	return s.space.atLeast(floor)
}
