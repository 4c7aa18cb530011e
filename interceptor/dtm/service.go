package dtm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"txmesh/policies"
	"txmesh/txn"
)

// known returns a transaction of this door, nil if there is none. One of another door is nobody's business here.
func (s *Service) known(ctx context.Context, gid string) (*txn.State, error) {
	st, err := s.Engine.State(ctx, txn.ID(gid))
	switch {
	case errors.Is(err, txn.ErrUnknown):
		return nil, nil
	case err != nil:
		return nil, err
	case st.Spec.Door != Name:
		return nil, failure("gid %q is taken by a transaction that was not begun here", gid)
	}
	return &st, nil
}

func refusal(st *txn.State, verb string) error {
	return failure("current status '%s', cannot %s", status(st), verb)
}

// wrongType refuses what speaks of a transaction under another type than it was begun with.
func wrongType(st *txn.State, wanted string) error {
	if is := typeOf(st.Spec.Mode); is != wanted {
		return failure("gid %q is a %s, not a %s", string(st.Spec.ID), is, wanted)
	}
	return nil
}

// check refuses what nobody could carry out, and another type than that of a saga that was prepared.
func (s *Service) check(ctx context.Context, t *transaction) error {
	if err := t.check(); err != nil {
		return err
	}
	p, err := s.preparedSaga(ctx, t.GID)
	if err == nil && p != nil && t.Type != typeSaga {
		err = failure("gid %q is a saga, not a %s", t.GID, t.Type)
	}
	return err
}

// prepare opens a transaction that its initiator will submit or abort. A repeat has no effect.
func (s *Service) prepare(ctx context.Context, t *transaction) error {
	if err := s.may(ctx, policies.Begin); err != nil {
		return err
	}
	if err := s.check(ctx, t); err != nil {
		return err
	}
	spec, err := s.spec(ctx, t)
	if err != nil {
		return err
	}
	if t.Type == typeSaga {
		return s.prepareSaga(ctx, t)
	}
	st, err := s.Engine.Do(ctx, spec.ID, txn.Begin{Spec: spec})
	if errors.Is(err, txn.ErrConflict) {
		old, err := s.known(ctx, t.GID)
		if err != nil {
			return err
		}
		if err := wrongType(old, t.Type); err != nil {
			return err
		}
		st = *old
	} else if err != nil {
		return err
	}
	if st.Phase != txn.Open {
		return refusal(&st, "prepare")
	}
	return nil
}

// submit lets a transaction go on: a saga and what was not prepared begins with it.
func (s *Service) submit(ctx context.Context, t *transaction) error {
	if err := s.maySubmit(ctx, t); err != nil {
		return err
	}
	if err := s.check(ctx, t); err != nil {
		return err
	}
	var st txn.State
	var err error
	switch t.Type {
	case typeSaga:
		st, err = s.submitSaga(ctx, t)
	case typeWorkflow:
		st, err = s.submitWorkflow(ctx, t)
	default:
		st, err = s.submitPrepared(ctx, t)
	}
	if err != nil {
		return err
	}
	rolledBack := st.Decided() && !st.Commit || st.Phase == txn.Ceased
	toldWhy := t.WaitResult && (t.Type == typeSaga || st.Phase == txn.Ceased)
	switch {
	case rolledBack && t.Type != typeWorkflow && !toldWhy:
		return refusal(&st, "sumbmit")
	case t.WaitResult:
		return s.waitResult(ctx, &st)
	}
	return nil
}

// do feeds an event and, for who waits for the result, goes on until there is one or there is none yet.
func (s *Service) do(ctx context.Context, id txn.ID, e txn.Event, wait bool) (txn.State, error) {
	if !wait {
		return s.Engine.Do(ctx, id, e)
	}
	st, err := s.Engine.DoAndWait(ctx, id, e, hasResult)
	if errors.Is(err, context.DeadlineExceeded) {
		err = ongoing("not finished in time, it goes on: ask query for the result")
	}
	return st, err
}

// hasResult reports whether a client that waits is told now: the end, or that the last call did not bring it nearer.
func hasResult(st txn.State) bool { return st.Phase.Done() || halting(&st) != "" }

