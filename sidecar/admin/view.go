package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"txmesh/interceptor"
	"txmesh/txn"
)

// detail is one transaction as operators see it. Requests and answers are not shown: they may hold anything. What the
// initiator of a workflow told is its own, and it needs it to go on.
type detail struct {
	ID       txn.ID       `json:"id"`
	Service  string       `json:"service,omitempty"` // beside this sidecar
	Mode     txn.Mode     `json:"mode"`
	Name     string       `json:"name,omitempty"`
	Phase    string       `json:"phase"`
	Reason   string       `json:"reason,omitempty"`
	Begun    time.Time    `json:"begun"`
	Expires  time.Time    `json:"expires,omitzero"`
	Finished time.Time    `json:"finished,omitzero"`
	Branches []branchView `json:"branches"`
	Asked    *opView      `json:"asked,omitempty"`
	Told     *opView      `json:"told,omitempty"`
	History  []event      `json:"history"`
}

type branchView struct {
	Branch  string   `json:"branch"`
	Name    string   `json:"name,omitempty"`
	Service string   `json:"service,omitempty"` // called, namespace/name or host
	Home    string   `json:"home,omitempty"`
	After   []string `json:"after,omitempty"`
	Fate    string   `json:"fate"` // open, stands, undone or left
	Ops     []opView `json:"ops"`

	Result json.RawMessage `json:"result,omitempty"` // of a workflow: what its initiator told
}

type opView struct {
	Op       string    `json:"op"`
	Outcome  string    `json:"outcome"`
	Attempts int       `json:"attempts,omitempty"` // without a final answer
	Since    time.Time `json:"since,omitzero"`     // of the first of them
	Next     time.Time `json:"next,omitzero"`
	Cause    string    `json:"cause,omitempty"`
	Halted   bool      `json:"halted,omitempty"` // waits for an operator
	Forced   bool      `json:"forced,omitempty"` // an operator acted
}

// event is one record, in words.
type event struct {
	At      time.Time `json:"at"`
	Event   string    `json:"event"`
	Branch  string    `json:"branch,omitempty"`
	Name    string    `json:"name,omitempty"`
	Op      string    `json:"op,omitempty"`
	Outcome string    `json:"outcome,omitempty"`
	Attempt int       `json:"attempt,omitempty"`
	Until   time.Time `json:"until,omitzero"`
	Stand   []string  `json:"stand,omitempty"`
	Undo    []string  `json:"undo,omitempty"`
	By      string    `json:"by,omitempty"`
	Cause   string    `json:"cause,omitempty"`
}

func (s *Server) show(w http.ResponseWriter, r *http.Request) {
	id := txn.ID(r.PathValue("id"))
	d := detail{ID: id, Service: s.opt.Service, Branches: []branchView{}}
	var st txn.State
	for e, err := range s.opt.Journal.History(r.Context(), id) {
		if err != nil {
			write(w, problem(codeJournal, err.Error(), id))
			return
		}
		st.Apply(e.Record)
		d.History = append(d.History, inWords(e.At.UTC(), e.Record))
		switch e.Record.(type) {
		case txn.Began:
			d.Begun = e.At.UTC()
		case txn.Finished:
			d.Finished = e.At.UTC()
		}
	}
	if !st.Begun {
		write(w, problem(codeNotFound, "", id))
		return
	}
	d.Mode, d.Name, d.Phase, d.Reason = st.Spec.Mode, st.Spec.Name, st.Phase.String(), st.Reason
	if !st.Expires.IsZero() {
		d.Expires = st.Expires.UTC()
	}
	for i := range st.Branches {
		v := viewBranch(st.Branches[i])
		if st.Spec.Door == DoorName {
			v.Result = st.Branches[i].Known[txn.Forward].Result
		}
		d.Branches = append(d.Branches, v)
	}
	d.Asked, d.Told = lone(txn.Ask, st.Asked), lone(txn.Tell, st.Told)
	reply(w, http.StatusOK, d)
}

func (s *Server) state(ctx context.Context, id txn.ID) (txn.State, error) {
	var st txn.State
	for e, err := range s.opt.Journal.History(ctx, id) {
		if err != nil {
			return st, err
		}
		st.Apply(e.Record)
	}
	if !st.Begun {
		return st, txn.ErrUnknown
	}
	return st, nil
}

func viewBranch(b *txn.BranchState) branchView {
	v := branchView{Branch: b.ID, Name: b.Name, Home: b.Home, After: b.After, Fate: "open", Ops: []opView{}}
	// A note of another door, or none, names no service.
	if note, err := interceptor.DecodeNote(b.Note); err == nil {
		v.Service = cmp.Or(note.Service, note.Host)
	}
	for op := range b.Ops {
		if v.Service == "" && len(b.Note) == 0 {
			v.Service = host(b.Ops[op])
		}
	}
	switch {
	case b.Left:
		v.Fate = "left"
	case b.Stands:
		v.Fate = "stands"
	case b.Undone:
		v.Fate = "undone"
	}
	for op := range b.Known {
		if o := b.Known[op]; txn.Op(op) == txn.Forward || b.Ops[op] != nil || o.Outcome != txn.None || o.Attempt > 0 || o.Halted {
			v.Ops = append(v.Ops, viewOp(txn.Op(op), o))
		}
	}
	return v
}

func viewOp(op txn.Op, o txn.OpState) opView {
	return opView{Op: op.String(), Outcome: o.Outcome.String(), Attempts: o.Attempt, Since: o.Since, Next: o.Until,
		Cause: o.Cause, Halted: o.Halted, Forced: o.Forced}
}

func lone(op txn.Op, o txn.OpState) *opView {
	if o.Outcome == txn.None && o.Attempt == 0 && !o.Halted {
		return nil
	}
	v := viewOp(op, o)
	return &v
}

func inWords(at time.Time, r txn.Record) event {
	switch r := r.(type) {
	case txn.Began:
		return event{At: at, Event: "began", Name: r.Spec.Name, Until: r.Expires}
	case txn.Enlisted:
		return event{At: at, Event: "enlisted", Branch: r.Branch.ID, Name: r.Branch.Name}
	case txn.Left:
		return event{At: at, Event: "left", Branch: r.Branch}
	case txn.Extended:
		return event{At: at, Event: "extended", Until: r.Expires}
	case txn.Decided:
		word := "aborted"
		if r.Commit {
			word = "committed"
		}
		return event{At: at, Event: "decided", Outcome: word, Stand: r.Stand, Undo: r.Undo, Cause: r.Reason}
	case txn.Settled:
		return event{At: at, Event: "answered", Branch: r.Branch, Op: r.Op.String(), Outcome: r.Outcome.String(), Cause: r.Cause}
	case txn.Deferred:
		return event{At: at, Event: "deferred", Branch: r.Branch, Op: r.Op.String(), Outcome: r.Outcome.String(),
			Attempt: r.Attempt, Until: r.Until, Cause: r.Cause}
	case txn.Halted:
		return event{At: at, Event: "halted", Branch: r.Branch, Op: r.Op.String(), Cause: r.Cause}
	case txn.Finished:
		return event{At: at, Event: "finished", Outcome: r.Phase.String()}
	case txn.Forced:
		return event{At: at, Event: "forced", Branch: r.Branch, Op: r.Op.String(), Outcome: r.Act.String(), By: r.By, Cause: r.Why}
	case txn.Stopped:
		return event{At: at, Event: "stopped", By: r.By, Cause: r.Why}
	default:
		panic("admin: record of an unknown kind")
	}
}
