package sim

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"txmesh/interceptor"
)

// effect is what a call left in a service's database. The database is durable: an application that dies loses its
// requests, not its data.
type effect struct {
	service, kind string
	id, order     string
	branch        string // as the call named it; empty: the call was no branch
	deed          *deed
	standing      bool
	confirmed     bool
	gone          uint64 // when it was undone; 0: never
	repeated      bool   // the same branch took effect before
	late          bool   // it took effect after the branch had been given up
}

// store is the database of a service.
type store struct {
	service string
	effects []*effect
	kept    map[string]*kept // answers by Idempotency-Key
	barred  map[string]bool  // branches that the service's own barrier refuses from now on
	count   int
}

// kept is a request that is known by its key.
type kept struct {
	by  *actor
	res *response // nil: being served by `by`
}

func newStore(service string) *store {
	return &store{service: service, kept: map[string]*kept{}, barred: map[string]bool{}}
}

func (s *store) find(match func(e *effect) bool) *effect {
	// The newest first: an application's order names the last of its tries.
	for _, e := range slices.Backward(s.effects) {
		if match(e) {
			return e
		}
	}
	return nil
}

func (s *store) ofBranch(branch string) *effect {
	return s.find(func(e *effect) bool { return e.branch == branch })
}

func kindOf(path string) string {
	kind, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return kind
}

// serve is the application: an HTTP service that has never heard of transactions.
func (n *node) serve(a *actor, r *request) *response {
	w, kind := n.w, kindOf(r.path)
	w.logf("%s: application gets %s %s %s", n.place, r.method, r.path, r.fields.get(interceptor.HeaderBranch))
	a.sleep(w.between(100*time.Microsecond, 10*time.Millisecond))
	w.point(n, application)
	var res *response
	switch {
	case r.method == http.MethodPost && n.service == "front":
		res = n.serveRoot(a, r)
	case r.method == http.MethodPost:
		res = n.serveForward(a, r)
	case r.method == http.MethodGet:
		res = n.serveQuery(r)
	default:
		res = n.serveSettling(a, r, kind)
	}
	w.point(n, application)
	w.logf("%s: application answers %d to %s %s", n.place, res.status, r.method, r.path)
	return res
}

// remembers says which paths keep their answers by Idempotency-Key.
func remembers(kind string) bool { return kind == "keyed" || kind == "mail" }

// serveForward is a call that leaves something.
func (n *node) serveForward(a *actor, r *request) *response {
	w, kind, key := n.w, kindOf(r.path), r.fields.get(interceptor.HeaderIdempotency)
	d := w.arrived(n, r)
	if branch := r.fields.get(interceptor.HeaderBranch); kind == "db" && branch != "" {
		return n.barred(branch, n.work(a, r, d))
	}
	if !remembers(kind) || key == "" {
		return n.work(a, r, d)
	}
	for k := n.store.kept[key]; k != nil; k = n.store.kept[key] {
		if k.res != nil {
			return k.res.copy()
		}
		if k.by.done {
			break // it died
		}
		a.sleep(5 * time.Millisecond)
	}
	k := &kept{by: a}
	n.store.kept[key] = k
	res := n.work(a, r, d)
	switch {
	case k.res != nil: // kept with the effect
	case res.status >= 500, res.status >= 400 && kind == "mail":
		delete(n.store.kept, key) // nothing happened
	default:
		k.res = res.copy()
	}
	return res
}

// barred is the end of a call at an application with a barrier of its own, which keeps refusals too: a repeat is refused
// again, and gets the answer of the one that was not.
func (n *node) barred(branch string, res *response) *response {
	if res.status < 400 || res.status >= 500 {
		return res
	}
	if e := n.store.ofBranch(branch); e != nil {
		return answered(http.StatusCreated, `{"id":"`+e.id+`"}`)
	}
	n.store.barred[branch] = true
	return res
}

func (r *response) copy() *response {
	c := *r
	c.fields = slices.Clone(r.fields)
	return &c
}

func orderIn(r *request) string {
	var in struct {
		Order string `json:"order"`
	}
	if err := json.Unmarshal(r.body, &in); err != nil {
		panic("sim: body of " + r.path + ": " + err.Error())
	}
	return in.Order
}

