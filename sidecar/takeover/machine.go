package takeover

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"txmesh/txlog"
)

// Machine decides which journals this sidecar claims, holds and gives away. It has no clock: now is how long the process
// has run, by a clock that never goes back. The same inputs give the same outputs. It is not safe for many goroutines.
type Machine struct {
	cfg      Config
	held     map[string]*held
	claiming map[string]bool
	failed   map[string]bool          // owners whose engine could not be started here: others go first
	touched  map[string]time.Duration // when this sidecar changed a lease: what was asked for before is stale
	lost     time.Duration            // when its own journal was fenced
	leaving  bool

	seen      map[string]*sight
	order     []string // of seen
	observing bool
	asked     time.Duration // when the observation left
	observeAt time.Duration

	now time.Duration
	out []Action
}

// held is a journal of this sidecar.
type held struct {
	lease    txlog.Lease
	stage    stage
	why      error // it is to be dropped; nil: it stays
	renewing bool
	renewAt  time.Duration
	renewed  time.Duration
	idle     bool
	idleFrom time.Duration
}

// stage is what the engine of a held journal does.
type stage uint8

const (
	starting stage = iota
	running
	stopping
)

// NewMachine returns the machine of a sidecar that has just claimed its own journal and starts the engine on it itself.
func NewMachine(c Config, now time.Duration, own txlog.Lease) *Machine {
	m := &Machine{cfg: c.withDefaults(), held: map[string]*held{}, claiming: map[string]bool{}, failed: map[string]bool{},
		touched: map[string]time.Duration{}, seen: map[string]*sight{}, observeAt: now}
	m.held[own.Owner.ID] = &held{lease: own, stage: running, renewed: now, renewAt: now + m.cfg.Lease/3}
	m.touched[own.Owner.ID] = now
	return m
}

// Step takes an event and says what to do about it.
func (m *Machine) Step(now time.Duration, e Event) []Action {
	m.now, m.out = now, nil
	switch e := e.(type) {
	case Tick:
		m.tick(e.Idle)
	case Observed:
		m.observed(e)
	case Claimed:
		m.claimed(e)
	case Renewed:
		m.renewed(e)
	case Started:
		m.started(e)
	case Stopped:
		if h := m.at(e.Owner); h != nil {
			m.part(h)
		}
	case Fenced:
		if h := m.at(e.Owner); h != nil {
			m.drop(h, txlog.ErrFenced)
		}
	case Offered:
		m.offered(e.Owner)
	case Ordered:
		if s := m.seen[e.Owner.ID]; s != nil && s.lease.Owner == e.Owner && e.Adopter == m.cfg.Self.Sidecar {
			s.ordered = true
			m.judge(s)
		}
	case Leave:
		m.leaving = true
		for _, id := range m.owners() {
			m.drop(m.held[id], ErrLeaving)
		}
	default:
		panic(fmt.Sprintf("takeover: no such event: %T", e))
	}
	return m.out
}

// Held returns the leases of this sidecar, ordered by owner; those whose engine is starting or stopping are among them.
func (m *Machine) Held() []txlog.Lease {
	var out []txlog.Lease
	for _, id := range m.owners() {
		out = append(out, m.held[id].lease)
	}
	return out
}

// Runs reports whether a journal is held here and stays: its engine runs or is being started.
func (m *Machine) Runs(owner string) bool {
	h := m.held[owner]
	return h != nil && h.why == nil
}

// Unsure reports whether a lease has not been renewed for its whole time: others may have taken it for lapsed.
func (m *Machine) Unsure(now time.Duration) bool {
	for _, h := range m.held {
		if now-h.renewed >= m.cfg.Lease {
			return true
		}
	}
	return false
}

// Left reports whether nothing is held and nothing will be any more.
func (m *Machine) Left() bool { return m.leaving && len(m.held)+len(m.claiming) == 0 }

