package interceptor

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/policies"
	"txmesh/txn"
)

// withPolicy puts another policy in force.
func (w *world) withPolicy(text string) {
	w.t.Helper()
	set, err := policies.Compile(policies.Source{Name: "bank.yaml", Data: []byte(text)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.gate.Policies = fixed{set}
}

const lenientPolicy = `
apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: transfer, namespace: bank}
spec:
  start:
  - name: transfer
    match: {service: transfers, method: POST, path: /transfers}
  calls:
  - name: lenient
    match: {service: accounts, method: POST, path: /lenient}
    outcome:
    - {when: response.code == 409, is: OK}
    - {when: response.code >= 500, is: Refused}
    undo: {method: DELETE, path: /lenient}
`

// The rules of a policy speak of the application's answers. What a sidecar on the way answers itself says only
// whether the call went on.
func TestAnswerOfASidecarIsNotJudgedByRules(t *testing.T) {
	for _, tt := range []struct {
		code Code
		want txn.Outcome
	}{
		{CodeJournal, txn.None},   // the application did it, the row was not saved
		{CodeCrashed, txn.None},   // nobody knows
		{CodeRunning, txn.None},   // a call of this branch still runs
		{CodeStillUndo, txn.None}, // 202 of a transaction that was aborted
		{CodeInProgress, txn.None},
		{CodeLate, txn.Refused},
		{CodeExpired, txn.Refused},
	} {
		t.Run(string(tt.code), func(t *testing.T) {
			w := newWorld(t, "bank/transfers")
			w.withPolicy(lenientPolicy)
			_, root := w.root()
			v := w.out("bank/accounts", newRequest("POST", "http://accounts/lenient", "baggage", root.Header("baggage")))
			a := problem(tt.code, "", "")
			w.after(v, newResponse(a.Status, string(a.Body), HeaderError, string(tt.code)), nil)
			if got := w.machines[w.lastID()].State().Branches[0].Known[txn.Forward].Outcome; got != tt.want {
				t.Errorf("a sidecar's %d %s counts as %v, want %v", a.Status, tt.code, got, tt.want)
			}
		})
	}
}

// The owner's rule may take a conflict for success. Its undo must then reach the application, although the built-in
// table of the home calls the answer a refusal.
func TestHomeUndoesWhatTheOwnersRuleTookForDone(t *testing.T) {
	for _, op := range []txn.Op{txn.Undo, txn.Commit} {
		w := newWorld(t, "bank/accounts")
		w.put("refused")
		if r := w.settleOp(op, txn.OK); r.Outcome != txn.OK || len(w.sent) != 1 {
			t.Errorf("%s of a call that the owner knows as done: %v %q, sent %q; want it sent", op, r.Outcome, r.Cause, w.sent)
		}
	}
}

// A 200 that says "still at it" in its body is no undo that is done. Only the owner's rule can read that, so the home
// must not answer the next try from its row.
func TestUndoThatOnlyTheOwnerCanJudgeIsNotTakenForDone(t *testing.T) {
	w := newWorld(t, "bank/accounts")
	w.put("done")
	for try := 1; try <= 2; try++ {
		r := w.gate.Settle(context.Background(), HomeCall{Home: w.gate.Self, Branch: branchName, Op: txn.Undo, Known: txn.OK,
			Attempt: try, Judged: true, Request: &Outgoing{Method: "DELETE", Path: "/undo"}})
		if len(w.sent) != try || r.Reply == nil {
			t.Errorf("try %d: %+v, sent %q; want the application asked", try, r, w.sent)
		}
	}
}

// A row outlives every context that its forward call can carry, whose expiry travels in whole seconds.
func TestRowOutlivesTheContextsOfItsCall(t *testing.T) {
	w := newWorld(t, "bank/accounts")
	c := HomeCall{Home: w.gate.Self, Branch: branchName, Op: txn.Undo, Deadline: w.now.Add(10*time.Second + 200*time.Millisecond),
		Request: &Outgoing{Method: "DELETE", Path: "/undo"}}
	w.gate.Settle(context.Background(), c)
	late := w.forward("/accounts/a/withdrawals")
	late.SetHeader(HeaderContext, w.gate.Keys.Sign(Context{ID: someID, Parent: "1", Expires: c.Deadline}))
	w.now = c.Deadline.Add(100 * time.Millisecond)
	w.sweepEnded()
	if a := w.in(late).Answer; a == nil || code(a) != string(CodeLate) {
		t.Errorf("a late forward after an empty undo: %s, want %s", show(a), CodeLate)
	}
	w.now = c.Deadline.Add(time.Hour)
	w.sweepEnded()
	if len(w.rows) != 0 {
		t.Error("the row was never dropped")
	}
}

// sweepEnded drops the overdue rows as if their owners had said that all transactions have ended.
func (w *world) sweepEnded() {
	w.t.Helper()
	rows, err := w.gate.Overdue(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, o := range rows {
		if err := w.gate.Forget(context.Background(), o.Branch); err != nil {
			w.t.Fatal(err)
		}
	}
}

// The application may repeat a call that was joined by its trace with the context of its first one.
func TestRepeatIsTheSameBranchHoweverItIsJoined(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	w.now = w.now.Add(300 * time.Millisecond)
	_, root := w.root()
	for _, join := range []string{"traceparent", "tx-context", "baggage"} {
		v := w.out("bank/accounts", newRequest("POST", "http://accounts/always", "idempotency-key", `"k"`, join, root.Header(join)))
		if v.Ticket == nil {
			t.Errorf("joined by %s: %s", join, show(v.Answer))
		}
	}
	if n := len(w.machines[w.lastID()].State().Branches); n != 1 {
		t.Errorf("%d branches, want 1", n)
	}
}

// durables notes which answers had to be durable.
type durables struct {
	*world
	placed *Placed // what Enlist says instead
	asked  []bool
}

func (d *durables) Enlist(ctx context.Context, id txn.ID, e txn.Enlist) (Placed, error) {
	p, err := d.world.Enlist(ctx, id, e)
	if d.placed != nil && err == nil {
		p.Home = d.placed.Home
	}
	return p, err
}

func (d *durables) Returned(ctx context.Context, id txn.ID, e txn.Returned, durable bool) error {
	d.asked = append(d.asked, durable)
	return d.world.Returned(ctx, id, e, durable)
}

// The first Enlist settled that no home keeps the row, so that the answer lives at the owner alone (L13), whatever
// this sidecar has learned since.
func TestAnswerIsDurableWhereTheOwnerSaysNoHomeKeepsIt(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	d := &durables{world: w, placed: &Placed{}}
	w.gate.Branches = d
	_, root := w.root()
	v := w.out("bank/accounts", newRequest("POST", "http://accounts/accounts/a/withdrawals", "baggage", root.Header("baggage")))
	if v.Ticket == nil || !v.Ticket.Hold {
		t.Fatalf("ticket %+v, %s; want the answer held", v.Ticket, show(v.Answer))
	}
	w.after(v, newResponse(201, `{"id":"w-1"}`), nil)
	if diff := cmp.Diff(d.asked, []bool{true}); diff != "" {
		t.Errorf("answers that had to be durable (got, want):\n%s", diff)
	}
}

// Headers that only the local application may set do not become true by travelling beside a signed context.
func TestUnsignedHeadersBesideAContextAreStripped(t *testing.T) {
	w := newWorld(t, "bank/accounts")
	signed := w.gate.Keys.Sign(Context{ID: someID, Parent: "1", Expires: w.now.Add(time.Minute)})
	forged := []string{"tx-start", "bank/transfer", "tx-undo", "DELETE /x", "tx-confirm", "PUT /x", "tx-cancel", "PUT /x",
		"tx-hold", "true", "tx-status", "committed"}
	joined := newRequest("GET", "http://accounts/x", append([]string{"tx-context", signed, "tx-branch", "other.id-1", "tx-op", "undo",
		"tx-home", "X", "tx-attempt", "9"}, forged...)...)
	forward := w.forward("/accounts/a/withdrawals", forged...)
	op := newRequest("DELETE", "http://accounts/x", append([]string{"tx-context", signed, "tx-branch", branchName, "tx-op", "undo"}, forged...)...)
	for name, r := range map[string]*request{"joined": joined, "forward": forward, "undo": op} {
		if v := w.in(r); v.Ticket == nil {
			t.Fatalf("%s: %s", name, show(v.Answer))
		}
		for i := 0; i < len(forged); i += 2 {
			if got := r.Header(forged[i]); got != "" {
				t.Errorf("%s: the application gets %s: %s", name, forged[i], got)
			}
		}
	}
	for _, h := range []string{HeaderBranch, HeaderOp, HeaderHome, HeaderAttempt} {
		if got := joined.Header(h); got != "" {
			t.Errorf("a call that is no branch brings %s: %s", h, got)
		}
	}
}

// What was called for a transaction that is over must not run outside of it: nobody would undo what it calls.
func TestExpiredContextFromTheNetwork(t *testing.T) {
	for _, path := range []string{"/transfers", "/elsewhere"} {
		w := newWorld(t, "bank/transfers")
		signed := w.gate.Keys.Sign(Context{ID: someID, Expires: w.now.Add(-time.Second)})
		if a := w.in(newRequest("POST", "http://transfers"+path, HeaderContext, signed)).Answer; a == nil || code(a) != string(CodeExpired) {
			t.Errorf("%s with an expired context: %s, want %s", path, show(a), CodeExpired)
		}
	}
}

// A start rule that rejects foreign transactions rejects their branches too.
func TestNestedRejectHoldsForBranches(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	for _, home := range []string{"", w.gate.Self} {
		r := w.forward("/strict")
		if r.SetHeader(HeaderHome, home); home == "" {
			r.DelHeader(HeaderHome)
		}
		if a := w.in(r).Answer; a == nil || code(a) != string(CodeNested) || len(w.rows) != 0 {
			t.Errorf("a branch at home %q: %s, rows %d; want %s and none", home, show(a), len(w.rows), CodeNested)
		}
	}
}

// lostHomes knows homes by their endpoints, but no longer where they are.
type lostHomes struct{ *world }

func (lostHomes) EndpointOf(string) (string, bool) { return "", false }

// strangers does not know yet who listens where.
type strangers struct{ *world }

func (strangers) HomeOf(string) (string, bool) { return "", false }

// A branch never loses its barrier because its home has not been heard of yet.
func TestCallWaitsUntilItsHomeIsKnown(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	w.gate.Peers = strangers{w}
	_, root := w.root()
	call := func(service, path string) Verdict {
		r := newRequest("POST", "http://x"+path, "baggage", root.Header("baggage"))
		r.body = []byte(`{"ref":"r1"}`)
		return w.out(service, r)
	}
	if a := call("bank/accounts", "/always").Answer; a == nil || code(a) != string(CodePeerUnknown) {
		t.Errorf("got %s, want %s", show(a), CodePeerUnknown)
	}
	if n := len(w.machines[w.lastID()].State().Branches); n != 0 {
		t.Errorf("%d branches were enlisted, want none", n)
	}
	if v := call("bank/legacy", "/entries"); v.Ticket == nil {
		t.Errorf("a rule without barrier: %s, want it passed", show(v.Answer))
	}
}

// A call that cannot leave is not in flight: the transaction must not wait for it.
func TestCallWhoseHomeIsLostIsNotInFlight(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	w.gate.Peers = lostHomes{w}
	_, root := w.root()
	a := w.out("bank/accounts", newRequest("POST", "http://accounts/always", "baggage", root.Header("baggage"))).Answer
	if a == nil || code(a) != string(CodeOwner) {
		t.Fatalf("got %s, want %s", show(a), CodeOwner)
	}
	out, err := w.machines[w.lastID()].Step(w.now, txn.Decide{Reason: "root answered 503"})
	if err != nil || len(out.Calls) != 1 || out.Calls[0].Op != txn.Ask {
		t.Errorf("after the abort %+v, %v; want the home asked at once", out.Calls, err)
	}
}

// A client that opens a transaction by calling a stranger does not hand it the key to the transaction.
func TestContextOfAStartedCallStaysInsideTheMesh(t *testing.T) {
	w := newWorld(t, "bank/client")
	r := newRequest("POST", "http://weather.example/today", "tx-start", "bank/transfer/transfer")
	if v := w.out("", r); v.Ticket == nil {
		t.Fatal(show(v.Answer))
	}
	if r.Header(HeaderContext) != "" || r.Header("baggage") != "" {
		t.Errorf("headers to a host that no policy names: %v", r.header)
	}
	r = newRequest("POST", "http://accounts/today", "tx-start", "bank/transfer/transfer")
	if w.out("bank/accounts", r); r.Header(HeaderContext) == "" {
		t.Error("a call to a service that policies name lost its context")
	}
}

// Numbers of branches are the owner's: anything else would make rows that nobody asks for.
func TestBranchNumbersAreChecked(t *testing.T) {
	for _, n := range []string{"01", "x", "+1", "99999999999", "1/../2"} {
		w := newWorld(t, "bank/accounts")
		r := w.forward("/accounts/a/withdrawals")
		r.SetHeader(HeaderBranch, string(someID)+"-"+n)
		if a := w.in(r).Answer; a == nil || code(a) != string(CodeBadHeader) || len(w.rows) != 0 {
			t.Errorf("branch %q: %s, rows %d; want %s and none", n, show(a), len(w.rows), CodeBadHeader)
		}
	}
}

// A key that led to an error is free again.
func TestKeyOfAFailedRootIsFree(t *testing.T) {
	for name, fail := range map[string]func(*world) func(){
		"not begun":   func(w *world) func() { w.fail = errors.New("disk gone"); return func() { w.fail = nil } },
		"not decided": func(*world) func() { return func() {} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "bank/transfers")
			mend := fail(w)
			v := w.in(newRequest("POST", "http://transfers/transfers", "idempotency-key", "k"))
			if v.Ticket != nil {
				w.fail = errors.New("disk gone")
				w.after(v, newResponse(200, ""), nil)
				w.fail = nil
			}
			mend()
			if len(w.gate.roots) != 0 || len(w.gate.busy) != 0 {
				t.Errorf("reserved: roots %v, branches %v", w.gate.roots, w.gate.busy)
			}
		})
	}
}

// The sidecar was killed, the application was not: what it still calls for a request of before, also without any
// trace, must not pass beside the transaction that is being aborted.
func TestApplicationThatSurvivesItsSidecar(t *testing.T) {
	w := newWorld(t, "bank/accounts")
	if v := w.in(w.forward("/accounts/a/withdrawals")); v.Ticket == nil {
		t.Fatal(show(v.Answer))
	}
	again := newWorld(t, "bank/accounts")
	again.rows = w.rows
	again.gate.joins.linger = 5 * time.Second
	if err := again.gate.Restore(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	again.now = again.now.Add(20 * time.Second)
	traced := newRequest("POST", "http://accounts/always", "traceparent", "00-30313233343536373839616263646566-3031323334353637-01")
	if a := again.out("bank/accounts", traced).Answer; a == nil || code(a) != string(CodeDecided) {
		t.Errorf("a traced call: %s, want %s", show(a), CodeDecided) // this world has no machine for it: decided long ago
	}
	if a := again.out("bank/accounts", newRequest("POST", "http://accounts/accounts/a/withdrawals")).Answer; a == nil || code(a) != string(CodeLost) {
		t.Errorf("a call without a trace: %s, want %s", show(a), CodeLost)
	}
	again.now = again.now.Add(11 * time.Second)
	if v := again.out("bank/accounts", newRequest("POST", "http://accounts/accounts/a/withdrawals")); v != (Verdict{}) {
		t.Errorf("a call after the deadline: %s, want it passed", show(v.Answer))
	}
	fresh := again.gate.Keys.Sign(Context{ID: someID, Expires: again.now.Add(time.Minute)})
	again.in(newRequest("GET", "http://accounts/x", HeaderContext, fresh)) // whoever comes sweeps
	if n := len(again.gate.joins.old); n != 0 {
		t.Errorf("%d requests of before the restart are never forgotten", n)
	}
}
