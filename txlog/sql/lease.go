package sql

import (
	"context"
	"database/sql"
	"fmt"

	"txmesh/txlog"
)

// Claim implements txlog.Leases. It waits for the append that is under way: what comes after it is fenced.
func (e *Engine) Claim(ctx context.Context, owner string, known uint64, h txlog.Holder) (txlog.Lease, error) {
	var epoch int64
	err := e.once(ctx, func(ctx context.Context) error {
		return e.within(ctx, func(tx *sql.Conn) (err error) {
			epoch, err = e.claim(ctx, tx, owner, known, h)
			return err
		})
	})
	if err != nil {
		return txlog.Lease{}, fmt.Errorf("claim %s at epoch %d: %w", owner, known, err)
	}
	return txlog.Lease{Owner: txlog.Owner{ID: owner, Epoch: uint64(epoch)}, Holder: h}, nil
}

func (e *Engine) claim(ctx context.Context, tx *sql.Conn, owner string, known uint64, h txlog.Holder) (epoch int64, err error) {
	if _, err := e.change(ctx, tx, "UPDATE txmesh_store SET epoch = epoch + 1 WHERE id = 1"); err != nil {
		return 0, err
	}
	if err := tx.QueryRowContext(ctx, "SELECT epoch FROM txmesh_store WHERE id = 1").Scan(&epoch); err != nil {
		return 0, err
	}
	id, sidecar, service, peer := []byte(owner), []byte(h.Sidecar), []byte(h.Service), []byte(h.Peer)
	if known > 0 {
		n, err := e.change(ctx, tx, "UPDATE txmesh_leases SET epoch = ?, beat = 0, free = 0, sidecar = ?, service = ?, peer = ? WHERE owner = ? AND epoch = ?",
			epoch, sidecar, service, peer, id, int64(known))
		if err == nil && n == 0 {
			err = txlog.ErrFenced
		}
		if err == nil {
			_, err = e.change(ctx, tx, "UPDATE txmesh_fences SET epoch = ?, turn = 0 WHERE owner = ?", epoch, id)
		}
		return epoch, err
	}
	_, err = e.change(ctx, tx, "INSERT INTO txmesh_leases (owner, epoch, beat, free, sidecar, service, peer) VALUES (?, ?, 0, 0, ?, ?, ?)",
		id, epoch, sidecar, service, peer)
	if e.duplicate(err) {
		return 0, txlog.ErrFenced
	}
	if err == nil {
		_, err = e.change(ctx, tx, "INSERT INTO txmesh_fences (owner, epoch, turn) VALUES (?, ?, 0)", id, epoch)
	}
	return epoch, err
}

func (e *Engine) duplicate(err error) bool { return err != nil && e.d.code(err) == codeDuplicate }

// Renew implements txlog.Leases. It waits for no append.
func (e *Engine) Renew(ctx context.Context, o txlog.Owner) error {
	if err := e.setLease(ctx, o, "beat = beat + 1"); err != nil {
		return fmt.Errorf("renew %s at epoch %d: %w", o.ID, o.Epoch, err)
	}
	e.health.well()
	return nil
}

// Release implements txlog.Leases.
func (e *Engine) Release(ctx context.Context, o txlog.Owner) error {
	if err := e.setLease(ctx, o, "free = 1"); err != nil {
		return fmt.Errorf("release %s at epoch %d: %w", o.ID, o.Epoch, err)
	}
	return nil
}

// setLease may be repeated: a beat that is raised twice is a beat.
func (e *Engine) setLease(ctx context.Context, o txlog.Owner, set string) error {
	return e.read(ctx, func(ctx context.Context) error {
		n, err := e.change(ctx, e.db, "UPDATE txmesh_leases SET "+set+" WHERE owner = ? AND epoch = ?", []byte(o.ID), int64(o.Epoch))
		if err == nil && n == 0 {
			err = txlog.ErrFenced
		}
		return err
	})
}

// Retire implements txlog.Leases.
func (e *Engine) Retire(ctx context.Context, o txlog.Owner) error {
	err := e.once(ctx, func(ctx context.Context) error {
		return e.within(ctx, func(tx *sql.Conn) error { return e.retire(ctx, tx, o) })
	})
	if err != nil {
		return fmt.Errorf("retire %s at epoch %d: %w", o.ID, o.Epoch, err)
	}
	return nil
}

func (e *Engine) retire(ctx context.Context, tx *sql.Conn, o txlog.Owner) error {
	for _, table := range []string{"txmesh_leases", "txmesh_fences"} { // no append passes from here on
		n, err := e.change(ctx, tx, "DELETE FROM "+table+" WHERE owner = ? AND epoch = ?", []byte(o.ID), int64(o.Epoch))
		if err == nil && n == 0 {
			err = txlog.ErrFenced
		}
		if err != nil {
			return err
		}
	}
	return e.query(ctx, tx, "SELECT id FROM txmesh_transactions WHERE owner = ? AND done = 0 LIMIT 1", []any{[]byte(o.ID)}, func(rows *sql.Rows) error {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			return err
		}
		return fmt.Errorf("transaction %s: %w", id, txlog.ErrUnfinished)
	})
}

const selectLeases = "SELECT owner, epoch, beat, free, sidecar, service, peer FROM txmesh_leases"

// Lease implements txlog.Leases.
func (e *Engine) Lease(ctx context.Context, owner string) (txlog.Lease, error) {
	ls, err := e.leases(ctx, selectLeases+" WHERE owner = ?", []byte(owner))
	if err == nil && len(ls) == 0 {
		err = txlog.ErrNotFound
	}
	if err != nil {
		return txlog.Lease{}, fmt.Errorf("lease of %s: %w", owner, err)
	}
	return ls[0], nil
}

// Leases implements txlog.Leases.
func (e *Engine) Leases(ctx context.Context, service string) ([]txlog.Lease, error) {
	where, args := "", []any{}
	if service != "" {
		where, args = " WHERE service = ?", []any{[]byte(service)}
	}
	ls, err := e.leases(ctx, selectLeases+where+" ORDER BY owner", args...)
	if err != nil {
		return nil, fmt.Errorf("leases of %q: %w", service, err)
	}
	return ls, nil
}

func (e *Engine) leases(ctx context.Context, query string, args ...any) (out []txlog.Lease, err error) {
	err = e.read(ctx, func(ctx context.Context) error {
		out = nil
		return e.query(ctx, e.db, query, args, func(rows *sql.Rows) error {
			var l txlog.Lease
			var owner, sidecar, service, peer []byte
			var free int64
			if err := rows.Scan(&owner, &l.Owner.Epoch, &l.Beat, &free, &sidecar, &service, &peer); err != nil {
				return err
			}
			l.Owner.ID, l.Free = string(owner), free != 0
			l.Holder = txlog.Holder{Sidecar: string(sidecar), Service: string(service), Peer: string(peer)}
			out = append(out, l)
			return nil
		})
	})
	return out, err
}
