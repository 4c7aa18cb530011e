package sim

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/sidecar/engine"
	"txmesh/sidecar/peer"
	"txmesh/txn"
)

// node is one replica of a service: an application and the sidecar beside it, which die apart.
type node struct {
	w       *world
	at      int // index in world.nodes
	service string
	place   string // of the sidecar's inbound port
	owner   string
	store   *store // of the service, shared by its replicas

	app  server
	side server

	journal *disk
	offset  time.Duration // of its clock, and how fast the one goes by which it judges others
	rate    float64
	minds   int // how often machines were made from the journal: flights are forgotten then
	rows    *rows
	ids     int

	// Of the sidecar's present life.
	gate   *interceptor.Gate
	driver *driver // of its own journal; nil in a fleet
	keeper *keeper // nil but in a fleet
	born   time.Time
	relay  *peer.Relay
}

// forwarderTimeout is what a forwarder waits where nobody says otherwise.
const forwarderTimeout = 30 * time.Second

func (w *world) newNode(service string, replica int, s *store) *node {
	n := &node{w: w, at: len(w.nodes) - 1, service: service, place: service + "-" + strconv.Itoa(replica), store: s,
		journal: newDisk(), rows: newRows()}
	n.owner = fmt.Sprintf("%013d", n.at)
	n.app.name, n.side.name = n.place+" application", n.place+" sidecar"
	n.rows.point = func() { w.point(n, sidecar) }
	n.rows.pause = func() { w.cur.sleep(w.between(100*time.Microsecond, 3*time.Millisecond)) }
	n.rows.broken = func() bool { return w.chance(0.003) }
	if w.opt.NoBarrier {
		n.rows.forgetful = true
	}
	n.app.start()
	n.app.listening = true
	if w.fleet != nil {
		n.offset, n.rate = w.between(-250*time.Millisecond, 250*time.Millisecond), 0.85+w.rng.Float64()*0.3
	}
	n.boot()
	return n
}

// boot starts the sidecar: it reads its journal, makes what it found durable and only then listens.
func (n *node) boot() {
	n.side.start()
	n.relay = peer.NewRelay(local{n}, wire{n}, documents{n.w.set})
	n.born = n.w.now
	var err error
	var kept interceptor.Rows = n.rows
	var sharing interceptor.Runners
	if n.w.opt.Sharing {
		kept, sharing = sharedRows{n}, runners{n}
	}
	n.gate, err = interceptor.New(interceptor.Options{
		Self: n.owner, Home: n.home(), Runners: sharing, Incarnation: strconv.Itoa(n.side.lives), Service: "shop/" + n.service, Keys: n.w.keys,
		Coordinator: router{n}, Branches: branches{n}, Peers: directory{n.w}, Rows: kept, App: loopback{n}, Policies: n.w,
		NewID: n.newID, Now: n.now, Random: n.w.random, BodyMax: 1 << 16,
	})
	if err != nil {
		panic(err)
	}
	if n.w.fleet != nil {
		n.keeper = newKeeper(n)
		n.w.spawn(&n.side.process, n.keeper.run)
		return
	}
	n.driver = newDriver(n, n)
	n.driver.load()
}

// listen opens the ports, after the first append of this life.
func (n *node) listen() {
	n.rows.flush(len(n.rows.pending)) // one store: that append made them durable too
	if n.side.listening {
		return // the append that failed has killed nobody
	}
	for open := n.runs(n.owner).states(); n.gate.Restore(context.Background(), open) != nil; {
		n.w.cur.sleep(100 * time.Millisecond) // the rows are in a store that does not answer
	}
	n.side.listening = true
}

func (n *node) newID() txn.ID {
	n.ids++
	return txn.ID(fmt.Sprintf("%s.%026d", n.owner, n.ids))
}

// Current implements interceptor.Policies.
func (w *world) Current() *policies.Set { return w.set }

func (w *world) random(b []byte) {
	for i := range b {
		b[i] = byte(w.rng.Uint32())
	}
}

// forward is what a forwarder does with a request: ask the Gate, pass it on, tell the Gate what came of it.
func (n *node) forward(p interceptor.Port, r *request, send func(endpoint string, most time.Duration) (any, error)) *response {
	w, ctx := n.w, context.Background()
	v := n.gate.Before(ctx, p, r)
	if v.Answer != nil {
		return ofGate(v.Answer)
	}
	endpoint, most := p.Endpoint, forwarderTimeout
	if v.Ticket != nil && v.Ticket.Endpoint != "" {
		endpoint = v.Ticket.Endpoint
	}
	if v.Ticket != nil && v.Ticket.Timeout > 0 {
		most = v.Ticket.Timeout
	}
	w.point(n, sidecar)
	got, err := send(endpoint, most)
	w.point(n, sidecar)
	res, _ := got.(*response)
	if v.Ticket != nil {
		var seen interceptor.Response
		if err == nil {
			seen = res
		}
		if a := n.gate.After(ctx, v.Ticket, seen, err); a != nil {
			return ofGate(a)
		}
	}
	if err != nil {
		status := http.StatusBadGateway
		if errors.Is(err, errTimeout) {
			status = http.StatusGatewayTimeout
		}
		return &response{status: status, fields: fields{{interceptor.HeaderError, "TXM0203"}}}
	}
	return res
}

