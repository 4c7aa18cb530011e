// Package txn decides what a distributed transaction must do next. A transaction is a value: Step takes one
// event and answers with the records to make durable, the calls to make after that, and the time to be woken.
// It performs no I/O, starts no goroutine, reads no clock and never looks inside a target or an answer: those
// bytes belong to the door that made them. Start at Machine.Step; the modes are one table in modes.go; whole
// transactions can be read in testdata.
package txn

import "time"

// ID names one transaction. Native ids are `<owner>.<ulid>`; doors may bring their own.
type ID string

// Op is what can be asked of a branch. Ask is also put to the initiator, and Tell to listeners; those two are
// addressed by an empty branch id.
type Op uint8

// The ops, in the vocabulary of the design: forward is the work itself, commit and undo settle it, ask finds
// out what an unanswered call did, tell reports the end.
const (
	Forward Op = iota
	Commit
	Undo
	Ask
	Tell
	NumOps
)

// Outcome is what a call answered. A time-out is Unknown, never Refused.
type Outcome uint8

// The outcomes. None means that no answer has been recorded.
const (
	None Outcome = iota
	OK
	Refused
	Pending
	Unknown
)

// Phase is where a transaction stands. Stuck means that a settling op needs an operator; every other branch
// still goes on.
type Phase uint8

// The phases: Open leads to Committing or Aborting, those to Committed or Aborted, by way of Stuck or not. An operator's
// Stop ends any of them in Ceased: what was not done by then is never done.
const (
	Open Phase = iota
	Committing
	Aborting
	Stuck
	Committed
	Aborted
	Ceased
)

// Done reports whether the transaction has ended: nothing will be called any more.
func (p Phase) Done() bool { return p >= Committed }

// Resolve says what to do about a forward call whose outcome is not known when it must be undone.
type Resolve uint8

// ResolveUndo sends the undo: a barrier makes it harmless. ResolveAsk asks first. ResolveStop is for operators.
const (
	ResolveUndo Resolve = iota
	ResolveAsk
	ResolveStop
)

// Retry paces the repeats of an op. Zero fields take the plan's values.
type Retry struct {
	Delay      time.Duration `cbor:"1,keyasint,omitempty"` // before the first repeat; doubles from there
	DelayMax   time.Duration `cbor:"2,keyasint,omitempty"`
	StuckAfter time.Duration `cbor:"3,keyasint,omitempty"` // since the first failure of the op; 0: never
	TryTimeout time.Duration `cbor:"4,keyasint,omitempty"` // of one try; 0: what the engine gives
}

// Branch is one participant's share of a transaction, with the ops that can be asked of it.
type Branch struct {
	ID    string         `cbor:"1,keyasint,omitempty"` // empty in Enlist: the machine counts "0", "1", ...
	Key   string         `cbor:"2,keyasint,omitempty"` // makes Enlist repeatable; empty: ID does
	After []string       `cbor:"3,keyasint,omitempty"` // branches undone only after this one
	Ops   [NumOps][]byte `cbor:"4,keyasint"`           // opaque targets; nil: nothing to do
	Home  string         `cbor:"5,keyasint,omitempty"` // who keeps the barrier row; empty: nobody
	Print string         `cbor:"6,keyasint,omitempty"` // fingerprint of the request, compared on a repeat

	Timeout    time.Duration `cbor:"7,keyasint,omitempty"`  // an intercepted forward flies at most so long; 0: plan's
	Unanswered Resolve       `cbor:"8,keyasint,omitempty"`  // when the forward's outcome is not known
	KeepAnswer bool          `cbor:"9,keyasint,omitempty"`  // a later op reads the answer: durable before the caller sees it (L13)
	InOrder    bool          `cbor:"10,keyasint,omitempty"` // commit waits for the InOrder branches before it (held calls)
	Retry      Retry         `cbor:"11,keyasint,omitempty"`
	Join       []string      `cbor:"12,keyasint,omitempty"` // keys by which calls find this branch again
	Name       string        `cbor:"13,keyasint,omitempty"` // for people: the rule or step that made it
	Note       []byte        `cbor:"14,keyasint,omitempty"` // the door's own, opaque, shared by the ops
}

