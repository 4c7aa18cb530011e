package txn

import "time"

// Mode names a row of the table of modes.
type Mode string

// The modes.
const (
	Saga        Mode = "saga"        // the engine makes the forward calls, one after another
	SagaGraph   Mode = "saga-graph"  // ... as soon as those before them are done
	TCC         Mode = "tcc"         // the initiator tries, the engine confirms or cancels
	XA          Mode = "xa"          // the same shape: forward prepares in the database
	Msg         Mode = "msg"         // the initiator's local commit, then calls that must succeed
	Workflow    Mode = "workflow"    // the initiator drives and keeps its results; silence resumes it
	LRA         Mode = "lra"         // complete or compensate, failures are reported, not retried for ever
	Intercepted Mode = "intercepted" // calls seen by the proxy; the root's answer decides
	Explicit    Mode = "explicit"    // calls seen by the proxy; the API decides
)

// Silence says what a transaction does when its time is up without a decision.
type Silence uint8

// SilenceAborts is the rule; SilenceAsks puts the question to the initiator.
const (
	SilenceAborts Silence = iota
	SilenceAsks
)

// Refusal says what a refused commit or undo means.
type Refusal uint8

// RefusalHalts stops for an operator at once, RefusalRetries tries again, RefusalEnds is a final, reported failure.
const (
	RefusalHalts Refusal = iota
	RefusalRetries
	RefusalEnds
)

// Plan is the parameters of a mode: who drives, in what order, what silence means, how to retry.
type Plan struct {
	Drives       bool    `cbor:"1,keyasint,omitempty"` // the engine makes the forward calls
	Chain        bool    `cbor:"2,keyasint,omitempty"` // branches run one after another
	Silence      Silence `cbor:"3,keyasint,omitempty"`
	Refusal      Refusal `cbor:"4,keyasint,omitempty"`
	UndoRefused  bool    `cbor:"5,keyasint,omitempty"` // a refused forward is undone too
	Answers      bool    `cbor:"6,keyasint,omitempty"` // a commit waits until every forward is answered
	Rooted       bool    `cbor:"7,keyasint,omitempty"` // the beginner's process decides: a restart aborts
	ForwardLimit int     `cbor:"8,keyasint,omitempty"` // forward tries before the abort; 0: no limit
	SettleLimit  int     `cbor:"9,keyasint,omitempty"` // commit, undo and ask tries before an op halts; 0: no limit

	Retry       Retry         `cbor:"10,keyasint,omitempty"` // where the branch says nothing
	CallTimeout time.Duration `cbor:"11,keyasint,omitempty"` // of an intercepted forward

	Backward bool `cbor:"12,keyasint,omitempty"` // commits run from the last branch to the first, one after another
}

// Plan returns the mode's row of the table: each mode is data, not a file of code. A mode that is not in the table has
// the zero plan.
func (m Mode) Plan() Plan {
	retry := Retry{Delay: time.Second, DelayMax: time.Minute}
	seen := Retry{Delay: 200 * time.Millisecond, DelayMax: 30 * time.Second, StuckAfter: time.Hour}
	switch m {
	case Saga:
		return Plan{Drives: true, Chain: true, Refusal: RefusalRetries, UndoRefused: true, Retry: retry}
	case SagaGraph:
		return Plan{Drives: true, Refusal: RefusalRetries, UndoRefused: true, Retry: retry}
	case TCC:
		return Plan{Refusal: RefusalRetries, UndoRefused: true, Retry: retry}
	case XA:
		return Plan{Refusal: RefusalRetries, UndoRefused: true, Retry: retry}
	case Msg:
		return Plan{Chain: true, Silence: SilenceAsks, Refusal: RefusalRetries, Retry: retry}
	case Workflow:
		return Plan{Silence: SilenceAsks, Refusal: RefusalRetries, UndoRefused: true, Retry: retry}
	case LRA:
		return Plan{Refusal: RefusalEnds, UndoRefused: true, Retry: retry}
	case Intercepted:
		return Plan{Answers: true, Rooted: true, Retry: seen, CallTimeout: 30 * time.Second}
	case Explicit:
		return Plan{Answers: true, Retry: seen, CallTimeout: 30 * time.Second}
	default:
		return Plan{}
	}
}

// Modes returns all modes with their plans.
func Modes() map[Mode]Plan {
	table := map[Mode]Plan{}
	for _, m := range []Mode{Saga, SagaGraph, TCC, XA, Msg, Workflow, LRA, Intercepted, Explicit} {
		table[m] = m.Plan()
	}
	return table
}