// inbound serves a request that came over the network.
func (n *node) inbound(r *request) *response {
	p := interceptor.Port{Direction: interceptor.Inbound, Service: "shop/" + n.service, Endpoint: n.place}
	return n.forward(p, r, func(_ string, most time.Duration) (any, error) { return n.toApp(r, most) })
}

// toApp hands a request to the application.
func (n *node) toApp(r *request, most time.Duration) (any, error) {
	sent := r.copy()
	return n.w.carry(n.w.cur, link{near: true}, &n.app, most, func(b *actor) any { return n.serve(b, sent) })
}

// outbound serves a call that the application beside the sidecar makes.
func (n *node) outbound(service string, r *request) *response {
	w := n.w
	chosen := w.replicas(service)[w.rng.IntN(2)]
	p := interceptor.Port{Direction: interceptor.Outbound, Service: "shop/" + service, Endpoint: chosen.place}
	return n.forward(p, r, func(endpoint string, most time.Duration) (any, error) {
		return w.toPlace(w.cur, endpoint, r, most)
	})
}

// toPlace sends a request to the inbound port of a sidecar. Where nothing keeps a repeat from harm, the network does
// not make any: that is what the analysis of policies tells people to see to.
func (w *world) toPlace(a *actor, place string, r *request, most time.Duration) (any, error) {
	to := w.byPlace(place)
	sent := r.copy()
	l := link{twice: r.fields.get(interceptor.HeaderHome) != "" || safe(r)}
	if interceptor.IsSharedHome(r.fields.get(interceptor.HeaderHome)) && w.chance(0.1) {
		other := w.nodes[to.at^1] // somebody between them tries the other replica as well
		w.after(w.lag(), func() {
			if other.side.open() {
				w.spawn(&other.side.process, func(*actor) { other.inbound(sent.copy()) })
			}
		})
	}
	return w.carry(a, l, &to.side, most, func(*actor) any { return to.inbound(sent.copy()) })
}

// safe says of a request without a home whether repeating it is harmless by itself.
func safe(r *request) bool {
	switch r.fields.get(interceptor.HeaderOp) {
	case interceptor.OpUndo, interceptor.OpConfirm, interceptor.OpQuery, interceptor.OpDeliver:
		return true
	}
	return kindOf(r.path) == "db" && r.fields.get(interceptor.HeaderBranch) != ""
}

// loopback implements interceptor.App.
type loopback struct{ n *node }

// Send hands a request of the sidecar to the application.
func (l loopback) Send(_ context.Context, o *interceptor.Outgoing) (*interceptor.Reply, error) {
	r := &request{method: o.Method, host: o.Host, path: o.Path, query: o.Query, fields: sorted(o.Header), body: o.Body}
	l.n.w.point(l.n, sidecar)
	got, err := l.n.toApp(r, 10*time.Second)
	l.n.w.point(l.n, sidecar)
	if err != nil {
		return nil, err
	}
	res := got.(*response)
	return &interceptor.Reply{Status: res.status, Header: res.fields.header(), Body: res.body}, nil
}

// directory implements interceptor.Peers and outbound.Places: who listens where is known and does not change.
type directory struct{ w *world }

// HomeOf returns the owner behind an inbound port.
func (d directory) HomeOf(endpoint string) (string, bool) { return d.w.byPlace(endpoint).home(), true }

// EndpointOf is the inverse; now and then nobody knows, or what they know is old.
func (d directory) EndpointOf(owner string) (string, bool) {
	switch {
	case d.w.chance(0.005):
		return "", false
	case d.w.chance(0.005) && d.w.byOwner(owner).service != spare:
		return d.w.nodes[d.w.byOwner(owner).at^1].place, true
	}
	return d.w.byOwner(owner).place, true
}

// local is this sidecar's engine as peers see it; the world notes what it is told.
type local struct{ n *node }

// Holds reports whether the node runs the journal of an owner.
func (l local) Holds(owner string) bool { return l.n.runs(owner) != nil }

// Do feeds one event and waits.
func (l local) Do(ctx context.Context, id txn.ID, e txn.Event) (txn.State, error) {
	l.told(id, e)
	st, err := router(l).Do(ctx, id, e)
	if x, ok := e.(txn.Enlist); ok && err == nil {
		l.n.w.placed(id, x, st)
	}
	return st, err
}

// DoAndSee is Do.
func (l local) DoAndSee(ctx context.Context, id txn.ID, e txn.Event, see func(txn.State)) error {
	st, err := l.Do(ctx, id, e)
	if err == nil {
		see(st)
	}
	return err
}

// Post feeds one event.
func (l local) Post(id txn.ID, e txn.Event) {
	l.told(id, e)
	if d := l.n.runs(interceptor.OwnerOf(id)); d != nil {
		d.Post(id, e)
	}
}

func (l local) told(id txn.ID, e txn.Event) {
	if d := l.n.runs(interceptor.OwnerOf(id)); d != nil && d.takes() && d.isCurrent() {
		l.n.w.toldOwner(id, e)
	}
}

// State looks at a transaction.
func (l local) State(ctx context.Context, id txn.ID) (txn.State, error) {
	return router(l).State(ctx, id)
}

// refusedBy keeps the errors that cross the network as what they are, as package peer does.
func refusedBy(err error) bool {
	for _, e := range []error{txn.ErrDecided, txn.ErrConflict, txn.ErrUnknown, engine.ErrBusy} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
