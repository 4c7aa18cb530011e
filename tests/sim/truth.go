package sim

import (
	"slices"
	"strings"
	"time"

	"txmesh/interceptor"
	"txmesh/txn"
	"txmesh/txn/barrier"

	"github.com/fxamacker/cbor/v2"
)

// truth is what the world knows and no machine sees. The checks ask it.
type truth struct {
	asks     []*ask
	runs     map[txn.ID]*run
	deeds    map[string]*deed // by the branch that they became
	seen     map[txn.ID]seen  // decisions that somebody acted on
	over     map[string]string
	retried  map[string]bool
	mended   map[string]bool   // branches that an operator settled by hand
	answered map[string]uint64 // when the owner was told the answer of a branch
	placedAt map[string]uint64 // when the owner was first told of a branch
	askedAt  map[enlistKey]uint64
	flights  map[string][]*flying // forward calls on their way, by branch
	leaving  map[*actor]*flying   // the one that an actor makes
	byKey    map[enlistKey]string
}

// flying is a forward call that left its sidecar: nobody may undo it before it is answered, its time is over or the
// owner has forgotten it in a restart.
type flying struct {
	until time.Time
	life  int // of the owner
}

type seen struct {
	commit bool
	how    string
}

type enlistKey struct {
	tx  txn.ID
	key string
}

func newTruth() truth {
	return truth{runs: map[txn.ID]*run{}, deeds: map[string]*deed{}, seen: map[txn.ID]seen{}, over: map[string]string{},
		retried: map[string]bool{}, mended: map[string]bool{}, answered: map[string]uint64{}, placedAt: map[string]uint64{},
		askedAt: map[enlistKey]uint64{}, byKey: map[enlistKey]string{},
		flights: map[string][]*flying{}, leaving: map[*actor]*flying{}}
}

// began notes that an application serves a root request.
func (w *world) began(n *node, r *request) *run {
	id := txn.ID(r.fields.get(interceptor.HeaderID))
	u := &run{tx: id, own: r.path == "/own", node: n, life: n.side.lives, since: w.now}
	switch x := w.rng.Float64(); {
	case x < 0.1*w.opt.Habits:
		u.habits = carriesNothing
	case x < 0.3*w.opt.Habits:
		u.habits = carriesTrace
	}
	if len(n.journal.records(id, true)) == 0 {
		w.fail("L14", "a root request of %q reached the application, and its beginning is not durable", id)
	}
	if w.runs[id] != nil {
		w.fail("conservation", "the root request of %s reached the application twice", id)
	}
	w.runs[id] = u
	return u
}

// arrived is a forward call at the application that it is for.
func (w *world) arrived(n *node, r *request) *deed {
	branch, d := r.fields.get(interceptor.HeaderBranch), r.deed
	id, no, ok := interceptor.SplitBranchName(branch)
	if !ok {
		w.untagged(n, r)
		return d
	}
	if d == nil {
		d = w.deeds[branch] // made again under its key, or delivered after the commit
	} else {
		d.branch = branch
		w.deeds[branch] = d
	}
	owner := w.ownerOf(id)
	b, durable := owner.journal.enlisted(id, no)
	op := r.fields.get(interceptor.HeaderOp)
	switch {
	case !durable:
		w.fail("L2", "%s call of %s reached the application, and no branch that can undo it is durable", op, branch)
	case b.Ops[txn.Undo] == nil && b.Ops[txn.Commit] == nil && kindOf(r.path) != "fire":
		w.fail("L2", "forward call of %s reached the application, and its branch has neither undo nor commit", branch)
	case d != nil && d.run != nil && d.run.tx != id && d.trace && w.hasEnded(d.run) && w.runs[id] != nil:
		// Under one trace, requests in flight go before those that were answered: see interceptor.joins.find.
		w.counts["joined another: a late call under a shared trace"]++
		d.run = w.runs[id]
	case d != nil && d.run != nil && d.run.tx != id:
		w.fail("join", "a call made for %s joined %s", d.run.tx, id)
	case op == interceptor.OpDeliver:
		w.opArrived(n, r)
	}
	return d
}

// hasEnded reports whether the sidecar no longer serves a root request, though its application may still work on it.
func (w *world) hasEnded(u *run) bool {
	return u.over || u.node.side.lives != u.life || w.now.Sub(u.since) >= rootTimeout
}

