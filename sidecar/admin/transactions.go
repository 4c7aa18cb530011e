package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"txmesh/interceptor"
	"txmesh/sidecar/engine"
	"txmesh/txlog"
	"txmesh/txn"
)

type decided struct {
	ID      txn.ID    `json:"id"`
	Status  string    `json:"status"`
	Reason  string    `json:"reason,omitempty"`
	Expires time.Time `json:"expires,omitzero"`  // of one that is open
	Waiting []waiting `json:"waiting,omitempty"` // for the answers of these branches
}

type waiting struct {
	Branch string `json:"branch"`
	Name   string `json:"name"`
	Cause  string `json:"cause,omitempty"` // of the last try to find out
}

func (s *Server) commit(w http.ResponseWriter, r *http.Request) {
	id := txn.ID(r.PathValue("id"))
	var st txn.State // without branches
	if !s.opt.Engine.Peek(id, func(now txn.State) { st = outline(now) }) {
		st, _ = s.state(r.Context(), id) // decide tells what is wrong
	}
	if st.Begun && !driven(st.Spec) && !st.Decided() {
		write(w, problem(codeRooted, "mode "+string(st.Spec.Mode), id))
		return
	}
	s.decide(w, r, id, true)
}

func (s *Server) abort(w http.ResponseWriter, r *http.Request) {
	s.decide(w, r, txn.ID(r.PathValue("id")), false)
}

// decide answers when the decision is durable. A commit that unanswered branches hold up answers 202 after a while:
// it is carried out once they are answered, if that is before the transaction expires.
func (s *Server) decide(w http.ResponseWriter, r *http.Request, id txn.ID, commit bool) {
	reason := ""
	if !commit {
		reason = "aborted over the API"
	}
	wait, err := waitOf(r)
	if err != nil {
		write(w, problem(codeValue, err.Error(), id))
		return
	}
	late := time.Now().Add(wait)
	var st txn.State // without branches
	err = s.opt.Engine.DoAndSee(r.Context(), id, txn.Decide{Commit: commit, Reason: reason}, func(now txn.State) { st = outline(now) })
	if err != nil {
		s.refuse(w, err, id)
		return
	}
	if !st.Decided() {
		ctx, cancel := context.WithTimeout(r.Context(), max(s.opt.CommitWait, wait))
		defer cancel()
		settled, err := s.opt.Engine.Wait(ctx, id, func(st txn.State) bool { return st.Decided() })
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			if now, err := s.state(r.Context(), id); err == nil {
				st = now // answers may have come meanwhile
			}
			reply(w, http.StatusAccepted, decided{ID: id, Status: st.Phase.String(), Waiting: unanswered(st)})
			return
		case err != nil:
			s.refuse(w, err, id)
			return
		}
		st = settled
	}
	if st.Commit != commit {
		write(w, problem(codeDecided, "it is "+st.Phase.String()+": "+st.Reason, id))
		return
	}
	st = s.settled(r.Context(), st, time.Until(late))
	w.Header().Set(interceptor.HeaderID, string(id))
	w.Header().Set(interceptor.HeaderStatus, st.Phase.String())
	reply(w, http.StatusOK, decided{ID: id, Status: st.Phase.String(), Reason: st.Reason})
}

// outline is a state that may be kept: without its branches.
func outline(st txn.State) txn.State {
	st.Branches = nil
	return st
}

func unanswered(st txn.State) []waiting {
	var out []waiting
	for i := range st.Branches {
		if b := st.Branches[i]; !b.Left && b.Known[txn.Forward].Outcome == txn.None {
			out = append(out, waiting{Branch: b.ID, Name: b.Name, Cause: b.Known[txn.Ask].Cause})
		}
	}
	return out
}

const (
	whyMax = 4 << 10
	byMax  = 256
)

type forceRequest struct {
	By  string `json:"by"`
	Why string `json:"why"`
}

// force is an operator's act on one op: the only way past a halted one. It is journaled with its author and reason.
func (s *Server) force(w http.ResponseWriter, r *http.Request) {
	id, branch := txn.ID(r.PathValue("id")), r.PathValue("branch")
	op, okOp := ops()[r.PathValue("op")]
	act, okAct := map[string]txn.Act{"retry": txn.ActRetry, "skip": txn.ActSkip}[r.PathValue("act")]
	if !okOp || !okAct {
		write(w, problem(codeNoOp, r.PathValue("act")+" of "+r.PathValue("op")+" of branch "+branch, id))
		return
	}
	q, f, bad := readReason(w, r, id)
	if bad {
		write(w, f)
		return
	}
	if branch == "-" { // the initiator or the listeners
		branch = ""
	}
	st, err := s.opt.Engine.Do(r.Context(), id, txn.Force{Branch: branch, Op: op, Act: act, By: q.By, Why: q.Why})
	if err != nil {
		s.refuse(w, err, id)
		return
	}
	s.opt.Log.Warn("operator acted", "tx", id, "branch", branch, "op", op.String(), "act", act.String(), "by", q.By)
	reply(w, http.StatusOK, decided{ID: id, Status: st.Phase.String(), Reason: st.Reason})
}

