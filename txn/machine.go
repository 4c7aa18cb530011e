package txn

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Errors of Step. A refused event changes nothing.
var (
	ErrUnknown       = errors.New("txn: no such transaction")
	ErrDecided       = errors.New("txn: already decided")
	ErrConflict      = errors.New("txn: repeated with other content")
	ErrOrder         = errors.New("txn: these branches cannot be told apart or put in order")
	ErrNoBranch      = errors.New("txn: no such branch")
	ErrEngineDecides = errors.New("txn: the engine decides this mode by the answers of its branches")
	ErrNotWaiting    = errors.New("txn: that op is not waiting for an operator")
)

// Machine is one transaction. It is not safe for many goroutines.
type Machine struct {
	s      State
	flying flights
	landed []string // names of forward calls that were answered: their Enlist may still come twice
	want   *Decide  // a commit that waits for unanswered branches
	rooted bool     // begun by this process, so its root request may still be running
	waited bool     // an op has waited for its next try, so one may wait now
	before []set    // of graph
	out    Output
}

// Restore returns the machine that wrote these records. The next Step should be Wake.
func Restore(records []Record) *Machine {
	return &Machine{s: Fold(records), waited: slices.ContainsFunc(records, isDeferred)}
}

func isDeferred(r Record) bool {
	_, is := r.(Deferred)
	return is
}

// State returns a snapshot; what it points to is read only.
func (m *Machine) State() State { return m.s.clone() }

// Peek returns the state without copying its branches: it is read only, and gone with the next Step.
func (m *Machine) Peek() State { return m.s }

// Phase returns the phase without copying the state.
func (m *Machine) Phase() Phase { return m.s.Phase }

// Mode returns the mode without copying the state.
func (m *Machine) Mode() Mode { return m.s.Spec.Mode }

// Step takes one event. A refused event changes nothing.
func (m *Machine) Step(now time.Time, e Event) (Output, error) {
	m.out = Output{}
	if err := m.take(now, e); err != nil {
		return Output{}, err
	}
	m.advance(now)
	m.out.Wake = m.wake(now)
	return m.out, nil
}

// log makes a fact: into the fold and into the output at once, so that they cannot differ (L4).
func (m *Machine) log(r Record) {
	m.s.Apply(r)
	m.out.Records = append(m.out.Records, r)
	m.waited = m.waited || isDeferred(r)
	switch r := r.(type) {
	case Began, Enlisted, Left, Extended, Decided, Forced, Stopped:
		m.out.Sync = true
	case Settled:
		if b := m.s.Find(r.Branch); r.Op == Forward && b != nil && b.KeepAnswer {
			m.out.Sync = true
		}
	}
}

func (m *Machine) take(now time.Time, e Event) error {
	if b, ok := e.(Begin); ok {
		return m.begin(now, b)
	}
	if !m.s.Begun {
		return ErrUnknown
	}
	switch e := e.(type) {
	case Enlist:
		return m.enlist(now, e)
	case Leave:
		return m.leave(e)
	case Extend:
		return m.extend(now, e)
	case Decide:
		return m.decideOn(now, e)
	case Returned:
		m.returned(now, e)
	case Force:
		return m.force(e)
	case Hasten:
		if !m.s.Phase.Done() {
			m.hasten(now)
		}
	case Stop:
		return m.stop(e)
	case Wake:
	default:
		panic("txn: event of an unknown kind")
	}
	return nil
}

func (m *Machine) begin(now time.Time, e Begin) error {
	s := e.Spec
	s.Branches = slices.Clone(s.Branches)
	for i := range s.Branches {
		if s.Branches[i].ID == "" {
			s.Branches[i].ID = strconv.Itoa(i)
		}
	}
	if m.s.Begun {
		if !sameSpec(m.s.Spec, s) {
			return fmt.Errorf("transaction %s: %w", s.ID, ErrConflict)
		}
		return m.decideAtOnce(now, e.Decide)
	}
	if err := checkBegin(s, e); err != nil {
		return fmt.Errorf("transaction %s: %w", s.ID, err)
	}
	m.rooted = true
	m.log(Began{Spec: s, Expires: deadline(now.Add(-e.Age), s.Timeout)})
	for i := range s.Branches {
		if s.Plan.Answers {
			m.fly(now, &s.Branches[i], "")
		}
	}
	for _, k := range e.Known {
		m.log(k)
	}
	return m.decideAtOnce(now, e.Decide)
}

// decideAtOnce takes the decision that came with a Begin.
func (m *Machine) decideAtOnce(now time.Time, d *Decide) error {
	if d == nil {
		return nil
	}
	return m.decideOn(now, *d)
}