// untagged is a call that no transaction undoes. There must be a reason for it.
func (w *world) untagged(n *node, r *request) {
	d := r.deed
	switch {
	case d == nil:
		w.fail("L2", "a sidecar sent %s to %s as no branch", r.path, n.place)
	case d.aside:
		if r.fields.get(interceptor.HeaderIdempotency) == "" || strings.Contains(r.fields.get("baggage"), "tx=") {
			w.fail("L2", "a call made while serving an undo came without a key, or with a context")
		}
		w.counts["called while undoing"]++
	case d.run == nil:
	case d.lossy:
		w.counts["untagged: the application lost the context"]++
	case d.trace && d.run.node.side.lives != d.run.life:
		w.counts["untagged: only a trace, and the sidecar restarted"]++
	case d.kind == "soft":
		w.counts["untagged: detached after the end"]++
	default:
		w.fail("L2", "a forward call made for %s reached %s untagged: nothing can undo it", d.run.tx, r.path)
	}
}

// lands notes that the owner is told of the end of a forward call. A report names its call: one that comes twice, or
// after its call's time, says nothing about another.
func (w *world) lands(id txn.ID, b string, f *flying) {
	minds, branch := w.ownerOf(id).minds, name(id, b)
	fs := slices.DeleteFunc(w.flights[branch], func(f *flying) bool { return f.life != minds || !w.now.Before(f.until) })
	if i := slices.Index(fs, f); i >= 0 {
		fs = slices.Delete(fs, i, i+1)
	}
	w.flights[branch] = fs
}

// tookEffect judges an effect of a branch at the moment when it comes about.
func (w *world) tookEffect(s *store, e *effect) {
	before := s.ofBranch(e.branch)
	how, over := w.over[e.branch]
	limited := e.kind == "bare" // nobody but the application itself stands between a repeat and its effect
	switch {
	case over && !limited:
		w.fail("barrier", "forward call of %s took effect after %s", e.branch, how)
	case over:
		e.late = true
		w.counts["no barrier: took effect after "+how]++
	case before != nil && !limited:
		w.fail("barrier", "forward call of %s took effect twice", e.branch)
	case before != nil:
		e.repeated = true
		w.counts["no barrier: took effect twice"]++
	}
}

// opArrived is an undo, a confirm or a delivery at the application.
func (w *world) opArrived(n *node, r *request) {
	branch, op := r.fields.get(interceptor.HeaderBranch), r.fields.get(interceptor.HeaderOp)
	id, no, ok := interceptor.SplitBranchName(branch)
	if !ok {
		w.fail("L5", "%s %s reached the application without the name of a branch", r.method, r.path)
		return
	}
	w.checkNamed(w.ownerOf(id), id, no, op == interceptor.OpUndo)
	if e := n.store.ofBranch(branch); e != nil && e.deed != nil && e.deed.run != nil && e.deed.run.tx != id {
		w.fail("join", "%s of %s meets what was done for %s", op, branch, e.deed.run.tx)
	}
}

// checkNamed says that an op may reach a participant only if the durable decision names its branch.
func (w *world) checkNamed(owner *node, id txn.ID, no string, undo bool) {
	dec, ok := owner.journal.decided(id)
	if !ok {
		w.fail("L1", "an op of %s reached the application before its decision was durable", name(id, no))
		return
	}
	set := dec.Stand
	if undo {
		set = dec.Undo
	}
	for _, b := range set {
		if b == no {
			w.sawDecision(id, dec.Commit, "an op reached the application")
			return
		}
	}
	w.fail("L5", "an op (undo: %v) of %s reached the application, and the decision does not name it", undo, name(id, no))
}

// settledAtHome notes what a home has promised.
func (w *world) settledAtHome(c interceptor.HomeCall, r interceptor.HomeReply) {
	gaveUp := c.Op == txn.Undo && r.Outcome == txn.OK || c.Op == txn.Ask && r.Outcome == txn.Refused && r.Reply == nil
	if gaveUp {
		w.over[c.Branch] = "its home had given it up"
	}
}

