package sql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"txmesh/txlog"
	"txmesh/txn"
)

// group is the requests that one transaction of the database writes.
type group struct {
	reqs []*request
	next int64 // the turn that the fence has once the group is written, unlike any other's
	look bool  // ask the database for what it has of the transactions
}

// fence is the compare-and-swap that every transaction that appends begins with. Only who has the owner's epoch and
// knows its turn passes, and passing gives it the turn of the group. So of all tries to write a group one succeeds at
// most, one of a group that was given up fails as soon as a later group is written, and whoever is not sure reads the
// turn.
type fence struct {
	owner      txlog.Owner
	turn, next int64
}

// errFence says that the fence did not let pass. Nothing was written.
var errFence = errors.New("sql: the fence does not let pass")

// commitLoop is the committer: it writes what is queued, group after group, until the store is closed and the queue is
// empty.
func (s *Store) commitLoop() {
	defer close(s.done)
	for range s.wake {
		for {
			reqs, closed := s.take()
			if len(reqs) == 0 && closed {
				return
			}
			if len(reqs) == 0 {
				break
			}
			s.commit(&group{reqs: reqs, next: rand.Int64()})
		}
	}
}

// Bounds of one group, beyond its first request.
const (
	groupRequestsMax = 4096
	groupBytesMax    = 8 << 20
)

func (s *Store) take() ([]*request, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, bytes := 0, 0
	for n < len(s.queue) && n < groupRequestsMax && (n == 0 || bytes+s.queue[n].bytes <= groupBytesMax) {
		bytes += s.queue[n].bytes
		n++
	}
	reqs := slices.Clone(s.queue[:n])
	s.queue = slices.Delete(s.queue, 0, n)
	s.queued -= bytes
	s.since = time.Time{}
	if n > 0 {
		s.since = reqs[0].at
	}
	return reqs, s.closed
}

// commit writes the group and answers everybody.
func (s *Store) commit(g *group) {
	last := g.reqs[len(g.reqs)-1]
	ctx, stop := context.WithDeadline(s.ctx, last.at.Add(s.e.opts.Timeout))
	defer stop()
	err := s.write(ctx, g)
	for _, r := range g.reqs {
		r.done <- err
	}
}

// write tries until the group is written, refused, or out of time. Each try is safe after any other.
func (s *Store) write(ctx context.Context, g *group) error {
	var err error
	for pause := range pauses(ctx) {
		if err = s.attempt(ctx, g); errors.Is(err, errFence) {
			var written bool
			if written, err = s.refence(ctx, g); written {
				err = nil
			} else if err == nil {
				err = errFence // at most until the next try
			}
		}
		switch {
		case err == nil:
			s.e.health.well()
			return nil
		case errors.Is(err, txlog.ErrFenced):
			if s.refuse(g); len(g.reqs) == 0 {
				return nil
			}
			continue
		case answers(err):
			return err
		case errors.Is(err, errFence):
		case s.e.d.code(err) == codeTooLarge:
			return fmt.Errorf("%w: %w", txlog.ErrTooLarge, err)
		case s.e.d.code(err) == codeDuplicate: // an id that was begun before, or rows that another store of this owner wrote
			g.look = true
			clear(s.live)
		case s.e.d.code(err) != codeConflict && ctx.Err() == nil:
			s.e.health.failed(err)
		}
		pause()
	}
	s.e.health.failed(err)
	return fmt.Errorf("%w: %w", txlog.ErrUnavailable, err)
}

// attempt writes the group once.
func (s *Store) attempt(ctx context.Context, g *group) error {
	f, err := s.fenceFor(ctx, g)
	if err != nil {
		return err
	}
	p := s.plan(g, nil)
	g.look = g.look || p == nil
	if g.look || !s.e.d.pipelines() {
		p, err = s.transact(ctx, g, f)
	} else {
		err = s.e.d.pipeline(ctx, s.e.db, f, p.statements(s.e))
	}
	if err != nil {
		return err
	}
	s.publish(p)
	if f != nil {
		s.turn = f.next
	}
	return nil
}

