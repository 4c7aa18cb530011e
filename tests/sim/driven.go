package sim

import (
	"context"
	"slices"
	"time"

	"txmesh/txn"
)

// driven is a transaction of a mode that no proxy sees: its initiator speaks to the engine, and its participants keep
// a barrier of their own.
type driven struct {
	id    txn.ID
	mode  txn.Mode
	spec  txn.Spec
	parts []*part
	local bool // the initiator's own commit, of msg and workflow
	never bool // the initiator was asked and said no: it may not commit any more
}

// part is one participant.
type part struct {
	done, standing, committed, undone bool
	gone                              uint64
}

// initiate begins a transaction of a mode and drives it as its kind of client does.
func (w *world) initiate(m txn.Mode, i int) {
	if m == txn.Explicit {
		w.explicit()
		return
	}
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if !n.side.open() {
		return
	}
	d := &driven{id: n.newID(), mode: m}
	plan := m.Plan()
	plan.Retry = txn.Retry{Delay: 100 * time.Millisecond, DelayMax: 2 * time.Second}
	if plan.Drives {
		plan.ForwardLimit = 3
	}
	if m == txn.TCC && w.chance(0.5) {
		plan.Chain, plan.Backward = true, true
	}
	d.spec = txn.Spec{ID: d.id, Mode: m, Plan: plan, Timeout: 5 * time.Second, Name: "driven " + itoa(i)}
	target := []byte("participant")
	for b := range 1 + w.rng.IntN(3) {
		d.parts = append(d.parts, &part{})
		x := txn.Branch{ID: itoa(b)}
		switch m {
		case txn.Msg:
			x.Ops[txn.Commit] = target
		case txn.Saga, txn.SagaGraph:
			x.Ops[txn.Forward], x.Ops[txn.Undo] = target, target
			for j := range b {
				if m == txn.SagaGraph && w.rng.IntN(3) == 0 {
					x.After = append(x.After, itoa(j))
				}
			}
		default:
			x.Ops[txn.Commit], x.Ops[txn.Undo] = target, target
		}
		d.spec.Branches = append(d.spec.Branches, x)
	}
	if plan.Silence == txn.SilenceAsks {
		d.spec.Ask = target
	}
	w.driven[d.id] = d
	w.spawn(&w.people, func(a *actor) { d.drive(w, a, n) })
}

// tell sends one event of the initiator, again if nobody answers.
func (d *driven) tell(w *world, a *actor, n *node, e txn.Event) (txn.State, bool) {
	for range 6 {
		got, err := w.carry(a, link{twice: true}, &n.side, 5*time.Second, func(*actor) any {
			st, err := router{n}.Do(context.Background(), d.id, e)
			return reply{state: st, err: err}
		})
		if err == nil {
			r := got.(reply)
			return r.state, r.err == nil
		}
		a.sleep(w.between(50*time.Millisecond, 500*time.Millisecond))
	}
	return txn.State{}, false
}

func (d *driven) drive(w *world, a *actor, n *node) {
	begin := d.spec
	if d.mode != txn.Saga && d.mode != txn.SagaGraph && d.mode != txn.Msg {
		begin.Branches = nil
	}
	w.meddle(d, n)
	if d.mode == txn.Msg && w.chance(0.3) {
		// Submitted without being prepared: one step begins it and decides. Who was told so relies on it.
		_, d.local = d.tell(w, a, n, txn.Begin{Spec: begin, Decide: &txn.Decide{Commit: true, Delay: w.delay()}})
		return
	}
	if _, ok := d.tell(w, a, n, txn.Begin{Spec: begin}); !ok || begin.Plan.Drives {
		return
	}
	if w.chance(0.05) {
		other := begin
		other.Name += ", another"
		if _, taken := d.tell(w, a, n, txn.Begin{Spec: other}); taken {
			w.fail("L12", "%s was begun again with other content", d.id)
		}
	}
	if begin.Branches == nil && !d.enlistAll(w, a, n) {
		return
	}
	a.sleep(w.between(time.Millisecond, 50*time.Millisecond))
	if w.habit(0.1) {
		return // the initiator dies before its decision
	}
	if d.spec.Ask != nil {
		if d.never {
			return
		}
		d.local = true
		if w.habit(0.2) {
			return // ... or after its own commit
		}
	}
	d.tell(w, a, n, txn.Decide{Commit: true, Delay: w.delay()})
}