// readReason reads who acts and why: both are journaled.
func readReason(w http.ResponseWriter, r *http.Request, id txn.ID) (forceRequest, fault, bool) {
	var q forceRequest
	if _, f, bad := readBody(w, r, &q); bad {
		return q, f, true
	}
	switch {
	case q.Why == "":
		return q, problem(codeValue, "why is missing: it is journaled with the act", id), true
	case len(q.Why) > whyMax || len(q.By) > byMax:
		return q, problem(codeValue, fmt.Sprintf("why and by: want at most %d and %d bytes", whyMax, byMax), id), true
	case q.By == "":
		q.By = "api"
	}
	return q, fault{}, false
}

// ops are the words of the URL: ours, and those of the headers.
func ops() map[string]txn.Op {
	return map[string]txn.Op{"commit": txn.Commit, "confirm": txn.Commit, "deliver": txn.Commit, "undo": txn.Undo,
		"ask": txn.Ask, "query": txn.Ask, "tell": txn.Tell}
}

type listing struct {
	Transactions []summary `json:"transactions"`
	Next         string    `json:"next,omitempty"` // cursor of the rest
}

type summary struct {
	ID       txn.ID    `json:"id"`
	Mode     txn.Mode  `json:"mode"`
	Name     string    `json:"name,omitempty"`
	Phase    string    `json:"phase"`
	Reason   string    `json:"reason,omitempty"`
	Branches int       `json:"branches"`
	Begun    time.Time `json:"begun"`
	Finished time.Time `json:"finished,omitzero"`
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	q, detail := query(r)
	if detail != "" {
		write(w, problem(codeValue, detail, ""))
		return
	}
	found, next, err := s.opt.Journal.List(r.Context(), q)
	if err != nil {
		write(w, problem(codeJournal, err.Error(), ""))
		return
	}
	out := listing{Transactions: []summary{}, Next: string(next)}
	for _, t := range found {
		out.Transactions = append(out.Transactions, summary{ID: t.ID, Mode: t.Mode, Name: t.Name, Phase: t.Phase.String(),
			Reason: t.Reason, Branches: t.Branches, Begun: t.Begun.UTC(), Finished: t.Finished})
	}
	reply(w, http.StatusOK, out)
}

// limitMax bounds one page of a listing.
const limitMax = 1000

func query(r *http.Request) (txlog.Query, string) {
	q := txlog.Query{}
	for name, values := range r.URL.Query() {
		for _, v := range values {
			switch name {
			case "phase":
				p, ok := phases()[v]
				if !ok {
					return q, fmt.Sprintf("phase %q: want open, committing, aborting, stuck, committed, aborted or stopped", v)
				}
				q.Phases = append(q.Phases, p)
			case "name":
				q.Name = v
			case "cursor":
				q.From = txlog.Cursor(v)
			case "limit":
				n, err := strconv.Atoi(v)
				if err != nil || n < 1 || n > limitMax {
					return q, fmt.Sprintf("limit %q: want a number from 1 to %d", v, limitMax)
				}
				q.Limit = n
			default:
				return q, fmt.Sprintf("parameter %q: want phase, name, limit or cursor", name)
			}
		}
	}
	return q, ""
}

func phases() map[string]txn.Phase {
	out := make(map[string]txn.Phase)
	for p := txn.Open; p <= txn.Ceased; p++ {
		out[p.String()] = p
	}
	return out
}

// refuseBranch answers an error of the engine about branches of the body.
func (s *Server) refuseBranch(w http.ResponseWriter, err error, id txn.ID) {
	if errors.Is(err, txn.ErrNoBranch) { // named by after
		write(w, problem(codeValue, err.Error(), id))
		return
	}
	s.refuse(w, err, id)
}

// refuse answers an error of the engine.
func (s *Server) refuse(w http.ResponseWriter, err error, id txn.ID) {
	code := codeJournal
	switch {
	case errors.Is(err, txn.ErrUnknown):
		code = codeNotFound
	case errors.Is(err, txn.ErrDecided):
		code = codeDecided
	case errors.Is(err, txn.ErrEngineDecides):
		code = codeRooted
	case errors.Is(err, txn.ErrNotWaiting):
		code = codeNotWaiting
	case errors.Is(err, txn.ErrNoBranch):
		code = codeNoOp
	case errors.Is(err, txn.ErrConflict):
		code = codeRepeated
	case errors.Is(err, txn.ErrOrder):
		code = codeValue
	case errors.Is(err, engine.ErrBranches):
		code = codeBranches
	case errors.Is(err, engine.ErrTooLarge):
		code = codeTooLarge
	case errors.Is(err, txlog.ErrFull), errors.Is(err, engine.ErrBusy):
		code = codeNotTaking
	}
	write(w, problem(code, err.Error(), id))
}

// readBody reads a JSON value into v, or nothing.
func readBody(w http.ResponseWriter, r *http.Request, v any) (body []byte, f fault, bad bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, problem(codeTooLarge, "", ""), true
	}
	if err == nil && len(body) > 0 {
		err = strict(body, v)
	}
	if err != nil {
		return nil, problem(codeMalformed, err.Error(), ""), true
	}
	return body, fault{}, false
}

func strict(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) { // More would not see a brace
		return errors.New("more than one JSON value")
	}
	return nil
}
