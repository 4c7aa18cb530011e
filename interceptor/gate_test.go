package interceptor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/policies"
	"txmesh/txn"
)

const bankPolicy = `
apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: transfer, namespace: bank}
spec:
  start:
  - name: transfer
    match: {service: transfers, method: POST, path: /transfers}
    timeout: 30s
  - name: own
    match: {service: transfers, method: POST, path: /own}
    timeout: 30s
    undo: {method: DELETE, path: "/own/{response.body.id}"}
    query: {method: GET, path: "/own", params: {ref: "{request.body.ref}"}}
  - name: strict
    match: {service: transfers, method: POST, path: /strict}
    timeout: 30s
    nested: Reject
  calls:
  - name: withdraw
    match: {service: accounts, method: POST, path: "/accounts/{id}/withdrawals"}
    undo: {method: DELETE, path: "/accounts/{path.id}/withdrawals/{response.body.id}"}
  - name: keyed
    match: {service: accounts, method: POST, path: /keyed}
    barrier: Key
    undo: {method: DELETE, path: "/keyed/{request.body.ref}"}
  - name: direct
    match: {service: legacy, method: POST, path: /entries}
    barrier: None
    undo: {method: DELETE, path: "/entries/{response.body.id}"}
    query: {method: GET, path: /entries, params: {ref: "{request.body.ref}"}}
  - name: mail
    match: {service: mail, method: POST, path: /mails}
    hold: {}
  - name: always
    match: {service: accounts, method: POST, path: /always}
    required: Always
    undo: {method: DELETE, path: /always}
  - name: never
    match: {service: accounts, method: POST, path: /never}
    required: Never
    undo: {method: DELETE, path: /never}
  - name: reported
    match: {service: accounts, method: POST, path: /reported}
    onLostContext: Report
    undo: {method: DELETE, path: /reported}
  - name: detached
    match: {service: accounts, method: POST, path: /detached}
    async: Detach
    undo: {method: DELETE, path: /detached}
`

// world is one sidecar around a Gate: a real machine per transaction, rows in a map, an application that answers
// by a script.
type world struct {
	t        *testing.T
	gate     *Gate
	now      time.Time
	machines map[txn.ID]*txn.Machine
	keys     map[string]txn.ID
	events   []string
	rows     map[string][]byte
	saves    []string // sync or not, in order
	sent     []string
	app      func(*Outgoing) (*Reply, error)
	fail     error // of every event from now on
	ids      int
}

func newWorld(t *testing.T, service string) *world {
	t.Helper()
	set, err := policies.Compile(policies.Source{Name: "bank.yaml", Data: []byte(bankPolicy)})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, now: time.Unix(1_700_000_000, 0), machines: map[txn.ID]*txn.Machine{}, keys: map[string]txn.ID{},
		rows: map[string][]byte{}}
	w.gate, err = New(Options{Self: "0K3V9X2ABCDEF", Incarnation: "i1", Service: service, Keys: someKeys(t), Coordinator: w,
		Branches: w, Peers: w, Rows: w, App: w, Policies: fixed{set}, Now: func() time.Time { return w.now },
		NewID: func() txn.ID {
			w.ids++
			return txn.ID(fmt.Sprintf("0K3V9X2ABCDEF.01JD3ZK9F0N8M7P6Q5R4S3T%03d", w.ids))
		}, Random: func(b []byte) { copy(b, "0123456789abcdef01234567") }})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

type fixed struct{ set *policies.Set }

func (f fixed) Current() *policies.Set { return f.set }

func (w *world) Do(_ context.Context, id txn.ID, e txn.Event) (txn.State, error) {
	if w.fail != nil {
		return txn.State{}, w.fail
	}
	m := w.machines[id]
	if m == nil {
		m = txn.Restore(nil)
	}
	if _, err := m.Step(w.now, e); err != nil {
		return m.State(), err
	}
	w.machines[id] = m
	if b, ok := e.(txn.Begin); ok && b.Spec.Key != "" {
		w.keys[b.Spec.Key] = id
	}
	w.events = append(w.events, strings.TrimPrefix(fmt.Sprintf("%T", e), "txn."))
	return m.State(), nil
}

