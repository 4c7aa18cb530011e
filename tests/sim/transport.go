package sim

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/sidecar/outbound"
	"txmesh/sidecar/peer"
	"txmesh/txn"
)

const peerTimeout = 5 * time.Second

// branches implements interceptor.Branches by the relay, and counts the answers of each call.
type branches struct{ n *node }

// Enlist has a branch journaled at its owner.
func (b branches) Enlist(ctx context.Context, id txn.ID, e txn.Enlist) (interceptor.Placed, error) {
	w := b.n.w
	if interceptor.OwnerOf(id) == "" {
		w.fail("join", "a call was to be enlisted in %q, which is no transaction", id)
		return interceptor.Placed{}, txn.ErrUnknown
	}
	owner := w.ownerOf(id)
	f := &flying{until: w.now.Add(callTimeout), life: owner.minds}
	p, err := b.n.relay.Enlist(ctx, id, e)
	w.point(b.n, sidecar)
	if n := name(id, p.Branch); err == nil && e.Calling {
		w.flights[n] = append(w.flights[n], f)
		w.leaving[w.cur] = f
	}
	return p, err
}

// Returned reports what a call answered.
func (b branches) Returned(ctx context.Context, id txn.ID, e txn.Returned, durable bool) error {
	w := b.n.w
	w.point(b.n, sidecar)
	if d := b.n.runs(interceptor.OwnerOf(id)); d != nil && d.isCurrent() {
		w.lands(id, e.Branch, w.leaving[w.cur])
	}
	return b.n.relay.Returned(ctx, id, e, durable)
}

// wire implements peer.Transport over the simulated network.
type wire struct{ n *node }

// enlisted is the reply to Enlist.
type enlisted struct {
	p   interceptor.Placed
	err error
}

// Enlist relays a branch to the owner. Now and then another one under the same key goes along, which must be refused.
func (t wire) Enlist(ctx context.Context, owner string, id txn.ID, e txn.Enlist, _ *peer.Document) (interceptor.Placed, error) {
	w := t.n.w
	to, err := t.n.holder(owner)
	if err != nil {
		return interceptor.Placed{}, err
	}
	got, err := w.carry(w.cur, link{twice: true}, &to.side, peerTimeout, func(*actor) any {
		if to.runs(owner) == nil {
			return enlisted{err: peer.ErrMisdirected}
		}
		p, err := to.relay.Enlist(ctx, id, e)
		if err == nil && w.chance(0.05) {
			w.conflicting(ctx, to, id, e)
		}
		return enlisted{p, err}
	})
	if err != nil {
		return interceptor.Placed{}, fmt.Errorf("%w: %w", peer.ErrUnreachable, err)
	}
	r := got.(enlisted)
	return r.p, t.n.overTheWire(owner, r.err)
}

// Returned relays an answer to the owner.
func (t wire) Returned(ctx context.Context, owner string, id txn.ID, e txn.Returned, durable bool) error {
	w := t.n.w
	f := w.leaving[w.cur]
	to, err := t.n.holder(owner)
	if err != nil {
		return err
	}
	got, err := w.carry(w.cur, link{twice: true}, &to.side, peerTimeout, func(*actor) any {
		d := to.runs(owner)
		if d == nil {
			return enlisted{err: peer.ErrMisdirected}
		}
		if d.isCurrent() {
			w.lands(id, e.Branch, f)
		}
		return enlisted{err: to.relay.Returned(ctx, id, e, durable)}
	})
	if err != nil {
		return fmt.Errorf("%w: %w", peer.ErrUnreachable, err)
	}
	return t.n.overTheWire(owner, got.(enlisted).err)
}

// overTheWire is an error of another sidecar as it arrives here. One that does not hold the journal is as good as not
// there: the next try looks for who does.
func (n *node) overTheWire(owner string, err error) error {
	switch {
	case err == nil || refusedBy(err):
		return err
	case errors.Is(err, peer.ErrMisdirected):
		n.forget(owner)
		return fmt.Errorf("%w: %w", peer.ErrUnreachable, err)
	}
	return errors.New(err.Error())
}

// homes implements outbound.Homes: a branch is settled by the sidecar that keeps its row. Now and then the message
// comes to another one, which must not answer for it.
type homes struct{ r *rig }

