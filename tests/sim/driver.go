package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"txmesh/sidecar/engine"
	"txmesh/sidecar/takeover"
	"txmesh/txlog"
	"txmesh/txn"
)

// engineTimeout bounds one call of an engine.
const engineTimeout = 10 * time.Second

// driver puts the real shard to work without goroutines: one append at a time, everything that became ready meanwhile
// goes into the next, and calls and replies leave when their records are in the journal. It implements
// interceptor.Coordinator. It lives as long as its sidecar does.
type driver struct {
	n       *node // that runs it
	of      *node // whose journal it is: in a world without a shared store, the same
	shard   *engine.Shard
	replies []*reply // leave with the batch that is gathering
	waiting []*reply
	busy    bool // an append is under way
	alarm   uint64
	moved   []txn.ID // since the last comparison of state and journal
	flying  map[flight]bool
	opening bool // what was loaded is not durable yet
	loading bool // the journal is being read
	broken  bool // an append failed: events are refused until the journal was read anew
	closed  bool // it runs no more
	tenancy      // of a journal in a shared store
	loads   int  // which mind of the journal this is: see node.minds
}

// reply is what a Do or a Wait comes back with.
type reply struct {
	signal
	id    txn.ID
	until func(txn.State) bool
	state txn.State
	err   error
}

type flight struct {
	tx     txn.ID
	branch string
	op     txn.Op
}

func newDriver(n, of *node) *driver {
	return &driver{n: n, of: of, shard: engine.NewShard(engine.Limits{}), flying: map[flight]bool{}}
}

// load restores what the journal holds. The ports open when that has become durable.
func (d *driver) load() {
	d.opening, d.loading = true, true
	if d.n.w.fleet != nil {
		d.n.w.spawn(&d.n.side.process, d.open)
		return
	}
	var es []txlog.Entry
	for _, id := range d.of.journal.transactions() {
		if d.of.journal.state(id).Phase.Done() {
			continue
		}
		for _, r := range d.of.journal.records(id, false) {
			es = append(es, txlog.Entry{Tx: id, At: d.n.now(), Record: r})
		}
	}
	d.restore(es)
}

func (d *driver) restore(es []txlog.Entry) {
	d.loading = false
	d.loads = -1
	if d.n.w.fleet == nil || d.claim == d.n.w.tenure(d.of.owner).claims { // else it is fenced already
		d.of.minds++
		d.loads = d.of.minds
	}
	d.shard.Load(d.n.now(), es)
	d.moved = d.shard.IDs()
	d.flush()
}

// takes reports whether events are taken at present.
func (d *driver) takes() bool { return !d.broken && !d.opening && !d.closed }

// isCurrent reports whether nobody has made machines of this journal since.
func (d *driver) isCurrent() bool { return d.loads == d.of.minds }

func (d *driver) states() []txn.State {
	var all []txn.State
	for _, id := range d.shard.IDs() {
		if st, err := d.shard.State(id); err == nil {
			all = append(all, st)
		}
	}
	return all
}

// Do feeds one event and returns when what it recorded is durable.
func (d *driver) Do(_ context.Context, id txn.ID, e txn.Event) (txn.State, error) {
	w := d.n.w
	_, begin := e.(txn.Begin)
	if !d.takes() {
		return txn.State{}, engine.ErrUnavailable
	}
	if rs := d.of.journal.records(id, false); !d.shard.Has(id) && (len(rs) > 0 || !begin) {
		m := txn.Restore(rs)
		switch {
		case len(rs) == 0:
			return txn.State{}, fmt.Errorf("transaction %s: %w", id, txn.ErrUnknown)
		case !m.Phase().Done():
			return txn.State{}, engine.ErrElsewhere
		}
		_, err := m.Step(d.n.now(), e)
		return m.State(), err
	}
	st, err := d.step(id, e)
	r := &reply{id: id, state: st, err: err}
	d.replies = append(d.replies, r)
	d.flush()
	w.cur.wait(&r.signal, 0)
	if r.err == nil {
		w.checkDurable(d.of, id, e)
	}
	return r.state, r.err
}

// Post feeds one event and does not wait.
func (d *driver) Post(id txn.ID, e txn.Event) {
	if d.takes() && d.shard.Has(id) {
		// What is refused here is refused to nobody: see engine.Engine.Post.
		_, _ = d.step(id, e)
		d.flush()
	}
}

