package takeover

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	"txmesh/txlog"
)

// sight is a lease as this sidecar has seen it.
type sight struct {
	lease   txlog.Lease
	since   time.Duration // when the first observation of it as it is now was answered
	still   time.Duration // from then to when the last one that found it so was asked for
	ordered bool          // the control plane says that its holder is gone
}

// observed compares what is there with what was there, and judges.
//
// An observation may wait on its way there and on its way back, and so may this process: a lease has stood still only
// from the answer of one observation to the question of another.
func (m *Machine) observed(e Observed) {
	m.observing = false
	if e.Err != nil {
		return
	}
	before := m.seen
	m.seen, m.order = make(map[string]*sight, len(e.Leases)), nil
	for _, l := range e.Leases {
		if m.stale(l.Owner.ID) {
			continue
		}
		s := before[l.Owner.ID]
		if s == nil || s.lease != l {
			s = &sight{lease: l, since: m.now}
		}
		s.still = max(0, m.asked-s.since)
		m.seen[l.Owner.ID] = s
		m.order = append(m.order, l.Owner.ID)
		if h := m.held[l.Owner.ID]; h != nil && l.Owner.Epoch > h.lease.Owner.Epoch {
			m.drop(h, txlog.ErrFenced)
		}
	}
	own := m.cfg.Self.Sidecar
	if m.seen[own] == nil && !m.stale(own) {
		m.claim(own, 0, m.cfg.Self.Service) // retired after it was fenced
	}
	for id, at := range m.touched {
		if at < m.asked {
			delete(m.touched, id)
		}
	}
	for _, id := range m.order {
		m.judge(m.seen[id])
	}
}

// stale reports whether the observation may have been made before this sidecar changed the lease.
func (m *Machine) stale(owner string) bool {
	at, ok := m.touched[owner]
	return ok && at >= m.asked
}

// judge claims or retires a lease if that is for this sidecar to do.
func (m *Machine) judge(s *sight) {
	l := s.lease
	switch {
	case m.leaving || m.held[l.Owner.ID] != nil:
	case m.wanted(s):
		m.claim(l.Owner.ID, l.Owner.Epoch, l.Holder.Service)
	case finished(l) && s.still >= m.cfg.Retire && m.rank(l) == 0:
		delete(m.seen, l.Owner.ID) // should it fail, its time begins anew
		m.do(Retire{l.Owner})
	}
}

// finished says of a lease that its adopter was through with the journal.
func finished(l txlog.Lease) bool { return l.Free && l.Holder.Sidecar != l.Owner.ID }

// again is how many lease times a sidecar that was fenced waits before it takes its own journal from whom still holds it.
const again = 10

func (m *Machine) wanted(s *sight) bool {
	l, self, lease := s.lease, m.cfg.Self.Sidecar, m.cfg.Lease
	own := l.Owner.ID == self
	switch {
	case !own && !m.Runs(self):
		return false // who has stepped back helps nobody
	case l.Holder.Sidecar == self && !l.Free && !m.failed[l.Owner.ID]:
		return true // claimed without hearing so, or in a former life
	case own && m.failed[self]:
		return s.still >= lease
	case own:
		return l.Free || s.still >= lease || m.now-m.lost >= again*lease
	case finished(l):
		return false
	case s.ordered && s.still >= lease/3+lease/6:
		return true
	}
	rank := m.rank(l)
	wait := time.Duration(rank) * lease / 2
	if !l.Free {
		wait += lease
	}
	return rank >= 0 && s.still >= wait
}

// rank is the place of this sidecar among those that may adopt a journal; -1: it is none of them.
func (m *Machine) rank(l txlog.Lease) int {
	if l.Holder.Service != m.cfg.Self.Service && (!m.cfg.Standby || len(m.live(l.Holder.Service)) > 0) {
		return -1
	}
	all := m.ranked(l.Owner.ID, m.cfg.Self.Service)
	if m.failed[l.Owner.ID] {
		return len(all)
	}
	mine := weight(m.cfg.Self.Sidecar, l.Owner.ID)
	rank := 0
	for _, h := range all {
		if bytes.Compare(weight(h.Sidecar, l.Owner.ID), mine) > 0 {
			rank++
		}
	}
	return rank
}

// live returns the other sidecars of a service that hold their own journals, as far as this one has seen.
func (m *Machine) live(service string) []txlog.Holder {
	var out []txlog.Holder
	for _, id := range m.order {
		s := m.seen[id]
		if s == nil || id != s.lease.Holder.Sidecar || id == m.cfg.Self.Sidecar || s.lease.Holder.Service != service {
			continue
		}
		if !s.lease.Free && s.still < m.cfg.Lease {
			out = append(out, s.lease.Holder)
		}
	}
	return out
}

// ranked returns the other live sidecars of a service in the order in which they are to adopt a journal.
func (m *Machine) ranked(owner, service string) []txlog.Holder {
	all := m.live(service)
	slices.SortFunc(all, func(a, b txlog.Holder) int {
		if c := bytes.Compare(weight(b.Sidecar, owner), weight(a.Sidecar, owner)); c != 0 {
			return c
		}
		return strings.Compare(a.Sidecar, b.Sidecar)
	})
	return all
}

// weight is the rendezvous hash of a sidecar for a journal.
func weight(sidecar, owner string) []byte {
	h := sha256.Sum256([]byte(sidecar + "\x00" + owner))
	return h[:]
}

// Live reports whether the sidecar with this id holds its own journal, and whether anything is known of it.
func (m *Machine) Live(sidecar string) (live, known bool) {
	if m.Runs(sidecar) && sidecar == m.cfg.Self.Sidecar {
		return true, true
	}
	s := m.seen[sidecar]
	if s == nil {
		return false, false
	}
	return !s.lease.Free && s.lease.Holder.Sidecar == sidecar && s.still < m.cfg.Lease, true
}
