package memory

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"txmesh/txlog"
	"txmesh/txn"
)

// Shared is a txlog.Shared: what many sidecars of one simulation or test see. Everything in it is durable at once.
type Shared struct {
	opts Options
	core *core
}

var _ txlog.Shared = Shared{}

// NewShared returns an engine without owners; that of the options does not count.
func NewShared(o Options) Shared { return Shared{o, newCore()} }

// As implements txlog.Shared.
func (s Shared) As(o txlog.Owner) txlog.Store {
	return &Store{opts: s.opts, owner: o, shared: true, core: s.core}
}

// OwnerOf implements txlog.Shared.
func (s Shared) OwnerOf(_ context.Context, id txn.ID) (string, error) {
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	if h := s.core.now.txs[id]; h != nil {
		return h.owner, nil
	}
	return "", fmt.Errorf("owner of transaction %s: %w", id, txlog.ErrNotFound)
}

// Close implements txlog.Shared. Everything stays: others may use it.
func (s Shared) Close() error { return nil }

// Claim implements txlog.Leases.
func (s Shared) Claim(_ context.Context, owner string, known uint64, h txlog.Holder) (txlog.Lease, error) {
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	if now := s.core.leases[owner].Owner.Epoch; now != known {
		return txlog.Lease{}, fmt.Errorf("claim %s at epoch %d, it is %d: %w", owner, known, now, txlog.ErrFenced)
	}
	s.core.epoch++
	l := txlog.Lease{Owner: txlog.Owner{ID: owner, Epoch: s.core.epoch}, Holder: h}
	s.core.leases[owner] = l
	return l, nil
}

// Renew implements txlog.Leases.
func (s Shared) Renew(_ context.Context, o txlog.Owner) error {
	return s.change("renew", o, func(l *txlog.Lease) { l.Beat++ })
}

// Release implements txlog.Leases.
func (s Shared) Release(_ context.Context, o txlog.Owner) error {
	return s.change("release", o, func(l *txlog.Lease) { l.Free = true })
}

func (s Shared) change(what string, o txlog.Owner, f func(*txlog.Lease)) error {
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	l, ok := s.core.leases[o.ID]
	if !ok || l.Owner != o {
		return fmt.Errorf("%s %s at epoch %d, it is %d: %w", what, o.ID, o.Epoch, l.Owner.Epoch, txlog.ErrFenced)
	}
	f(&l)
	s.core.leases[o.ID] = l
	return nil
}

// Retire implements txlog.Leases.
func (s Shared) Retire(_ context.Context, o txlog.Owner) error {
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	if l, ok := s.core.leases[o.ID]; !ok || l.Owner != o {
		return fmt.Errorf("retire %s at epoch %d, it is %d: %w", o.ID, o.Epoch, l.Owner.Epoch, txlog.ErrFenced)
	}
	for id, h := range s.core.now.txs {
		if h.owner == o.ID && !h.digest.Summary.Phase.Done() {
			return fmt.Errorf("retire %s: transaction %s is not finished: %w", o.ID, id, txlog.ErrUnfinished)
		}
	}
	delete(s.core.leases, o.ID)
	return nil
}

// Lease implements txlog.Leases.
func (s Shared) Lease(_ context.Context, owner string) (txlog.Lease, error) {
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	l, ok := s.core.leases[owner]
	if !ok {
		return l, fmt.Errorf("lease of %s: %w", owner, txlog.ErrNotFound)
	}
	return l, nil
}

// Leases implements txlog.Leases.
func (s Shared) Leases(_ context.Context, service string) ([]txlog.Lease, error) {
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	var out []txlog.Lease
	for _, l := range s.core.leases {
		if service == "" || l.Holder.Service == service {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b txlog.Lease) int { return strings.Compare(a.Owner.ID, b.Owner.ID) })
	return out, nil
}
