package interceptor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"txmesh/txlog"
	"txmesh/txn/barrier"
)

// row is what the home knows of one branch.
type row struct {
	State    barrier.State `cbor:"1,keyasint"` // Running on disk means started; see Gate.stateOf
	Deadline time.Time     `cbor:"2,keyasint"`
	Method   string        `cbor:"3,keyasint,omitempty"`
	Path     string        `cbor:"4,keyasint,omitempty"`
	Request  *Outgoing     `cbor:"5,keyasint,omitempty"` // kept where the application knows repeats by their key
	Reply    *Reply        `cbor:"6,keyasint,omitempty"`
	Join     []string      `cbor:"7,keyasint,omitempty"`
	Cut      bool          `cbor:"8,keyasint,omitempty"` // the reply's body was too long to be kept
	Runner   string        `cbor:"9,keyasint,omitempty"` // who runs a call of the branch, where replicas share the rows

	stored []byte // what is in the store now; nil: nothing
}

func (r row) encode() []byte {
	b, err := cbor.Marshal(r)
	if err != nil {
		panic(err) // plain data always marshals
	}
	return b
}

func decodeRow(b []byte) (row, error) {
	var r row
	if err := cbor.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("barrier row: %w", err)
	}
	r.stored = b
	return r, nil
}

// save writes the row in the place of what was loaded or saved before.
func (g *Gate) save(ctx context.Context, branch string, r *row, sync bool) error {
	data := r.encode()
	if err := g.Rows.Save(ctx, branch, r.stored, data, sync); err != nil {
		if !errors.Is(err, txlog.ErrChanged) {
			g.doubt(branch, false)
		}
		return err
	}
	r.stored = data
	return nil
}

// run notes that this sidecar runs a call of the branch, where a replica could run one as well. The caller has entered
// the branch, and takes it back by rest.
func (g *Gate) run(ctx context.Context, branch string, r *row) error {
	if g.Runners == nil {
		return nil
	}
	var err error
	if r.Runner, err = g.Runners.Name(); err != nil {
		return err
	}
	return g.save(ctx, branch, r, true)
}

// rest is the end of what run noted. Should it not be written, Tidy does it later.
func (g *Gate) rest(ctx context.Context, branch string, r *row) {
	if r.Runner == "" {
		return
	}
	r.Runner = ""
	if err := g.save(context.WithoutCancel(ctx), branch, r, false); err != nil {
		g.Log.Warn("a call of this branch counts as running for a while", "branch", branch, "error", err)
	}
}

// elsewhere reports whether a replica runs a call of the branch.
func (g *Gate) elsewhere(ctx context.Context, r row) bool {
	if r.Runner == "" || g.Runners == nil {
		return false
	}
	me, err := g.Runners.Name()
	return (err != nil || me != r.Runner) && !g.Runners.Gone(ctx, r.Runner)
}

// enter takes a branch for one call. Until leave, every other call for it is early.
func (g *Gate) enter(branch string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.busy[branch] {
		return false
	}
	g.busy[branch] = true
	return true
}

func (g *Gate) leave(branch string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.busy, branch)
}

// load returns the row of a branch that the caller has entered, and its state: a call that was started and that
// nobody runs any more has crashed. What a replica runs is running, whatever it is.
func (g *Gate) load(ctx context.Context, branch string) (row, barrier.State, error) {
	data, found, err := g.Rows.Load(ctx, branch)
	if err != nil || !found {
		return row{}, barrier.Nothing, err
	}
	r, err := decodeRow(data)
	if err != nil {
		return r, barrier.Nothing, err
	}
	switch {
	case g.elsewhere(ctx, r):
		return r, barrier.Running, nil
	case r.State == barrier.Running:
		return r, barrier.Crashed, nil
	}
	return r, r.State, nil
}

// Overdue is a barrier row whose transaction should have ended.
type Overdue struct {
	Branch   string
	Deadline time.Time
}

// Overdue returns the rows whose deadline has passed, for the sweep that asks their owners.
func (g *Gate) Overdue(ctx context.Context) ([]Overdue, error) {
	var list []Overdue
	now := g.Now()
	err := g.Rows.Each(ctx, func(branch string, data []byte) bool {
		if r, err := decodeRow(data); err == nil && r.Deadline.Before(now) {
			list = append(list, Overdue{branch, r.Deadline})
		}
		return true
	})
	return list, err
}

// Forget drops the row of a branch whose transaction has ended.
func (g *Gate) Forget(ctx context.Context, branch string) error {
	if !g.enter(branch) {
		return nil
	}
	defer g.leave(branch)
	data, found, err := g.Rows.Load(ctx, branch)
	if err != nil || !found {
		return err
	}
	if err = g.Rows.Save(ctx, branch, data, nil, false); errors.Is(err, txlog.ErrChanged) {
		return nil // a replica has dropped it, or uses it: the next sweep sees
	}
	return err
}
