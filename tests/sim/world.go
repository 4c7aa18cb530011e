package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"txmesh/interceptor"
	"txmesh/txn"
)

// Options is what one world is made of. The same Options give the same Result.
type Options struct {
	Seed     uint64
	Roots    int        // intercepted transactions that clients begin
	Modes    []txn.Mode // transactions of other modes, one for each entry
	Faults   float64    // of network, disks and processes: 0 none, 1 the usual
	Habits   float64    // of applications: 0 flawless, 1 the usual
	CrashAt  int        // the process at this crash point dies; 0: none
	FreezeAt int        // the sidecar at this crash point is stopped for a while; 0: none
	Trace    bool

	Fleet   bool // the sidecars share a store, adopt each other's journals, and one more stands by
	Sharing bool // ... and so do the barrier rows of the replicas of a service
	Late    bool // the shared store takes appends from before its journal was opened: a check must see it

	NoBarrier bool // barrier rows are forgotten at once: a check must see it
	NoSync    bool // syncs do nothing: a check must see it
	NoUndo    bool // applications answer undos and do nothing: a check must see it
}

// Result is what became of a world.
type Result struct {
	Law    string // that was broken; empty: none
	Text   string
	Points int // crash points passed
	Steps  int
	Trace  string
	Counts map[string]int // what happened, and what no law could promise
}

const (
	stormy   = 15 * time.Second // faults end then
	horizon  = 2 * time.Hour    // by then everything must have ended
	stepsMax = 200_000          // a world that needs more goes round in circles
)

// which names the part of a node that may die at a crash point.
type which uint8

const (
	sidecar which = iota
	application
)

// world is one history.
type world struct {
	clock
	*rig
	opt      Options
	nodes    []*node
	stores   []*store
	people   process // clients and operators, who do not die
	partners server
	calm     bool
	ended    bool          // a fleet never comes to rest by itself
	latest   time.Duration // the longest delay of the network
	*fleet                 // nil: every sidecar has a store of its own
	points   int
	orders   int
	marks    uint64
	law      string
	text     string
	counts   map[string]int

	truth
	driven  map[txn.ID]*driven
	stopped map[txn.ID]struct{} // by an operator, who was told so
}

// Run lets one world happen and judges it.
func (r *rig) Run(o Options) Result {
	w := &world{rig: r, opt: o, counts: map[string]int{}, truth: newTruth(), driven: map[txn.ID]*driven{}, stopped: map[txn.ID]struct{}{},
		latest: latest}
	r.w = w
	w.threads = &r.pool
	w.now, w.rng = epoch, rand.New(rand.NewPCG(o.Seed, 17))
	if o.Trace {
		w.trace = &strings.Builder{}
	}
	w.people.start()
	if o.Fleet {
		w.gather()
	}
	w.build()
	for i := range o.Roots {
		w.after(w.between(0, 8*time.Second), func() { w.client(i) })
	}
	for i, m := range o.Modes {
		w.after(w.between(0, 8*time.Second), func() { w.initiate(m, i) })
	}
	w.after(w.between(0, stormy), w.disaster)
	w.after(stormy, w.calmDown)
	end := epoch.Add(horizon)
	for w.law == "" && !w.ended && w.step() {
		if w.now.After(end) || w.steps > stepsMax {
			w.fail("L7", "the world does not come to rest")
		}
	}
	if w.law == "" {
		w.judge()
	}
	res := Result{Law: w.law, Text: w.text, Points: w.points, Steps: w.steps, Counts: w.counts}
	if w.trace != nil {
		res.Trace = w.trace.String()
	}
	w.bury()
	return res
}

func (w *world) build() {
	for _, name := range append([]string{"front"}, participants()...) {
		s := newStore(name)
		w.stores = append(w.stores, s)
		for i := range 2 {
			w.nodes = append(w.nodes, nil)
			w.nodes[len(w.nodes)-1] = w.newNode(name, i, s)
		}
	}
	if w.fleet != nil {
		w.nodes = append(w.nodes, nil)
		w.nodes[len(w.nodes)-1] = w.newNode(spare, 0, newStore(spare))
	}
}

// bury ends all coroutines.
func (w *world) bury() {
	w.cur = nil
	for _, n := range w.nodes {
		w.kill(&n.side.process)
		w.kill(&n.app.process)
	}
	w.kill(&w.people)
	if w.fleet != nil {
		w.kill(&w.store.process)
	}
}

// calmDown ends all faults; what is down comes up. Operators come when the machine has had its time.
func (w *world) calmDown() {
	w.calm = true
	w.logf("calm")
	for i := range 40 {
		w.after(absentAfter+time.Duration(i)*time.Minute, w.operators)
	}
	for i := range 4 {
		w.after(time.Duration(i+1)*20*time.Second, w.sweep)
	}
}

// chance decides about a fault of the world.
func (w *world) chance(p float64) bool { return !w.calm && w.rng.Float64() < p*w.opt.Faults }

// habit decides about what an application does of its own accord.
func (w *world) habit(p float64) bool { return !w.calm && w.rng.Float64() < p*w.opt.Habits }

// fail notes the first law that was broken; the world ends with it.
func (w *world) fail(law, format string, args ...any) {
	if w.law == "" {
		w.law, w.text = law, fmt.Sprintf(format, args...)
		w.logf("BROKEN %s: %s", w.law, w.text)
	}
}

