package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// batch is what became ready while the batch before it was appended: one append, then its calls and replies.
type batch struct {
	Ready
	replies []waiting
	opens   bool // the first after a load
	err     error
	took    time.Duration
}

// flush hands the gathered work to the committer, unless it is busy: then the batch grows on.
func (l *loop) flush() {
	for l.inflight == nil {
		b := &batch{Ready: l.shard.Ready(), replies: l.replies, opens: l.opening}
		l.replies = nil
		if len(b.Entries) > 0 || b.Sync {
			l.inflight = b
			l.toCommit <- b
			return
		}
		if len(b.Calls) == 0 && len(b.replies) == 0 && len(b.Broken) == 0 {
			return
		}
		l.act(b)
	}
}

// commitAll appends batch after batch.
func (l *loop) commitAll() {
	for b := range l.toCommit {
		start := l.e.cfg.Now()
		b.err = l.append(b.Entries, b.Sync)
		b.took = l.e.cfg.Now().Sub(start)
		l.committed <- b
	}
}

// append appends all entries, of which a load may have made very many, in portions that the store takes. A step is
// never cut in two. The last portion makes all durable.
func (l *loop) append(es []txlog.Entry, sync bool) error {
	most := l.e.cfg.BatchMax
	for {
		n := portion(es, most)
		// An append is never cancelled: nobody could tell what became of it.
		err := l.e.cfg.Store.Append(context.Background(), es[:n], sync && n == len(es))
		switch {
		case errors.Is(err, txlog.ErrTooLarge) && portion(es, n/2) < n:
			most = n / 2
			continue
		case err != nil || n == len(es):
			return err
		}
		es = es[n:]
	}
}

// portion returns how many of the entries make whole steps, most of them or a little more.
func portion(es []txlog.Entry, most int) int {
	n := min(len(es), max(most, 1))
	for n > 0 && n < len(es) && es[n].Tx == es[n-1].Tx {
		n++
	}
	return n
}

// finish takes a batch back from the committer.
func (l *loop) finish(b *batch) {
	l.inflight = nil
	if f := l.e.cfg.Observer.Appended; f != nil {
		f(len(b.Entries), b.Sync, b.took, b.err)
	}
	if b.err != nil {
		l.fail(b)
		return
	}
	if b.opens {
		l.opening, l.refusal, l.backoff = false, nil, l.e.cfg.RetryMin
		l.report(nil)
	}
	l.act(b)
}

// act does what had to wait for the append: nothing leaves before (L1).
func (l *loop) act(b *batch) {
	for _, err := range b.Broken {
		l.e.cfg.Log.Error("transaction broken", "error", err)
	}
	l.observe(b)
	for _, id := range l.shard.Appended(b.Ready) {
		if k := l.lookups[id]; k != nil {
			k.ended = true
		}
	}
	for _, c := range b.Calls {
		l.calls.add(c)
	}
	l.startCalls()
	for _, w := range b.replies {
		w.to.answer(w.reply.state, w.reply.err)
	}
}

func (l *loop) observe(b *batch) {
	o := l.e.cfg.Observer
	for _, entry := range b.Entries {
		mode := l.shard.mode(entry.Tx)
		switch r := entry.Record.(type) {
		case txn.Began:
			if o.Began != nil {
				o.Began(mode)
			}
		case txn.Decided:
			if o.Decided != nil {
				o.Decided(mode, r.Commit)
			}
		case txn.Halted:
			l.e.cfg.Log.Warn("transaction stuck", "tx", entry.Tx, "branch", r.Branch, "op", r.Op, "cause", r.Cause)
			if o.Halted != nil {
				o.Halted(mode, r.Op)
			}
		case txn.Finished:
			if o.Finished != nil {
				o.Finished(mode, r.Phase, entry.At.Sub(l.shard.Begun(entry.Tx)))
			}
		}
	}
}

// fail is the answer to a failed append (L14). Whether its entries will be found is unknown, so the machines know
// more than the journal may: all are dropped, everybody who waits is told, and the journal is read anew.
func (l *loop) fail(b *batch) {
	err := fmt.Errorf("%w: %w", ErrUnavailable, b.err)
	fatal := errors.Is(b.err, txlog.ErrFenced) || errors.Is(b.err, txlog.ErrClosed)
	l.e.cfg.Log.Error("append failed", "entries", len(b.Entries), "sync", b.Sync, "reload", !fatal, "error", b.err)
	for _, w := range append(b.replies, l.replies...) {
		w.to.answer(nil, err)
	}
	l.drop(err)
	switch {
	case l.report(err) || fatal: // a start that fails says so; a fenced owner must never append again
	default:
		l.retry()
	}
}

// drop forgets all machines. From here on everything is refused with this error.
func (l *loop) drop(err error) {
	l.refusal, l.opening, l.replies = err, false, nil
	l.calls.drop()
	l.shard = NewShard(l.e.cfg.Limits)
	l.life++
	for id, rs := range l.waiters {
		for _, r := range rs {
			r.answer(nil, err)
		}
		delete(l.waiters, id)
	}
	clear(l.lookups) // who reads the journal now has to read it again
}

func (l *loop) retry() {
	l.reloadAt = l.now().Add(l.backoff)
	l.backoff = min(2*l.backoff, l.e.cfg.RetryMax)
}

// load reads the journal, outside of the loop.
func (l *loop) load() {
	l.e.wg.Go(func() {
		var found loaded
		for entry, err := range l.e.cfg.Store.Open(l.e.ctx, l.e.cfg.Owner) {
			if err != nil {
				found.err = fmt.Errorf("open journal: %w", err)
				break
			}
			found.entries = append(found.entries, entry)
		}
		l.loaded <- found
	})
}

// open goes on with what was found. Events are taken when the first append has succeeded.
func (l *loop) open(found loaded) {
	if found.err != nil {
		l.e.cfg.Log.Error("journal not loaded", "error", found.err)
		if !l.report(found.err) {
			l.retry()
		}
		return
	}
	l.opening = true
	l.shard.Load(l.now(), found.entries)
	l.e.cfg.Log.Info("journal loaded", "open", l.shard.Len())
}

// report tells Start how the first load ended, and reports whether it was waiting to hear that.
func (l *loop) report(err error) bool {
	if l.started == nil {
		return false
	}
	l.started <- err
	l.started = nil
	return true
}

// end finishes what is being appended and lets everybody go. No call leaves any more.
func (l *loop) end() {
	l.refusal = ErrClosed
	var err error
	if l.inflight != nil {
		err = l.endBatch(<-l.committed)
	}
	last := &batch{Ready: l.shard.Ready(), replies: l.replies, err: err}
	if err == nil && (len(last.Entries) > 0 || last.Sync) {
		l.toCommit <- last
		last = <-l.committed
	}
	if err := l.endBatch(last); err != nil {
		l.e.cfg.Log.Error("last append failed", "entries", len(last.Entries), "error", err)
	}
	for _, r := range l.e.inbox.take(l.backlog) {
		r.answer(nil, ErrClosed)
	}
	l.drop(ErrClosed)
}

func (l *loop) endBatch(b *batch) error {
	l.inflight = nil
	for _, w := range b.replies {
		if b.err != nil {
			w.reply = reply{err: fmt.Errorf("%w: %w", ErrUnavailable, b.err)}
		}
		w.to.answer(w.reply.state, w.reply.err)
	}
	return b.err
}