func (w *world) Wait(_ context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error) {
	if s := w.machines[id].State(); until(s) {
		return s, nil
	}
	return w.machines[id].State(), context.DeadlineExceeded
}

func (w *world) State(_ context.Context, id txn.ID) (txn.State, error) {
	if m := w.machines[id]; m != nil {
		return m.State(), nil
	}
	return txn.State{}, txn.ErrUnknown
}

func (w *world) Find(_ context.Context, key string) (txn.ID, error) {
	if id, ok := w.keys[key]; ok {
		return id, nil
	}
	return "", txn.ErrUnknown
}

func (w *world) Enlist(ctx context.Context, id txn.ID, e txn.Enlist) (Placed, error) {
	s, err := w.Do(ctx, id, e)
	if err != nil {
		return Placed{}, err
	}
	b := s.ByKey(e.Branch.Key)
	return Placed{Branch: b.ID, Home: b.Home}, nil
}

func (w *world) Returned(ctx context.Context, id txn.ID, e txn.Returned, _ bool) error {
	_, err := w.Do(ctx, id, e)
	return err
}

func (w *world) HomeOf(endpoint string) (string, bool) {
	return "HOME" + strings.TrimPrefix(endpoint, "10.0.0.1:"), true
}

func (w *world) EndpointOf(owner string) (string, bool) {
	return "10.0.0.1:" + strings.TrimPrefix(owner, "HOME"), strings.HasPrefix(owner, "HOME")
}

func (w *world) Load(_ context.Context, branch string) ([]byte, bool, error) {
	b, ok := w.rows[branch]
	return b, ok, w.fail
}

func (w *world) Save(_ context.Context, branch string, old, row []byte, sync bool) error {
	if w.fail != nil {
		return w.fail
	}
	if !bytes.Equal(old, w.rows[branch]) {
		return fmt.Errorf("row of %s is not what it was", branch)
	}
	w.saves = append(w.saves, fmt.Sprintf("sync=%v", sync))
	if row == nil {
		delete(w.rows, branch)
	} else {
		w.rows[branch] = row
	}
	return nil
}

func (w *world) Each(_ context.Context, f func(string, []byte) bool) error {
	for b, r := range w.rows {
		if !f(b, r) {
			return nil
		}
	}
	return nil
}

func (w *world) Send(_ context.Context, o *Outgoing) (*Reply, error) {
	w.sent = append(w.sent, o.Method+" "+o.Path+" "+o.Header.Get(HeaderOp)+" "+o.Header.Get(HeaderIdempotency))
	if w.app == nil {
		return &Reply{Status: 200, Header: http.Header{}}, nil
	}
	return w.app(o)
}

func (w *world) in(r Request) Verdict {
	return w.gate.Before(context.Background(), Port{Direction: Inbound, Service: w.gate.Service}, r)
}

func (w *world) out(service string, r Request) Verdict {
	return w.gate.Before(context.Background(), Port{Direction: Outbound, Service: service, Endpoint: "10.0.0.1:80"}, r)
}

func (w *world) after(v Verdict, res Response, err error) *Answer {
	w.t.Helper()
	if v.Ticket == nil {
		w.t.Fatalf("no ticket, but %s", show(v.Answer))
	}
	return w.gate.After(context.Background(), v.Ticket, res, err)
}

// root opens a transaction and returns its verdict and its request as the application sees it.
func (w *world) root(header ...string) (Verdict, *request) {
	w.t.Helper()
	r := newRequest("POST", "http://transfers/transfers", header...)
	v := w.in(r)
	if v.Ticket == nil {
		w.t.Fatalf("the root request was answered %s", show(v.Answer))
	}
	return v, r
}

func show(a *Answer) string {
	if a == nil {
		return "nothing"
	}
	s := fmt.Sprintf("%d", a.Status)
	for _, h := range a.Header {
		s += "\n" + h[0] + ": " + h[1]
	}
	return s + "\n\n" + string(a.Body)
}