func (d *driver) step(id txn.ID, e txn.Event) (txn.State, error) {
	d.n.w.logf("%s: %s", d.n.place, describe(id, e))
	if err := d.shard.Step(d.n.now(), id, e); err != nil {
		return txn.State{}, err
	}
	d.look(id)
	return d.shard.State(id)
}

// look lets go those who wait for what this transaction has become.
func (d *driver) look(id txn.ID) {
	d.moved = append(d.moved, id)
	d.waiting = slices.DeleteFunc(d.waiting, func(r *reply) bool {
		if r.id != id {
			return false
		}
		st, err := d.shard.State(id)
		if err == nil && !r.until(st) && !st.Phase.Done() {
			return false
		}
		if r.state, r.err = st, err; err == nil && !r.until(st) {
			r.err = engine.ErrEnded
		}
		d.replies = append(d.replies, r)
		return true
	})
}

// Wait returns as soon as the predicate holds. Whoever gives a context with a deadline waits for replyMax.
func (d *driver) Wait(ctx context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error) {
	w := d.n.w
	if !d.takes() {
		return txn.State{}, engine.ErrUnavailable
	}
	if !d.shard.Has(id) {
		st, err := d.ended(id)
		if err == nil && !until(st) {
			err = engine.ErrEnded
		}
		return st, err
	}
	r := &reply{id: id, until: until}
	d.waiting = append(d.waiting, r)
	d.look(id)
	d.flush()
	most := time.Duration(0)
	if _, bounded := ctx.Deadline(); bounded {
		most = replyMax
	}
	if !w.cur.wait(&r.signal, most) {
		d.waiting = slices.DeleteFunc(d.waiting, func(o *reply) bool { return o == r })
		return txn.State{}, context.DeadlineExceeded
	}
	return r.state, r.err
}

// State returns an open or a finished transaction.
func (d *driver) State(ctx context.Context, id txn.ID) (txn.State, error) {
	return d.Wait(ctx, id, func(txn.State) bool { return true })
}

func (d *driver) ended(id txn.ID) (txn.State, error) {
	rs := d.of.journal.records(id, false)
	if len(rs) == 0 {
		return txn.State{}, fmt.Errorf("transaction %s: %w", id, txn.ErrUnknown)
	}
	return txn.Fold(rs), nil
}

// Find returns the newest transaction begun under a key.
func (d *driver) Find(_ context.Context, key string) (txn.ID, error) {
	id, ok := d.of.journal.find(key)
	if !ok {
		return "", txn.ErrUnknown
	}
	return id, nil
}

// flush hands what has gathered to the journal, unless an append is under way.
func (d *driver) flush() {
	if d.busy || d.loading {
		return
	}
	rd, replies := d.shard.Ready(), d.replies
	d.replies = nil
	if len(rd.Broken) > 0 {
		d.n.w.fail("L7", "a machine broke: %v", rd.Broken[0])
	}
	if len(rd.Entries) == 0 && !rd.Sync {
		d.opened()
		d.act(rd, replies)
		return
	}
	d.busy = true
	if d.n.w.point(d.n, sidecar) {
		return
	}
	if d.n.w.fleet != nil {
		d.n.w.spawn(&d.n.side.process, func(a *actor) { d.send(a, rd, replies) })
		return
	}
	d.n.w.in(&d.n.side.process, d.n.w.between(200*time.Microsecond, 4*time.Millisecond), func() { d.append(rd, replies) })
}

func (d *driver) append(rd engine.Ready, replies []*reply) {
	w := d.n.w
	if w.chance(0.002) {
		d.failed(rd, replies)
		return
	}
	for i, e := range rd.Entries {
		d.of.journal.append(rd.Entries[i : i+1]) // one after another: each is looked at as the last one
		w.logf("%s: journal %s %s", d.n.place, e.Tx, describeRecord(e.Record))
		w.recorded(d.of, e.Tx)
	}
	if w.point(d.n, sidecar) {
		return
	}
	if rd.Sync && !w.opt.NoSync {
		d.of.journal.sync()
		w.durable(d.n, rd.Entries)
		if w.point(d.n, sidecar) {
			return
		}
	}
	d.appended(rd, replies)
}

