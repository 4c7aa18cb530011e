package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// errMiss says that a transaction is not in memory. It never leaves the package.
var errMiss = errors.New("engine: not in memory")

// Do feeds one event and returns the state after it. When it returns without an error, all that this and earlier
// events of the transaction recorded is in the journal, and durable as far as they ask for it (L14). After
// ErrUnavailable or an error of the context the event may or may not have happened: ask State, or repeat it.
func (e *Engine) Do(ctx context.Context, id txn.ID, ev txn.Event) (txn.State, error) {
	return e.DoAndWait(ctx, id, ev, nil)
}

// DoAndWait is Do and Wait in one go: it saves the way back and forth between them.
func (e *Engine) DoAndWait(ctx context.Context, id txn.ID, ev txn.Event, until func(txn.State) bool) (txn.State, error) {
	return e.do(ctx, request{id: id, event: ev, until: until})
}

// DoAndSee is Do for those who want little of the state: it saves the copy. see gets the state after the event, in the
// engine's loop: it must be quick, must not call the engine, and may not keep the branches. What it has noted holds when
// DoAndSee returns without an error.
func (e *Engine) DoAndSee(ctx context.Context, id txn.ID, ev txn.Event, see func(txn.State)) error {
	_, err := e.do(ctx, request{id: id, event: ev, see: see})
	return err
}

// Begin is Do for a Begin whose id was made for it and never given away: nothing can be in the journal under it, so that
// it is not asked.
func (e *Engine) Begin(ctx context.Context, b txn.Begin) (txn.State, error) {
	if err := e.cfg.Store.Accepts(); err != nil {
		return txn.State{}, fmt.Errorf("transaction %s: %w", b.Spec.ID, err)
	}
	return e.ask(ctx, &request{id: b.Spec.ID, event: b, made: true})
}

func (e *Engine) do(ctx context.Context, r request) (txn.State, error) {
	s, err := e.ask(ctx, new(r))
	if errors.Is(err, errMiss) {
		return e.doAbsent(ctx, r)
	}
	return s, err
}

// doAbsent feeds an event to a transaction that is not in memory: it is new, or it has ended, and then a Begin
// must not begin it twice. The journal is read here, not in the loop.
func (e *Engine) doAbsent(ctx context.Context, r request) (txn.State, error) {
	id := r.id
	_, begin := r.event.(txn.Begin)
	lookedUp := func() {
		if begin {
			e.inbox.put(&request{work: func(l *loop) { l.lookedUp(id) }})
		}
	}
	for range 4 { // it may begin or end between two looks
		records, err := e.history(ctx, id)
		r.fresh = begin && err == nil && len(records) == 0
		if r.fresh {
			err = e.cfg.Store.Accepts()
		}
		if err != nil || !r.fresh {
			lookedUp()
		}
		switch {
		case err != nil:
			return txn.State{}, fmt.Errorf("transaction %s: %w", id, err)
		case len(records) == 0 && !begin:
			return txn.State{}, fmt.Errorf("transaction %s: %w", id, txn.ErrUnknown)
		case len(records) > 0:
			if m := txn.Restore(records); m.Phase().Done() {
				s, err := afterTheEnd(e.cfg.Now(), m, r.event)
				if err == nil && r.until != nil {
					err = unlessHolds(id, r.until(s))
				}
				if err == nil && r.see != nil {
					r.see(s)
				}
				return s, err
			}
		}
		s, err := e.ask(ctx, new(r))
		if !errors.Is(err, errMiss) {
			return s, err
		}
	}
	lookedUp()
	return txn.State{}, fmt.Errorf("transaction %s: %w", id, ErrElsewhere)
}

// afterTheEnd answers for a transaction that has ended: its machine refuses what differs and does nothing more.
func afterTheEnd(now time.Time, m *txn.Machine, ev txn.Event) (txn.State, error) {
	out, err := m.Step(now.UTC().Round(0), ev)
	if err != nil {
		return m.State(), fmt.Errorf("transaction %s: %w", m.State().Spec.ID, err)
	}
	if len(out.Records) > 0 || len(out.Calls) > 0 {
		panic(fmt.Sprintf("engine: transaction %s has ended and still does %+v", m.State().Spec.ID, out))
	}
	return m.State(), nil
}

// Post feeds one event without waiting for it: for answers that need not be durable. A later Do or Post for the
// same transaction does not overtake it. What is refused, and what comes for a transaction that is not in memory,
// is dropped.
func (e *Engine) Post(id txn.ID, ev txn.Event) {
	e.inbox.put(&request{id: id, event: ev})
}

// Wait returns as soon as the predicate holds, for a state that is in the journal. It returns the state with
// ErrEnded when the transaction has ended and it does not hold. The predicate runs in the engine's loop: it must
// be quick and must not call the engine.
func (e *Engine) Wait(ctx context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error) {
	return e.look(ctx, id, until)
}

// State returns an open or a finished transaction, or txn.ErrUnknown.
func (e *Engine) State(ctx context.Context, id txn.ID) (txn.State, error) {
	return e.look(ctx, id, func(txn.State) bool { return true })
}

