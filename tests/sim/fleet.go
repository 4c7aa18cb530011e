package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"txmesh/sidecar/engine"
	"txmesh/sidecar/takeover"
	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txn"
)

// The times of a fleet. A sidecar may be stopped for as long as two leases; who looks for "not there" must wait longer
// than that, a slow application and the slowest message take together.
const (
	spare       = "spare" // the service of the sidecar that stands by
	leaseTime   = 2 * time.Second
	frozenMax   = 4500 * time.Millisecond
	latestInAll = 3 * time.Second
	absentUntil = stormy + 40*time.Second // who is gone for good is so until then
	fleetEnds   = stormy + 70*time.Second // not before
	orphanMax   = 8 * leaseTime
	appendMax   = 5 * time.Second
)

// fleet is a store that all sidecars of a world share, reached by messages, and the ways that are cut.
type fleet struct {
	store    server
	shared   memory.Shared
	tenures  map[string]*tenure
	sessions map[txlog.Owner]int
	invited  map[txlog.Owner]time.Duration // by offers and orders: how long a beat must have stood still all the same
	cuts     map[[2]*process]int
	restedAt time.Time // since when nothing is open
}

// tenure is what the store has seen of the journal of an owner, and what is true of it.
type tenure struct {
	claims  int       // how often it was claimed
	beatAt  time.Time // when its beat moved
	ranAt   time.Time // when somebody ran it
	couldAt time.Time // since when somebody else could
}

// tenancy is by what right a driver appends to a journal in the shared store.
type tenancy struct {
	owner   txlog.Owner
	claim   int // the truth, which no code under test sees
	session int // of the store: what was sent before it was opened is refused
	idle    signal
}

// gather makes a world a fleet.
func (w *world) gather() {
	w.fleet = &fleet{shared: memory.NewShared(memory.Options{}), tenures: map[string]*tenure{}, sessions: map[txlog.Owner]int{},
		invited: map[txlog.Owner]time.Duration{}, cuts: map[[2]*process]int{}, restedAt: epoch}
	w.latest = latestInAll
	w.store.name = "store"
	w.store.start()
	w.store.listening = true
	if w.opt.Faults > 0 {
		for range 2 {
			w.after(w.between(0, stormy), w.freeze)
		}
		for range 4 {
			w.after(w.between(0, stormy), w.cutOff)
			w.after(w.between(0, stormy), w.command)
		}
		for range 2 {
			w.after(w.between(0, stormy), w.leave)
		}
	}
	w.after(time.Second, w.look)
}

func (f *fleet) tenure(owner string) *tenure {
	t := f.tenures[owner]
	if t == nil {
		t = &tenure{}
		f.tenures[owner] = t
	}
	return t
}

// apart reports whether the way between two processes is cut.
func (w *world) apart(a, b *process) bool {
	return w.fleet != nil && len(w.cuts) > 0 && (w.cuts[[2]*process{a, b}] > 0 || w.cuts[[2]*process{b, a}] > 0)
}

// downtime is how long a sidecar that died is away: short, longer than a lease, or for good.
func (w *world) downtime(short time.Duration) time.Duration {
	switch x := w.rng.Float64(); {
	case x < 0.4:
		return short
	case x < 0.8 || w.now.Sub(epoch) > stormy:
		return w.between(leaseTime, 8*leaseTime)
	}
	w.counts["sidecar gone for long"]++
	return absentUntil - w.now.Sub(epoch)
}

// freeze stops a sidecar for a while, with all that it has in hand.
func (w *world) freeze() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	d := w.between(100*time.Millisecond, frozenMax)
	w.logf("%s: stopped for %v", n.place, d)
	w.counts["sidecar stopped for a while"]++
	n.side.frozen = w.now.Add(d)
}

// cutOff cuts the way between two sidecars, or to the store.
func (w *world) cutOff() {
	a, b := w.nodes[w.rng.IntN(len(w.nodes))], w.nodes[w.rng.IntN(len(w.nodes))]
	to := &b.side.process
	if a == b || w.rng.IntN(2) == 0 {
		to = &w.store.process
	}
	pair, d := [2]*process{&a.side.process, to}, w.between(100*time.Millisecond, 4*leaseTime)
	w.logf("%s: cut off from %s for %v", a.place, to.name, d)
	w.counts["way cut"]++
	w.cuts[pair]++
	w.after(min(d, stormy-w.now.Sub(epoch)), func() { w.cuts[pair]-- })
}

