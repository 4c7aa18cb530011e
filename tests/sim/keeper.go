package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"txmesh/interceptor"
	"txmesh/sidecar/engine"
	"txmesh/sidecar/peer"
	"txmesh/sidecar/takeover"
	"txmesh/txlog"
	"txmesh/txn"
)

// keeper does what a takeover.Machine says, by messages to the store. It lives as long as its sidecar does.
type keeper struct {
	n    *node
	m    *takeover.Machine // nil: its own journal is not claimed yet
	runs map[string]*driver
	by   map[txlog.Owner]int // the truth about each claim
	seen map[string]seenAt   // who holds what, for a moment
	saw  sights              // the truth about the last observation
}

type seenAt struct {
	n  *node
	at time.Time
}

func newKeeper(n *node) *keeper {
	return &keeper{n: n, runs: map[string]*driver{}, by: map[txlog.Owner]int{}, seen: map[string]seenAt{}}
}

// now is the time of day as a sidecar sees it.
func (n *node) now() time.Time { return n.w.now.Add(n.offset) }

// uptime is the clock by which a sidecar judges others.
func (n *node) uptime() time.Duration { return time.Duration(float64(n.w.now.Sub(n.born)) * n.rate) }

func (n *node) self() txlog.Holder { return txlog.Holder{Sidecar: n.owner, Service: n.service} }

// run claims the own journal, and keeps the leases from then on.
func (k *keeper) run(a *actor) {
	n, w := k.n, k.n.w
	for {
		known, err := askStore(w, a, leaseTime/3, func() (uint64, error) {
			l, err := w.shared.Lease(context.Background(), n.owner)
			if errors.Is(err, txlog.ErrNotFound) {
				err = nil
			}
			return l.Owner.Epoch, err
		})
		if err == nil {
			var c claimed
			c, err = askStore(w, a, leaseTime/3, func() (claimed, error) {
				return w.claimFor(n, takeover.Claim{Owner: n.owner, Known: known, Holder: n.self()}, nil)
			})
			if err == nil {
				k.m = takeover.NewMachine(takeover.Config{Self: n.self(), Standby: n.service == spare, Lease: leaseTime}, n.uptime(), c.lease)
				k.by[c.lease.Owner] = c.claim
				k.load(c.lease.Owner)
				break
			}
		}
		a.sleep(w.between(20*time.Millisecond, 300*time.Millisecond))
	}
	for {
		k.step(takeover.Tick{Idle: k.idle()})
		a.sleep(w.between(leaseTime/16, leaseTime/8))
	}
}

func (k *keeper) idle() (idle []string) {
	for _, d := range k.n.drivers() {
		if d.takes() && d.shard.Len() == 0 {
			idle = append(idle, d.owner.ID)
		}
	}
	return idle
}

func (k *keeper) load(o txlog.Owner) {
	d := newDriver(k.n, k.n.w.byOwner(o.ID))
	d.owner, d.claim = o, k.by[o]
	k.runs[o.ID] = d
	d.load()
}

func (k *keeper) step(e takeover.Event) {
	w := k.n.w
	for _, a := range k.m.Step(k.n.uptime(), e) {
		if r, ok := a.(takeover.Release); ok {
			k.checkRelease(r)
		}
		saw := k.saw
		w.spawn(&k.n.side.process, func(b *actor) { k.perform(b, a, saw) })
	}
	if k.m.Left() {
		w.in(&k.n.side.process, time.Second, func() { // its last messages are out
			w.after(w.downtime(w.between(10*time.Millisecond, 3*time.Second)), k.n.boot)
			w.die(&k.n.side)
		})
	}
}

// checkRelease says that whoever gives a journal away has stopped running it.
func (k *keeper) checkRelease(r takeover.Release) {
	if d := k.runs[r.Owner.ID]; d != nil && d.owner == r.Owner {
		k.n.w.fail("handover", "%s gives the journal of %s away, and runs it still", k.n.place, d.of.place)
	}
}

func (k *keeper) perform(b *actor, a takeover.Action, saw sights) {
	n, w, ctx := k.n, k.n.w, context.Background()
	switch a := a.(type) {
	case takeover.Observe:
		o, err := askStore(w, b, leaseTime/3, func() (observed, error) { return w.observe(a.Service) })
		if err == nil {
			k.saw = o.saw
		}
		k.step(takeover.Observed{Leases: o.leases, Err: err})
	case takeover.Claim:
		c, err := askStore(w, b, leaseTime/3, func() (claimed, error) { return w.claimFor(n, a, saw) })
		if err == nil {
			k.by[c.lease.Owner] = c.claim
		}
		k.step(takeover.Claimed{Owner: a.Owner, Lease: c.lease, Err: err})
	case takeover.Renew:
		_, err := askStore(w, b, leaseTime/3, func() (struct{}, error) { return struct{}{}, w.renew(a.Owner) })
		k.step(takeover.Renewed{Owner: a.Owner, Err: err})
	case takeover.Adopt:
		k.load(a.Lease.Owner)
	case takeover.Drop:
		d := k.runs[a.Owner.ID]
		w.logf("%s: drops the journal of %s: %v", n.place, d.of.place, a.Why)
		d.stop(b)
		delete(k.runs, a.Owner.ID)
		w.point(n, sidecar)
		k.step(takeover.Stopped{Owner: a.Owner})
	case takeover.Release:
		w.logf("%s: releases the journal of %s", n.place, a.Owner.ID)
		// Lost, and the lease lapses.
		_, _ = askStore(w, b, leaseTime/3, func() (struct{}, error) { return struct{}{}, w.shared.Release(ctx, a.Owner) })
	case takeover.Retire:
		// Lost, and it is tried again.
		_, _ = askStore(w, b, leaseTime/3, func() (struct{}, error) { return struct{}{}, w.shared.Retire(ctx, a.Owner) })
	case takeover.Offer:
		w.counts["journal offered"]++
		w.invite(a.Owner, 0)
		to := w.byOwner(a.Heir.Sidecar)
		// Lost, and the lease lapses.
		_, _ = w.carry(b, link{}, &to.side, leaseTime/3, func(*actor) any {
			to.keeper.step(takeover.Offered{Owner: a.Owner})
			return nil
		})
	}
}

