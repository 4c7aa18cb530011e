package interceptor

import (
	"context"
	"maps"
	"slices"
	"time"

	"txmesh/txn/barrier"
)

// doubt is a shared row that could not be written for certain: it may say that this sidecar runs a call that it does not
// run, and as long as this sidecar lives the replicas would wait for its end.
type doubt struct {
	since  time.Time
	next   time.Time // look again
	pause  time.Duration
	unsent bool // the forward call did not leave: there should be no row
}

// How often a row in doubt is looked at, and for how long: a write that was given up may still arrive.
const (
	doubtPauseMin = time.Second
	doubtPauseMax = 16 * time.Second
	doubtMax      = time.Minute
)

// doubt notes that a row may have been written or not. Only rows that replicas share matter: what this sidecar alone
// keeps it knows to be its own.
func (g *Gate) doubt(branch string, unsent bool) {
	if g.Runners == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.Now()
	g.doubts[branch] = &doubt{since: now, next: now.Add(doubtPauseMin), pause: doubtPauseMin, unsent: unsent}
}

// certain ends a doubt: no earlier write of the row can arrive any more.
func (g *Gate) certain(branch string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.doubts, branch)
}

// Tidy looks at the rows that could not be written for certain, and takes back what they say of calls that this sidecar
// does not run. It is to be called about once a second.
func (g *Gate) Tidy(ctx context.Context) {
	due := g.due()
	for _, branch := range slices.Sorted(maps.Keys(due)) {
		d := due[branch]
		if !g.enter(branch) {
			continue // a call runs, and writes the row in the end
		}
		clean := g.tidy(ctx, branch, d)
		g.leave(branch)
		g.settled(branch, d, clean)
	}
}

// due returns the doubts whose time has come.
func (g *Gate) due() map[string]doubt {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.Now()
	out := map[string]doubt{}
	for branch, d := range g.doubts {
		if !now.Before(d.next) {
			out[branch] = *d
		}
	}
	return out
}

// tidy reports whether the row says nothing of this sidecar any more.
func (g *Gate) tidy(ctx context.Context, branch string, d doubt) bool {
	me, err := g.Runners.Name()
	if err != nil {
		return false // rows of a former epoch mean nothing to the replicas
	}
	data, found, err := g.Rows.Load(ctx, branch)
	if err != nil {
		return false
	}
	r, err := decodeRow(data)
	if !found || err != nil || r.Runner != me {
		return true
	}
	if r.Runner = ""; d.unsent && r.State == barrier.Running {
		return g.Rows.Save(ctx, branch, r.stored, nil, true) == nil
	}
	return g.Rows.Save(ctx, branch, r.stored, r.encode(), true) == nil
}

// settled says when to look again, if at all.
func (g *Gate) settled(branch string, seen doubt, clean bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.doubts[branch]
	now := g.Now()
	switch {
	case d == nil || d.since != seen.since: // there is a new one
	case clean && now.Sub(d.since) >= doubtMax:
		delete(g.doubts, branch)
	case clean:
		d.pause = min(2*d.pause, doubtPauseMax)
		d.next = now.Add(d.pause)
	default:
		d.next = now.Add(doubtPauseMin)
	}
}
