package sim

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/google/go-cmp/cmp"

	"txmesh/interceptor"
	"txmesh/txlog"
	"txmesh/txn"
)

// The laws of the design, and where each is judged:
//
//	L1   checkCall, checkNamed: what reaches a participant was decided durably before
//	L2   arrived, untagged: what reaches a participant can be undone by a durable branch
//	L3   recorded, sawDecision: one decision, in the journal and for all who acted on it
//	L4   checkFold: after every step
//	L5   checkNamed, judgeEffects: the decision says what stands
//	L6   driver.act: one answer is awaited for each call
//	L7   judge: everything ends; what is stuck has a cause
//	L8   there is no control plane in this world: policies, peers and keys are what each sidecar started with, and L7
//	     holds all the same. TestNobodyNeedsAControlPlane says so
//	L11  recorded, checkCall: a halted op moves by an operator only
//	L12  placed, conflicting, recorded: a repeat is the same, another is refused
//	L13  answeredTo: an answer that an undo reads is kept before the application sees it
//	L14  checkDurable, sawDecision, began: whoever got an answer can rely on it
//
// A fleet has four more, judged in fleet.go and keeper.go by what the store really did:
//
//	fence     take: whoever appends has the newest claim of all
//	lapse     checkLapse: nobody takes a journal whose holder was heard of within the lease time
//	orphan    look: what is open is run by somebody within a bound, if somebody can (a part of L7)
//	handover  checkRelease: a journal is given away when its engine has stopped
//
// A sidecar that has been fenced and does not know it may call again what its durable decision has named; nothing else.
//
// Beside them: conservation (committed: everything stands once; aborted: nothing does; clients were told so), the order of
// undo, barrier (nothing takes effect twice or after it was given up), home (nobody else answers for a row), join (no
// call joins a transaction that is not its own), flight (no undo while the forward call is on its way).

// recorded looks at a transaction's journal after each new record.
func (w *world) recorded(n *node, id txn.ID) {
	rs := n.journal.records(id, false)
	switch r := rs[len(rs)-1].(type) {
	case txn.Decided:
		for _, before := range rs[:len(rs)-1] {
			if _, twice := before.(txn.Decided); twice {
				w.fail("L3", "%s is decided twice", id)
			}
		}
		if s, known := w.seen[id]; known && s.commit != r.Commit {
			w.fail("L3", "%s is decided %v; before, %s", id, r.Commit, s.how)
		}
	case txn.Settled:
		w.checkHalt(id, rs[:len(rs)-1], r.Branch, r.Op)
	case txn.Deferred:
		w.checkHalt(id, rs[:len(rs)-1], r.Branch, r.Op)
	case txn.Enlisted:
		for _, before := range rs[:len(rs)-1] {
			b, ok := before.(txn.Enlisted)
			if ok && r.Branch.Key != "" && b.Branch.Key == r.Branch.Key && b.Branch.ID != r.Branch.ID {
				w.fail("L12", "%s and %s were enlisted under one key, %s", name(id, b.Branch.ID), name(id, r.Branch.ID), b.Branch.Key)
			}
		}
	default:
	}
}

// checkHalt says that only an operator gets an op going again (L11).
func (w *world) checkHalt(id txn.ID, rs []txn.Record, branch string, op txn.Op) {
	halted := false
	for _, r := range rs {
		switch r := r.(type) {
		case txn.Halted:
			halted = halted || r.Branch == branch && r.Op == op
		case txn.Forced:
			halted = halted && (r.Branch != branch || r.Op != op)
		default:
		}
	}
	if halted {
		w.fail("L11", "%s of %s is stuck, and nobody but the machine moved it", op, name(id, branch))
	}
}

// durable looks at what a sync has just covered.
func (w *world) durable(n *node, es []txlog.Entry) {
	for _, e := range es {
		if _, ok := e.Record.(txn.Decided); ok {
			w.counts["decided"]++
		}
	}
}

// mustBeDurable names the records that somebody relies on as soon as they are answered. The answer that an undo reads
// is not among them: L13 looks for it where the application does.
func mustBeDurable(r txn.Record) bool {
	switch r.(type) {
	case txn.Began, txn.Enlisted, txn.Left, txn.Extended, txn.Decided, txn.Forced, txn.Stopped:
		return true
	default:
		return false
	}
}

// checkDurable says that an answered event is durable (L14).
func (w *world) checkDurable(n *node, id txn.ID, e txn.Event) {
	for _, i := range slices.Backward(n.journal.byTx[id]) {
		if i < n.journal.synced {
			return
		}
		if r := n.journal.entries[i].record; mustBeDurable(r) {
			w.fail("L14", "%T of %s was answered, and its %T is not durable", e, id, r)
		}
	}
}