func code(a *Answer) string {
	for _, h := range a.Header {
		if h[0] == HeaderError {
			return h[1]
		}
	}
	return fmt.Sprint(a.Status)
}

func TestUntaggedTrafficIsNotTouched(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	for _, r := range []*request{
		newRequest("GET", "http://transfers/transfers/7"),
		newRequest("POST", "http://other/x", "Baggage", "a=b ,  c=d", "Traceparent", "odd"),
	} {
		before := fmt.Sprint(*r)
		if v := w.in(r); v != (Verdict{}) || fmt.Sprint(*r) != before {
			t.Errorf("inbound %s: verdict %+v, request %v, want it untouched: %v", r.path, v, *r, before)
		}
		if v := w.out("", r); v != (Verdict{}) || fmt.Sprint(*r) != before {
			t.Errorf("outbound %s: verdict %+v, request %v, want it untouched: %v", r.path, v, *r, before)
		}
	}
}

func TestHeadersFromTheNetworkAreStripped(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	r := newRequest("GET", "http://transfers/x", "tx-context", "1.a.b.-.zzzzzzz.AAAAAAAAAAAAAAAAAAAAAA", "tx-id", "a.b", "tx-branch", "a.b-1",
		"tx-op", "undo", "tx-attempt", "1", "tx-home", "X", "tx-undo", "DELETE /x", "tx-start", "bank/transfer",
		"baggage", "tx=1.a.b.-.zzzzzzz.AAAAAAAAAAAAAAAAAAAAAA,user=alice", "accept", "*/*")
	if v := w.in(r); v != (Verdict{}) {
		t.Fatalf("verdict %+v", v)
	}
	want := [][2]string{{"accept", "*/*"}, {"baggage", "user=alice"}}
	if diff := cmp.Diff(r.header, want); diff != "" {
		t.Errorf("headers (got, want):\n%s", diff)
	}
}

func TestTransferCommits(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	v, root := w.root("idempotency-key", "k1")
	if !v.Ticket.Hold || !v.Ticket.Outlive || v.Ticket.Timeout != 30*time.Second {
		t.Errorf("root ticket %+v", *v.Ticket)
	}
	call := newRequest("POST", "http://accounts/accounts/alice/withdrawals", "traceparent", root.Header("traceparent"), "baggage", root.Header("baggage"))
	c := w.out("bank/accounts", call)
	if c.Ticket == nil || c.Ticket.Endpoint != "10.0.0.1:80" {
		t.Fatalf("call: %+v %s", c.Ticket, show(c.Answer))
	}
	name := string(w.lastID()) + "-0"
	for _, h := range [][2]string{{HeaderBranch, name}, {HeaderOp, "forward"}, {HeaderAttempt, "1"}, {HeaderHome, "HOME80"},
		{HeaderIdempotency, `"` + name + `"`}, {HeaderID, string(w.lastID())}} {
		if got := call.Header(h[0]); got != h[1] {
			t.Errorf("%s: %q, want %q", h[0], got, h[1])
		}
	}
	if a := w.after(c, newResponse(201, `{"id":"w-1"}`), nil); a != nil {
		t.Errorf("the call's answer was replaced by %s", show(a))
	}
	res := newResponse(201, `{"id":"t-1"}`, "content-type", "application/json")
	if a := w.after(v, res, nil); a != nil {
		t.Errorf("the root's answer was replaced by %s", show(a))
	}
	if res.Header(HeaderStatus) != "committed" {
		t.Errorf("tx-status %q, want committed", res.Header(HeaderStatus))
	}
	if diff := cmp.Diff(w.events, []string{"Begin", "Enlist", "Returned", "Decide"}); diff != "" {
		t.Errorf("events (got, want):\n%s", diff)
	}
}

func (w *world) lastID() txn.ID {
	return txn.ID(fmt.Sprintf("0K3V9X2ABCDEF.01JD3ZK9F0N8M7P6Q5R4S3T%03d", w.ids))
}