// Settle asks the home.
func (h homes) Settle(ctx context.Context, c interceptor.HomeCall) (interceptor.HomeReply, error) {
	w := h.r.w
	if !interceptor.IsSharedHome(c.Home) {
		return h.at(ctx, w.byOwner(c.Home), c)
	}
	both := w.replicas(strings.TrimPrefix(c.Home, interceptor.SharedHome("shop/")))
	first := w.rng.IntN(2)
	r, err := h.at(ctx, both[first], c)
	if err != nil {
		return h.at(ctx, both[1-first], c)
	}
	return r, nil
}

func (h homes) at(ctx context.Context, to *node, c interceptor.HomeCall) (interceptor.HomeReply, error) {
	w, from := h.r.w, h.r.nodeOf()
	if w.chance(0.01) {
		to = w.nodes[w.rng.IntN(len(w.nodes))]
	}
	serve := func(*actor) any {
		r := to.gate.Settle(ctx, c)
		if c.Home != to.home() && r.Outcome != txn.Unknown {
			w.fail("home", "sidecar %s, which is not the home, answered %s of %s with %s", to.place, c.Op, c.Branch, r.Outcome)
		}
		w.settledAtHome(c, r)
		return r
	}
	if to == from {
		return serve(nil).(interceptor.HomeReply), nil
	}
	got, err := w.carry(w.cur, link{twice: true}, &to.side, peerTimeout, serve)
	if err != nil {
		return interceptor.HomeReply{}, err
	}
	return got.(interceptor.HomeReply), nil
}

// places implements outbound.Places.
type places struct{}

// Endpoints names both replicas.
func (places) Endpoints(service string) []string {
	name := service[len("shop/"):]
	return []string{name + "-0", name + "-1"}
}

// EndpointsOfHost knows none: every rule names a service.
func (places) EndpointsOfHost(string) []string { return nil }

// documents gives every sidecar the one set's documents.
type documents struct{ set *policies.Set }

// Get implements peer.Documents and outbound.Documents.
func (d documents) Get(_ context.Context, hash string) (policies.Source, error) {
	src, ok := d.set.Document(hash)
	if !ok {
		return src, fmt.Errorf("document %s: %w", hash, outbound.ErrDocument)
	}
	return src, nil
}

// Keep has nothing to do.
func (documents) Keep(context.Context, string, policies.Source) error { return nil }

// direct is the network of outbound: it implements http.RoundTripper.
type direct struct{ r *rig }

// RoundTrip sends a call of an engine straight to a service.
func (d direct) RoundTrip(h *http.Request) (*http.Response, error) {
	w := d.r.w
	r := &request{method: h.Method, host: h.Host, path: h.URL.Opaque, query: h.URL.RawQuery, fields: sorted(h.Header)}
	if h.Body != nil {
		r.body = readAll(h.Body)
	}
	got, err := w.toPlace(w.cur, h.URL.Host, r, engineTimeout)
	if err != nil {
		return nil, err
	}
	res := got.(*response)
	return &http.Response{StatusCode: res.status, Header: res.fields.header(), Body: body(res.body), Request: h}, nil
}

// rig is what worlds share that run one after another: compiling a rule costs more than many a world.
type rig struct {
	w       *world // the one that runs now
	set     *policies.Set
	keys    *interceptor.Keys
	callers []*outbound.Caller // by node
	pool    threads
}

func newRig() (*rig, error) {
	set, err := compiled()
	if err != nil {
		return nil, err
	}
	keys, err := interceptor.NewKeys([]byte("the secret of a simulated mesh"))
	if err != nil {
		return nil, err
	}
	r := &rig{set: set, keys: keys}
	for range 2*(1+len(participants())) + 1 {
		r.callers = append(r.callers, outbound.New(outbound.Options{Documents: documents{set}, Homes: homes{r},
			Places: places{}, Keys: keys, BodyMax: 1 << 16, Now: func() time.Time { return r.w.now }, Transport: direct{r}}))
	}
	return r, nil
}

// close ends what the worlds have left.
func (r *rig) close() {
	r.pool.close()
	for _, c := range r.callers {
		c.Close()
	}
}

// nodeOf is the node whose sidecar runs now.
func (r *rig) nodeOf() *node {
	for _, n := range r.w.nodes {
		if r.w.cur.proc == &n.side.process {
			return n
		}
	}
	panic("sim: no sidecar runs")
}