// checkCall looks at a call of an engine as it leaves (L1, L11).
func (w *world) checkCall(d *driver, c txn.Call) {
	n := d.of
	rs := n.journal.records(c.Tx, true)
	st := txn.Fold(rs)
	if _, stopped := w.stopped[c.Tx]; stopped && d.isCurrent() {
		w.fail("L11", "%s of %s leaves, and an operator has stopped it", c.Op, name(c.Tx, c.Branch))
	}
	switch {
	case d.n.now().Before(st.Due):
		w.fail("L1", "%s of %s leaves %v before its decision is due", c.Op, name(c.Tx, c.Branch), st.Due.Sub(d.n.now()))
	case !st.Begun:
		w.fail("L1", "%s of %s leaves, and its beginning is not durable", c.Op, name(c.Tx, c.Branch))
	case (c.Op == txn.Commit || c.Op == txn.Undo || c.Op == txn.Tell) && !st.Decided():
		w.fail("L1", "%s of %s leaves before its decision is durable", c.Op, name(c.Tx, c.Branch))
	}
	if b := st.Find(c.Branch); b != nil && (c.Op == txn.Commit && !b.Stands || c.Op == txn.Undo && !b.Undone) {
		w.fail("L5", "%s of %s leaves, and the decision does not name it", c.Op, name(c.Tx, c.Branch))
	}
	if !d.isCurrent() {
		return // it has been fenced and does not know: it may do again what it once might
	}
	w.checkHalt(c.Tx, n.journal.records(c.Tx, false), c.Branch, c.Op)
	for _, f := range w.flights[name(c.Tx, c.Branch)] {
		if c.Op == txn.Undo && w.now.Before(f.until) && f.life == n.minds {
			w.fail("flight", "undo of %s leaves while its forward call is neither answered nor over its time", name(c.Tx, c.Branch))
		}
	}
}

// checkFold compares each transaction that moved with the fold of its journal (L4).
func (w *world) checkFold(d *driver) {
	if !d.isCurrent() {
		d.moved = d.moved[:0]
	}
	for _, id := range d.moved {
		live, err := d.shard.State(id)
		if err != nil {
			continue // it has ended
		}
		if folded := d.of.journal.state(id); !sameState(&live, folded) {
			w.fail("L4", "%s is alive as it folds, but for\n%s", id, cmp.Diff(*folded, live))
		}
	}
	d.moved = d.moved[:0]
}

func sameState(a, b *txn.State) bool {
	if a.Begun != b.Begun || a.Phase != b.Phase || !a.Expires.Equal(b.Expires) || a.Commit != b.Commit || a.Reason != b.Reason ||
		!bytes.Equal(a.Answer, b.Answer) || len(a.Branches) != len(b.Branches) || !sameOp(&a.Asked, &b.Asked) || !sameOp(&a.Told, &b.Told) ||
		a.Spec.ID != b.Spec.ID || a.Spec.Plan != b.Spec.Plan || a.Spec.Key != b.Spec.Key {
		return false
	}
	for i := range a.Branches {
		x, y := a.Branches[i], b.Branches[i]
		if x.ID != y.ID || x.Key != y.Key || x.Home != y.Home || x.Left != y.Left || x.Stands != y.Stands || x.Undone != y.Undone ||
			x.Doubt != y.Doubt || !slices.Equal(x.After, y.After) || !bytes.Equal(x.Note, y.Note) {
			return false
		}
		for op := range x.Known {
			if !sameOp(&x.Known[op], &y.Known[op]) {
				return false
			}
		}
	}
	return true
}

func sameOp(a, b *txn.OpState) bool {
	return a.Outcome == b.Outcome && a.Attempt == b.Attempt && a.Since.Equal(b.Since) && a.Until.Equal(b.Until) &&
		bytes.Equal(a.Result, b.Result) && a.Cause == b.Cause && a.Halted == b.Halted && a.Forced == b.Forced
}

// conflicting sends an Enlist that differs from the one before it under its key (L12).
func (w *world) conflicting(ctx context.Context, to *node, id txn.ID, e txn.Enlist) {
	e.Branch.Name += "-other"
	e.Calling = false
	if _, err := to.relay.Enlist(ctx, id, e); err == nil {
		w.fail("L12", "another branch under key %s of %s was taken for a repeat", e.Branch.Key, id)
	}
}

// judge looks at the world when everything has ended.
func (w *world) judge() {
	for _, n := range w.nodes {
		if !n.side.open() {
			w.fail("L7", "the sidecar of %s does not open its ports", n.place)
		}
		for _, st := range n.states() {
			w.fail("L7", "%s is still %s: %s", st.Spec.ID, st.Phase, summary(&st))
		}
		for _, id := range n.journal.transactions() {
			st := n.journal.state(id)
			if !st.Phase.Done() {
				w.fail("L7", "%s is still %s, and nobody runs it", id, st.Phase)
			}
			if st.Spec.Mode == txn.Intercepted || st.Spec.Mode == txn.Explicit {
				w.judgeBranches(st)
			}
			if d := w.driven[id]; d != nil {
				d.judge(w, st)
			}
			w.counts[string(st.Spec.Mode)+" "+st.Phase.String()]++
		}
	}
	for _, s := range w.stores {
		for _, e := range s.effects {
			w.judgeEffect(e)
		}
	}
	w.judgeOrder()
	w.judgeTold()
}

