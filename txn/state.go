package txn

import (
	"slices"
	"time"
)

// OpState is what is durably known of one op.
type OpState struct {
	Outcome Outcome // final: OK, Refused or None
	Halted  bool    // waits for an operator
	Forced  bool    // an operator spoke
	Attempt int     // tries without a final answer
	Failed  int     // ... the last ones of them, without a "pending"
	Since   time.Time
	Until   time.Time // no try before
	Result  []byte
	Cause   string
}

// BranchState is a branch with what is durably known of its ops. The slices belong to the machine: read only.
type BranchState struct {
	Branch
	Known  [NumOps]OpState
	Left   bool
	Stands bool // fixed by the decision: kept, and committed if it has a commit op
	Undone bool // fixed by the decision: to be undone
	Doubt  bool // called again while an earlier call was unanswered: a refusal speaks of one of the calls only
}

// State is exactly the fold of the records (L4).
type State struct {
	Spec     Spec
	Begun    bool
	Phase    Phase
	Expires  time.Time // zero: never
	Commit   bool
	Reason   string
	Answer   []byte
	Due      time.Time // nothing is called before; zero: no limit
	Branches []*BranchState
	Asked    OpState // the initiator's word on the outcome
	Told     OpState // the listeners
}

// Fold returns the state that the records add up to.
func Fold(records []Record) State {
	var s State
	for _, r := range records {
		s.Apply(r)
	}
	return s
}

// Apply adds one record. It panics on a record that does not fit: a journal is written by a Machine only.
func (s *State) Apply(r Record) {
	switch r := r.(type) {
	case Began:
		s.Begun, s.Spec, s.Expires = true, r.Spec, r.Expires
		for _, b := range r.Spec.Branches {
			s.Branches = append(s.Branches, &BranchState{Branch: b})
		}
	case Enlisted:
		s.applyEnlisted(r)
	case Left:
		s.branch(r.Branch).Left = true
	case Extended:
		s.Expires = r.Expires
	case Decided:
		s.applyDecided(r)
	case Settled:
		o := s.op(r.Branch, r.Op)
		o.Outcome, o.Result, o.Cause = r.Outcome, r.Result, r.Cause
	case Deferred:
		o := s.op(r.Branch, r.Op)
		o.Attempt, o.Failed, o.Since, o.Until, o.Cause = r.Attempt, r.Failed, r.Since, r.Until, r.Cause
	case Halted:
		o := s.op(r.Branch, r.Op)
		o.Halted, o.Cause = true, r.Cause
		s.Phase = Stuck
	case Finished:
		s.Phase = r.Phase
	case Forced:
		s.applyForced(r)
	case Stopped:
		s.Reason = "stopped by " + r.By + ": " + r.Why
	default:
		panic("txn: record of an unknown kind")
	}
}

func (s *State) applyEnlisted(r Enlisted) {
	if !r.Again {
		s.Branches = append(s.Branches, &BranchState{Branch: r.Branch})
		return
	}
	b := s.branch(r.Branch.ID)
	f := &b.Known[Forward]
	b.Doubt = b.Doubt || f.Outcome == None
	*f = OpState{Attempt: f.Attempt, Failed: f.Failed, Since: f.Since, Cause: f.Cause}
}

func (s *State) applyDecided(r Decided) {
	s.Commit, s.Reason, s.Answer, s.Due = r.Commit, r.Reason, r.Answer, r.Due
	for _, id := range r.Stand {
		s.branch(id).Stands = true
	}
	for _, id := range r.Undo {
		s.branch(id).Undone = true
	}
	s.Phase = s.settling()
}

func (s *State) applyForced(r Forced) {
	o := s.op(r.Branch, r.Op)
	*o = OpState{Forced: true, Cause: o.Cause}
	if r.Act == ActSkip {
		o.Outcome = OK
	}
	if !s.anyHalted() {
		s.Phase = s.settling()
	}
}

func (s *State) settling() Phase {
	if s.Commit {
		return Committing
	}
	return Aborting
}

func (s *State) anyHalted() bool {
	for i := range s.Branches {
		for op := range s.Branches[i].Known {
			if s.Branches[i].Known[op].Halted {
				return true
			}
		}
	}
	return false
}

// Decided reports whether the outcome is fixed.
func (s *State) Decided() bool { return s.Begun && s.Phase != Open }

// Find returns the branch with this id, or nil.
func (s *State) Find(id string) *BranchState {
	for _, b := range slices.Backward(s.Branches) { // most often one of the last is looked for
		if b.ID == id {
			return b
		}
	}
	return nil
}

// ByKey returns the branch enlisted under this key, or nil.
func (s *State) ByKey(key string) *BranchState {
	if key == "" {
		return nil
	}
	for _, b := range slices.Backward(s.Branches) {
		if b.Key == key {
			return b
		}
	}
	return nil
}

// branch returns a branch that must exist.
func (s *State) branch(id string) *BranchState {
	b := s.Find(id)
	if b == nil {
		panic("txn: record names a branch that is not enlisted: " + id)
	}
	return b
}

// op returns the state of an op; the empty branch is the initiator (Ask) or the listeners (Tell).
func (s *State) op(id string, op Op) *OpState {
	switch {
	case id != "":
		return &s.branch(id).Known[op]
	case op == Ask:
		return &s.Asked
	default:
		return &s.Told
	}
}

// clone copies what a caller of Machine.State may keep while the machine goes on.
func (s *State) clone() State {
	c := *s
	if s.Branches == nil {
		return c
	}
	copies := make([]BranchState, len(s.Branches))
	c.Branches = make([]*BranchState, len(s.Branches))
	for i, b := range s.Branches {
		copies[i] = *b
		c.Branches[i] = &copies[i]
	}
	return c
}