// delay is how long what a decision brings about is held back: mostly not at all.
func (w *world) delay() time.Duration {
	if !w.chance(0.2) {
		return 0
	}
	return w.between(100*time.Millisecond, 3*time.Second)
}

// meddle is an operator who hastens a transaction, or stops it.
func (w *world) meddle(d *driven, n *node) {
	hasten, stop := w.habit(0.2), w.habit(0.03)
	if !hasten && !stop {
		return
	}
	w.spawn(&w.people, func(a *actor) {
		a.sleep(w.between(10*time.Millisecond, 4*time.Second))
		if hasten {
			d.tell(w, a, n, txn.Hasten{})
		}
		if !stop {
			return
		}
		if _, ok := d.tell(w, a, n, txn.Stop{By: "operator", Why: "meddles"}); ok {
			w.stopped[d.id] = struct{}{}
		}
	})
}

// enlistAll calls the participants one after another, each enlisted before.
func (d *driven) enlistAll(w *world, a *actor, n *node) bool {
	for i, b := range d.spec.Branches {
		if w.habit(0.04) {
			return false // the initiator dies
		}
		if w.habit(0.04) {
			a.sleep(6 * time.Second) // slower than the time-out
		}
		if _, ok := d.tell(w, a, n, txn.Enlist{Branch: b}); !ok {
			return false // not durable: the call must not leave
		}
		if _, durable := n.journal.enlisted(d.id, b.ID); !durable {
			w.fail("L2", "Enlist of %s was answered, and the branch is not durable", name(d.id, b.ID))
		}
		a.sleep(w.lag())
		out := d.forward(w, d.parts[i])
		if w.chance(0.1) {
			out = txn.Unknown
		}
		d.tell(w, a, n, txn.Returned{Branch: b.ID, Op: txn.Forward, Outcome: out})
		if out == txn.OK {
			continue
		}
		if d.spec.Ask == nil {
			d.tell(w, a, n, txn.Decide{Reason: "refused"})
		}
		return false
	}
	return true
}

// forward is the work itself at a participant with a barrier.
func (d *driven) forward(w *world, p *part) txn.Outcome {
	switch {
	case p.undone:
		return txn.Refused
	case !p.done && w.habit(0.1):
		return txn.Refused
	case w.habit(0.1):
		return txn.Pending
	}
	p.standing = p.standing || !p.done
	p.done = true
	return txn.OK
}

// perform makes a call of an engine: through package outbound where a policy says how, else at the participant.
func (w *world) perform(n *node, c txn.Call) (txn.Outcome, []byte, string) {
	d := w.driven[c.Tx]
	if d == nil {
		return w.callers[n.at].Call(context.Background(), c)
	}
	w.checkOrder(n, d, c)
	got, err := w.carry(w.cur, link{twice: true}, w.anywhere(), 5*time.Second, func(*actor) any { return d.serve(w, c) })
	if err != nil {
		return txn.Unknown, nil, err.Error()
	}
	return got.(txn.Outcome), nil, ""
}

// anywhere is a server that does not die: the participants of driven transactions.
func (w *world) anywhere() *server {
	if w.partners.lives == 0 {
		w.partners.start()
		w.partners.listening = true
	}
	return &w.partners
}