func (s *Service) submitSaga(ctx context.Context, t *transaction) (txn.State, error) {
	if err := s.takePrepared(ctx, t); err != nil {
		return txn.State{}, err
	}
	spec, err := s.spec(ctx, t)
	if err != nil {
		return txn.State{}, err
	}
	st, err := s.Engine.Do(ctx, spec.ID, txn.Begin{Spec: spec})
	if errors.Is(err, txn.ErrConflict) {
		old, err := s.known(ctx, t.GID)
		switch {
		case err != nil:
			return txn.State{}, err
		case len(t.Steps) > 0 || wrongType(old, t.Type) != nil:
			return txn.State{}, differs(old, t)
		}
		return *old, nil // it lists nothing: what was prepared, once more
	}
	if err == nil {
		err = s.dropPrepared(ctx, t.GID)
	}
	return st, err
}

// differs explains why a submit is refused whose gid is taken.
func differs(old *txn.State, t *transaction) error {
	if err := wrongType(old, t.Type); err != nil {
		return err
	}
	return failure("current status '%s', cannot sumbmit: this differs from what was submitted first; take another gid", status(old))
}

// submitPrepared commits a tcc, xa or msg. Without prepare it begins and commits in one step.
func (s *Service) submitPrepared(ctx context.Context, t *transaction) (txn.State, error) {
	delay, err := t.delay(nil, s.Now())
	if err != nil {
		return txn.State{}, err
	}
	if t.Type == typeMsg && delay == 0 { // mostly equal to what was prepared, or not prepared: one step does both
		st, err := s.beginCommitted(ctx, t)
		if !errors.Is(err, txn.ErrConflict) && !errors.Is(err, txn.ErrDecided) {
			return st, err
		}
	}
	old, err := s.known(ctx, t.GID)
	switch {
	case err != nil:
		return txn.State{}, err
	case old == nil:
		return s.beginCommitted(ctx, t)
	}
	if err := wrongType(old, t.Type); err != nil {
		return txn.State{}, err
	}
	if old.Decided() {
		if old.Commit && !sameSteps(old, t) {
			err = differs(old, t)
		}
		return *old, err
	}
	if delay, err = t.delay(old, s.Now()); err != nil {
		return txn.State{}, err
	}
	return s.do(ctx, old.Spec.ID, txn.Decide{Commit: true, Delay: delay}, t.WaitResult)
}

// sameSteps reports whether a message sends what a repeated submit lists. One that lists nothing means what was prepared.
func sameSteps(st *txn.State, t *transaction) bool {
	if t.Type != typeMsg || len(t.Steps) == 0 {
		return true
	}
	n, err := decodeNote(st.Spec.Note)
	if err != nil {
		return false
	}
	was, payloads := steps(st, &n)
	if len(was) != len(t.Steps) {
		return false
	}
	for i, step := range t.Steps {
		if step[opAction] != was[i][opAction] || payloads != nil && payloads[i] != string(t.payload(i)) {
			return false
		}
	}
	return true
}

func (s *Service) beginCommitted(ctx context.Context, t *transaction) (txn.State, error) {
	spec, err := s.spec(ctx, t)
	if err != nil {
		return txn.State{}, err
	}
	delay, err := t.delay(nil, s.Now())
	if err != nil {
		return txn.State{}, err
	}
	return s.do(ctx, spec.ID, txn.Begin{Spec: spec, Decide: &txn.Decide{Commit: true, Delay: delay}}, t.WaitResult)
}

// submitWorkflow takes the end that the initiator reached.
func (s *Service) submitWorkflow(ctx context.Context, t *transaction) (txn.State, error) {
	old, err := s.known(ctx, t.GID)
	switch {
	case err != nil:
		return txn.State{}, err
	case old == nil:
		return txn.State{}, missing("storage: NotFound: no workflow with gid %q: send prepareWorkflow first", t.GID)
	}
	if err := wrongType(old, t.Type); err != nil {
		return txn.State{}, err
	}
	d := txn.Decide{Reason: t.ReqExtra["rollback_reason"], Answer: []byte(t.ReqExtra["result"])}
	switch word := t.ReqExtra["status"]; word {
	case statusSucceed:
		d.Commit = true
	case statusFailed:
	default:
		return txn.State{}, invalid("req_extra: status %q: want succeed or failed", word)
	}
	if old.Decided() && (old.Commit != d.Commit || !bytes.Equal(old.Answer, d.Answer)) {
		return txn.State{}, refusal(old, "sumbmit")
	}
	return s.Engine.Do(ctx, old.Spec.ID, d)
}

