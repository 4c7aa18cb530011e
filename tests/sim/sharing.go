package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"txmesh/interceptor"
	"txmesh/txlog"
)

// home is where the barrier rows of a node live.
func (n *node) home() string {
	if n.w.opt.Sharing {
		return interceptor.SharedHome("shop/" + n.service)
	}
	return n.owner
}

// rowOf is a row as it is durable at its home.
func (w *world) rowOf(home, branch string) []byte {
	service, shared := strings.CutPrefix(home, interceptor.SharedHome("shop/"))
	if !shared {
		return w.byOwner(home).rows.durable[branch]
	}
	data, err := w.table(service).Get(context.Background(), branch)
	if err != nil {
		return nil
	}
	return data
}

func (w *world) table(service string) txlog.Table {
	return w.shared.As(txlog.Owner{}).Table("barrier " + service)
}

// sharedRows are the barrier's rows that the replicas of a service share. It implements interceptor.Rows.
type sharedRows struct{ n *node }

// Load implements interceptor.Rows.
func (r sharedRows) Load(ctx context.Context, branch string) ([]byte, bool, error) {
	w := r.n.w
	data, err := askStore(w, w.cur, appendMax, func() ([]byte, error) { return w.table(r.n.service).Get(ctx, branch) })
	if errors.Is(err, txlog.ErrNotFound) {
		return nil, false, nil
	}
	return data, err == nil, err
}

// Save implements interceptor.Rows. What is not answered may yet come true.
func (r sharedRows) Save(ctx context.Context, branch string, old, row []byte, _ bool) error {
	w := r.n.w
	w.point(r.n, sidecar)
	_, err := askStore(w, w.cur, appendMax, func() (struct{}, error) {
		return struct{}{}, w.table(r.n.service).Swap(ctx, branch, bytes.Clone(old), bytes.Clone(row))
	})
	w.point(r.n, sidecar)
	return err
}

// Each implements interceptor.Rows.
func (r sharedRows) Each(ctx context.Context, f func(branch string, data []byte) bool) error {
	w := r.n.w
	all, err := askStore(w, w.cur, appendMax, func() (all []txlog.Row, err error) {
		for row, err := range w.table(r.n.service).Scan(ctx, "") {
			if err != nil {
				return nil, err
			}
			all = append(all, row)
		}
		return all, nil
	})
	for _, row := range all {
		if !f(row.Key, row.Value) {
			break
		}
	}
	return err
}

// runners tells replicas apart by the epochs of their own journals. It implements interceptor.Runners.
type runners struct{ n *node }

// Name names this life of the sidecar.
func (r runners) Name() (string, error) {
	d := r.n.runs(r.n.owner)
	if d == nil {
		return "", errors.New("sim: the own journal is not held")
	}
	return fmt.Sprintf("%s/%d", r.n.owner, d.owner.Epoch), nil
}

// Gone reports whether a sidecar's journal has another epoch or was given up, or its lease has lapsed.
func (r runners) Gone(ctx context.Context, name string) bool {
	w, k := r.n.w, r.n.keeper
	owner, epoch, _ := strings.Cut(name, "/")
	if k.m == nil {
		return false
	}
	if live, known := k.m.Live(owner); known && !live {
		return true
	}
	l, err := askStore(w, w.cur, leaseTime/3, func() (txlog.Lease, error) { return w.shared.Lease(ctx, owner) })
	switch {
	case errors.Is(err, txlog.ErrNotFound):
		return true
	case err != nil:
		return false
	}
	return l.Free || fmt.Sprint(l.Owner.Epoch) != epoch
}
