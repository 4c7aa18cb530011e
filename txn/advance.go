package txn

import (
	"slices"
	"time"
)

// advance makes every call that may be made now, and decides or finishes what has become ripe.
func (m *Machine) advance(now time.Time) {
	if !m.s.Begun || m.s.Phase.Done() {
		return
	}
	m.landLate(now)
	if m.s.Phase == Open {
		m.open(now)
	}
	if m.s.Phase != Open && !m.s.Phase.Done() {
		m.settle(now)
	}
}

// landLate gives up on intercepted forwards whose time is over: their outcome is unknown from here on.
func (m *Machine) landLate(now time.Time) {
	m.flying.removeFunc(func(f flight) bool { return !f.until.IsZero() && !now.Before(f.until) })
}

func (m *Machine) open(now time.Time) {
	plan := m.s.Spec.Plan
	switch {
	case m.s.Asked.Outcome == OK:
		m.decide(now, Decide{Commit: true})
	case m.s.Asked.Outcome == Refused:
		m.abort(now, "initiator refused")
	case m.expired(now) && m.asks():
		m.call(now, nil, Ask, m.s.Spec.Ask)
	case m.expired(now):
		m.abort(now, m.whyExpired())
	case plan.Rooted && !m.rooted:
		// The root request died with the process that served it: nobody is left to decide.
		m.abort(now, "sidecar restarted")
	case m.want != nil:
		m.commitOnceAnswered(now)
	case plan.Drives:
		m.drive(now)
	}
}

func (m *Machine) whyExpired() string {
	for i := range m.s.Branches {
		if b := m.s.Branches[i]; m.want != nil && m.unanswered(b) {
			return "expired: no answer from branch " + b.ID
		}
	}
	return "expired"
}

func (m *Machine) unanswered(b *BranchState) bool { return !b.Left && b.Known[Forward].Outcome == None }

// commitOnceAnswered carries out a wish to commit: unanswered branches block it until they are resolved or the
// time is up. Without a limit, one that nobody will ever resolve aborts at once.
func (m *Machine) commitOnceAnswered(now time.Time) {
	ripe := true
	for i := range m.s.Branches {
		b := m.s.Branches[i]
		if !m.unanswered(b) {
			continue
		}
		ripe = false
		switch {
		case m.flying.has(b.ID, Forward):
		case m.canAsk(b):
			m.call(now, b, Ask, b.Ops[Ask])
		case m.s.Expires.IsZero():
			m.abort(now, "no answer from branch "+b.ID)
			return
		}
	}
	if ripe {
		m.decide(now, *m.want)
	}
}

// canAsk reports whether somebody can say what an unanswered call did: a query, or the home of its barrier row.
func (m *Machine) canAsk(b *BranchState) bool {
	return b.Unanswered == ResolveAsk && (b.Ops[Ask] != nil || b.Home != "")
}

// drive makes the forward calls of a mode whose branches are known from the start. It decides first: no forward
// call leaves with the step that aborts.
func (m *Machine) drive(now time.Time) {
	m.settleEmpty()
	limit, done := m.s.Spec.Plan.ForwardLimit, true
	for i := range m.s.Branches {
		b := m.s.Branches[i]
		o := &b.Known[Forward]
		switch {
		case b.Left || o.Outcome == OK:
			continue
		case o.Outcome == Refused:
			m.abort(now, "refused by branch "+b.ID)
			return
		case limit > 0 && o.Attempt >= limit:
			m.abort(now, "no answer from branch "+b.ID)
			return
		}
		done = false
	}
	if done {
		m.decide(now, Decide{Commit: true})
		return
	}
	ready := m.turns(Forward)
	for i, b := range m.s.Branches {
		if m.unanswered(b) && ready(i) {
			m.call(now, b, Forward, b.Ops[Forward])
		}
	}
}

// settleEmpty answers for branches that have nothing to do forward, as soon as it would be their turn.
func (m *Machine) settleEmpty() {
	empty := func(b *BranchState) bool { return b.Ops[Forward] == nil && m.unanswered(b) }
	for again := slices.ContainsFunc(m.s.Branches, empty); again; {
		again = false
		ready := m.turns(Forward)
		for i, b := range m.s.Branches {
			if empty(b) && ready(i) {
				m.log(Settled{Branch: b.ID, Op: Forward, Outcome: OK})
				again = true
			}
		}
	}
}

// decide fixes the outcome and, with it, which branches stand and which are undone. The sets are frozen here: an
// answer that comes later must not widen them (L5).
func (m *Machine) decide(now time.Time, e Decide) {
	d := Decided{Commit: e.Commit, Reason: e.Reason, Answer: e.Answer, Due: deadline(now, e.Delay)}
	mayHaveRun := m.mayHaveRun()
	for i, b := range m.s.Branches {
		switch {
		case b.Left:
		case e.Commit && m.stands(b):
			d.Stand = append(d.Stand, b.ID)
		case mayHaveRun(i) && !m.refusedForGood(b):
			d.Undo = append(d.Undo, b.ID)
		}
	}
	m.want = nil
	m.log(d)
}

func (m *Machine) abort(now time.Time, reason string) { m.decide(now, Decide{Reason: reason}) }

func (m *Machine) stands(b *BranchState) bool {
	return !m.s.Spec.Plan.Answers || b.Known[Forward].Outcome == OK
}

