package sidecar

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"txmesh/interceptor"
	"txmesh/sidecar/engine"
	"txmesh/sidecar/owners"
	"txmesh/sidecar/peer"
	"txmesh/sidecar/takeover"
	"txmesh/txlog"
	"txmesh/txn"
)

// newOwners makes what runs the journals, of which none is held yet.
func (s *Sidecar) newOwners() *owners.Owners {
	store := func(txlog.Owner) txlog.Store { return s.store }
	if s.shared != nil {
		store = s.shared.As
	}
	return owners.New(owners.Options{Own: s.owner, Store: store, Engine: s.newEngine, Shared: s.shared, Reader: s.store, Remote: s.client})
}

// newKeeper makes what claims journals in a shared store, once the peer port is open.
func (s *Sidecar) newKeeper() error {
	at := dialable(s.ports.peer.Addr())
	if s.cfg.AdvertisePeer != "" || s.control != nil {
		at = s.reachable(s.ports.peer, s.cfg.AdvertisePeer)
	}
	var err error
	s.keeper, err = takeover.New(takeover.Options{
		Config: takeover.Config{Self: txlog.Holder{Sidecar: s.owner, Service: s.cfg.Service, Peer: at}, Standby: s.cfg.Standby, Lease: s.cfg.Lease},
		Leases: s.shared, Adopt: s.adopt, Drop: s.dropped, Idle: s.owners.Idle, Log: s.log,
		Offer: func(ctx context.Context, heir txlog.Holder, o txlog.Owner) error {
			return s.client.Offer(ctx, heir.Peer, o.ID, o.Epoch)
		}})
	return err
}

// hold takes this sidecar's own journal and goes on with what is open in it.
func (s *Sidecar) hold(ctx context.Context) error {
	if err := s.keepPolicies(ctx); err != nil {
		return err
	}
	if s.shared == nil {
		if err := s.owners.Hold(ctx, txlog.Owner{ID: s.owner, Epoch: 1}); err != nil {
			return err
		}
		return s.restore(ctx)
	}
	lease, err := s.keeper.Start(ctx)
	if err != nil {
		return err
	}
	if err := s.adopt(ctx, lease.Owner, s.cfg.Service); err != nil {
		return err
	}
	return s.restore(ctx)
}

// restore rebuilds the map of calls in flight.
func (s *Sidecar) restore(ctx context.Context) error {
	var open []txn.State
	s.owners.Each(func(st txn.State) { open = append(open, st) })
	if err := s.gate.Restore(ctx, open); err != nil {
		return fmt.Errorf("rebuild the map of calls in flight: %w", err)
	}
	return nil
}

// keepLeases keeps what this sidecar holds of a shared store, once it holds its own journal: untagged traffic does not
// wait for a store that is away.
func (s *Sidecar) keepLeases(ctx context.Context, held error) {
	for pause := 200 * time.Millisecond; held != nil; pause = min(2*pause, s.cfg.Lease) {
		s.log.Warn("no transactions are taken: the own journal is not held", "error", held)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		held = s.hold(ctx)
	}
	s.leased.Store(true)
	s.keeper.Run(ctx)
}

func (s *Sidecar) adopt(ctx context.Context, o txlog.Owner, _ string) error {
	if err := s.owners.Hold(ctx, o); err != nil {
		return err
	}
	if o.ID == s.owner {
		s.epoch.Store(o.Epoch)
	} else {
		s.metrics.adopted.Inc(1)
	}
	return nil
}

func (s *Sidecar) dropped(owner string, why error) {
	if owner == s.owner {
		s.epoch.Store(0)
	}
	if errors.Is(why, txlog.ErrFenced) {
		s.metrics.fenced.Inc(1)
	}
	if err := s.owners.Drop(owner); err != nil {
		s.log.Error("journal not closed", "owner", owner, "error", err)
	}
}

