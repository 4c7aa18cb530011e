package sim

import (
	"net/http"
	"strconv"
	"time"

	"txmesh/interceptor"
	"txmesh/txn"
)

func itoa(n int) string { return strconv.Itoa(n) }

// run is one root request as the application served it, or one transaction that it opened by the API.
type run struct {
	tx       txn.ID
	own      bool // it writes something itself: branch 0
	explicit bool
	node     *node
	life     int // of the node's sidecar when it began
	since    time.Time
	over     bool // it was answered
	habits   carrying
}

// carrying is what an application copies from the request it serves to the calls that it makes.
type carrying uint8

const (
	carriesAll carrying = iota
	carriesTrace
	carriesNothing
)

// deed is one thing that an application does: a call, with its repeats.
type deed struct {
	run     *run
	parent  *deed
	under   string // the branch that was served when it was made
	service string
	kind    string
	order   string
	key     string // its Idempotency-Key; empty: none
	lossy   bool   // its application does not pass the context on
	trace   bool   // ... or only as a trace
	late    bool   // made after the answer
	aside   bool   // made while an undo was served
	branch  string // that it became, as a participant saw it
}

func (w *world) newDeed(service string, parent *deed) *deed {
	d := &deed{service: service, parent: parent, order: w.order(), kind: offers()[w.rng.IntN(len(offers()))]}
	if w.rng.IntN(2) == 0 {
		d.key = "k" + d.order
	}
	return d
}

// call makes one call through the sidecar.
func (n *node) call(a *actor, in *request, d *deed) (*response, error) {
	w := n.w
	r := &request{method: http.MethodPost, host: d.service, path: "/" + d.kind, deed: d,
		body: []byte(`{"order":"` + d.order + `","amount":5}`), fields: fields{{"content-type", "application/json"}}}
	if d.key != "" {
		r.fields.set(interceptor.HeaderIdempotency, d.key)
	}
	names := []string{"traceparent", "baggage", interceptor.HeaderContext}
	if d.lossy {
		names = nil
	} else if d.trace {
		names = names[:1]
	}
	for _, h := range names {
		if v := in.fields.get(h); v != "" && (h != interceptor.HeaderContext || d.run != nil && d.run.explicit) {
			r.fields.set(h, v)
		}
	}
	if d.run != nil && w.habit(0.01) {
		r.fields.set(interceptor.HeaderBranch, "forged-0") // what an application says of branches counts for nothing
	}
	most := 3 * time.Second
	if w.habit(0.05) {
		most = 500 * time.Millisecond
	}
	got, err := w.carry(a, link{near: true}, &n.side, most, func(*actor) any { return n.outbound(d.service, r.copy()) })
	w.point(n, application)
	if err != nil {
		return nil, err
	}
	res := got.(*response)
	w.answeredTo(n, d, res)
	return res, nil
}

// try calls, and calls again as applications do: under the same key, or as a new deed.
func (n *node) try(a *actor, in *request, d *deed) (*response, error) {
	res, err := n.call(a, in, d)
	for i := 0; i < 2 && (err != nil || res.status >= 500 || res.status == http.StatusTooEarly); i++ {
		if !n.w.habit(0.6) {
			break
		}
		a.sleep(n.w.between(10*time.Millisecond, time.Second))
		if d.key == "" || d.kind == "soft" { // what may be detached is not repeated under its key: see the findings
			again := *d
			again.order, again.branch = n.w.order(), ""
			if d = &again; d.key != "" {
				d.key = "k" + d.order
			}
		}
		res, err = n.call(a, in, d)
	}
	return res, err
}

// patience is how long an application works on one root request at most.
const patience = 10 * time.Second

// serveRoot is the front: it makes a few calls and answers, one way or another.
func (n *node) serveRoot(a *actor, r *request) *response {
	w := n.w
	u := w.began(n, r)
	var own *effect
	take := func() {
		if own == nil && u.own {
			own = w.takeEffect(n.store, "own", orderIn(r), name(u.tx, "0"), &deed{run: u, service: "front", kind: "own"})
		}
	}
	if w.rng.IntN(2) == 0 {
		take()
	}
	res := n.errands(a, r, u)
	w.point(n, application)
	if res == nil {
		take()
		res = n.conclude(a, u)
	}
	if own != nil && res.status < 500 && res.status >= 400 {
		own.standing = false // who says no takes back what it wrote itself
	}
	u.over = true
	return res
}

// conclude is the answer when all went well as far as the application can see.
func (n *node) conclude(a *actor, u *run) *response {
	w := n.w
	if w.habit(0.04) {
		a.sleep(w.between(time.Second, slowest))
	}
	switch {
	case w.now.Sub(u.since) > patience:
		return answered(http.StatusServiceUnavailable, "")
	case w.habit(0.12):
		return answered(http.StatusUnprocessableEntity, `{"error":"on second thought, no"}`)
	}
	return answered(http.StatusOK, `{"done":true}`)
}

// errands are the calls of one root request: one after another, side by side, or left for later. It returns an answer
// where the application gives up.
func (n *node) errands(a *actor, r *request, u *run) *response {
	w := n.w
	var done signal
	beside := 0
	for range 1 + w.rng.IntN(3) {
		d := w.newDeed(participants()[w.rng.IntN(2)], nil)
		d.run, d.lossy, d.trace = u, u.habits == carriesNothing, u.habits == carriesTrace
		switch {
		case w.now.Sub(u.since) > patience:
			return answered(http.StatusServiceUnavailable, "")
		case w.habit(0.08):
			d.late = true
			w.later(n, r, d)
			continue
		case w.habit(0.15):
			beside++
			w.spawn(&n.app.process, func(b *actor) {
				// The application does not look at what came of it.
				_, _ = n.try(b, r, d)
				if beside--; beside == 0 {
					w.fire(&done)
				}
			})
			continue
		}
		res, err := n.try(a, r, d)
		switch {
		case err == nil && res.status < 300 || w.habit(0.35): // swallowed
		case w.habit(0.5):
			return answered(http.StatusInternalServerError, "")
		default:
			return answered(http.StatusConflict, `{"error":"not today"}`)
		}
	}
	if beside > 0 && !w.habit(0.3) {
		a.wait(&done, 0)
	}
	return nil
}

// later makes a call that nobody waits for, perhaps after the answer.
func (w *world) later(n *node, r *request, d *deed) {
	w.spawn(&n.app.process, func(b *actor) {
		b.sleep(w.between(time.Millisecond, 2*time.Second))
		// Fired and forgotten.
		_, _ = n.call(b, r, d)
	})
}
