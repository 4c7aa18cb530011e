package sidecar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"txmesh/interceptor"
	"txmesh/sidecar/peer"
	"txmesh/txn"
)

const (
	trimEvery  = time.Minute
	sweepEvery = 30 * time.Second
	drainEvery = 100 * time.Millisecond
	appDialMax = time.Second
)

func every(ctx context.Context, d time.Duration, f func()) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// trimLoop forgets what is finished and old.
func (s *Sidecar) trimLoop(ctx context.Context) {
	every(ctx, trimEvery, func() {
		now := time.Now()
		if n, err := s.store.Trim(ctx, now.Add(-s.cfg.Retention)); err != nil && ctx.Err() == nil {
			s.log.Error("journal not trimmed", "error", err)
		} else if n > 0 {
			s.log.Info("journal trimmed", "transactions", n)
		}
		if s.shared != nil {
			return // the documents are those of all owners
		}
		if n, err := s.docs.trim(ctx, now, s.set.Load(), s.owners.All); err != nil && ctx.Err() == nil {
			s.log.Error("policy documents not trimmed", "error", err)
		} else if n > 0 {
			s.log.Info("policy documents trimmed", "documents", n)
		}
	})
}

// orphans is what the last sweep left: overdue rows whose owner does not answer.
type orphans struct {
	mu     sync.Mutex // guards both
	oldest time.Time  // deadline of the oldest
	count  int
}

// sweepLoop asks owners about barrier rows older than their deadline. An owner that never comes back shows as
// oldest_orphan_seconds.
func (s *Sidecar) sweepLoop(ctx context.Context) {
	every(ctx, sweepEvery, func() {
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("barrier rows not swept", "error", err)
		}
	})
}

func (s *Sidecar) sweep(ctx context.Context) error {
	overdue, err := s.gate.Overdue(ctx)
	if err != nil {
		return fmt.Errorf("read barrier rows: %w", err)
	}
	byOwner := map[string][]interceptor.Overdue{}
	for _, o := range overdue {
		id, _, _ := interceptor.SplitBranchName(o.Branch)
		owner := interceptor.OwnerOf(id)
		byOwner[owner] = append(byOwner[owner], o)
	}
	var left []interceptor.Overdue
	for owner, all := range byOwner {
		for chunk := range slices.Chunk(all, peer.StatusMax) {
			left = append(left, s.sweepOwner(ctx, owner, chunk)...)
		}
	}
	s.orphans.mu.Lock()
	defer s.orphans.mu.Unlock()
	s.orphans.count, s.orphans.oldest = len(left), time.Time{}
	for _, o := range left {
		if s.orphans.oldest.IsZero() || o.Deadline.Before(s.orphans.oldest) {
			s.orphans.oldest = o.Deadline
		}
	}
	return nil
}

// sweepOwner drops the rows of transactions that have ended. It returns all of them if the owner does not answer.
func (s *Sidecar) sweepOwner(ctx context.Context, owner string, rows []interceptor.Overdue) []interceptor.Overdue {
	var ids []txn.ID
	for _, o := range rows {
		if id, _, _ := interceptor.SplitBranchName(o.Branch); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	phases, err := s.phases(ctx, owner, ids)
	if err != nil {
		s.log.Warn("owner does not answer for barrier rows", "owner", owner, "rows", len(rows), "error", err)
		return rows
	}
	for _, o := range rows {
		id, _, _ := interceptor.SplitBranchName(o.Branch)
		switch phases[id] {
		case txn.Committed.String(), txn.Aborted.String(), txn.Ceased.String():
		case peer.PhaseUnknown:
			// Forgotten by its owner, who forgets nothing that is not finished. Give lost answers their time.
			if time.Since(o.Deadline) < s.cfg.Retention {
				continue
			}
		default:
			continue // the owner is at it
		}
		if err := s.gate.Forget(ctx, o.Branch); err != nil {
			s.log.Warn("barrier row not dropped", "branch", o.Branch, "error", err)
		}
	}
	return nil
}

func (s *Sidecar) phases(ctx context.Context, owner string, ids []txn.ID) (map[txn.ID]string, error) {
	if owner != s.owner && s.shared == nil {
		return s.client.Status(ctx, owner, ids)
	}
	out := make(map[txn.ID]string, len(ids))
	for _, id := range ids {
		st, err := s.owners.State(ctx, id)
		switch {
		case errors.Is(err, txn.ErrUnknown):
			out[id] = peer.PhaseUnknown
		case err != nil:
			return nil, err
		default:
			out[id] = st.Phase.String()
		}
	}
	return out, nil
}

// gaugeLoop keeps the gauges true to the second.
func (s *Sidecar) gaugeLoop(ctx context.Context) {
	every(ctx, reportEvery, func() {
		// The next round tells of what fails; until then the last good set stays.
		_ = s.keepPolicies(ctx)
		s.gate.Tidy(ctx)
		m, now := s.metrics, time.Now()
		age := func(t time.Time) float64 {
			if t.IsZero() {
				return 0
			}
			return max(0, now.Sub(t).Seconds())
		}
		oldest, _ := s.owners.Oldest()
		m.oldest.Update(age(oldest))
		m.open.Update(float64(len(s.owners.IDs())))
		s.orphans.mu.Lock()
		orphan, count := s.orphans.oldest, s.orphans.count
		s.orphans.mu.Unlock()
		m.orphanAge.Update(age(orphan))
		m.orphans.Update(float64(count))
		m.accepting.Update(float64(index(s.store.Accepts() == nil)))
		if s.identity != nil {
			m.certificate.Update(max(0, s.identity.Expires().Sub(now).Seconds()))
		}
		s.control.gauge(m, now)
		m.silent.Update(float64(len(s.directory.Unanswered())))
	})
}

// OpenWork is the error of a sidecar that had to stop with transactions open. They go on when it starts again on
// the same data directory.
type OpenWork struct{ IDs []txn.ID }

// Error lists the ids.
func (e *OpenWork) Error() string {
	ids := make([]string, len(e.IDs))
	for i, id := range e.IDs {
		ids[i] = string(id)
	}
	return fmt.Sprintf("stopped with %d transactions open; start again on the same data directory to end them: %s",
		len(ids), strings.Join(ids, " "))
}

// drain goes on serving until the application is gone and nothing is open, or the grace period ends.
func (s *Sidecar) drain() error {
	s.setNotReady("draining")
	s.log.Info("draining", "grace", s.cfg.GracePeriod)
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.GracePeriod)
	defer cancel()
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	for {
		open, broken := s.owners.IDs(), s.owners.Refusal()
		// What is open in a shared store is another's from the end of this sidecar on.
		if (len(open) == 0 && broken == nil || s.shared != nil) && !s.appAnswers(ctx) {
			return nil
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		switch open, broken = s.owners.IDs(), s.owners.Refusal(); {
		case s.shared != nil:
		case broken != nil:
			return fmt.Errorf("stopped while the journal was not usable, transactions may be open: %w", broken)
		case len(open) > 0:
			return &OpenWork{open}
		}
		return nil
	}
}

// appAnswers reports whether the application's port still takes connections.
func (s *Sidecar) appAnswers(ctx context.Context) bool {
	if s.cfg.Alone() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, appDialMax)
	defer cancel()
	conn, err := s.dial(ctx, "tcp", s.cfg.App)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}