func TestRepeatedRootRequest(t *testing.T) {
	t.Run("while the first is served", func(t *testing.T) {
		w := newWorld(t, "bank/transfers")
		w.root("idempotency-key", "k1")
		a := w.in(newRequest("POST", "http://transfers/transfers", "idempotency-key", "k1")).Answer
		want := "409\ncontent-type: application/problem+json\ncontent-length: 285\ntx-error: TXM0114\nretry-after: 1\ntx-status: open\n\n" +
			`{"type":"https://txmesh.io/codes#TXM0114","title":"request with this key is still being served","status":409,"detail":"rule transfer","code":"TXM0114","remedy":"retry after the time in Retry-After","retryable":true}`
		want = strings.Replace(want, "285", fmt.Sprint(len(a.Body)), 1)
		if diff := cmp.Diff(show(a), want); diff != "" {
			t.Errorf("answer (got, want):\n%s", diff)
		}
	})
	t.Run("after the end", func(t *testing.T) {
		w := newWorld(t, "bank/transfers")
		v, _ := w.root("idempotency-key", `"k1"`)
		w.after(v, newResponse(201, `{"id":"t-1"}`, "content-type", "application/json", "set-cookie", "s=1"), nil)
		a := w.in(newRequest("POST", "http://transfers/transfers", "idempotency-key", "k1")).Answer
		want := "201\ncontent-type: application/json\ncontent-length: 12\ntx-id: " + string(w.lastID()) +
			"\ntx-status: committed\ntx-replayed: true\n\n" + `{"id":"t-1"}`
		if diff := cmp.Diff(show(a), want); diff != "" {
			t.Errorf("answer (got, want):\n%s", diff)
		}
	})
	t.Run("with another payload", func(t *testing.T) {
		w := newWorld(t, "bank/transfers")
		v, _ := w.root("idempotency-key", "k1")
		w.after(v, newResponse(201, ""), nil)
		r := newRequest("POST", "http://transfers/transfers", "idempotency-key", "k1")
		r.body = []byte("other")
		if got := code(w.in(r).Answer); got != string(CodeOtherInput) {
			t.Errorf("got %s, want %s", got, CodeOtherInput)
		}
	})
	t.Run("of another caller", func(t *testing.T) {
		w := newWorld(t, "bank/transfers")
		v, _ := w.root("idempotency-key", "k1", "authorization", "Bearer a")
		w.after(v, newResponse(201, ""), nil)
		w.root("idempotency-key", "k1", "authorization", "Bearer b")
	})
	t.Run("without a key", func(t *testing.T) {
		w := newWorld(t, "bank/transfers")
		w.root()
		w.root()
	})
}

func TestRootAnswer(t *testing.T) {
	for _, tt := range []struct {
		name   string
		res    *response
		err    error
		expire bool
		want   string
		status string
	}{
		{"commits", newResponse(200, "fine"), nil, false, "its own", "committed"},
		{"refuses", newResponse(409, "no"), nil, false, "its own", "aborted"},
		{"fails", newResponse(500, "oops"), nil, false, "its own", "aborted"},
		{"does not come", nil, errors.New("connection reset"), false, "TXM0117", "aborted"},
		{"comes after expiry", newResponse(200, "fine"), nil, true, "TXM0116", "aborted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "bank/transfers")
			v, _ := w.root()
			if tt.expire {
				w.now = w.now.Add(31 * time.Second)
			}
			var a *Answer
			if tt.res == nil {
				a = w.after(v, nil, tt.err)
			} else {
				a = w.after(v, tt.res, nil)
			}
			got, status := "its own", ""
			if a != nil {
				got = code(a)
				for _, h := range a.Header {
					if h[0] == HeaderStatus {
						status = h[1]
					}
				}
			} else {
				status = tt.res.Header(HeaderStatus)
			}
			if got != tt.want || status != tt.status {
				t.Errorf("answered %s with tx-status %s, want %s with %s", got, status, tt.want, tt.status)
			}
		})
	}
}