// fenceFor returns what the group has to pass, nil if it holds nothing but rows of tables.
func (s *Store) fenceFor(ctx context.Context, g *group) (*fence, error) {
	if !slices.ContainsFunc(g.reqs, func(r *request) bool { return r.fence }) {
		return nil, nil
	}
	if s.turn < 0 {
		if _, err := s.refence(ctx, g); err != nil {
			return nil, err
		}
	}
	return &fence{owner: s.owner, turn: s.turn, next: g.next}, nil
}

// refence reads the fence and reports whether the group has passed it: the answer to a try that was cut off. It says
// ErrFenced when nobody will pass any more. Else others have written, so nothing is known of the transactions.
func (s *Store) refence(ctx context.Context, g *group) (written bool, err error) {
	var epoch, turn int64
	err = s.e.row(ctx, "SELECT epoch, turn FROM txmesh_fences WHERE owner = ?", []any{[]byte(s.owner.ID)}, &epoch, &turn)
	if errors.Is(err, txlog.ErrNotFound) || err == nil && uint64(epoch) != s.owner.Epoch {
		return false, fmt.Errorf("owner %s has epoch %d, not %d: %w", s.owner.ID, epoch, s.owner.Epoch, txlog.ErrFenced)
	}
	if err != nil {
		return false, err
	}
	s.turn = turn
	clear(s.live)
	return turn == g.next, nil
}

// refuse answers what only the holder may do, and leaves the rest.
func (s *Store) refuse(g *group) {
	s.mu.Lock()
	s.fenced = true
	s.mu.Unlock()
	g.reqs = slices.DeleteFunc(g.reqs, func(r *request) bool {
		if r.fence {
			r.done <- txlog.ErrFenced
		}
		return r.fence
	})
}

// transact writes the group as a transaction of many round trips.
func (s *Store) transact(ctx context.Context, g *group, f *fence) (p *plan, err error) {
	err = s.e.within(ctx, func(tx *sql.Conn) error {
		if f != nil {
			n, err := s.e.change(ctx, tx, "UPDATE txmesh_fences SET turn = ? WHERE owner = ? AND epoch = ? AND turn = ?",
				f.next, []byte(f.owner.ID), int64(f.owner.Epoch), f.turn)
			if err == nil && n == 0 {
				err = errFence
			}
			if err != nil {
				return err
			}
		}
		known := map[txn.ID]*live{}
		if g.look {
			if known, err = s.lookUp(ctx, tx, g); err != nil {
				return err
			}
			s.refuseTaken(g, known)
		}
		p = s.plan(g, known)
		for _, st := range p.statements(s.e) {
			if _, err := tx.ExecContext(ctx, st.query, st.args...); err != nil {
				return err
			}
		}
		return nil
	})
	return p, err
}

// refuseTaken answers those that want to write to a transaction of another owner. The others go on without them.
func (s *Store) refuseTaken(g *group, known map[txn.ID]*live) {
	g.reqs = slices.DeleteFunc(g.reqs, func(r *request) bool {
		i := slices.IndexFunc(r.entries, func(e entry) bool {
			l := known[e.Tx]
			return l != nil && l.owner != s.owner.ID
		})
		if i >= 0 {
			id := r.entries[i].Tx
			r.done <- fmt.Errorf("transaction %s is of owner %s: %w", id, known[id].owner, txlog.ErrTaken)
		}
		return i >= 0
	})
}

// publish lets the next group know what was written.
func (s *Store) publish(p *plan) {
	for id, l := range p.live {
		if l.digest.Summary.Phase.Done() {
			delete(s.live, id)
			continue
		}
		l.stored, l.written = true, l.digest.Summary
		s.live[id] = l
	}
}
