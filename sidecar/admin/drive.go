package admin

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"txmesh/interceptor"
	"txmesh/txn"
)

// waitMax bounds how long a request may wait for the end.
const waitMax = time.Minute

// waitOf reads ?wait=5s; nothing: do not wait.
func waitOf(r *http.Request) (time.Duration, error) {
	for name := range r.URL.Query() {
		if name != "wait" {
			return 0, fmt.Errorf("parameter %.40q: want wait", name)
		}
	}
	text := r.URL.Query().Get("wait")
	if text == "" {
		return 0, nil
	}
	return period("wait", text, 0, waitMax)
}

// settled waits until the transaction has ended, is stuck, or the time is over, and gives its newest state.
func (s *Server) settled(ctx context.Context, st txn.State, wait time.Duration) txn.State {
	done := func(st txn.State) bool { return st.Phase.Done() || st.Phase == txn.Stuck }
	if wait <= 0 || done(st) {
		return st
	}
	timed, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	// What is durable stays so if the journal fails now: then the client sees an older state.
	if end, err := s.opt.Engine.Wait(timed, st.Spec.ID, done); err == nil {
		return end
	}
	if now, err := s.opt.Engine.State(ctx, st.Spec.ID); err == nil {
		return now
	}
	return st
}

type enlisted struct {
	ID     txn.ID `json:"id"`
	Branch string `json:"branch"`
	Status string `json:"status"`
}

// enlist adds a branch, or tells what the initiator's own call of it answered. It is durable before the answer.
func (s *Server) enlist(w http.ResponseWriter, r *http.Request) {
	var raw json.RawMessage
	if _, f, bad := readBody(w, r, &raw); bad {
		write(w, f)
		return
	}
	id, offered, ok := s.surfaceOf(w, r)
	if !ok {
		return
	}
	if !offered.takes {
		write(w, problem(codeMode, "branches are named when it begins", id))
		return
	}
	if raw == nil {
		raw = json.RawMessage("{}")
	}
	b, err := offered.branch(raw)
	if err != nil {
		write(w, problem(codeValue, err.Error(), id))
		return
	}
	if b.ID == "" {
		b.Key = rand.Text() // by which its number is found
	}
	st, err := s.opt.Engine.Do(r.Context(), id, txn.Enlist{Branch: b.Branch, Answered: b.outcome, Result: b.result})
	if err != nil {
		s.refuseBranch(w, err, id)
		return
	}
	if b.ID == "" {
		b.ID = st.ByKey(b.Key).ID
	}
	w.Header().Set(interceptor.HeaderID, string(id))
	w.Header().Set(interceptor.HeaderBranch, interceptor.BranchName(id, b.ID))
	reply(w, http.StatusOK, enlisted{ID: id, Branch: b.ID, Status: st.Phase.String()})
}

// leave takes a branch out: nothing will be asked of it.
func (s *Server) leave(w http.ResponseWriter, r *http.Request) {
	id, offered, ok := s.surfaceOf(w, r)
	switch {
	case !ok:
	case !offered.takes:
		write(w, problem(codeMode, "branches stay as it began", id))
	default:
		s.act(w, r, id, txn.Leave{Branch: r.PathValue("branch")})
	}
}

// extend sets the time to the decision anew, from now.
func (s *Server) extend(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Timeout string `json:"timeout"`
	}
	if _, f, bad := readBody(w, r, &q); bad {
		write(w, f)
		return
	}
	id, offered, ok := s.surfaceOf(w, r)
	if !ok {
		return
	}
	d, err := timeout(q.Timeout, offered.limitless)
	if err != nil {
		write(w, problem(codeValue, err.Error(), id))
		return
	}
	s.act(w, r, id, txn.Extend{Timeout: d})
}

// surfaceOf finds what may be asked of a transaction that this API began with targets.
func (s *Server) surfaceOf(w http.ResponseWriter, r *http.Request) (txn.ID, surface, bool) {
	id := txn.ID(r.PathValue("id"))
	st, err := s.opt.Engine.State(r.Context(), id)
	switch {
	case err != nil:
		s.refuse(w, err, id)
		return id, surface{}, false
	case st.Spec.Door != DoorName:
		write(w, problem(codeMode, "mode "+string(st.Spec.Mode)+" is not driven over this API", id))
		return id, surface{}, false
	}
	return id, surfaces()[st.Spec.Mode], true
}

// act feeds an event and answers with what it came to. It reports whether it was taken.
func (s *Server) act(w http.ResponseWriter, r *http.Request, id txn.ID, e txn.Event) bool {
	st, err := s.opt.Engine.Do(r.Context(), id, e)
	if err != nil {
		s.refuse(w, err, id)
		return false
	}
	out := decided{ID: id, Status: st.Phase.String(), Reason: st.Reason}
	if !st.Decided() && !st.Expires.IsZero() {
		out.Expires = st.Expires.UTC()
	}
	w.Header().Set(interceptor.HeaderID, string(id))
	reply(w, http.StatusOK, out)
	return true
}

// hasten makes due what waits for its next try.
func (s *Server) hasten(w http.ResponseWriter, r *http.Request) {
	s.act(w, r, txn.ID(r.PathValue("id")), txn.Hasten{})
}

// stop is an operator's act on the whole: it ends as it stands.
func (s *Server) stop(w http.ResponseWriter, r *http.Request) {
	id := txn.ID(r.PathValue("id"))
	q, f, bad := readReason(w, r, id)
	if bad {
		write(w, f)
		return
	}
	if s.act(w, r, id, txn.Stop(q)) {
		s.opt.Log.Warn("operator stopped a transaction", "tx", id, "by", q.By)
	}
}