// Spec is what a transaction is begun with.
type Spec struct {
	ID       ID            `cbor:"1,keyasint"`
	Mode     Mode          `cbor:"2,keyasint"`
	Plan     Plan          `cbor:"3,keyasint"` // journaled, so that a later release ends it as it began
	Branches []Branch      `cbor:"4,keyasint,omitempty"`
	Ask      []byte        `cbor:"5,keyasint,omitempty"`  // opaque target: what did the initiator decide?
	Tell     []byte        `cbor:"6,keyasint,omitempty"`  // opaque target: who hears of the end
	Timeout  time.Duration `cbor:"7,keyasint,omitempty"`  // from Begin to the decision; 0: no limit
	Key      string        `cbor:"8,keyasint,omitempty"`  // a repeated root request finds its transaction by it
	Print    string        `cbor:"9,keyasint,omitempty"`  // fingerprint of the root request
	Note     []byte        `cbor:"10,keyasint,omitempty"` // the door's own, opaque
	Join     []string      `cbor:"11,keyasint,omitempty"` // keys by which calls find this transaction
	Name     string        `cbor:"12,keyasint,omitempty"` // for people: the policy or kind
	Door     string        `cbor:"13,keyasint,omitempty"` // who wrote targets and notes, and reads the answers of calls
}

// Event is what can happen to a transaction.
type Event interface{ event() }

// The events. A repeat equal to the first is accepted without effect; one that differs is ErrConflict (L12).
type (
	// Begin opens the transaction. Of one that is taken over from elsewhere, Known is what is done already, and Age is
	// how long ago it began: so much of its time is over. Decide, where it is not nil, is taken in the same step.
	Begin struct {
		Spec   Spec
		Known  []Settled
		Age    time.Duration
		Decide *Decide
	}

	// Enlist adds a branch. Calling says that the enlister makes the forward call itself, now: it is in flight
	// until Returned, the branch's Timeout or a restart. Answered records a forward that is already done, such
	// as a held call or a client-driven one; a repeat may bring it later. The machine keeps the slices.
	Enlist struct {
		Branch   Branch
		Calling  bool
		Answered Outcome // None or OK
		Result   []byte
		Call     string // tells this forward call from others of the same branch; Returned names it again
	}

	// Leave takes a branch out: it is neither committed nor undone.
	Leave struct{ Branch string }

	// Extend sets the time to the decision anew, counted from now; 0 lifts the limit.
	Extend struct{ Timeout time.Duration }

	// Decide commits or aborts. A commit waits for unanswered branches where the plan says so. Answer is what
	// the initiator is told if it asks again. Delay, counted from the decision, holds back what it brings about.
	Decide struct {
		Commit bool
		Reason string
		Answer []byte
		Delay  time.Duration
	}

	// Returned is the answer of one call. Result is kept if a later op needs it; Cause is for people. Outcome None
	// of an Ask says that nobody will ever know.
	Returned struct {
		Branch  string
		Op      Op
		Outcome Outcome
		Result  []byte
		Cause   string
		Call    string // of the Enlist that it answers; empty: the oldest call of the branch
	}

	// Wake says that the time of Output.Wake has come, or that the machine was restored.
	Wake struct{}

	// Force is an operator's act on one op of a decided transaction.
	Force struct {
		Branch  string
		Op      Op
		Act     Act
		By, Why string
	}

	// Hasten makes due now what waits for its next try. What is halted stays so.
	Hasten struct{}

	// Stop is an operator's act on the whole: it ends as it stands, nothing is called any more.
	Stop struct{ By, Why string }
)

// Act is what an operator can do to a stuck or waiting op.
type Act uint8

// ActRetry tries again now, with a new budget. ActSkip counts the op as done on the operator's word.
const (
	ActRetry Act = iota
	ActSkip
)

func (Begin) event()    {}
func (Enlist) event()   {}
func (Leave) event()    {}
func (Extend) event()   {}
func (Decide) event()   {}
func (Returned) event() {}
func (Wake) event()     {}
func (Force) event()    {}
func (Hasten) event()   {}
func (Stop) event()     {}

// Record is one durable fact. State is the fold of the records, nothing more (L4).
type Record interface{ record() }