// watched is the engine's observer of one journal: whoever is fenced must stop, and not only wait.
func (s *Sidecar) watched(o txlog.Owner, observer engine.Observer) engine.Observer {
	if s.shared == nil {
		return observer
	}
	appended := observer.Appended
	observer.Appended = func(entries int, sync bool, took time.Duration, err error) {
		appended(entries, sync, took, err)
		if errors.Is(err, txlog.ErrFenced) {
			s.keeper.Fenced(o)
		}
	}
	return observer
}

// offered takes the word of holders that leave; nil where the store is embedded.
func (s *Sidecar) offered() func(owner string, epoch uint64) {
	if s.shared == nil {
		return nil
	}
	return func(owner string, epoch uint64) {
		if s.leased.Load() {
			s.keeper.Offered(txlog.Owner{ID: owner, Epoch: epoch})
		}
	}
}

// addressOf finds the peer port of who holds the journal of an owner.
func (s *Sidecar) addressOf(ctx context.Context, owner string) (string, error) {
	if s.keeper == nil {
		return s.directory.AddressOf(ctx, owner)
	}
	l, err := s.keeper.Lookup(ctx, owner)
	switch {
	case err == nil && !l.Free:
		return l.Holder.Peer, nil
	case err == nil, errors.Is(err, txlog.ErrNotFound):
		return "", fmt.Errorf("%w: nobody holds the journal of owner %s at present", peer.ErrUnreachable, owner)
	}
	return s.directory.AddressOf(ctx, owner) // the store does not answer
}

// homes settles branches here or at a peer.
type homes Sidecar

// Settle implements outbound.Homes.
func (h *homes) Settle(ctx context.Context, c interceptor.HomeCall) (interceptor.HomeReply, error) {
	switch {
	case c.Home == h.home && !h.cfg.Alone():
		return h.gate.Settle(ctx, c), nil
	case !interceptor.IsSharedHome(c.Home):
		return h.client.Settle(ctx, c)
	}
	err := fmt.Errorf("%w: no sidecar of home %s is known", peer.ErrUnreachable, c.Home)
	for _, at := range h.sharing(ctx, c.Home) {
		var r interceptor.HomeReply
		if r, err = h.client.SettleAt(ctx, at, c); err == nil || !errors.Is(err, peer.ErrUnreachable) {
			return r, err
		}
	}
	return interceptor.HomeReply{}, err
}

// sharing lists the peer ports of the sidecars that share a home: those that hold their journals first, who answer.
func (h *homes) sharing(ctx context.Context, home string) []string {
	at := h.directory.AddressesOf(home)
	if h.shared == nil {
		return at
	}
	leases, err := h.shared.Leases(ctx, strings.TrimPrefix(home, interceptor.SharedHome("")))
	if err != nil {
		return at
	}
	var out []string
	for _, l := range leases {
		if l.Holder.Sidecar == l.Owner.ID && !l.Free {
			out = append(out, l.Holder.Peer)
		}
	}
	return append(out, at...)
}

// runners tells the replicas of the service apart by the epochs of their own journals.
type runners Sidecar

// Name implements interceptor.Runners.
func (r *runners) Name() (string, error) {
	epoch := r.epoch.Load()
	if epoch == 0 {
		return "", owners.ErrNotHeld
	}
	return r.owner + "/" + strconv.FormatUint(epoch, 10), nil
}

// Gone implements interceptor.Runners. A sidecar is gone when its journal has another epoch or was given up, or when its
// lease has lapsed. Where that is not known, it is not.
func (r *runners) Gone(ctx context.Context, name string) bool {
	owner, epoch, _ := strings.Cut(name, "/")
	if !r.leased.Load() {
		return false
	}
	if live, known := r.keeper.Live(owner); known && !live {
		return true
	}
	l, err := r.keeper.Lookup(ctx, owner)
	switch {
	case errors.Is(err, txlog.ErrNotFound):
		return true
	case err != nil:
		return false
	}
	return l.Free || strconv.FormatUint(l.Owner.Epoch, 10) != epoch
}

// sharedHome is where barrier rows live, if not with this sidecar alone.
func (s *Sidecar) sharedHome() string {
	if s.shared == nil {
		return ""
	}
	return s.home
}