// mayHaveRun returns whether the forward call of branch i can have left: an enlisted branch always may, an
// engine-driven one since it became ready.
func (m *Machine) mayHaveRun() func(i int) bool {
	if !m.s.Spec.Plan.Drives {
		return func(int) bool { return true }
	}
	ready := m.turns(Forward)
	return func(i int) bool {
		o := &m.s.Branches[i].Known[Forward]
		return o.Outcome != None || o.Attempt > 0 || ready(i)
	}
}

// refusedForGood reports whether nothing took effect. Where the engine repeated a call, an earlier one may have.
func (m *Machine) refusedForGood(b *BranchState) bool {
	plan, f := m.s.Spec.Plan, &b.Known[Forward]
	return f.Outcome == Refused && !plan.UndoRefused && (b.Home != "" || !plan.Drives || f.Attempt == 0)
}

// settle runs commit or undo on every branch that needs it, then tells, then finishes.
func (m *Machine) settle(now time.Time) {
	if now.Before(m.s.Due) {
		return
	}
	left := 0
	var ready [NumOps]func(i int) bool
	for i, b := range m.s.Branches {
		op, needs := m.needs(b)
		if !needs {
			continue
		}
		if ready[op] == nil {
			ready[op] = m.turns(op)
		}
		left++
		if b.Known[op].Halted || op == Undo && !m.resolve(now, b) || !ready[op](i) {
			continue
		}
		m.call(now, b, op, b.Ops[op])
	}
	if left == 0 && !m.tell(now) {
		end := Aborted
		if m.s.Commit {
			end = Committed
		}
		m.log(Finished{end})
	}
}

// needs returns the settling op of a branch and whether it is still to be done.
func (m *Machine) needs(b *BranchState) (Op, bool) {
	op := Commit
	switch {
	case b.Undone:
		op = Undo
		if m.refusedForGood(b) && !b.Known[Undo].Halted {
			return op, false // the refusal came after the decision: nothing took effect
		}
	case !b.Stands:
		return op, false
	}
	return op, b.Ops[op] != nil && b.Known[op].Outcome == None
}

// resolve reports whether the undo of b may go out as far as b's own forward call is concerned.
func (m *Machine) resolve(now time.Time, b *BranchState) bool {
	switch {
	case m.flying.has(b.ID, Forward):
		return false // its answer may still turn the branch around
	case b.Known[Forward].Outcome != None || b.Known[Undo].Forced || b.Known[Ask].Outcome == OK:
		return true // answered, or an operator said: undo it as it is
	}
	switch {
	case b.Unanswered == ResolveUndo:
		return true
	case m.canAsk(b):
		m.call(now, b, Ask, b.Ops[Ask])
	default:
		m.log(Halted{b.ID, Undo, "the forward call was not answered, and the policy neither asks nor undoes"})
	}
	return false
}

// tell informs listeners of the end and reports whether any is left.
func (m *Machine) tell(now time.Time) bool {
	left := false
	for i := range m.s.Branches {
		b := m.s.Branches[i]
		if b.Ops[Tell] != nil && b.Known[Tell].Outcome == None && !b.Left {
			left = true
			m.call(now, b, Tell, b.Ops[Tell])
		}
	}
	if m.s.Spec.Tell != nil && m.s.Told.Outcome == None {
		left = true
		m.call(now, nil, Tell, m.s.Spec.Tell)
	}
	return left
}

// call emits a call unless it is flying, halted or waiting for its next try. A nil branch is the initiator or
// the listeners.
func (m *Machine) call(now time.Time, b *BranchState, op Op, target []byte) {
	spec := &m.s.Spec
	c := Call{Tx: spec.ID, Mode: spec.Mode, Door: spec.Door, TxNote: spec.Note, Op: op, Target: target, Commit: m.s.Commit}
	var o *OpState
	if b != nil {
		c.Branch, c.Home, c.Note = b.ID, b.Home, b.Note
		c.Answer, c.Outcome = b.Known[Forward].Result, b.Known[Forward].Outcome
		o = &b.Known[op]
	} else {
		o = m.s.op("", op)
	}
	if o.Halted || now.Before(o.Until) || m.flying.has(c.Branch, op) {
		return
	}
	c.Attempt, c.Since, c.Timeout = o.Attempt+1, o.Since, m.retry(b).TryTimeout
	m.flying.add(flight{branch: c.Branch, op: op})
	m.out.Sync = m.out.Sync || op == Forward // what made it ready must not be lost
	m.out.Calls = append(m.out.Calls, c)
}

// wake is the earliest time at which something may be due. What is due already and was not done waits for an
// answer, not for the clock.
func (m *Machine) wake(now time.Time) time.Time {
	var w time.Time
	at := func(t time.Time) {
		if t.After(now) && (w.IsZero() || t.Before(w)) {
			w = t
		}
	}
	if m.s.Phase.Done() || !m.s.Begun {
		return w
	}
	if m.s.Phase == Open {
		at(m.s.Expires)
	}
	at(m.s.Due)
	for _, f := range m.flying.all {
		at(f.until)
	}
	if !m.waited {
		return w
	}
	if m.s.Phase == Open {
		at(m.s.Asked.Until)
	}
	at(m.s.Told.Until)
	for i := range m.s.Branches {
		for op := range m.s.Branches[i].Known {
			if o := &m.s.Branches[i].Known[op]; o.Outcome == None && !o.Halted {
				at(o.Until)
			}
		}
	}
	return w
}