// answeredTo is an answer that the application sees.
func (w *world) answeredTo(n *node, d *deed, res *response) {
	if res.fields.get(interceptor.HeaderError) != "" || res.status >= 300 {
		return
	}
	if d.kind == "mail" {
		if b := res.fields.get(interceptor.HeaderBranch); b != "" {
			w.deeds[b] = d
		}
		return
	}
	id, no, ok := interceptor.SplitBranchName(d.branch)
	if !ok || d.kind == "asked" || d.kind == "db" || d.kind == "fire" || d.kind == "soft" {
		return
	}
	b, _ := w.ownerOf(id).journal.enlisted(id, no)
	if b.Home != "" {
		if !w.keptAtHome(b.Home, d.branch) {
			w.fail("L13", "the answer of %s reached the application, and its home has not kept it", d.branch)
		}
		return
	}
	for _, r := range w.ownerOf(id).journal.records(id, true) {
		if s, is := r.(txn.Settled); is && s.Branch == no && s.Op == txn.Forward && s.Outcome == txn.OK && s.Result != nil {
			return
		}
	}
	w.fail("L13", "the answer of %s reached the application, its undo reads it, and it is not durable", d.branch)
}

func (w *world) keptAtHome(home, branch string) bool {
	var row struct {
		State barrier.State `cbor:"1,keyasint"`
	}
	data := w.rowOf(home, branch)
	if data == nil || cbor.Unmarshal(data, &row) != nil {
		return false
	}
	return row.State == barrier.Done || row.State == barrier.Undone
}

// sawDecision is somebody outside who acts on a decision: from now on it can never be another one.
func (w *world) sawDecision(id txn.ID, commit bool, how string) {
	dec, ok := w.ownerOf(id).journal.decided(id)
	switch before, known := w.seen[id]; {
	case !ok:
		w.fail("L14", "%s, and no decision of %s is durable", how, id)
	case dec.Commit != commit:
		w.fail("L3", "%s that %s has committed: %v; the journal says %v", how, id, commit, dec.Commit)
	case known && before.commit != commit:
		w.fail("L3", "%s that %s has committed: %v; before, %s", how, id, commit, before.how)
	}
	w.seen[id] = seen{commit, how}
}

// toldOwner notes what reaches the owner of a transaction, in the order in which it does.
func (w *world) toldOwner(id txn.ID, e txn.Event) {
	if x, ok := e.(txn.Enlist); ok {
		if k := (enlistKey{id, x.Branch.Key}); w.askedAt[k] == 0 {
			w.askedAt[k] = w.mark()
		}
	}
	if r, ok := e.(txn.Returned); ok && r.Op == txn.Forward && r.Outcome == txn.OK {
		if b := name(id, r.Branch); w.answered[b] == 0 {
			w.answered[b] = w.mark()
		}
	}
}

// placed notes a branch, and that a repeat is the same one (L12).
func (w *world) placed(id txn.ID, e txn.Enlist, st txn.State) {
	b := st.ByKey(e.Branch.Key)
	if b == nil {
		return
	}
	k := enlistKey{id, e.Branch.Key}
	if before, known := w.byKey[k]; known && before != b.ID {
		w.fail("L12", "a repeated Enlist of %s became branch %s; it was %s", id, b.ID, before)
	}
	w.byKey[k] = b.ID
	w.placedAt[name(id, b.ID)] = w.askedAt[k]
}

// forgetLost is the death of a sidecar: what it had been told and did not write down it was not told.
func (w *world) forgetLost(n *node) {
	for b := range w.answered {
		id, no, _ := interceptor.SplitBranchName(b)
		if interceptor.OwnerOf(id) != n.owner {
			continue
		}
		if x := n.journal.state(id).Find(no); x == nil || x.Known[txn.Forward].Outcome == txn.None {
			delete(w.answered, b)
		}
	}
}

// mend is an operator's own hand: what the op should have done is done.
func (w *world) mend(id txn.ID, b string, op txn.Op) {
	branch := name(id, b)
	w.mended[branch] = w.mended[branch] || op != txn.Ask
	for _, s := range w.stores {
		for _, e := range s.effects {
			if e.branch != branch {
				continue
			}
			switch {
			case op == txn.Undo && e.standing:
				e.standing, e.gone = false, w.mark()
			case op == txn.Commit:
				e.confirmed = true
			}
		}
	}
	if op == txn.Undo {
		w.over[branch] = "an operator's undo"
	}
	if d := w.driven[id]; d != nil {
		d.mend(w, b, op)
	}
}