// point is a place where a process may die. It reports whether it did, unless the one who asks died with it.
func (w *world) point(n *node, part which) bool {
	w.points++
	if w.points == w.opt.FreezeAt {
		w.freeze(n, frozenMax)
	}
	if w.points != w.opt.CrashAt && !w.chance(0.0015) {
		return false
	}
	w.crash(n, part)
	return true
}

// crash ends a process. A sidecar may lose what it had not synced: half of its deaths are power cuts.
func (w *world) crash(n *node, part which) {
	down := w.between(10*time.Millisecond, 3*time.Second)
	if part == application {
		w.logf("%s: application dies", n.place)
		w.counts["application died"]++
		w.after(down, func() { n.app.start(); n.app.listening = true })
		w.die(&n.app)
		return
	}
	if w.fleet != nil {
		down = w.downtime(down)
	}
	w.fall(n, down)
}

// fall ends a sidecar for a time.
func (w *world) fall(n *node, down time.Duration) {
	if w.rng.IntN(2) == 0 {
		w.logf("%s: power cut", n.place)
		w.counts["power cut"]++
		if w.fleet == nil {
			n.journal.cut(w.rng)
		}
		n.rows.cut(w.rng)
	} else {
		w.logf("%s: sidecar dies", n.place)
		w.counts["sidecar died"]++
	}
	for _, d := range n.drivers() {
		w.forgetLost(d.of)
	}
	w.after(down, n.boot)
	w.die(&n.side)
}

// disaster ends several processes at once: a service with both replicas, a machine with all that runs on it, or every
// sidecar that there is.
func (w *world) disaster() {
	if !w.chance(0.15) {
		return
	}
	kind, one := w.rng.IntN(3), w.nodes[w.rng.IntN(len(w.nodes))]
	w.counts["several died at once"]++
	for _, n := range w.nodes {
		switch {
		case kind == 0 && n.service == one.service, kind == 2:
		case kind == 1 && n == one:
			if n.app.up {
				w.crash(n, application)
			}
		default:
			continue
		}
		if n.side.up {
			w.crash(n, sidecar)
		}
	}
}

func (w *world) order() string {
	w.orders++
	return fmt.Sprintf("o%d", w.orders)
}

// mark is a moment in the order of things.
func (w *world) mark() uint64 {
	w.marks++
	return w.marks
}

func (w *world) replicas(service string) []*node {
	for i, s := range w.stores {
		if s.service == service {
			return w.nodes[2*i : 2*i+2]
		}
	}
	panic("sim: no such service: " + service)
}

func (w *world) byPlace(place string) *node {
	i := slices.IndexFunc(w.nodes, func(n *node) bool { return n.place == place })
	if i < 0 {
		panic("sim: no such place: " + place)
	}
	return w.nodes[i]
}

func (w *world) byOwner(owner string) *node {
	i := slices.IndexFunc(w.nodes, func(n *node) bool { return n.owner == owner })
	if i < 0 {
		panic("sim: no such owner: " + owner)
	}
	return w.nodes[i]
}

func (w *world) ownerOf(id txn.ID) *node { return w.byOwner(interceptor.OwnerOf(id)) }

// sweep drops barrier rows of transactions that have ended, as sidecars do from time to time.
func (w *world) sweep() {
	for _, n := range w.nodes {
		if !n.side.open() {
			continue
		}
		w.spawn(&n.side.process, func(*actor) {
			n.gate.Tidy(context.Background())
			list, err := n.gate.Overdue(context.Background())
			if err != nil {
				return // the next sweep tries again
			}
			for _, o := range list {
				id, _, _ := interceptor.SplitBranchName(o.Branch)
				st := txn.Fold(w.ownerOf(id).journal.records(id, true))
				if st.Phase.Done() {
					// A row that is not dropped now is dropped by the next sweep.
					_ = n.gate.Forget(context.Background(), o.Branch)
				}
			}
		})
	}
}

// operators settle what is stuck: they try again, or look what stands, mend it by hand and say so.
func (w *world) operators() {
	for _, n := range w.nodes {
		if !n.side.open() {
			continue
		}
		for _, st := range n.states() {
			for _, b := range st.Branches {
				for op := range b.Known {
					if b.Known[op].Halted {
						w.operate(n, st.Spec.ID, b.ID, txn.Op(op), b.Known[op].Cause)
					}
				}
			}
		}
	}
}

func (w *world) operate(n *node, id txn.ID, b string, op txn.Op, cause string) {
	if cause == "" {
		w.fail("L7", "%s of %s is stuck without a cause", op, name(id, b))
	}
	act := txn.ActRetry
	if !w.retried[name(id, b)+op.String()] {
		w.retried[name(id, b)+op.String()] = true
	} else {
		act = txn.ActSkip
		w.mend(id, b, op)
	}
	w.counts["operator: "+op.String()]++
	w.logf("operator: act %d on %s of %s: %s", act, op, name(id, b), cause)
	w.spawn(&n.side.process, func(*actor) {
		// Refused where the machine went on meanwhile.
		_, _ = router{n}.Do(context.Background(), id, txn.Force{Branch: b, Op: op, Act: act, By: "operator", Why: "looked"})
	})
}

func name(id txn.ID, branch string) string {
	if branch == "" {
		return string(id)
	}
	return interceptor.BranchName(id, branch)
}