// checkBegin refuses a transaction that could not be run. What it accepts cannot fail half way.
func checkBegin(s Spec, e Begin) error {
	for _, k := range e.Known {
		if k.Op >= NumOps || !slices.ContainsFunc(s.Branches, func(b Branch) bool { return b.ID == k.Branch }) {
			return fmt.Errorf("%s of branch %s is known: %w", k.Op, k.Branch, ErrNoBranch)
		}
	}
	if e.Decide != nil && e.Decide.Commit && s.Plan.Drives {
		return ErrEngineDecides
	}
	return checkOrder(s.Branches)
}

func deadline(now time.Time, timeout time.Duration) time.Time {
	if timeout <= 0 {
		return time.Time{}
	}
	return now.Add(timeout)
}

func (m *Machine) enlist(now time.Time, e Enlist) error {
	if old := m.enlisted(e.Branch); old != nil {
		return m.enlistAgain(now, e, old)
	}
	if !m.mayEnlist(now) {
		return ErrDecided
	}
	b, err := m.place(e.Branch)
	if err != nil {
		return err
	}
	m.log(Enlisted{Branch: b})
	switch {
	case e.Answered == OK || e.Answered == Refused:
		m.log(Settled{Branch: b.ID, Op: Forward, Outcome: e.Answered, Result: e.Result})
	case e.Calling:
		m.fly(now, &b, e.Call)
	}
	return nil
}

// enlistAgain takes a repeat. It has an effect only where it brings the answer or makes the forward call anew.
func (m *Machine) enlistAgain(now time.Time, e Enlist, old *BranchState) error {
	known := &old.Known[Forward]
	brings := e.Answered == OK || e.Answered == Refused
	differs := brings && known.Outcome != None && (known.Outcome != e.Answered || !bytes.Equal(known.Result, e.Result))
	switch {
	case differs || !sameBranch(old.Branch, e.Branch):
		return fmt.Errorf("branch %s: %w", old.ID, ErrConflict)
	case brings && known.Outcome == None && !m.s.Phase.Done():
		m.log(Settled{Branch: old.ID, Op: Forward, Outcome: e.Answered, Result: e.Result})
		m.out.Sync = true
	case brings || !e.Calling:
		// equal to the first
	case !m.mayEnlist(now):
		return ErrDecided // its forward call must not leave any more
	case old.Left:
		return fmt.Errorf("branch %s has left: %w", old.ID, ErrConflict)
	case m.flies(old.ID, e.Call):
		// the same call, enlisted twice
	default:
		if known.Outcome != OK {
			m.log(Enlisted{Branch: old.Branch, Again: true}) // what the last call answered no longer holds, and this must not be lost
		}
		m.fly(now, &old.Branch, e.Call)
	}
	return nil
}

// enlisted returns the branch that b repeats, or nil.
func (m *Machine) enlisted(b Branch) *BranchState {
	if old := m.s.ByKey(b.Key); old != nil || b.ID == "" {
		return old
	}
	return m.s.Find(b.ID)
}

// Has reports whether an Enlist of b would be a repeat.
func (m *Machine) Has(b Branch) bool { return m.enlisted(b) != nil }

// Branches returns how many branches there are.
func (m *Machine) Branches() int { return len(m.s.Branches) }

func (m *Machine) mayEnlist(now time.Time) bool {
	return m.s.Phase == Open && (!m.expired(now) || m.asks())
}

// place gives a new branch its id and its order: it follows the branches that were answered before it.
func (m *Machine) place(b Branch) (Branch, error) {
	if b.ID == "" {
		for n := len(m.s.Branches); b.ID == "" || m.s.Find(b.ID) != nil; n++ {
			b.ID = strconv.Itoa(n)
		}
	}
	for _, id := range b.After {
		if m.s.Find(id) == nil {
			return b, fmt.Errorf("branch %s follows %s: %w", b.ID, id, ErrNoBranch)
		}
	}
	if b.Retry == m.s.Spec.Plan.Retry {
		b.Retry = Retry{} // that is what the plan is for, and every branch is journaled
	}
	named := b.After
	b.After = slices.Clone(named)
	if !m.s.Spec.Plan.Answers {
		return b, nil
	}
	for _, c := range m.s.Branches {
		if c.Known[Forward].Outcome != None && !slices.Contains(named, c.ID) {
			b.After = append(b.After, c.ID)
		}
	}
	return b, nil
}

// fly marks the forward call of b as running. Nothing is undone before it has landed.
func (m *Machine) fly(now time.Time, b *Branch, call string) {
	timeout := b.Timeout
	if timeout <= 0 {
		timeout = m.s.Spec.Plan.CallTimeout
	}
	m.flying.add(flight{b.ID, Forward, deadline(now, timeout), call})
}

// flies reports whether this very forward call is in flight, or was.
func (m *Machine) flies(id, call string) bool {
	return call != "" && (slices.Contains(m.landed, call) || slices.ContainsFunc(m.flying.all, func(f flight) bool {
		return f.branch == id && f.op == Forward && f.call == call
	}))
}