// serve is a participant, or the initiator that is asked.
func (d *driven) serve(w *world, c txn.Call) txn.Outcome {
	if c.Op == txn.Ask {
		switch {
		case w.habit(0.2):
			return txn.Pending
		case d.local:
			return txn.OK
		}
		d.never = true
		return txn.Refused
	}
	p := d.parts[slices.IndexFunc(d.spec.Branches, func(b txn.Branch) bool { return b.ID == c.Branch })]
	if c.Op != txn.Forward {
		w.checkNamed(w.ownerOf(d.id), d.id, c.Branch, c.Op == txn.Undo)
	}
	switch c.Op {
	case txn.Forward:
		return d.forward(w, p)
	case txn.Commit:
		if d.mode != txn.LRA && w.habit(0.1) {
			return txn.Refused
		}
		d.checkBackward(w, c.Branch)
		p.committed = true
	case txn.Undo:
		if d.mode != txn.LRA && w.habit(0.1) {
			return txn.Refused
		}
		if !p.undone && !w.opt.NoUndo {
			p.undone, p.standing, p.gone = true, false, w.mark()
		}
	default:
		panic("sim: op of a driven transaction: " + c.Op.String())
	}
	return txn.OK
}

// checkBackward says that commits which run backwards come after those of all later branches.
func (d *driven) checkBackward(w *world, branch string) {
	if !d.spec.Plan.Backward {
		return
	}
	st := txn.Fold(w.ownerOf(d.id).journal.records(d.id, false))
	for i, b := range slices.Backward(d.spec.Branches) {
		if b.ID == branch {
			return
		}
		if x := st.Find(b.ID); x != nil && x.Stands && !d.parts[i].committed {
			w.fail("order", "%s is committed before %s, and its commits run backwards", name(d.id, branch), name(d.id, b.ID))
		}
	}
}

// checkOrder says that a forward call of an engine leaves when what made it ready is durable.
func (w *world) checkOrder(n *node, d *driven, c txn.Call) {
	if c.Op != txn.Forward {
		return
	}
	st := txn.Fold(w.ownerOf(d.id).journal.records(d.id, true))
	for i, b := range d.spec.Branches {
		if d.goesBefore(i, c.Branch) && st.Find(b.ID).Known[txn.Forward].Outcome != txn.OK {
			w.fail("L1", "forward call of %s leaves, and the answer of %s before it is not durable", name(d.id, c.Branch), b.ID)
		}
	}
}

// goesBefore reports whether branch i must be done before the one named.
func (d *driven) goesBefore(i int, branch string) bool {
	j := slices.IndexFunc(d.spec.Branches, func(b txn.Branch) bool { return b.ID == branch })
	if d.spec.Plan.Chain {
		return i < j
	}
	return slices.Contains(d.spec.Branches[j].After, d.spec.Branches[i].ID)
}

// mend is the operator's hand.
func (d *driven) mend(w *world, branch string, op txn.Op) {
	for i, b := range d.spec.Branches {
		switch p := d.parts[i]; {
		case b.ID != branch:
		case op == txn.Undo && !p.undone:
			p.undone, p.standing, p.gone = true, false, w.mark()
		case op == txn.Commit:
			p.committed = true
		}
	}
}

// judge asks the participants.
func (d *driven) judge(w *world, st *txn.State) {
	if st.Phase == txn.Ceased {
		return // as it stood
	}
	committed := st.Phase == txn.Committed
	for i, b := range d.spec.Branches {
		p := d.parts[i]
		known := st.Find(b.ID) != nil
		switch {
		case committed && known && (p.undone || b.Ops[txn.Commit] != nil && !p.committed || b.Ops[txn.Forward] != nil && !p.standing):
			w.fail("conservation", "%s %s has committed, and branch %s is %+v", d.mode, d.id, b.ID, *p)
		case !committed && (p.standing || p.committed):
			w.fail("conservation", "%s %s has aborted, and branch %s is %+v", d.mode, d.id, b.ID, *p)
		case committed && !known && p.standing:
			w.fail("L2", "branch %s of %s has an effect, and nobody knows of it", b.ID, d.id)
		}
		for j, c := range d.spec.Branches {
			if x := d.parts[j]; d.goesBefore(i, c.ID) && p.gone > 0 && x.gone > p.gone {
				w.fail("order", "%s was undone before %s, which follows it", name(d.id, b.ID), name(d.id, c.ID))
			}
		}
	}
	if d.local && !committed {
		w.fail("conservation", "the initiator of %s committed, and it is %s", d.id, st.Phase)
	}
}
