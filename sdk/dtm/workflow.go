package dtm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// WorkflowFunc is a transaction written as code. It may run several times for one gid: what its branches have come to
// is replayed, so all else in it must do the same each time. It returns ErrFailure, wrapped or not, to roll back.
type WorkflowFunc func(ctx context.Context, wf *Workflow, data []byte) ([]byte, error)

// Workflow is one run of a WorkflowFunc. It belongs to the goroutine that runs it.
type Workflow struct {
	GID string

	// CompensateErrorBranch has the branch rolled back as well whose own action has failed.
	CompensateErrorBranch bool

	global  *Global
	numbers numbers
	records map[string]record // by branch id and op
	settles []settle
	stopped error // an outcome that is unknown: no further action runs, whatever the function makes of it
}

// record is what an op of a branch has come to, once and for all.
type record struct {
	failed bool
	data   []byte // the result, or the text of the error
}

// settle is what a branch does once it is decided; a failed one has done nothing.
type settle struct {
	branch     *WorkflowBranch
	failed     bool
	onCommit   func(context.Context, Branch) error
	onRollback func(context.Context, Branch) error
}

// failure is a recorded refusal: it has the same text when it happens and when it is replayed.
type failure string

func (f failure) Error() string        { return string(f) }
func (f failure) Is(target error) bool { return target == ErrFailure }

// WorkflowBranch is one action of a workflow and what settles it.
type WorkflowBranch struct {
	wf         *Workflow
	id         string
	err        error
	done       bool
	onCommit   func(context.Context, Branch) error
	onRollback func(context.Context, Branch) error
}

// NewBranch begins a branch. Each run must make the same branches in the same order.
func (wf *Workflow) NewBranch() *WorkflowBranch {
	id, err := wf.numbers.next()
	return &WorkflowBranch{wf: wf, id: id, err: err}
}

// OnCommit is called after the workflow's function has succeeded, for the last branch first, until it succeeds.
func (b *WorkflowBranch) OnCommit(f func(ctx context.Context, b Branch) error) *WorkflowBranch {
	b.onCommit = f
	return b
}

// OnRollback is called after the workflow's function has failed, for the last branch first, until it succeeds.
func (b *WorkflowBranch) OnRollback(f func(ctx context.Context, b Branch) error) *WorkflowBranch {
	b.onRollback = f
	return b
}

// Do runs the branch's one action, or replays what it has come to. A result must be UTF-8. An error that wraps
// ErrFailure is recorded as well; after any other, the workflow stops and is resumed later. An action whose end was not
// recorded runs again: it needs a barrier.
func (b *WorkflowBranch) Do(ctx context.Context, action func(ctx context.Context, b Branch) ([]byte, error)) ([]byte, error) {
	wf := b.wf
	switch {
	case wf.stopped != nil:
		return nil, wf.stopped
	case b.err == nil && b.done:
		b.err = fmt.Errorf("branch %s of workflow %s: has had its action; make a new branch for another", b.id, wf.GID)
	}
	if b.err != nil {
		wf.stopped = b.err
		return nil, b.err
	}
	b.done = true
	r, err := wf.once(ctx, b.id, OpAction, action)
	if err != nil {
		wf.stopped = err
		return nil, err
	}
	wf.settles = append(wf.settles, settle{b, r.failed, b.onCommit, b.onRollback})
	if r.failed {
		return nil, failure(r.data)
	}
	return r.data, nil
}

// once runs an op unless it is recorded, and records what it has come to, which must be a success or a failure.
func (wf *Workflow) once(ctx context.Context, id, op string, do func(context.Context, Branch) ([]byte, error)) (record, error) {
	key := id + "-" + op
	if r, ok := wf.records[key]; ok {
		return r, nil
	}
	result, err := do(ctx, Branch{TransType: TypeWorkflow, GID: wf.GID, ID: id, Op: op, Server: wf.global.Server, HTTP: wf.global.HTTP})
	r, status := record{data: result}, StatusSucceed
	if errors.Is(err, ErrFailure) && op == OpAction {
		r, status = record{failed: true, data: []byte(strings.ToValidUTF8(err.Error(), "?"))}, StatusFailed
	} else if err != nil {
		return record{}, fmt.Errorf("%s of branch %s of workflow %s: %w", op, id, wf.GID, unrefused(err))
	}
	if !utf8.Valid(r.data) {
		return record{}, fmt.Errorf("%s of branch %s of workflow %s: its result is not UTF-8; encode it, for instance in base64", op, id, wf.GID)
	}
	// If the door does not take the record, nobody knows what a replay will see: the workflow must not go on.
	err = wf.global.register(ctx, TypeWorkflow, id, map[string]string{"op": op, "status": status, "data": string(r.data)})
	if err != nil {
		return record{}, unrefused(err)
	}
	wf.records[key] = r
	return r, nil
}

// unrefused keeps the text of an error that must not roll anything back: a settling op or the door has refused.
func unrefused(err error) error {
	if errors.Is(err, ErrFailure) {
		return fmt.Errorf("%s; it is repeated", err.Error())
	}
	return err
}

// settleAll commits or rolls back the branches, the last first.
func (wf *Workflow) settleAll(ctx context.Context, commit bool) error {
	for i := len(wf.settles) - 1; i >= 0; i-- {
		s := wf.settles[i]
		op, do := OpRollback, s.onRollback
		if commit {
			op, do = OpCommit, s.onCommit
		}
		if do == nil || s.failed && (commit || !wf.CompensateErrorBranch) {
			continue
		}
		_, err := wf.once(ctx, s.branch.id, op, func(ctx context.Context, b Branch) ([]byte, error) { return nil, do(ctx, b) })
		if err != nil {
			return err
		}
	}
	return nil
}
