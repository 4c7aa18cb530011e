package txn

import "time"

// returned takes the answer of a call. Late and repeated answers change nothing that is settled.
func (m *Machine) returned(now time.Time, e Returned) {
	landed := m.land(e.Branch, e.Op)
	if m.s.Phase.Done() || e.Op >= NumOps || e.Branch != "" && m.s.Find(e.Branch) == nil ||
		e.Branch == "" && e.Op != Ask && e.Op != Tell {
		return
	}
	o := m.s.op(e.Branch, e.Op)
	if o.Outcome != None || o.Halted {
		return
	}
	switch {
	case e.Op == Ask && e.Branch != "":
		m.askReturned(now, e, landed)
	case m.isFinal(e):
		m.log(Settled(e))
	case e.Outcome == Refused && m.s.Spec.Plan.Refusal == RefusalHalts && (e.Op == Commit || e.Op == Undo):
		m.log(Halted{e.Branch, e.Op, e.Cause})
	case landed:
		m.again(now, e)
	}
}

// isFinal reports whether the answer settles the op for good. Only a decided transaction has settling ops.
func (m *Machine) isFinal(e Returned) bool {
	switch e.Op {
	case Forward:
		return e.Outcome == OK || e.Outcome == Refused
	case Ask:
		return m.s.Phase == Open && (e.Outcome == OK || e.Outcome == Refused)
	case Commit, Undo:
		return m.s.Decided() && (e.Outcome == OK || e.Outcome == Refused && m.s.Spec.Plan.Refusal == RefusalEnds)
	case Tell:
		return m.s.Decided() && e.Outcome == OK
	default:
		panic("txn: answer of an unknown op")
	}
}

// askReturned settles the forward call by what a query or the barrier's home knows of it.
func (m *Machine) askReturned(now time.Time, e Returned, landed bool) {
	if m.s.branch(e.Branch).Known[Forward].Outcome != None {
		return
	}
	switch {
	case e.Outcome == OK || e.Outcome == Refused:
		m.land(e.Branch, Forward)
		m.log(Settled{Branch: e.Branch, Op: Forward, Outcome: e.Outcome, Result: e.Result, Cause: e.Cause})
	case e.Outcome == None && m.s.Decided():
		m.log(Halted{e.Branch, Ask, e.Cause})
	case landed:
		m.again(now, e)
	}
}

// again notes a try without a final answer: another one later, or an operator's turn.
func (m *Machine) again(now time.Time, e Returned) {
	o, r := m.s.op(e.Branch, e.Op), m.retry(e.Branch)
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
	m.log(Deferred{Branch: e.Branch, Op: e.Op, Attempt: n, Since: since, Until: now.Add(r.after(n, e.Outcome)),
		Outcome: e.Outcome, Cause: e.Cause})
}

func (m *Machine) retry(id string) Retry {
	r, p := Retry{}, m.s.Spec.Plan.Retry
	if b := m.s.Find(id); b != nil {
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
	return r
}

// after is the pause before try n+1. Who says "pending" is well and asked to be asked again: no doubling.
func (r Retry) after(n int, o Outcome) time.Duration {
	d := max(r.Delay, time.Millisecond)
	if o == Pending {
		return d
	}
	top := max(r.DelayMax, d)
	for ; n > 1 && d < top; n-- {
		d *= 2
	}
	return min(d, top)
}