// abort rolls a prepared tcc, xa or msg back.
func (s *Service) abort(ctx context.Context, t *transaction) error {
	if err := s.may(ctx, policies.Decide); err != nil {
		return err
	}
	if err := checkGID(t.GID); err != nil {
		return err
	}
	switch p, err := s.preparedSaga(ctx, t.GID); {
	case err != nil:
		return err
	case p != nil:
		return failure("current status '%s', cannot abort a saga: forceStop ends it", statusPrepared)
	}
	st, err := s.known(ctx, t.GID)
	switch {
	case err != nil:
		return err
	case st == nil:
		return missing("no TransGlobal with gid: %s found", t.GID)
	}
	if err := wrongType(st, t.Type); err != nil {
		return err
	}
	if t.Type == typeSaga || t.Type == typeWorkflow || st.Decided() && (st.Commit || st.Phase.Done()) {
		return refusal(st, "abort")
	}
	done, err := s.Engine.Do(ctx, st.Spec.ID, txn.Decide{Reason: t.RollbackReason})
	if err != nil {
		return err
	}
	n, err := decodeNote(st.Spec.Note)
	if err != nil {
		return err
	}
	if n.Options.WaitResult {
		return s.waitResult(ctx, &done)
	}
	return nil
}

// prepareWorkflow opens a workflow, or finds it as it is, with all that it has recorded.
func (s *Service) prepareWorkflow(ctx context.Context, t *transaction) (*txn.State, error) {
	if err := s.may(ctx, policies.Begin); err != nil {
		return nil, err
	}
	if err := s.check(ctx, t); err != nil {
		return nil, err
	}
	if t.Type != typeWorkflow {
		return nil, invalid("trans_type %q: want workflow", t.Type)
	}
	spec, err := s.spec(ctx, t)
	if err != nil {
		return nil, err
	}
	st, err := s.Engine.Do(ctx, spec.ID, txn.Begin{Spec: spec})
	if errors.Is(err, txn.ErrConflict) {
		old, err := s.known(ctx, t.GID)
		if err != nil {
			return nil, err
		}
		return old, wrongType(old, t.Type)
	}
	return &st, err
}

// branchRequest is the body of registerBranch: strings only.
type branchRequest map[string]string

// registerBranch adds a branch to a prepared transaction. A repeat has no effect.
func (s *Service) registerBranch(ctx context.Context, r branchRequest, data []byte) error {
	if err := s.may(ctx, policies.Decide); err != nil {
		return err
	}
	gid := r["gid"]
	if err := checkGID(gid); err != nil {
		return err
	}
	e := txn.Enlist{Branch: txn.Branch{ID: r["branch_id"], Note: data}}
	if e.Branch.ID == "" {
		return invalid("branch_id is empty: number the branches 01, 02 and so on")
	}
	ops := &e.Branch.Ops
	switch t := r["trans_type"]; t {
	case typeTCC:
		ops[txn.Commit], ops[txn.Undo] = target(r[opConfirm]), target(r[opCancel])
	case typeXA:
		ops[txn.Commit], ops[txn.Undo] = target(r["url"]), target(r["url"])
	case typeWorkflow:
		if err := progressOf(r, data, &e); err != nil {
			return err
		}
	default:
		return invalid("trans_type %q: want tcc, xa or workflow", t)
	}
	st, err := s.known(ctx, gid)
	switch {
	case err != nil:
		return err
	case st == nil || typeOf(st.Spec.Mode) != r["trans_type"]:
		return failure("no trans with gid: %s and type: %s", gid, r["trans_type"])
	}
	_, err = s.Engine.Do(ctx, st.Spec.ID, e)
	if errors.Is(err, txn.ErrDecided) {
		return failure("no trans with gid: %s status: %s", gid, statusPrepared)
	}
	return err
}