func TestJournalFailureNeverLooksLikeSuccess(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	v, _ := w.root()
	w.fail = errors.New("disk gone")
	if a := w.after(v, newResponse(200, "fine"), nil); a == nil || code(a) != string(CodeJournal) {
		t.Errorf("the client sees %s, want %s", show(a), CodeJournal)
	}
	if a := w.in(newRequest("POST", "http://transfers/transfers")).Answer; a == nil || code(a) != string(CodeNotTaking) {
		t.Errorf("a new root is answered %s, want %s", show(a), CodeNotTaking)
	}
}

func TestCallWithoutContext(t *testing.T) {
	post := func(path string, header ...string) *request {
		return newRequest("POST", "http://accounts"+path, header...)
	}
	for _, tt := range []struct {
		name   string
		flying bool
		r      *request
		want   string
	}{
		{"in flight is the default", true, post("/accounts/a/withdrawals"), "TXM0103"},
		{"nothing in flight passes", false, post("/accounts/a/withdrawals"), "passes"},
		{"always", false, post("/always"), "TXM0103"},
		{"never", true, post("/never"), "passes"},
		{"reported only", true, post("/reported"), "passes"},
		{"forged header", true, post("/never", "tx-context", "1.a.b.-.zz.AAAAAAAAAAAAAAAAAAAAAA"), "TXM0101"},
		{"forged baggage joins nothing", false, post("/never", "baggage", "tx=1.a.b.-.zz.AAAAAAAAAAAAAAAAAAAAAA"), "passes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "bank/transfers")
			if tt.flying {
				w.root()
			}
			v := w.out("bank/accounts", tt.r)
			got := "passes"
			if v.Answer != nil {
				got = code(v.Answer)
			} else if v.Ticket != nil {
				got = "branch"
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestExpiredContext(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	_, root := w.root()
	w.now = w.now.Add(31 * time.Second)
	a := w.out("bank/accounts", newRequest("POST", "http://accounts/never", "tx-context", root.Header("tx-context"))).Answer
	if a == nil || code(a) != string(CodeExpired) {
		t.Errorf("an expired context is answered %s, want %s", show(a), CodeExpired)
	}
	a = w.out("bank/accounts", newRequest("POST", "http://accounts/never", "baggage", root.Header("baggage"))).Answer
	if a == nil || code(a) != string(CodeExpired) {
		t.Errorf("expired baggage on a branch call is answered %s, want %s", show(a), CodeExpired)
	}
}

func TestJoinByTraceAlone(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	v, root := w.root()
	call := func() *request {
		return newRequest("POST", "http://accounts/accounts/alice/withdrawals", "traceparent", root.Header("traceparent"))
	}
	if c := w.out("bank/accounts", call()); c.Ticket == nil {
		t.Fatalf("not joined: %s", show(c.Answer))
	} else {
		w.after(c, newResponse(201, `{"id":1}`), nil)
	}
	w.after(v, newResponse(200, ""), nil)
	if a := w.out("bank/accounts", call()).Answer; a == nil || code(a) != string(CodeDecided) {
		t.Errorf("a call after the root's answer: %s, want %s", show(a), CodeDecided)
	}
	late := newRequest("POST", "http://accounts/detached", "traceparent", root.Header("traceparent"))
	if v := w.out("bank/accounts", late); v != (Verdict{}) || late.Header(HeaderContext) != "" {
		t.Errorf("a detached late call: %s, headers %v, want it passed untagged", show(v.Answer), late.header)
	}
}

func TestContextStaysInsideTheMesh(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	_, root := w.root()
	inside := newRequest("GET", "http://accounts/balance", "baggage", root.Header("baggage"))
	w.out("bank/accounts", inside)
	if inside.Header(HeaderContext) == "" {
		t.Error("a read of a named service lost its context")
	}
	outside := newRequest("GET", "http://weather.example/today", "baggage", root.Header("baggage")+",user=alice")
	w.out("", outside)
	if diff := cmp.Diff(outside.header, [][2]string{{"baggage", "user=alice"}}); diff != "" {
		t.Errorf("headers to a host that no policy names (got, want):\n%s", diff)
	}
}

func TestHeldCallIsAnsweredAtOnce(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	_, root := w.root()
	r := newRequest("POST", "http://mail/mails", "baggage", root.Header("baggage"))
	r.body = []byte(`{"to":"alice"}`)
	a := w.out("bank/mail", r).Answer
	if a == nil || a.Status != 202 {
		t.Fatalf("a held call is answered %s, want 202", show(a))
	}
	b := w.machines[w.lastID()].State().Branches[0]
	if b.Known[txn.Forward].Outcome != txn.OK || b.Ops[txn.Commit] == nil || !b.InOrder {
		t.Errorf("held branch %+v", b)
	}
}

func TestUnansweredBranch(t *testing.T) {
	for _, tt := range []struct {
		name, service, path string
		want                txn.Resolve
		home                string
		keep                bool
	}{
		{"the home knows", "bank/accounts", "/accounts/a/withdrawals", txn.ResolveAsk, "HOME80", false},
		{"the query knows", "bank/legacy", "/entries", txn.ResolveAsk, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "bank/transfers")
			_, root := w.root()
			r := newRequest("POST", "http://x"+tt.path, "baggage", root.Header("baggage"))
			r.body = []byte(`{"ref":"r1"}`)
			v := w.out(tt.service, r)
			if v.Ticket == nil {
				t.Fatal(show(v.Answer))
			}
			b := w.machines[w.lastID()].State().Branches[0]
			if b.Unanswered != tt.want || b.Home != tt.home || b.KeepAnswer != tt.keep || b.Ops[txn.Ask] == nil {
				t.Errorf("branch %+v", b)
			}
		})
	}
}

func TestStartByHeader(t *testing.T) {
	start := func(name string) *request {
		return newRequest("POST", "http://transfers/elsewhere", "tx-start", name)
	}
	for _, tt := range []struct {
		name    string
		port    Port
		r       *request
		want    string
		started string
	}{
		{"a stranger's is stripped", Port{Direction: Inbound}, start("bank/transfer/transfer"), "passes", ""},
		{"a trusted gateway's counts", Port{Direction: Inbound, Trusted: true}, start("bank/transfer/transfer"), "root", "bank/transfer/transfer"},
		{"the local application's counts", Port{Direction: Outbound, Service: "bank/other"}, start("bank/transfer/strict"), "root", "bank/transfer/strict"},
		{"a policy with several rules", Port{Direction: Inbound, Trusted: true}, start("bank/transfer"), "TXM0124", ""},
		{"an unknown policy", Port{Direction: Outbound}, start("bank/nothing"), "TXM0124", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "bank/transfers")
			v := w.gate.Before(context.Background(), tt.port, tt.r)
			got := "passes"
			switch {
			case v.Answer != nil:
				got = code(v.Answer)
			case v.Ticket != nil:
				got = "root"
			}
			started := ""
			if m := w.machines[w.lastID()]; m != nil {
				started = m.State().Spec.Name
			}
			if got != tt.want || started != tt.started {
				t.Errorf("got %s and began %q, want %s and %q", got, started, tt.want, tt.started)
			}
			if tt.r.Header(HeaderStart) != "" && tt.want != "TXM0124" {
				t.Error("tx-start went on")
			}
		})
	}
}

func TestUpgradeIsNoPartOfATransaction(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	a := w.in(newRequest("POST", "http://transfers/transfers", "upgrade", "websocket")).Answer
	if a == nil || code(a) != string(CodeUpgrade) {
		t.Errorf("an upgrade as root: %s", show(a))
	}
	_, root := w.root()
	a = w.out("bank/accounts", newRequest("POST", "http://accounts/never", "baggage", root.Header("baggage"), "upgrade", "h2c")).Answer
	if a == nil || code(a) != string(CodeUpgrade) {
		t.Errorf("an upgrade as branch: %s", show(a))
	}
}