func summary(st *txn.State) (s string) {
	for _, b := range st.Branches {
		for op, k := range b.Known {
			s += fmt.Sprintf("branch %s %s: %s halted=%v attempt=%d %s; ", b.ID, txn.Op(op), k.Outcome, k.Halted, k.Attempt, k.Cause)
		}
	}
	return s
}

// judgeEffect says whether an effect may stand, or must.
func (w *world) judgeEffect(e *effect) {
	id, no, ok := interceptor.SplitBranchName(e.branch)
	if !ok {
		if !e.standing {
			w.fail("conservation", "%s, which belongs to no transaction, was undone", e.id)
		}
		return
	}
	dec, decided := w.ownerOf(id).journal.decided(id)
	stands := decided && slices.Contains(dec.Stand, no)
	switch {
	case w.mended[e.branch], stands == e.standing:
	case stands:
		w.fail("conservation", "%s has committed, and %s (%s) of branch %s does not stand", id, e.id, e.kind, no)
	case e.kind == "fire":
		w.counts["irreversible: stands though aborted"]++
	case e.late, e.repeated:
		w.counts["no barrier: stands though aborted"]++
	case w.repeats(e):
		w.counts["no barrier: stands though aborted"]++
	default:
		w.fail("conservation", "%s does not keep branch %s, and %s (%s) stands", id, no, e.id, e.kind)
	}
}

// repeats reports whether the branch of e took effect more than once for want of a barrier.
func (w *world) repeats(e *effect) bool {
	for _, s := range w.stores {
		for _, o := range s.effects {
			if o.branch == e.branch && o.repeated {
				return true
			}
		}
	}
	return false
}

// judgeBranches says that what stands by the decision is there, once.
func (w *world) judgeBranches(st *txn.State) {
	for _, b := range st.Branches {
		branch := name(st.Spec.ID, b.ID)
		if !b.Stands || w.mended[branch] {
			continue
		}
		standing, confirmed, repeated, kind := 0, 0, false, ""
		for _, s := range w.stores {
			for _, e := range s.effects {
				if e.branch != branch {
					continue
				}
				kind = e.kind
				repeated = repeated || e.repeated
				if e.standing {
					standing++
				}
				if e.confirmed {
					confirmed++
				}
			}
		}
		switch {
		case standing != 1 && !repeated:
			w.fail("conservation", "%s has committed, and branch %s (%s %s) stands %d times", st.Spec.ID, b.ID, b.Name, kind, standing)
		case (kind == "reserve" || kind == "own") && confirmed != 1:
			w.fail("conservation", "%s has committed, and branch %s (%s) is not confirmed", st.Spec.ID, b.ID, kind)
		}
	}
}

// judgeOrder says that what came later was undone first: children before their parents, and a branch before those
// that its owner knew to be answered when it was enlisted.
func (w *world) judgeOrder() {
	var undone []*effect
	for _, s := range w.stores {
		for _, e := range s.effects {
			if e.branch != "" && e.gone > 0 {
				undone = append(undone, e)
			}
		}
	}
	for _, x := range undone {
		for _, y := range undone {
			idX, _, _ := interceptor.SplitBranchName(x.branch)
			idY, _, _ := interceptor.SplitBranchName(y.branch)
			if idX != idY || x.gone > y.gone || x.branch == y.branch {
				continue
			}
			// x was undone before y.
			child := y.deed != nil && y.deed.under != "" && y.deed.under == x.branch
			later := w.answered[x.branch] > 0 && w.placedAt[y.branch] > w.answered[x.branch]
			switch {
			case child:
				w.fail("order", "%s was undone before %s, which was made while it was served", x.branch, y.branch)
			case later:
				w.fail("order", "%s was undone before %s, which was enlisted after its answer", x.branch, y.branch)
			}
		}
	}
}

// judgeTold says that clients were told the truth, and that one key is one transaction.
func (w *world) judgeTold() {
	for _, q := range w.asks {
		for _, t := range q.told {
			dec, ok := w.ownerOf(t.tx).journal.decided(t.tx)
			if !ok || dec.Commit != t.commit {
				w.fail("conservation", "a client was told %d (committed: %v) of %s", t.status, t.commit, t.tx)
			}
			if t.tx != q.told[0].tx {
				w.fail("conservation", "a client was told of %s and %s under one key", q.told[0].tx, t.tx)
			}
		}
	}
	begun := map[string]txn.ID{}
	for _, n := range w.nodes {
		for _, id := range n.journal.transactions() {
			st := txn.Fold(n.journal.records(id, true))
			key := n.owner + st.Spec.Key
			if before, twice := begun[key]; twice && st.Spec.Key != "" {
				w.fail("conservation", "%s and %s were begun under one key", before, id)
			}
			begun[key] = id
		}
	}
}