// land removes a call from the flying ones and reports whether there was one. A call without a name is the oldest: an
// application may have repeated it meanwhile.
func (m *Machine) land(id string, op Op, call string) bool {
	f, landed := m.flying.remove(id, op, call)
	if f.call != "" {
		m.landed = append(m.landed, f.call)
	}
	return landed
}

func (m *Machine) leave(e Leave) error {
	b := m.s.Find(e.Branch)
	switch {
	case b == nil:
		return fmt.Errorf("branch %s: %w", e.Branch, ErrNoBranch)
	case b.Left:
		return nil
	case m.s.Phase != Open:
		return ErrDecided
	}
	m.log(Left(e))
	return nil
}

func (m *Machine) extend(now time.Time, e Extend) error {
	if !m.mayEnlist(now) {
		return ErrDecided
	}
	if at := deadline(now, e.Timeout); !at.Equal(m.s.Expires) {
		m.log(Extended{at})
	}
	return nil
}

func (m *Machine) decideOn(now time.Time, e Decide) error {
	plan := m.s.Spec.Plan
	switch {
	case m.s.Phase != Open:
		if m.s.Commit != e.Commit {
			return ErrDecided
		}
	case !e.Commit:
		m.decide(now, e)
	case plan.Drives:
		return ErrEngineDecides
	case m.expired(now) && !m.asks():
		m.abort(now, "expired")
	case plan.Answers:
		m.want = &e
	default:
		m.decide(now, e)
	}
	return nil
}

// asks reports whether silence is answered by a question to the initiator. Who cannot be asked is not waited for.
func (m *Machine) asks() bool { return m.s.Spec.Plan.Silence == SilenceAsks && m.s.Spec.Ask != nil }

func (m *Machine) expired(now time.Time) bool {
	return !m.s.Expires.IsZero() && !now.Before(m.s.Expires)
}

// force is an operator's act: the only way past a halted op (L11).
func (m *Machine) force(e Force) error {
	if !m.s.Decided() || m.s.Phase.Done() || e.Op == Forward || e.Op >= NumOps || e.Act > ActSkip ||
		e.Branch == "" && e.Op != Tell {
		return ErrNotWaiting
	}
	if e.Branch != "" && m.s.Find(e.Branch) == nil {
		return fmt.Errorf("branch %s: %w", e.Branch, ErrNoBranch)
	}
	o := m.s.op(e.Branch, e.Op)
	if !o.Halted && (o.Outcome != None || o.Attempt == 0 || m.flying.has(e.Branch, e.Op)) {
		return fmt.Errorf("branch %s: %w", e.Branch, ErrNotWaiting)
	}
	m.log(Forced(e))
	return nil
}

// hasten makes every op due that waits for its next try.
func (m *Machine) hasten(now time.Time) {
	at := func(id string, op Op) {
		if o := m.s.op(id, op); o.Outcome == None && !o.Halted && now.Before(o.Until) {
			m.log(Deferred{Branch: id, Op: op, Attempt: o.Attempt, Failed: o.Failed, Since: o.Since, Until: now, Cause: o.Cause})
		}
	}
	at("", Ask)
	at("", Tell)
	for i := range m.s.Branches {
		for op := range NumOps {
			at(m.s.Branches[i].ID, op)
		}
	}
}

// stop ends the transaction as it stands. Calls in flight are not waited for: what they answer changes nothing.
func (m *Machine) stop(e Stop) error {
	if m.s.Phase.Done() {
		return ErrDecided
	}
	m.log(Stopped(e))
	m.log(Finished{Ceased})
	return nil
}

func sameSpec(a, b Spec) bool {
	return a.ID == b.ID && a.Mode == b.Mode && a.Door == b.Door && a.Name == b.Name && a.Key == b.Key && a.Print == b.Print &&
		a.Timeout == b.Timeout && bytes.Equal(a.Note, b.Note) && bytes.Equal(a.Ask, b.Ask) && bytes.Equal(a.Tell, b.Tell) &&
		slices.EqualFunc(a.Branches, b.Branches, func(x, y Branch) bool {
			return sameBranch(x, y) && slices.Equal(x.After, y.After)
		})
}

// sameBranch compares what the enlister says of its call. Where the barrier row lives and what came before it
// are settled by the first Enlist.
func sameBranch(old, b Branch) bool {
	if b.ID != "" && b.ID != old.ID || b.Key != old.Key || b.Print != old.Print || b.Name != old.Name ||
		!bytes.Equal(b.Note, old.Note) {
		return false
	}
	for op := range b.Ops {
		if !bytes.Equal(b.Ops[op], old.Ops[op]) || (b.Ops[op] == nil) != (old.Ops[op] == nil) {
			return false
		}
	}
	return true
}
