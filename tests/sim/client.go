package sim

import (
	"context"
	"net/http"
	"time"

	"txmesh/interceptor"
	"txmesh/txn"
)

// ask is what a client wants, once, however often it has to ask for it.
type ask struct {
	path string
	key  string // empty: it cannot ask twice
	told []told
}

// told is one answer to a client, as far as it says what became of a transaction.
type told struct {
	tx     txn.ID
	status int
	commit bool
}

// client sends one root request and repeats it under its key until it knows.
func (w *world) client(i int) {
	q := &ask{path: []string{"/plain", "/own", "/waiting"}[w.rng.IntN(3)]}
	order := w.order()
	r := &request{method: http.MethodPost, host: "front", path: q.path, body: []byte(`{"order":"` + order + `"}`),
		fields: fields{{"content-type", "application/json"}}}
	if w.rng.IntN(2) == 0 {
		q.key = "client-" + itoa(i)
		r.fields.set(interceptor.HeaderIdempotency, q.key)
	}
	if w.habit(0.05) {
		r.fields.set(interceptor.HeaderContext, "1.forged.x.-.zz.mac") // from outside of the mesh
	}
	if w.habit(0.3) {
		r.fields.set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") // one trace for many requests
	}
	w.asks = append(w.asks, q)
	to := w.replicas("front")[w.rng.IntN(2)] // a key is known to one replica: see the guarantees
	w.spawn(&w.people, func(a *actor) {
		for range 4 {
			got, err := w.carry(a, link{twice: q.key != ""}, &to.side, 12*time.Second, func(*actor) any { return to.inbound(r.copy()) })
			if err == nil && w.tellClient(q, got.(*response)) || q.key == "" {
				return
			}
			a.sleep(w.between(100*time.Millisecond, 2*time.Second))
		}
	})
}

// tellClient notes what a client was told, and reports whether it knows now.
func (w *world) tellClient(q *ask, res *response) bool {
	id, status := txn.ID(res.fields.get(interceptor.HeaderID)), res.fields.get(interceptor.HeaderStatus)
	w.logf("client %s %s is told %d %s %s", q.path, q.key, res.status, status, id)
	t := told{tx: id, status: res.status}
	switch status {
	case "committing", "committed":
		t.commit = true
	case "aborting", "aborted":
		if res.status < 300 && res.status != http.StatusAccepted {
			w.fail("conservation", "a client was told %d of %s, which is %s", res.status, id, status)
		}
	case "open":
		if res.fields.get(interceptor.HeaderError) != string(interceptor.CodeAborted) {
			return false
		}
	case "":
		if res.status < 400 {
			w.fail("conservation", "a client was told %d outside of every transaction", res.status)
		}
		return false
	default:
		return false
	}
	w.sawDecision(id, t.commit, "a client was told "+status)
	q.told = append(q.told, t)
	return true
}

// explicit is an application that opens a transaction by the API and decides it itself.
func (w *world) explicit() {
	n := w.replicas("front")[w.rng.IntN(2)]
	if !n.side.open() || !n.app.open() {
		return
	}
	w.spawn(&n.app.process, func(a *actor) {
		id := n.newID()
		u := &run{tx: id, explicit: true, node: n, life: n.side.lives, since: w.now}
		spec := txn.Spec{ID: id, Mode: txn.Explicit, Plan: txn.Explicit.Plan(), Timeout: rootTimeout, Name: "api"}
		if !w.api(a, n, id, txn.Begin{Spec: spec}) {
			return
		}
		w.runs[id] = u
		in := &request{fields: fields{{interceptor.HeaderContext,
			w.keys.Sign(interceptor.Context{ID: id, Expires: w.now.Add(rootTimeout)})}}}
		commit := true
		for range 1 + w.rng.IntN(3) {
			d := w.newDeed(participants()[w.rng.IntN(2)], nil)
			d.run = u
			res, err := n.try(a, in, d)
			if (err != nil || res.status >= 300) && !w.habit(0.3) {
				commit = false
				break
			}
		}
		if w.habit(0.05) {
			return // it forgets to decide
		}
		w.api(a, n, id, txn.Decide{Commit: commit && !w.habit(0.15), Reason: "asked to"})
		u.over = true
	})
}

// api is one request of the application to its sidecar's local port. Lost ones are repeated.
func (w *world) api(a *actor, n *node, id txn.ID, e txn.Event) bool {
	for range 3 {
		got, err := w.carry(a, link{near: true}, &n.side, 10*time.Second, func(*actor) any {
			st, err := router{n}.Do(context.Background(), id, e)
			if d, ok := e.(txn.Decide); ok && err == nil && st.Decided() && st.Commit == d.Commit {
				w.sawDecision(id, d.Commit, "the application was told")
			}
			return enlisted{err: err}
		})
		if err == nil {
			return got.(enlisted).err == nil
		}
		a.sleep(w.between(10*time.Millisecond, time.Second))
	}
	return false
}
