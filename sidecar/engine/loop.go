package engine

import (
	"errors"
	"slices"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// loop owns the shard. Only its goroutine touches the fields.
type loop struct {
	e     *Engine
	shard *Shard

	backlog  []*request // taken from the inbox, not handled yet
	replies  []waiting  // to be sent with the batch that is gathering
	waiters  map[txn.ID][]*request
	lookups  map[txn.ID]*lookup
	inflight *batch // being appended; nil: none

	toCommit  chan *batch
	committed chan *batch
	started   chan<- error // the outcome of the first load; nil: it was told
	loaded    chan loaded

	refusal  error  // nil while events are taken
	opening  bool   // loaded, and the first append decides whether events are taken
	life     uint64 // counts the loads
	reloadAt time.Time
	backoff  time.Duration

	calls *lanes

	timer *time.Timer
	armed time.Time // what the timer is set to; zero: not
}

// waiting is a reply that leaves when the journal has what it speaks of.
type waiting struct {
	to    *request
	reply reply
}

// lookup is a Begin that reads the journal, outside of the loop, for its id.
type lookup struct {
	n     int
	ended bool // a transaction of this id left the memory meanwhile: what was read may be older
}

func newLoop(e *Engine) (*loop, <-chan error) {
	started := make(chan error, 1)
	return &loop{
		e: e, shard: NewShard(e.cfg.Limits), waiters: map[txn.ID][]*request{}, lookups: map[txn.ID]*lookup{},
		toCommit: make(chan *batch, 1), committed: make(chan *batch, 1),
		calls: newLanes(e.cfg), started: started, loaded: make(chan loaded, 1),
		refusal: ErrClosed, backoff: e.cfg.RetryMin, timer: time.NewTimer(time.Hour),
	}, started
}

func (l *loop) run() {
	defer close(l.toCommit)
	defer l.timer.Stop()
	l.load()
	for {
		select {
		case <-l.e.inbox.ready:
		case b := <-l.committed:
			l.finish(b)
		case found := <-l.loaded:
			l.open(found)
		case <-l.timer.C:
			l.armed = time.Time{}
		case <-l.e.stop:
			l.end()
			return
		}
		l.tick()
		l.backlog = l.e.inbox.take(l.backlog)
		l.handleAll()
		l.flush()
		l.arm()
	}
}

func (l *loop) now() time.Time { return l.e.cfg.Now() }

func (l *loop) tick() {
	now := l.now()
	if !l.reloadAt.IsZero() && !now.Before(l.reloadAt) {
		l.reloadAt = time.Time{}
		l.load()
	}
	if at := l.shard.Next(); !at.IsZero() && !at.After(now) {
		before := l.shard.Gathered()
		l.shard.Tick(now)
		l.wakeWaiters(before)
	}
}

// arm sets the timer to what is due next.
func (l *loop) arm() {
	at := l.shard.Next()
	if !l.reloadAt.IsZero() && (at.IsZero() || l.reloadAt.Before(at)) {
		at = l.reloadAt
	}
	if at.Equal(l.armed) {
		return
	}
	if l.armed = at; at.IsZero() {
		l.timer.Stop()
		return
	}
	l.timer.Reset(max(0, at.Sub(l.now())))
}

// handleAll works off the backlog, as long as the batch that gathers is not too large.
func (l *loop) handleAll() {
	n := 0
	for n < len(l.backlog) && l.shard.Gathered() < l.e.cfg.BatchMax {
		l.handle(l.backlog[n])
		n++
	}
	l.backlog = slices.Delete(l.backlog, 0, n)
}

func (l *loop) handle(r *request) {
	switch {
	case r.work != nil:
		r.work(l)
	case l.refusal != nil:
		r.answer(nil, l.refusal)
	case r.event == nil:
		l.look(r)
	default:
		l.step(r)
	}
}

func (l *loop) step(r *request) {
	_, begin := r.event.(txn.Begin)
	ended := r.fresh && l.lookedUp(r.id)
	if !l.shard.Has(r.id) && !r.made && (!r.fresh || ended) {
		if begin && r.reply != nil {
			l.lookUp(r.id)
		}
		r.answer(nil, errMiss)
		return
	}
	before := l.shard.Gathered()
	err := l.shard.Step(l.now(), r.id, r.event)
	if r.reply != nil && r.until != nil && err == nil {
		l.wakeWaiters(before)
		l.look(r)
		return
	}
	if r.reply != nil {
		s, err2 := l.show(r)
		if err == nil {
			err = err2
		}
		l.replyLater(r, reply{s, err})
	}
	l.wakeWaiters(before)
}

// look answers a request for a state, or keeps it until its predicate holds.
func (l *loop) look(r *request) {
	if !l.shard.Has(r.id) {
		r.answer(nil, errMiss)
		return
	}
	now, err := l.shard.peek(r.id)
	holds := err == nil && r.until(now)
	if err == nil && !holds && !now.Phase.Done() {
		l.waiters[r.id] = append(l.waiters[r.id], r)
		return
	}
	var s *txn.State
	if err == nil {
		s, err = l.show(r)
	}
	if err == nil && !holds {
		err = unlessHolds(r.id, false)
	}
	l.replyLater(r, reply{s, err})
}

// show gives the state to who asked for it: a copy for the reply, or a look at it.
func (l *loop) show(r *request) (*txn.State, error) {
	if r.see == nil {
		s, err := l.shard.State(r.id)
		return &s, err
	}
	s, err := l.shard.peek(r.id)
	if err == nil {
		r.see(s)
	}
	return nil, err
}

// wakeWaiters looks again for those who wait for a transaction that has moved: a state is the fold of its
// records, so it has a new entry.
func (l *loop) wakeWaiters(from int) {
	if len(l.waiters) == 0 {
		return
	}
	for _, entry := range l.shard.rd.Entries[from:] {
		rs := l.waiters[entry.Tx]
		if rs == nil {
			continue
		}
		delete(l.waiters, entry.Tx)
		for _, r := range rs {
			l.look(r)
		}
	}
}

// forget drops a request whose sender has gone away.
func (l *loop) forget(r *request) {
	select {
	case a := <-r.reply:
		if _, begin := r.event.(txn.Begin); begin && errors.Is(a.err, errMiss) {
			l.lookedUp(r.id)
		}
	default:
	}
	rs := slices.DeleteFunc(l.waiters[r.id], func(w *request) bool { return w == r })
	if l.waiters[r.id] = rs; len(rs) == 0 {
		delete(l.waiters, r.id)
	}
}

// lookUp notes that somebody reads the journal for this id.
func (l *loop) lookUp(id txn.ID) {
	if l.lookups[id] == nil {
		l.lookups[id] = &lookup{}
	}
	l.lookups[id].n++
}

// lookedUp ends a lookup and reports whether a transaction of this id left the memory meanwhile.
func (l *loop) lookedUp(id txn.ID) bool {
	k := l.lookups[id]
	if k == nil {
		return true // the machines were dropped meanwhile
	}
	if k.n--; k.n == 0 {
		delete(l.lookups, id)
	}
	return k.ended
}

// replyLater sends a reply with the batch that is gathering: everything that the shard knows by now, a refusal's
// reason too, is in it or in one before it.
func (l *loop) replyLater(to *request, r reply) { l.replies = append(l.replies, waiting{to, r}) }

// returned feeds the answer of a call. An answer to machines that were dropped since counts only if it says that
// the op is done: that is a fact whoever asked. Anything else would be taken for the answer of the call that the
// reloaded machine has made anew.
func (l *loop) returned(a answered) {
	l.calls.done(a.lane)
	l.startCalls()
	if f := l.e.cfg.Observer.Called; f != nil {
		f(a.call.Op, a.outcome, a.took)
	}
	if l.refusal != nil && !l.opening || a.life != l.life && a.outcome != txn.OK || !l.shard.Has(a.call.Tx) {
		return
	}
	before := l.shard.Gathered()
	ev := txn.Returned{Branch: a.call.Branch, Op: a.call.Op, Outcome: a.outcome, Result: a.result, Cause: a.cause}
	err := l.shard.Step(l.now(), a.call.Tx, ev)
	if errors.Is(err, ErrTooLarge) { // an answer that cannot be kept is none
		ev.Outcome, ev.Result, ev.Cause = txn.Unknown, nil, err.Error()
		err = l.shard.Step(l.now(), a.call.Tx, ev)
	}
	if err != nil {
		l.e.cfg.Log.Error("answer of a call not taken", "tx", a.call.Tx, "branch", a.call.Branch, "op", a.call.Op, "error", err)
	}
	l.wakeWaiters(before)
}

// loaded is what a load found.
type loaded struct {
	entries []txlog.Entry
	err     error
}