// runs returns the driver of a journal that a node runs; nil: none.
func (n *node) runs(owner string) *driver {
	switch {
	case n.w.fleet == nil && owner == n.owner:
		return n.driver
	case n.keeper == nil || n.keeper.m == nil || !n.keeper.m.Runs(owner):
		return nil
	}
	return n.keeper.runs[owner]
}

// drivers are those of a node, ordered by owner.
func (n *node) drivers() []*driver {
	if n.keeper == nil {
		return []*driver{n.driver}
	}
	var all []*driver
	for _, d := range n.keeper.runs {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *driver) int { return a.of.at - b.of.at })
	return all
}

// holder finds the sidecar that runs the journal of an owner, as the store said a moment ago.
func (n *node) holder(owner string) (*node, error) {
	w := n.w
	if w.fleet == nil {
		return w.byOwner(owner), nil
	}
	if s, ok := n.keeper.seen[owner]; ok && w.now.Sub(s.at) < leaseTime/6 {
		return s.n, nil
	}
	at := w.now
	l, err := askStore(w, w.cur, leaseTime/3, func() (txlog.Lease, error) { return w.shared.Lease(context.Background(), owner) })
	if err == nil && l.Free {
		err = txlog.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("%w: who holds %s: %w", peer.ErrUnreachable, owner, err)
	}
	to := w.byOwner(l.Holder.Sidecar)
	n.keeper.seen[owner] = seenAt{to, at}
	return to, nil
}

func (n *node) forget(owner string) {
	if n.keeper != nil {
		delete(n.keeper.seen, owner)
	}
}

// router implements interceptor.Coordinator: events go to the driver of the journal, here or at another sidecar.
type router struct{ n *node }

func (r router) runs(id txn.ID) *driver { return r.n.runs(interceptor.OwnerOf(id)) }

// Do feeds one event and returns when what it recorded is durable.
func (r router) Do(ctx context.Context, id txn.ID, e txn.Event) (txn.State, error) {
	if d := r.runs(id); d != nil {
		return d.Do(ctx, id, e)
	}
	w, owner := r.n.w, interceptor.OwnerOf(id)
	if _, begin := e.(txn.Begin); begin || w.fleet == nil {
		return txn.State{}, engine.ErrUnavailable
	}
	to, err := r.n.holder(owner)
	if err != nil {
		return txn.State{}, err
	}
	got, err := w.carry(w.cur, link{twice: true}, &to.side, peerTimeout, func(*actor) any {
		d := to.runs(owner)
		if d == nil {
			return &reply{err: peer.ErrMisdirected}
		}
		st, err := d.Do(ctx, id, e)
		return &reply{state: st, err: err}
	})
	if err != nil {
		return txn.State{}, fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	w.counts["event brought to an adopter"]++
	p := got.(*reply)
	return p.state, r.n.overTheWire(owner, p.err)
}

// Wait returns as soon as the predicate holds, or at once for a journal that others run.
func (r router) Wait(ctx context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error) {
	if d := r.runs(id); d != nil {
		return d.Wait(ctx, id, until)
	}
	w := r.n.w
	if w.fleet == nil {
		return txn.State{}, engine.ErrUnavailable
	}
	st, err := askStore(w, w.cur, peerTimeout, func() (txn.State, error) {
		rs := w.ownerOf(id).journal.records(id, true)
		if len(rs) == 0 {
			return txn.State{}, txn.ErrUnknown
		}
		return txn.Fold(rs), nil
	})
	switch {
	case err == nil && st.Phase.Done() && !until(st):
		err = engine.ErrEnded
	case err == nil && !until(st):
		err = engine.ErrUnavailable
	}
	return st, err
}

// State returns an open or a finished transaction.
func (r router) State(ctx context.Context, id txn.ID) (txn.State, error) {
	return r.Wait(ctx, id, func(txn.State) bool { return true })
}

// Find returns the newest transaction begun under a key.
func (r router) Find(ctx context.Context, key string) (txn.ID, error) {
	if d := r.n.runs(r.n.owner); d != nil {
		return d.Find(ctx, key)
	}
	return "", engine.ErrUnavailable
}
