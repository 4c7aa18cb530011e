// Package owners runs the journals that this sidecar holds, its own and those it has adopted, each by an engine of its
// own, and brings every event to the engine of its transaction: here, or at the sidecar that holds the journal. It
// decides neither which journals are held nor anything about transactions. Start at Owners.Do; elsewhere.go has what
// happens to transactions of others.
package owners

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"txmesh/interceptor"
	"txmesh/sidecar/engine"
	"txmesh/txlog"
	"txmesh/txn"
)

// ErrNotHeld says that this sidecar has lost its own journal to another, and takes no transactions until it has it back.
var ErrNotHeld = errors.New("owners: another sidecar holds the journal of this one")

// Remote brings an event to the sidecar that holds the journal of an owner. It returns when what was recorded is durable.
type Remote interface {
	Do(ctx context.Context, owner string, id txn.ID, e txn.Event) error
}

// Options is what Owners work with.
type Options struct {
	Own    string                          // the owner that new transactions get
	Store  func(o txlog.Owner) txlog.Store // of one owner
	Engine func(o txlog.Owner, s txlog.Store) (*engine.Engine, error)
	Shared txlog.Shared  // nil: the store is this sidecar's alone, and so are all transactions in it
	Reader txlog.Journal // reads what others have written to Shared
	Remote Remote        // reaches those who hold the journals of others
}

// Owners are the journals that this sidecar holds. All methods are safe for many goroutines.
type Owners struct {
	opt Options

	mu   sync.RWMutex // guards held
	held map[string]*journal
}

// journal is one that is held.
type journal struct {
	owner  txlog.Owner
	engine *engine.Engine
	close  func() error // of its store
}

// New returns Owners that hold nothing yet.
func New(opt Options) *Owners { return &Owners{opt: opt, held: map[string]*journal{}} }

// Hold loads the journal of an owner and goes on with its transactions. It returns when everything that was found is
// durable under the owner's epoch.
func (o *Owners) Hold(ctx context.Context, owner txlog.Owner) error {
	store := o.opt.Store(owner)
	j := &journal{owner: owner, close: func() error { return nil }}
	if o.opt.Shared != nil {
		j.close = store.Close
	}
	var err error
	if j.engine, err = o.opt.Engine(owner, store); err != nil {
		return fmt.Errorf("journal of %s: %w", owner.ID, err)
	}
	if err := j.engine.Start(ctx); err != nil {
		return fmt.Errorf("journal of %s: %w", owner.ID, errors.Join(err, j.stop()))
	}
	o.mu.Lock()
	before := o.held[owner.ID]
	o.held[owner.ID] = j
	o.mu.Unlock()
	if before != nil {
		return before.stop()
	}
	return nil
}

// Drop stops running the journal of an owner. When it returns, no call of its transactions leaves any more.
func (o *Owners) Drop(owner string) error {
	o.mu.Lock()
	j := o.held[owner]
	delete(o.held, owner)
	o.mu.Unlock()
	if j == nil {
		return nil
	}
	return j.stop()
}

func (j *journal) stop() error { return errors.Join(j.engine.Close(), j.close()) }

// Close drops all.
func (o *Owners) Close() error {
	var errs []error
	for _, j := range o.journals() {
		errs = append(errs, o.Drop(j.owner.ID))
	}
	return errors.Join(errs...)
}

// Holds reports whether the journal of an owner is run here.
func (o *Owners) Holds(owner string) bool { return o.engine(owner) != nil }

// Idle reports whether an owner that is held has no transaction open.
func (o *Owners) Idle(owner string) bool {
	e := o.engine(owner)
	if e == nil {
		return true
	}
	open, err := e.All()
	return err == nil && len(open) == 0
}

func (o *Owners) engine(owner string) *engine.Engine {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if j := o.held[owner]; j != nil {
		return j.engine
	}
	return nil
}

// journals lists what is held, this sidecar's own first.
func (o *Owners) journals() []*journal {
	o.mu.RLock()
	defer o.mu.RUnlock()
	out := make([]*journal, 0, len(o.held))
	for id, j := range o.held {
		out = append(out, j)
		if last := len(out) - 1; id == o.opt.Own {
			out[0], out[last] = out[last], out[0]
		}
	}
	return out
}

// own returns the engine of new transactions.
func (o *Owners) own() (*engine.Engine, error) {
	if e := o.engine(o.opt.Own); e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("%w: %w", engine.ErrUnavailable, ErrNotHeld)
}

// at returns the engine for a transaction, or the owner whose journal others hold. Ids that outsiders have chosen are
// tried here first.
func (o *Owners) at(id txn.ID) (*engine.Engine, string, error) {
	owner := interceptor.OwnerOf(id)
	if e := o.engine(owner); e != nil {
		return e, owner, nil
	}
	if o.opt.Shared != nil && interceptor.IsOwner(owner) && owner != o.opt.Own {
		return nil, owner, nil
	}
	e, err := o.own()
	return e, o.opt.Own, err
}

// Post feeds one event without waiting. What is for a journal that is not held is dropped.
func (o *Owners) Post(id txn.ID, e txn.Event) {
	if at, _, _ := o.at(id); at != nil {
		at.Post(id, e)
	}
}

// Find returns the newest transaction begun under a Spec.Key, or txn.ErrUnknown.
func (o *Owners) Find(ctx context.Context, key string) (txn.ID, error) {
	e, err := o.own()
	if err != nil {
		return "", err
	}
	return e.Find(ctx, key)
}

// Each calls f for every transaction in memory. What f sees may be ahead of the journal.
func (o *Owners) Each(f func(txn.State)) {
	for _, j := range o.journals() {
		j.engine.Each(f)
	}
}

// All returns every transaction of all journals held that has not ended, or why some may be missing.
func (o *Owners) All() ([]txn.State, error) {
	if _, err := o.own(); err != nil {
		return nil, err
	}
	var all []txn.State
	for _, j := range o.journals() {
		open, err := j.engine.All()
		if err != nil {
			return nil, fmt.Errorf("journal of %s: %w", j.owner.ID, err)
		}
		all = append(all, open...)
	}
	return all, nil
}

// IDs returns the transactions in memory.
func (o *Owners) IDs() []txn.ID {
	var ids []txn.ID
	for _, j := range o.journals() {
		ids = append(ids, j.engine.IDs()...)
	}
	return ids
}

// Oldest returns when the oldest transaction that has not ended was begun.
func (o *Owners) Oldest() (oldest time.Time, ok bool) {
	for _, j := range o.journals() {
		if begun, found := j.engine.Oldest(); found && (!ok || begun.Before(oldest)) {
			oldest, ok = begun, true
		}
	}
	return oldest, ok
}

// Refusal returns why this sidecar takes no new transactions at present, or nil.
func (o *Owners) Refusal() error {
	e, err := o.own()
	if err != nil {
		return err
	}
	return e.Refusal()
}
