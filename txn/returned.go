package txn

import "time"

// returned takes the answer of a call. Late and repeated answers change nothing that is settled; a final one
// counts whoever made the call, one that is not final counts only for a call that is flying.
func (m *Machine) returned(now time.Time, e Returned) {
	landed := m.land(e.Branch, e.Op, e.Call)
	if m.s.Phase.Done() || !m.awaits(e.Branch, e.Op) {
		return
	}
	switch {
	case e.Op == Ask && e.Branch != "":
		m.askReturned(now, e, landed)
	case e.Outcome == Refused && !landed && e.Call != "" && m.flying.has(e.Branch, e.Op):
		// an earlier call's answer, late or repeated: it says nothing about the one that is flying
	case m.isFinal(e):
		m.log(Settled{e.Branch, e.Op, e.Outcome, e.Result, e.Cause})
	case e.Outcome == Refused && m.s.Spec.Plan.Refusal == RefusalHalts && (e.Op == Commit || e.Op == Undo):
		m.log(Halted{e.Branch, e.Op, e.Cause})
	case landed:
		m.again(now, e)
	}
}

// awaits reports whether an answer of this op can mean anything: it is neither settled nor halted, and the
// transaction has come to it.
func (m *Machine) awaits(id string, op Op) bool {
	b := m.s.Find(id)
	switch {
	case op >= NumOps || id != "" && b == nil:
		return false
	case id == "" && op == Ask:
		return m.asks() && m.s.Phase == Open && m.s.Asked.Outcome == None
	case id == "" && op == Tell:
		return m.s.Spec.Tell != nil && m.s.Decided() && m.s.Told.Outcome == None
	case id == "" || b.Known[op].Outcome != None || b.Known[op].Halted:
		return false
	}
	switch op {
	case Forward:
		return true
	case Commit, Undo:
		return m.waiting(b, op)
	case Ask:
		return m.unanswered(b)
	case Tell:
		return m.s.Decided() && b.Ops[Tell] != nil
	default:
		panic("txn: answer of an unknown op")
	}
}

// isFinal reports whether the answer settles an awaited op for good.
func (m *Machine) isFinal(e Returned) bool {
	refused := e.Outcome == Refused
	switch e.Op {
	case Forward:
		if b := m.s.branch(e.Branch); b.Doubt && b.Home == "" {
			refused = false // the other call may have taken effect; only a barrier's home speaks for all of them
		}
	case Ask:
	case Commit, Undo:
		refused = refused && m.s.Spec.Plan.Refusal == RefusalEnds
	case Tell:
		refused = refused && m.s.Spec.Plan.Refusal != RefusalRetries
	default:
		panic("txn: answer of an unknown op")
	}
	return e.Outcome == OK || refused
}

// askReturned settles the forward call by what a query or the barrier's home knows of it.
func (m *Machine) askReturned(now time.Time, e Returned, landed bool) {
	b := m.s.branch(e.Branch)
	refused := e.Outcome == Refused && (b.Home != "" || !m.flying.has(b.ID, Forward)) // called again meanwhile: too early to say
	switch {
	case e.Outcome == OK || refused:
		m.log(Settled{Branch: e.Branch, Op: Forward, Outcome: e.Outcome, Result: e.Result, Cause: e.Cause})
	case e.Outcome == None && m.s.Decided():
		m.log(Halted{e.Branch, Ask, e.Cause})
	case e.Outcome == None && m.want != nil:
		m.abort(now, "nobody knows what branch "+e.Branch+" did")
	case landed:
		m.again(now, e)
	}
}

// again notes a try without a final answer: another one later, or an operator's turn.
func (m *Machine) again(now time.Time, e Returned) {
	o, r := m.s.op(e.Branch, e.Op), m.retry(m.s.Find(e.Branch))
	n, since := o.Attempt+1, o.Since
	if since.IsZero() {
		since = now
	}
	limit := m.s.Spec.Plan.SettleLimit
	spent := limit > 0 && n >= limit || r.StuckAfter > 0 && now.Sub(since) >= r.StuckAfter
	if spent && m.s.Decided() && e.Op != Forward && e.Op != Tell {
		m.log(Halted{e.Branch, e.Op, e.Cause})
		return
	}
	failed := 0
	if e.Outcome != Pending {
		failed = o.Failed + 1
	}
	until := now.Add(r.after(failed))
	if e.Op == Forward && !m.s.Spec.Plan.Drives {
		until = now // nobody here tries again
	}
	m.log(Deferred{Branch: e.Branch, Op: e.Op, Attempt: n, Since: since, Until: until, Outcome: e.Outcome, Cause: e.Cause, Failed: failed})
}

// retry returns the times between tries; of the initiator and the listeners where there is no branch.
func (m *Machine) retry(b *BranchState) Retry {
	r, p := Retry{}, m.s.Spec.Plan.Retry
	if b != nil {
		r = b.Retry
	}
	if r.Delay <= 0 {
		r.Delay = p.Delay
	}
	if r.DelayMax <= 0 {
		r.DelayMax = p.DelayMax
	}
	if r.StuckAfter <= 0 {
		r.StuckAfter = p.StuckAfter
	}
	if r.TryTimeout <= 0 {
		r.TryTimeout = p.TryTimeout
	}
	return r
}

// after is the pause after so many failed tries in a row. Who says "pending" is well and asked to be asked again: that
// is no failure, and nothing doubles.
func (r Retry) after(failed int) time.Duration {
	d := max(r.Delay, time.Millisecond)
	top := max(r.DelayMax, d)
	for ; failed > 1 && d < top; failed-- {
		d *= 2
	}
	return min(d, top)
}
