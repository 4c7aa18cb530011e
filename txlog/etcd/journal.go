package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// journal is the committer of one owner at one epoch.
type journal struct {
	engine *Engine
	owner  txlog.Owner

	mu      sync.Mutex // guards the fields below
	queue   []*request
	waiting int           // requests that are not answered yet
	idle    chan struct{} // closed while nobody runs
	since   time.Time     // when the transaction under way was first sent; zero: none is
	broken  error         // why nothing is written any more: fenced

	// The running committer's own.
	ready    bool    // number and counted are what etcd has
	number   uint64  // of the newest transaction tried; none is used twice
	last     counted // of the newest that was done
	txs      map[txn.ID]*state
	late     []txn.ID // the finished ones in txs
	finished int64    // bytes of what was finished, of all epochs of this owner
}

// state is what the committer knows of a transaction. It is replaced, never changed, once it is in journal.txs.
type state struct {
	digest txlog.Digest
	next   uint32 // sequence of its next row; 0: it has none
	bytes  int64
	ended  int64 // revision of its row f, if it is finished
}

// request is one append.
type request struct {
	steps []step // one for each transaction in it
	bytes int
	done  chan error

	load bool // what is there must be read first; the committer's own
	gone bool // nobody waits for it; guarded by journal.mu
}

// step is what an append adds to one transaction.
type step struct {
	tx      txn.ID
	entries []txlog.Entry
	bodies  [][]byte
}

func newJournal(e *Engine, o txlog.Owner) *journal {
	idle := make(chan struct{})
	close(idle)
	return &journal{engine: e, owner: o, idle: idle, txs: map[txn.ID]*state{}}
}

// append waits until the entries are written, or are known never to be.
func (j *journal) append(ctx context.Context, es []txlog.Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := j.engine.request(es)
	if err != nil || len(es) == 0 {
		return err
	}
	if err := j.submit(r); err != nil {
		return err
	}
	patience := time.NewTimer(j.engine.opts.Patience)
	defer patience.Stop()
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		err = fmt.Errorf("wait for the transaction: %w", ctx.Err())
	case <-patience.C:
		err = fmt.Errorf("the transaction has not been answered for %v: %w", j.engine.opts.Patience, txlog.ErrUnavailable)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	r.gone = true
	return err
}

// submit puts a request into the queue and sees to it that somebody works on it.
func (j *journal) submit(r *request) error {
	if err := j.engine.usable(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.broken != nil:
		return j.broken
	case j.waiting >= j.engine.opts.QueueMax:
		return fmt.Errorf("%d appends of %s are waiting: %w", j.waiting, j.owner.ID, txlog.ErrUnavailable)
	}
	select {
	case <-j.idle:
		if err := j.engine.start(j.run); err != nil {
			return err
		}
		j.idle = make(chan struct{})
	default: // it is running
	}
	j.queue = append(j.queue, r)
	j.waiting++
	return nil
}

// drain returns when nothing is under way, or at the deadline.
func (j *journal) drain(deadline <-chan time.Time) {
	j.mu.Lock()
	idle := j.idle
	j.mu.Unlock()
	select {
	case <-idle:
	case <-deadline:
		j.engine.cancel()
		<-idle
	}
}

// run writes what is queued, one transaction after the other, until nothing is.
func (j *journal) run() {
	var pending []*request
	for {
		if pending = j.take(pending); len(pending) == 0 {
			return
		}
		rest, err := j.commitSome(pending)
		if err != nil {
			j.refuseAll(rest, err)
			rest = nil
		}
		pending = rest
	}
}

// take adds what has arrived to what is pending and drops what nobody waits for. When nothing is left the committer is
// idle from then on: the lock that submit holds as well lets nothing slip through.
func (j *journal) take(pending []*request) []*request {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []*request
	for _, r := range append(pending, j.queue...) {
		if r.gone {
			j.waiting--
			continue
		}
		out = append(out, r)
	}
	j.queue = nil
	if len(out) == 0 {
		close(j.idle)
	}
	return out
}

func (j *journal) answer(r *request, err error) {
	j.mu.Lock()
	j.waiting--
	j.mu.Unlock()
	r.done <- err
}

func (j *journal) refuseAll(rs []*request, err error) {
	if j.engine.ctx.Err() != nil {
		err = errors.Join(txlog.ErrClosed, err)
	}
	for _, r := range rs {
		j.answer(r, err)
	}
}

// fence ends the journal.
func (j *journal) fence(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.broken = err
}

// commitSome writes the first of the requests, as many as one transaction takes, answers them, and returns those that
// are still to be written. An error is for all that it returns.
func (j *journal) commitSome(rs []*request) ([]*request, error) {
	j.under(time.Now())
	defer j.under(time.Time{})
	if err := j.prepare(); err != nil {
		return rs, err
	}
	head := min(len(rs), j.engine.opts.OpsMax) // more do not fit
	rest := rs[head:]
	rs, err := j.load(rs[:head])
	if err != nil {
		return slices.Concat(rs, rest), err
	}
	g, n := j.group(rs)
	if n == 0 {
		return rest, nil // all of them were another's
	}
	again, err := j.commit(g)
	if errors.Is(err, txlog.ErrFenced) {
		j.fence(err)
	}
	for _, id := range j.late {
		if s := j.txs[id]; s != nil && s.digest.Summary.Phase.Done() {
			delete(j.txs, id)
		}
	}
	j.late = nil
	return slices.Concat(again, rs[n:], rest), err
}

// under notes since when a transaction is under way.
func (j *journal) under(since time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.since = since
}

// prepare reads where the committer stands, at its beginning and after it lost its way.
func (j *journal) prepare() error {
	if j.ready {
		return nil
	}
	c, err := j.engine.readGroup(j.engine.ctx, j.owner.ID)
	if err != nil {
		return err
	}
	j.last, j.finished, j.ready = c, c.Bytes, true
	j.number = max(j.number, c.Number)
	return nil
}

// lose forgets everything, because a transaction that was given up has been done after all.
func (j *journal) lose() {
	j.ready = false
	clear(j.txs)
}

// accepts is nil unless the transaction under way has stalled.
func (j *journal) accepts() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return j.broken
	}
	if waits := time.Since(j.since); !j.since.IsZero() && waits > j.engine.opts.Stall {
		return fmt.Errorf("a transaction has been under way for %v: %w", waits.Round(time.Millisecond), txlog.ErrUnavailable)
	}
	return nil
}
