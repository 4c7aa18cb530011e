// Package barrier holds the rule at a participant that makes repeats, late calls and empty undos harmless. It is
// one total table from what is known of a branch and what is asked of it to what must be done; it stores nothing
// and calls nobody. Start at Judge. The row of a branch lives at its home, which alone may ask this table.
package barrier

import "txmesh/txn"

// State is what the home knows of one branch.
type State uint8

// The states. Running and Crashed are the same durable row: the process that wrote it runs the call, or is gone.
const (
	Nothing State = iota // no row
	Running              // the forward call was started by this process and is not answered
	Crashed              // it was started, and its end was not seen: outcome unknown
	Done                 // it was answered ok, the answer is recorded
	Refused              // it was answered refused: nothing took effect
	Undone               // it was undone, or must never run any more
	NumStates
)

// Verdict is what the home must do.
type Verdict uint8

// The verdicts.
const (
	Run     Verdict = iota // pass the call to the application; record the end before it is answered
	Replay                 // answer what is recorded, without the application
	Empty                  // record Undone, succeed without the application: there is nothing to undo
	Absent                 // record Undone, say that the call never took effect and never will
	Refuse                 // say no, without the application: it came too late
	Early                  // say pending: a call for this branch is still running
	Resolve                // find out first: query, else the application's own key, else unknown
)

// Judge is the table. late says that the transaction's deadline has passed, which only new forward calls mind.
func Judge(s State, op txn.Op, late bool) Verdict {
	switch op {
	case txn.Forward:
		return judgeForward(s, late)
	case txn.Undo:
		return judgeUndo(s)
	case txn.Commit:
		return judgeCommit(s)
	case txn.Ask:
		return judgeAsk(s)
	default:
		panic("barrier: " + op.String() + " is not asked of a participant")
	}
}

func judgeForward(s State, late bool) Verdict {
	switch s {
	case Nothing:
		if late {
			return Refuse
		}
		return Run
	case Running:
		return Early
	case Crashed:
		return Resolve
	case Done, Refused:
		return Replay
	case Undone:
		return Refuse
	default:
		panic("barrier: unknown state")
	}
}

func judgeUndo(s State) Verdict {
	switch s {
	case Nothing, Refused:
		return Empty
	case Running:
		return Early
	case Crashed:
		return Resolve
	case Done:
		return Run
	case Undone:
		return Replay
	default:
		panic("barrier: unknown state")
	}
}

func judgeCommit(s State) Verdict {
	switch s {
	case Nothing, Refused, Undone:
		return Refuse // a commit for what does not stand: somebody must look at it
	case Running:
		return Early
	case Crashed:
		return Resolve
	case Done:
		return Run
	default:
		panic("barrier: unknown state")
	}
}

func judgeAsk(s State) Verdict {
	switch s {
	case Nothing:
		return Absent
	case Running:
		return Early
	case Crashed:
		return Resolve
	case Done, Refused, Undone:
		return Replay
	default:
		panic("barrier: unknown state")
	}
}

// String returns the state's word in histories and logs.
func (s State) String() string {
	return [...]string{"nothing", "running", "crashed", "done", "refused", "undone"}[s]
}

// String returns the verdict's word in histories and logs.
func (v Verdict) String() string {
	return [...]string{"run", "replay", "empty", "absent", "refuse", "early", "resolve"}[v]
}