func (m *Machine) owners() []string {
	var ids []string
	for id := range m.held {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// at returns a held journal if it is held at this epoch.
func (m *Machine) at(o txlog.Owner) *held {
	if h := m.held[o.ID]; h != nil && h.lease.Owner == o {
		return h
	}
	return nil
}

func (m *Machine) do(a Action) { m.out = append(m.out, a) }

func (m *Machine) tick(idle []string) {
	for _, id := range m.owners() {
		h := m.held[id]
		if m.now >= h.renewAt && !h.renewing && !errors.Is(h.why, txlog.ErrFenced) {
			h.renewing, h.renewAt = true, m.now+m.cfg.Lease/3
			m.do(Renew{h.lease.Owner})
		}
		was := h.idle
		if h.idle = slices.Contains(idle, id); h.idle && !was {
			h.idleFrom = m.now
		}
		if id != m.cfg.Self.Sidecar && h.idle && m.now-h.idleFrom >= 2*m.cfg.Lease {
			m.drop(h, ErrIdle)
		}
	}
	if m.now >= m.observeAt && !m.observing {
		m.observing, m.asked, m.observeAt = true, m.now, m.now+m.cfg.Lease/6
		m.do(Observe{m.cfg.service()})
	}
}

func (m *Machine) renewed(e Renewed) {
	h := m.at(e.Owner)
	if h == nil {
		return
	}
	h.renewing = false
	switch {
	case errors.Is(e.Err, txlog.ErrFenced):
		m.drop(h, txlog.ErrFenced)
	case e.Err == nil:
		h.renewed = m.now
	}
}

// claim takes a journal with the epoch that was seen.
func (m *Machine) claim(owner string, known uint64, service string) {
	if m.held[owner] != nil || m.claiming[owner] || m.leaving {
		return
	}
	h := m.cfg.Self
	h.Service = service
	m.claiming[owner] = true
	m.do(Claim{owner, known, h})
}

func (m *Machine) claimed(e Claimed) {
	delete(m.claiming, e.Owner)
	delete(m.seen, e.Owner) // whatever came of it, the lease has to be seen anew
	m.touched[e.Owner] = m.now
	if errors.Is(e.Err, txlog.ErrFenced) && e.Owner == m.cfg.Self.Sidecar {
		m.lost = m.now
	}
	if e.Err != nil {
		return
	}
	h := &held{lease: e.Lease, stage: starting, renewed: m.now, renewAt: m.now + m.cfg.Lease/3}
	m.held[e.Owner] = h
	if m.leaving {
		h.why = ErrLeaving
		m.part(h)
		return
	}
	m.do(Adopt{e.Lease})
}

func (m *Machine) started(e Started) {
	h := m.at(e.Owner)
	if h == nil || h.stage != starting {
		return
	}
	switch {
	case errors.Is(e.Err, txlog.ErrFenced):
		m.drop(h, txlog.ErrFenced)
	case e.Err != nil && h.why == nil:
		h.why, m.failed[e.Owner.ID] = e.Err, true
	}
	if e.Err != nil {
		m.part(h)
		return
	}
	delete(m.failed, e.Owner.ID)
	h.stage = running
	if h.why != nil {
		m.stop(h)
	}
}

// drop has a journal's engine stopped: at once, or as soon as it has started.
func (m *Machine) drop(h *held, why error) {
	fenced := errors.Is(why, txlog.ErrFenced)
	if h.why == nil || fenced {
		h.why = why
	}
	if fenced && h.lease.Owner.ID == m.cfg.Self.Sidecar {
		m.lost = m.now
	}
	if h.stage == running {
		m.stop(h)
	}
}

func (m *Machine) stop(h *held) {
	h.stage = stopping
	m.do(Drop{h.lease.Owner, h.why})
}

// part is the end of a journal here: its engine has stopped.
func (m *Machine) part(h *held) {
	o := h.lease.Owner
	delete(m.held, o.ID)
	delete(m.seen, o.ID)
	m.touched[o.ID] = m.now
	leaves, own := errors.Is(h.why, ErrLeaving), o.ID == m.cfg.Self.Sidecar
	if errors.Is(h.why, ErrIdle) || leaves && (own || h.idle) {
		m.do(Release{o})
	}
	if leaves && (own || !h.idle) {
		if heirs := m.ranked(o.ID, h.lease.Holder.Service); len(heirs) > 0 {
			m.do(Offer{heirs[0], o})
		}
	}
}

// offered claims what its holder gives away.
func (m *Machine) offered(o txlog.Owner) {
	service := m.cfg.Self.Service
	if s := m.seen[o.ID]; s != nil {
		service = s.lease.Holder.Service
	}
	if m.Runs(m.cfg.Self.Sidecar) {
		m.claim(o.ID, o.Epoch, service)
	}
}