// The records. Numbers in the tags are for ever: a field may be added under a new number, never renumbered.
type (
	// Began opens the fold; Expires is absolute.
	Began struct {
		Spec    Spec      `cbor:"1,keyasint"`
		Expires time.Time `cbor:"2,keyasint,omitempty"`
	}
	// Enlisted adds a branch with its id and order settled. For a branch that is there it says that its forward
	// call, refused or not answered so far, leaves once more: it is unanswered again.
	Enlisted struct {
		Branch Branch `cbor:"1,keyasint"`
		Again  bool   `cbor:"2,keyasint,omitempty"` // the branch was there
	}
	// Left takes a branch out.
	Left struct {
		Branch string `cbor:"1,keyasint"`
	}
	// Extended moves the deadline.
	Extended struct {
		Expires time.Time `cbor:"1,keyasint,omitempty"`
	}
	// Decided fixes the outcome and, once and for all, which branches stand and which are undone (L3, L5).
	Decided struct {
		Commit bool     `cbor:"1,keyasint"`
		Reason string   `cbor:"2,keyasint,omitempty"`
		Stand  []string `cbor:"3,keyasint,omitempty"`
		Undo   []string `cbor:"4,keyasint,omitempty"`
		Answer []byte   `cbor:"5,keyasint,omitempty"`

		Due time.Time `cbor:"6,keyasint,omitzero"` // nothing is called before
	}
	// Settled is the final answer of one op.
	Settled struct {
		Branch  string  `cbor:"1,keyasint"`
		Op      Op      `cbor:"2,keyasint"`
		Outcome Outcome `cbor:"3,keyasint"`
		Result  []byte  `cbor:"4,keyasint,omitempty"`
		Cause   string  `cbor:"5,keyasint,omitempty"`
	}
	// Deferred is a try without a final answer; the next one is due at Until.
	Deferred struct {
		Branch  string    `cbor:"1,keyasint"`
		Op      Op        `cbor:"2,keyasint"`
		Attempt int       `cbor:"3,keyasint"`
		Since   time.Time `cbor:"4,keyasint"` // of the first failure
		Until   time.Time `cbor:"5,keyasint"`
		Outcome Outcome   `cbor:"6,keyasint"`
		Cause   string    `cbor:"7,keyasint,omitempty"`
		Failed  int       `cbor:"8,keyasint,omitempty"` // tries in a row that were no "pending", this one included
	}
	// Halted says that an op is stuck until an operator acts (L11).
	Halted struct {
		Branch string `cbor:"1,keyasint"`
		Op     Op     `cbor:"2,keyasint"`
		Cause  string `cbor:"3,keyasint"`
	}
	// Finished ends the transaction in Committed, Aborted or Ceased.
	Finished struct {
		Phase Phase `cbor:"1,keyasint"`
	}
	// Forced is the trace of an operator's act.
	Forced struct {
		Branch string `cbor:"1,keyasint"`
		Op     Op     `cbor:"2,keyasint"`
		Act    Act    `cbor:"3,keyasint"`
		By     string `cbor:"4,keyasint,omitempty"`
		Why    string `cbor:"5,keyasint,omitempty"`
	}
	// Stopped is the trace of an operator's Stop. Finished follows it.
	Stopped struct {
		By  string `cbor:"1,keyasint,omitempty"`
		Why string `cbor:"2,keyasint,omitempty"`
	}
)

func (Began) record()    {}
func (Enlisted) record() {}
func (Left) record()     {}
func (Extended) record() {}
func (Decided) record()  {}
func (Settled) record()  {}
func (Deferred) record() {}
func (Halted) record()   {}
func (Finished) record() {}
func (Forced) record()   {}
func (Stopped) record()  {}

// Call is one call to make. Target is the branch's target for the op, Answer and Outcome are what its forward
// call answered, as far as recorded.
type Call struct {
	Tx      ID
	Mode    Mode
	Door    string // Spec.Door
	Branch  string // empty: the initiator (Ask) or the listeners (Tell)
	Op      Op
	Target  []byte
	Note    []byte // Branch.Note
	TxNote  []byte // Spec.Note
	Home    string
	Answer  []byte
	Outcome Outcome
	Commit  bool      // how the transaction was decided; meaningful once it is
	Attempt int       // from 1
	Since   time.Time // of the first try that failed; zero before that
	Timeout time.Duration
}

// Output is the reaction to one event: append Records durably, then make Calls, then come back at Wake.
type Output struct {
	Records []Record
	Sync    bool // the records, and all before them, must survive a power cut before anything is done or answered
	Calls   []Call
	Wake    time.Time // zero: never
}