// progressOf makes a branch of what a workflow has recorded: its result, or why it failed, is its answer.
func progressOf(r branchRequest, data []byte, e *txn.Enlist) error {
	op := r["op"]
	if op == "" {
		return invalid("op is empty: want action, commit or rollback")
	}
	e.Branch.ID, e.Branch.Name, e.Branch.Note = r["branch_id"]+"-"+op, op, nil
	e.Result = data
	switch word := r["status"]; word {
	case statusSucceed:
		e.Answered = txn.OK
	case statusFailed:
		e.Answered = txn.Refused
	default:
		return invalid("status %q: want succeed or failed", word)
	}
	return nil
}

// forceStop ends a transaction as it stands.
func (s *Service) forceStop(ctx context.Context, gid string) error {
	if err := s.may(ctx, policies.Operate); err != nil {
		return err
	}
	if stopped, err := s.stopPrepared(ctx, gid); err != nil || stopped {
		return err
	}
	st, err := s.mustKnow(ctx, gid)
	if err != nil {
		return err
	}
	_, err = s.Engine.Do(ctx, st.Spec.ID, txn.Stop{By: "dtm api", Why: "forceStop"})
	if errors.Is(err, txn.ErrDecided) {
		return refusal(st, "force stop")
	}
	return err
}

// hasten makes due what waits for its next try.
func (s *Service) hasten(ctx context.Context, gid string) error {
	if err := s.may(ctx, policies.Operate); err != nil {
		return err
	}
	st, err := s.mustKnow(ctx, gid)
	if err != nil {
		return err
	}
	return s.nudge(ctx, st)
}

func (s *Service) mustKnow(ctx context.Context, gid string) (*txn.State, error) {
	if err := checkGID(gid); err != nil {
		return nil, err
	}
	st, err := s.known(ctx, gid)
	if err == nil && st == nil {
		err = missing("no TransGlobal with gid: %s found", gid)
	}
	return st, err
}

// waitResult says what a client that waits is told: the end, or that it goes on, which is neither success nor failure.
func (s *Service) waitResult(ctx context.Context, st *txn.State) error {
	now := *st
	if !hasResult(now) {
		var err error
		now, err = s.Engine.Wait(ctx, st.Spec.ID, hasResult)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return ongoing("not finished in time, it goes on: ask query for the result")
		case err != nil:
			return err
		}
	}
	switch {
	case now.Phase == txn.Committed:
		return nil
	case now.Phase == txn.Aborted && !now.Spec.Plan.Drives:
		return nil // rolled back as the initiator wished
	case now.Phase.Done(), now.Decided() && !now.Commit && now.Spec.Plan.Drives:
		return failure("%s", s.reason(&now))
	}
	return ongoing("wait result not return success: %s; it is repeated: ask query for the result", halting(&now))
}

// halting returns why the transaction is not at its end without delay: what the last call answered.
func halting(st *txn.State) string {
	op := txn.Forward
	switch {
	case st.Commit:
		op = txn.Commit
	case st.Decided():
		op = txn.Undo
	}
	for i := range st.Branches {
		if o := &st.Branches[i].Known[op]; o.Outcome == txn.None && (o.Attempt > 0 || o.Halted) {
			return fmt.Sprintf("branch %s %s: %s", st.Branches[i].ID, wordOf(typeOf(st.Spec.Mode), op), o.Cause)
		}
	}
	if !st.Due.IsZero() {
		return "it is delayed"
	}
	return ""
}

// reason is why a transaction rolls back, in DTM's words.
func (s *Service) reason(st *txn.State) string {
	n, err := decodeNote(st.Spec.Note)
	if err != nil {
		return st.Reason
	}
	id, refused := strings.CutPrefix(st.Reason, "refused by branch ")
	silent := strings.HasPrefix(st.Reason, "no answer from branch ")
	switch {
	case refused:
		if b := st.Find(id); b != nil {
			return fmt.Sprintf("url:%s return failed: %s", b.Ops[txn.Forward], b.Known[txn.Forward].Cause)
		}
	case silent && st.Spec.Plan.ForwardLimit > 0:
		return fmt.Sprintf("RetryCount is greater than RetryLimit, RetryLimit: %d", n.Options.RetryLimit)
	case strings.HasPrefix(st.Reason, "expired"):
		return fmt.Sprintf("Timeout after %d seconds", int(st.Spec.Timeout.Seconds()))
	}
	return st.Reason
}
