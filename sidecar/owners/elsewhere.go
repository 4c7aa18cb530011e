package owners

import (
	"context"
	"errors"
	"fmt"
	"time"

	"txmesh/sidecar/engine"
	"txmesh/txlog"
	"txmesh/txn"
)

// Do feeds one event and returns the state after it, which is durable; see engine.Engine.Do. An event for a journal
// that another sidecar holds goes there.
func (o *Owners) Do(ctx context.Context, id txn.ID, ev txn.Event) (txn.State, error) {
	return o.DoAndWait(ctx, id, ev, nil)
}

// DoAndWait is Do and Wait in one go.
func (o *Owners) DoAndWait(ctx context.Context, id txn.ID, ev txn.Event, until func(txn.State) bool) (s txn.State, err error) {
	here := func(e *engine.Engine) error {
		s, err = e.DoAndWait(ctx, id, ev, until)
		return err
	}
	owner, err := o.locally(ctx, id, here)
	if owner == "" {
		return s, err
	}
	if until == nil {
		until = always
	}
	return o.remotely(ctx, owner, id, ev, until)
}

// Begin begins a transaction under an id that was made for it; see engine.Engine.Begin.
func (o *Owners) Begin(ctx context.Context, b txn.Begin) (txn.State, error) {
	e, err := o.own()
	if err != nil {
		return txn.State{}, err
	}
	return e.Begin(ctx, b)
}

// DoAndSee is Do for those who want little of the state; see engine.Engine.DoAndSee.
func (o *Owners) DoAndSee(ctx context.Context, id txn.ID, ev txn.Event, see func(txn.State)) error {
	owner, err := o.locally(ctx, id, func(e *engine.Engine) error { return e.DoAndSee(ctx, id, ev, see) })
	if owner == "" {
		return err
	}
	s, err := o.remotely(ctx, owner, id, ev, always)
	if err == nil {
		see(s)
	}
	return err
}

// Wait returns as soon as the predicate holds, for a state that is durable; see engine.Engine.Wait.
func (o *Owners) Wait(ctx context.Context, id txn.ID, until func(txn.State) bool) (s txn.State, err error) {
	here := func(e *engine.Engine) error {
		s, err = e.Wait(ctx, id, until)
		return err
	}
	if owner, err := o.locally(ctx, id, here); owner == "" {
		return s, err
	}
	return o.watch(ctx, id, until)
}

// Peek shows a transaction that is in memory here, and reports whether it was; see engine.Engine.Peek.
func (o *Owners) Peek(id txn.ID, see func(txn.State)) bool {
	e, _, err := o.at(id)
	return err == nil && e != nil && e.Peek(id, see)
}

func always(txn.State) bool { return true }

// locally lets f ask the engine of a transaction, if its journal is held here; else it names the owner, and nothing was
// done.
func (o *Owners) locally(ctx context.Context, id txn.ID, f func(*engine.Engine) error) (elsewhere string, err error) {
	e, owner, err := o.at(id)
	switch {
	case err != nil:
		return "", err
	case e == nil:
		return owner, nil
	}
	if err = f(e); !o.isElsewhere(err) {
		return "", err
	}
	if e, owner, err = o.outsider(ctx, id, err); err != nil {
		return "", err
	}
	if e == nil {
		return owner, nil
	}
	return "", f(e)
}

// remotely lets the holder of a journal do it, and reads what came of it.
func (o *Owners) remotely(ctx context.Context, owner string, id txn.ID, ev txn.Event, until func(txn.State) bool) (txn.State, error) {
	if err := o.opt.Remote.Do(ctx, owner, id, ev); err != nil {
		return txn.State{}, fmt.Errorf("transaction %s: %w", id, err)
	}
	return o.watch(ctx, id, until)
}

// State returns an open or a finished transaction of any owner in the store, or txn.ErrUnknown.
func (o *Owners) State(ctx context.Context, id txn.ID) (txn.State, error) {
	return o.Wait(ctx, id, always)
}

func (o *Owners) isElsewhere(err error) bool {
	return o.opt.Shared != nil && (errors.Is(err, engine.ErrElsewhere) || errors.Is(err, txlog.ErrTaken))
}

// outsider finds the engine of a transaction whose id tells no owner and that another has begun.
func (o *Owners) outsider(ctx context.Context, id txn.ID, why error) (*engine.Engine, string, error) {
	owner, err := o.opt.Shared.OwnerOf(ctx, id)
	switch {
	case errors.Is(err, txlog.ErrNotFound):
		return nil, "", why
	case err != nil:
		return nil, "", err
	case owner == o.opt.Own:
		return nil, "", why // it was asked and does not run it: it has just begun or ended
	}
	return o.engine(owner), owner, nil
}

// How often the journal of another is read by who waits for it. What is waited for takes calls, which take longer.
const (
	watchMin = 20 * time.Millisecond
	watchMax = 500 * time.Millisecond
)

// watch reads a transaction that another sidecar runs, from the store, until the predicate holds.
func (o *Owners) watch(ctx context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error) {
	for pause := watchMin; ; pause = min(2*pause, watchMax) {
		s, err := o.read(ctx, id)
		switch {
		case err != nil:
			return txn.State{}, fmt.Errorf("transaction %s: %w", id, err)
		case until(s):
			return s, nil
		case s.Phase.Done():
			return s, fmt.Errorf("transaction %s: %w", id, engine.ErrEnded)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return s, fmt.Errorf("transaction %s: %w", id, ctx.Err())
		}
	}
}

func (o *Owners) read(ctx context.Context, id txn.ID) (txn.State, error) {
	var records []txn.Record
	for entry, err := range o.opt.Reader.History(ctx, id) {
		if err != nil {
			return txn.State{}, err
		}
		records = append(records, entry.Record)
	}
	if len(records) == 0 {
		return txn.State{}, txn.ErrUnknown
	}
	return txn.Fold(records), nil
}