func (d *driver) appended(rd engine.Ready, replies []*reply) {
	d.busy = false
	d.shard.Appended(rd)
	d.opened()
	d.act(rd, replies)
	d.flush()
}

// opened takes events from now on, if they were not taken before.
func (d *driver) opened() {
	if !d.opening {
		return
	}
	d.opening = false
	if d.n.runs(d.of.owner) == d && d.of == d.n {
		d.n.listen()
	}
	if d.n.w.fleet != nil {
		d.n.keeper.step(takeover.Started{Owner: d.owner})
	}
}

// failed is the answer to an append that failed (L14): whether its entries will be found is unknown, so the machines are
// dropped, everybody who waits is told, and the journal is read anew.
func (d *driver) failed(rd engine.Ready, replies []*reply) {
	w := d.n.w
	w.logf("%s: append fails", d.n.place)
	w.counts["append failed"]++
	if w.rng.IntN(2) == 0 && w.fleet == nil {
		d.of.journal.append(rd.Entries)
	}
	d.lose(replies)
	w.in(&d.n.side.process, w.between(50*time.Millisecond, time.Second), func() {
		d.busy, d.broken = false, false
		d.load()
	})
}

// lose drops the machines and tells all who wait.
func (d *driver) lose(replies []*reply) {
	w := d.n.w
	if d.isCurrent() {
		w.forgetLost(d.of)
	}
	for _, r := range slices.Concat(replies, d.replies, d.waiting) {
		r.state, r.err = txn.State{}, engine.ErrUnavailable
		w.fire(&r.signal)
	}
	d.replies, d.waiting, d.moved, d.flying = nil, nil, nil, map[flight]bool{}
	d.shard = engine.NewShard(engine.Limits{})
	d.broken = true
}

// act does what had to wait for the append.
func (d *driver) act(rd engine.Ready, replies []*reply) {
	w := d.n.w
	for _, c := range rd.Calls {
		f := flight{c.Tx, c.Branch, c.Op}
		if d.flying[f] {
			w.fail("L6", "%s of %s is called again while its answer is awaited", c.Op, name(c.Tx, c.Branch))
		}
		d.flying[f] = true
		w.checkCall(d, c)
		load := d.loads
		w.spawn(&d.n.side.process, func(*actor) { d.call(f, c, load) })
	}
	for _, r := range replies {
		w.fire(&r.signal)
	}
	if d.shard.Gathered() == 0 && !d.busy {
		w.checkFold(d)
	}
	d.arm()
}

// call makes one call and answers it once.
//
// An answer to machines that were dropped meanwhile counts only if it says that the op is done: see engine.loop.returned.
func (d *driver) call(f flight, c txn.Call, load int) {
	w := d.n.w
	w.point(d.n, sidecar)
	out, result, cause := w.perform(d.n, c)
	w.logf("%s: %s of %s answered %s %s", d.n.place, c.Op, name(c.Tx, c.Branch), out, cause)
	w.point(d.n, sidecar)
	if load != d.loads && out != txn.OK {
		return
	}
	if load == d.loads {
		delete(d.flying, f)
	}
	d.Post(c.Tx, txn.Returned{Branch: c.Branch, Op: c.Op, Outcome: out, Result: result, Cause: cause})
	if !w.chance(0.03) || w.driven[c.Tx] != nil {
		return
	}
	// The network repeated the call, and this answer comes as well: done is a fact whoever asked.
	w.cur.sleep(w.between(time.Millisecond, 2*time.Second))
	if out, result, cause = w.perform(d.n, c); out == txn.OK {
		d.Post(c.Tx, txn.Returned{Branch: c.Branch, Op: c.Op, Outcome: out, Result: result, Cause: cause})
	}
}

// arm sets the one alarm clock.
func (d *driver) arm() {
	at := d.shard.Next()
	if at.IsZero() {
		return
	}
	d.alarm++
	mine := d.alarm
	w := d.n.w
	w.in(&d.n.side.process, max(0, at.Sub(d.n.now())), func() {
		if mine != d.alarm {
			return
		}
		d.shard.Tick(d.n.now())
		for _, id := range d.shard.IDs() {
			d.look(id)
		}
		d.flush()
		d.arm()
	})
}