// leave has a sidecar end in order. Whoever comes in its place comes soon, late or not before the end.
func (w *world) leave() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if n.keeper.m == nil || !n.side.open() || n.side.frozen.After(w.now) {
		return
	}
	w.logf("%s: leaves", n.place)
	w.counts["sidecar left"]++
	n.side.listening = false
	n.keeper.step(takeover.Leave{})
	w.in(&n.side.process, 30*time.Second, func() { w.crash(n, sidecar) }) // patience ends
}

// command is the control plane, which is right or wrong about who is gone.
func (w *world) command() {
	of, n := w.nodes[w.rng.IntN(len(w.nodes))], w.nodes[w.rng.IntN(len(w.nodes))]
	l, err := w.shared.Lease(context.Background(), of.owner)
	if err != nil || n.keeper.m == nil || of == n {
		return
	}
	w.counts["adoption ordered"]++
	w.invite(l.Owner, leaseTime/2)
	w.in(&n.side.process, w.lag(), func() { n.keeper.step(takeover.Ordered{Owner: l.Owner, Adopter: n.owner}) })
}

func (f *fleet) invite(o txlog.Owner, still time.Duration) {
	if before, ok := f.invited[o]; !ok || still < before {
		f.invited[o] = still
	}
}

// askStore has the store do something, and brings back what it says.
func askStore[T any](w *world, a *actor, most time.Duration, serve func() (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	got, err := w.carry(a, link{good: true}, &w.store, most, func(*actor) any {
		v, err := serve()
		return answer{v, err}
	})
	if err != nil {
		var none T
		return none, fmt.Errorf("store: %w", err)
	}
	r := got.(answer)
	return r.v, r.err
}

// sights say how long each beat had really stood still when the store answered an observation.
type sights map[string]time.Duration

// observe is an observation as the store serves it.
func (w *world) observe(service string) (observed, error) {
	ls, err := w.shared.Leases(context.Background(), service)
	saw := sights{}
	for _, l := range ls {
		saw[l.Owner.ID] = w.now.Sub(w.tenure(l.Owner.ID).beatAt)
	}
	return observed{ls, saw}, err
}

type observed struct {
	leases []txlog.Lease
	saw    sights
}

// claimed is a lease, and the truth about it.
type claimed struct {
	lease txlog.Lease
	claim int
}

// claimFor is a claim as the store serves it.
func (w *world) claimFor(n *node, c takeover.Claim, saw sights) (claimed, error) {
	before, _ := w.shared.Lease(context.Background(), c.Owner) // none: nobody has claimed it before
	l, err := w.shared.Claim(context.Background(), c.Owner, c.Known, c.Holder)
	if err != nil {
		return claimed{}, err
	}
	t := w.tenure(c.Owner)
	w.checkLapse(n, before, saw[c.Owner])
	t.claims++
	t.beatAt = w.now
	w.logf("store: %s claims the journal of %s at epoch %d", n.place, w.byOwner(c.Owner).place, l.Owner.Epoch)
	if c.Owner != n.owner {
		w.counts["journal adopted"]++
	}
	return claimed{l, t.claims}, nil
}

// checkLapse says that nobody takes a journal whose holder had just given a sign of life when it was last looked at, by
// the clock of who takes it.
func (w *world) checkLapse(n *node, before txlog.Lease, saw time.Duration) {
	if before.Owner.ID == "" || before.Owner.ID == n.owner || before.Holder.Sidecar == n.owner || before.Free {
		return
	}
	need, ok := w.invited[before.Owner]
	if !ok {
		need = leaseTime
	}
	if still := time.Duration(float64(saw) * n.rate); still < need {
		w.fail("lapse", "%s takes the journal of %s from %s, whose beat had stood still for %v only", n.place,
			w.byOwner(before.Owner.ID).place, w.byOwner(before.Holder.Sidecar).place, still)
	}
}

// renew is a renewal as the store serves it.
func (w *world) renew(o txlog.Owner) error {
	if err := w.shared.Renew(context.Background(), o); err != nil {
		return err
	}
	w.tenure(o.ID).beatAt = w.now
	return nil
}

var errOpened = errors.New("sim: the journal was opened since this was sent")

// take is an append as the store serves it.
func (w *world) take(d *driver, session int, es []txlog.Entry) error {
	if session != w.sessions[d.owner] && !w.opt.Late {
		return errOpened
	}
	if err := w.shared.As(d.owner).Append(context.Background(), es, true); err != nil {
		return err
	}
	if len(es) > 0 && d.claim != w.tenure(d.owner.ID).claims {
		w.fail("fence", "%s has appended to the journal of %s, and another sidecar has claimed it", d.n.place, d.of.place)
	}
	for i, e := range es {
		d.of.journal.append(es[i : i+1])
		w.logf("%s: journal of %s: %s %s", d.n.place, d.of.place, e.Tx, describeRecord(e.Record))
		w.recorded(d.of, e.Tx)
	}
	d.of.journal.sync()
	w.durable(d.of, es)
	return nil
}

// look ends the world when all is done, and says that no journal lies about (L7).
func (w *world) look() {
	w.after(time.Second, w.look)
	rests := w.calm && w.now.Sub(epoch) >= fleetEnds
	for _, n := range w.nodes {
		t := w.tenure(n.owner)
		open := w.isOpen(n)
		if w.runner(n) != nil || !open || !w.calm {
			t.ranAt = w.now
		}
		if !w.couldBeAdopted(n) {
			t.couldAt = w.now
		}
		if since := max(t.ranAt.Sub(epoch), t.couldAt.Sub(epoch)); w.now.Sub(epoch)-since > orphanMax {
			w.fail("orphan", "nobody has run the journal of %s for %v, though somebody could", n.place, w.now.Sub(epoch)-since)
		}
		rests = rests && !open && n.side.open() && n.runs(n.owner) != nil && n.runs(n.owner).takes()
	}
	if !rests {
		w.restedAt = w.now
	}
	w.ended = w.now.Sub(w.restedAt) > 10*time.Second
}

// isOpen reports whether the journal of a node has an unfinished transaction.
func (w *world) isOpen(n *node) bool {
	for _, st := range n.journal.states {
		if st.Begun && !st.Phase.Done() {
			return true
		}
	}
	return false
}

// runner is the driver that may append to the journal of a node.
func (w *world) runner(of *node) *driver {
	for _, n := range w.nodes {
		if d := n.runs(of.owner); d != nil && n.side.up && d.takes() && d.claim == w.tenure(of.owner).claims {
			return d
		}
	}
	return nil
}

// couldBeAdopted reports whether a sidecar that holds its own journal may adopt that of a node.
func (w *world) couldBeAdopted(of *node) bool {
	for _, n := range w.nodes {
		if n != of && (n.service == of.service || n.service == spare) && n.side.open() && w.runner(n) != nil && w.runner(n).n == n {
			return true
		}
	}
	return false
}

// open reads the journal from the shared store, again and again until that succeeds.
func (d *driver) open(a *actor) {
	type opened struct {
		session int
		entries []txlog.Entry
	}
	w := d.n.w
	for !d.closed {
		got, err := askStore(w, a, appendMax, func() (opened, error) {
			w.sessions[d.owner]++
			o := opened{session: w.sessions[d.owner]}
			for e, err := range w.shared.As(d.owner).Open(context.Background(), d.owner) {
				if err != nil {
					return o, err
				}
				o.entries = append(o.entries, e)
			}
			return o, nil
		})
		switch {
		case d.closed:
		case err == nil:
			w.logf("%s: journal of %s opened, session %d, %d entries", d.n.place, d.of.place, got.session, len(got.entries))
			d.session = got.session
			d.restore(got.entries)
			if d.isCurrent() {
				w.forgetLost(d.of)
			}
			return
		default:
			a.sleep(w.between(50*time.Millisecond, time.Second))
		}
	}
}

// send appends to the shared store.
func (d *driver) send(a *actor, rd engine.Ready, replies []*reply) {
	w, session := d.n.w, d.session
	_, err := askStore(w, a, appendMax, func() (struct{}, error) { return struct{}{}, w.take(d, session, rd.Entries) })
	w.point(d.n, sidecar)
	switch {
	case d.closed:
		d.lose(replies)
		d.busy = false
		w.fire(&d.idle)
	case err == nil:
		d.appended(rd, replies)
	case errors.Is(err, txlog.ErrFenced):
		d.fenced(replies)
	default:
		d.failed(rd, replies)
	}
}

// fenced is the end of a driver whose journal somebody else has.
func (d *driver) fenced(replies []*reply) {
	w := d.n.w
	w.logf("%s: fenced at the journal of %s", d.n.place, d.of.place)
	w.counts["fenced"]++
	starting := d.opening
	d.lose(replies)
	d.busy = false
	if starting && d.of != d.n {
		d.n.keeper.step(takeover.Started{Owner: d.owner, Err: txlog.ErrFenced})
		return
	}
	d.n.keeper.step(takeover.Fenced{Owner: d.owner})
}

// stop ends a driver when nothing of it is on its way to the store any more.
func (d *driver) stop(a *actor) {
	d.closed = true
	if d.busy && !d.broken {
		a.wait(&d.idle, 0)
	}
	d.lose(nil)
}

// states are those of all journals that a node runs.
func (n *node) states() []txn.State {
	var all []txn.State
	for _, d := range n.drivers() {
		all = append(all, d.states()...)
	}
	return all
}