// Peek shows a transaction that is in memory, as DoAndSee does, without waiting for what is being appended: what see gets
// may be ahead of the journal. It reports whether the transaction was there.
func (e *Engine) Peek(id txn.ID, see func(txn.State)) (found bool) {
	e.inLoop(func(l *loop) {
		if !l.shard.Has(id) {
			return
		}
		if s, err := l.shard.peek(id); err == nil {
			found = true
			see(s)
		}
	})
	return found
}

func (e *Engine) look(ctx context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error) {
	for range 4 { // it may begin or end between two looks
		s, err := e.ask(ctx, &request{id: id, until: until})
		if !errors.Is(err, errMiss) {
			return s, err
		}
		records, err := e.history(ctx, id)
		switch {
		case err != nil:
			return txn.State{}, fmt.Errorf("transaction %s: %w", id, err)
		case len(records) == 0:
			return txn.State{}, fmt.Errorf("transaction %s: %w", id, txn.ErrUnknown)
		}
		if s := txn.Fold(records); s.Phase.Done() {
			return s, unlessHolds(id, until(s))
		}
	}
	return txn.State{}, fmt.Errorf("transaction %s: %w", id, ErrElsewhere)
}

func unlessHolds(id txn.ID, holds bool) error {
	if holds {
		return nil
	}
	return fmt.Errorf("transaction %s: %w", id, ErrEnded)
}

// Find returns the newest transaction begun under this Spec.Key, or txn.ErrUnknown.
func (e *Engine) Find(ctx context.Context, key string) (txn.ID, error) {
	id, err := e.cfg.Store.Find(ctx, key)
	if errors.Is(err, txlog.ErrNotFound) {
		return "", fmt.Errorf("find transaction by key %q: %w", key, txn.ErrUnknown)
	}
	return id, err
}

// Each calls f for every transaction in memory, in the order of their ids. What f sees may be ahead of the
// journal. A transaction whose records cannot be followed shows as stuck, with the reason and nothing else.
func (e *Engine) Each(f func(txn.State)) {
	var states []txn.State
	e.inLoop(func(l *loop) {
		for _, id := range l.shard.IDs() {
			s, err := l.shard.State(id)
			if err != nil {
				s = txn.State{Spec: txn.Spec{ID: id}, Begun: true, Phase: txn.Stuck, Reason: err.Error()}
			}
			states = append(states, s)
		}
	})
	for _, s := range states {
		f(s)
	}
}

// All returns every transaction that has not ended, in the order of their ids, or why some may be missing: the engine
// is closed, reads the journal, or cannot follow the records of one. Who throws away what no transaction needs any
// more asks here, not Each.
func (e *Engine) All() (states []txn.State, err error) {
	err = ErrClosed
	e.inLoop(func(l *loop) {
		if err = l.refusal; err != nil {
			return
		}
		for _, id := range l.shard.IDs() {
			s, broken := l.shard.State(id)
			if broken != nil {
				states, err = nil, broken
				return
			}
			states = append(states, s)
		}
	})
	return states, err
}

// IDs returns the transactions in memory, also those that are broken, in their order.
func (e *Engine) IDs() (ids []txn.ID) {
	e.inLoop(func(l *loop) { ids = l.shard.IDs() })
	return ids
}

// Oldest returns when the oldest transaction that has not ended was begun.
func (e *Engine) Oldest() (begun time.Time, ok bool) {
	e.inLoop(func(l *loop) { begun, ok = l.shard.Oldest() })
	return begun, ok
}

// Refusal returns why the engine takes no events at present, or nil.
func (e *Engine) Refusal() (err error) {
	if !e.inLoop(func(l *loop) { err = l.refusal }) {
		return ErrClosed
	}
	return err
}

// inLoop runs f in the loop and waits for it. It reports whether f ran.
func (e *Engine) inLoop(f func(*loop)) bool {
	r := &request{reply: make(chan reply, 1)}
	r.work = func(l *loop) {
		f(l)
		r.answer(nil, nil)
	}
	if !e.inbox.put(r) {
		return false
	}
	return (<-r.reply).err == nil
}

// ask puts a request to the loop and waits for the reply.
func (e *Engine) ask(ctx context.Context, r *request) (txn.State, error) {
	r.reply = make(chan reply, 1)
	if !e.inbox.put(r) {
		return txn.State{}, ErrClosed
	}
	select {
	case a := <-r.reply:
		if a.state == nil {
			return txn.State{}, a.err
		}
		return *a.state, a.err
	case <-ctx.Done():
		e.inbox.put(&request{work: func(l *loop) { l.forget(r) }})
		return txn.State{}, fmt.Errorf("transaction %s: %w", r.id, ctx.Err())
	}
}

func (e *Engine) history(ctx context.Context, id txn.ID) ([]txn.Record, error) {
	var records []txn.Record
	for entry, err := range e.cfg.Store.History(ctx, id) {
		if err != nil {
			return nil, err
		}
		records = append(records, entry.Record)
	}
	return records, nil
}