// work does it, unless the application has a bad day.
func (n *node) work(a *actor, r *request, d *deed) *response {
	w, kind := n.w, kindOf(r.path)
	branch := r.fields.get(interceptor.HeaderBranch)
	if w.habit(0.04) {
		a.sleep(w.between(time.Second, slowest))
	}
	if w.habit(0.06) {
		return answered(http.StatusConflict, `{"error":"sold out"}`)
	}
	if w.habit(0.02) {
		return answered(http.StatusInternalServerError, "")
	}
	if n.service == "stock" && kind != "mail" && w.habit(0.4) {
		if res := n.nested(a, r, d); res != nil {
			return res
		}
	}
	if kind == "db" && branch != "" {
		if n.store.barred[branch] {
			return answered(http.StatusConflict, `{"error":"undone"}`)
		}
		if e := n.store.ofBranch(branch); e != nil {
			return answered(http.StatusCreated, `{"id":"`+e.id+`"}`)
		}
	}
	w.point(n, application)
	e := w.takeEffect(n.store, kind, orderIn(r), branch, d)
	if k := n.store.kept[r.fields.get(interceptor.HeaderIdempotency)]; remembers(kind) && k != nil {
		k.res = answered(http.StatusCreated, `{"id":"`+e.id+`"}`) // in one write with the effect
	}
	if w.point(n, application); w.habit(0.015) {
		return answered(http.StatusInternalServerError, "")
	}
	return answered(http.StatusCreated, `{"id":"`+e.id+`"}`)
}

// nested is a call that a participant makes while it serves one. Its failure is the participant's, or not.
func (n *node) nested(a *actor, r *request, d *deed) *response {
	child := n.w.newDeed("bank", d)
	if child.under = r.fields.get(interceptor.HeaderBranch); d != nil && child.under != "" {
		child.run = d.run // what is called by a call outside of a transaction is outside as well
	}
	res, err := n.try(a, r, child)
	if err == nil && res.status < 300 || n.w.habit(0.3) {
		return nil
	}
	return answered(http.StatusConflict, `{"error":"the bank said no"}`)
}

// takeEffect makes an effect, durably.
func (w *world) takeEffect(s *store, kind, order, branch string, d *deed) *effect {
	s.count++
	e := &effect{service: s.service, kind: kind, id: s.service + "-" + itoa(s.count), order: order, branch: branch, deed: d,
		standing: true}
	if branch != "" {
		w.tookEffect(s, e)
	}
	s.effects = append(s.effects, e)
	w.logf("%s: %s of %s takes effect as %s", s.service, kind, branch, e.id)
	return e
}

// serveQuery looks for an order.
func (n *node) serveQuery(r *request) *response {
	order := r.path[strings.LastIndexByte(r.path, '/')+1:]
	e := n.store.find(func(e *effect) bool { return e.order == order && e.standing })
	if e == nil {
		return answered(http.StatusNotFound, `{"error":"no such order"}`)
	}
	return answered(http.StatusOK, `{"id":"`+e.id+`"}`)
}

// serveSettling is an undo, a cancel or a confirm.
func (n *node) serveSettling(a *actor, r *request, kind string) *response {
	w, last := n.w, r.path[strings.LastIndexByte(r.path, '/')+1:]
	branch, op := r.fields.get(interceptor.HeaderBranch), r.fields.get(interceptor.HeaderOp)
	w.opArrived(n, r)
	if w.habit(0.04) {
		return answered(http.StatusServiceUnavailable, "")
	}
	if op == interceptor.OpUndo && n.service == "stock" && w.habit(0.1) {
		n.aside(a, r)
	}
	w.point(n, application)
	e := n.store.find(func(e *effect) bool { return e.kind == kind && (e.id == last || e.order == last) })
	if op == interceptor.OpUndo {
		w.over[branch] = "its undo"
	}
	switch {
	case op == interceptor.OpConfirm && e == nil, op == interceptor.OpConfirm && !e.standing:
		return answered(http.StatusConflict, `{"error":"nothing to confirm"}`)
	case op == interceptor.OpConfirm:
		e.confirmed = true
	case kind == "db":
		n.store.barred[branch] = true
		if e != nil {
			w.undo(e)
		}
	case e == nil:
		return answered(http.StatusNotFound, `{"error":"no such thing"}`)
	case !e.standing:
		return answered(http.StatusGone, "")
	default:
		w.undo(e)
	}
	if w.point(n, application); w.habit(0.04) {
		return answered(http.StatusBadGateway, "")
	}
	return answered(http.StatusNoContent, "")
}

func (w *world) undo(e *effect) {
	if w.opt.NoUndo || !e.standing {
		return
	}
	e.standing, e.gone = false, w.mark()
	w.logf("%s: %s of %s is undone", e.service, e.id, e.branch)
}

// aside is a call that an application makes while it serves an undo: it is nobody's branch.
func (n *node) aside(a *actor, r *request) {
	d := n.w.newDeed("bank", nil)
	d.kind, d.aside = "soft", true
	// Whether it arrives makes no difference to the undo.
	_, _ = n.call(a, r, d)
}
