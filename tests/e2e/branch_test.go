package e2e

import (
	"strings"
	"testing"
)

// Barrier Proxy: the root's sidecar dies while the second call is unanswered. Its home finds the answer, and both
// are undone, the later one first.
func TestUndoAfterKill(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{
		s.shop.calling("stock", "/proxy", order{}),
		s.shop.calling("stock", "/proxy", order{Hold: "go"}),
	}}.json())
	s.stock.does("POST /proxy 201, POST /proxy 201")
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.stock.release("go")
	s.ended("aborted")
	s.stock.does("POST /proxy 201, POST /proxy 201, DELETE /proxy/e2 200, DELETE /proxy/e1 200")
}

// The callee's sidecar dies with the call under way. A barrier Proxy cannot know whether it took effect: the
// transaction is stuck with that cause, until an operator who has looked skips the question.
func TestCrashedProxyBarrierIsStuck(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("stock", "/proxy", order{Hold: "go"})}}.json())
	s.stock.does("POST /proxy 201")
	s.stock.crash()
	x := s.ended("stuck")
	r, err := p.wait(t)
	if err != nil || r.status != 500 || r.header.Get("Tx-Error") != "TXM0119" || r.header.Get("Tx-Status") != "stuck" {
		t.Errorf("the client got %d %s %v, want 500 TXM0119", r.status, r.body, err)
	}
	const cause = "the forward call was started and how it ended is not known (a crash, a break or a 5xx), and the rule has neither query nor barrier: Key"
	if !strings.Contains(r.body, cause) {
		t.Errorf("the answer %s does not say %q", r.body, cause)
	}
	act := "/v1/transactions/" + x.ID + "/branches/0/"
	// The branch waits for the answer to its ask. Retried, it is stuck again; skipped, the transaction ends.
	if r := s.shop.admin("POST", act+"ask/retry", `{"why":"the service is back"}`); r.status != 200 {
		t.Errorf("retry = %d %s", r.status, r.body)
	}
	s.eventually("it is stuck again", func() (bool, string) {
		x, err = s.shop.show(x.ID)
		return err == nil && strings.Count(x.events(), "halted") == 2 && x.Phase == "stuck", x.events() + errText(err)
	})
	s.shop.crash() // an operator's act, and being stuck, survive that
	if x := s.ended("stuck"); !strings.Contains(x.events(), "forced 0 ask retry") {
		t.Errorf("history = %s, want the operator's act in it", x.events())
	}
	// On the operator's word the call took effect; its answer, which the undo reads, is still not known.
	if r := s.shop.admin("POST", act+"ask/skip", `{"why":"looked: it was booked","by":"pat"}`); r.status != 200 {
		t.Errorf("skip = %d %s", r.status, r.body)
	}
	s.eventually("the undo is halted", func() (bool, string) {
		x, err = s.shop.show(x.ID)
		return err == nil && strings.HasSuffix(x.events(), "halted 0 undo"), x.events() + errText(err)
	})
	if r := s.shop.admin("POST", act+"undo/skip", `{"why":"undone by hand","by":"pat"}`); r.status != 200 {
		t.Errorf("skip = %d %s", r.status, r.body)
	}
	x = s.ended("aborted")
	if !strings.Contains(x.events(), "forced 0 ask skip") || !strings.Contains(x.events(), "forced 0 undo skip") {
		t.Errorf("history = %s, want the operator's act in it", x.events())
	}
	s.stock.does("POST /proxy 201")
}

// Barrier Key: the same death, but the service keeps answers by their key. Its sidecar asks with the call's own key,
// learns that it took effect, and the undo follows.
func TestCrashedKeyBarrierFindsOut(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("stock", "/key", order{Hold: "go"})}}.json())
	s.stock.does("POST /key 201")
	s.stock.crash()
	s.stock.release("go")
	r, err := p.wait(t)
	if err != nil || r.status != 502 || r.header.Get("Tx-Status") != "aborted" {
		t.Errorf("the client got %d %s %v, want 502 aborted", r.status, r.body, err)
	}
	s.ended("aborted")
	s.stock.does("POST /key 201, DELETE /key/e1 200")
}

// No barrier, but a query: the service dies after the effect, its answer is lost. The application takes no notice and
// succeeds; the commit waits until the query finds what was done.
func TestQueryFindsALostAnswer(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Ignore: true, Calls: []step{s.shop.calling("third", "/none", order{Ref: "r1", Hold: "go"})}}.json())
	s.third.does("POST /none 201")
	s.third.service.Kill()
	s.must(s.third.startService())
	r, err := p.wait(t)
	if err != nil || r.status != 201 || r.header.Get("Tx-Status") != "committed" {
		t.Errorf("the client got %d %s %v, want 201 committed", r.status, r.body, err)
	}
	if x := s.ended("committed"); x.outcome("none", "forward") != "ok" {
		t.Errorf("forward = %s, want ok by the query: %s", x.outcome("none", "forward"), x.events())
	}
	s.third.does("POST /none 201")
}

// The same, and the root's sidecar dies: what the query finds is undone.
func TestQueryFindsWhatMustBeUndone(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("third", "/none", order{Ref: "r1", Hold: "go"})}}.json())
	s.third.does("POST /none 201")
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.ended("aborted")
	s.third.does("POST /none 201, DELETE /none/e1 200")
}

// The service dies before the effect. The query says "not there", is believed after absentAfter, and nothing is undone.
func TestQueryFindsNothing(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("third", "/none", order{Ref: "r1", Wait: "never"})}}.json())
	s.third.waits("never")
	s.third.service.Kill()
	s.must(s.third.startService())
	r, err := p.wait(t)
	if err != nil || r.status != 502 || r.header.Get("Tx-Status") != "aborted" {
		t.Errorf("the client got %d %s %v, want 502 aborted", r.status, r.body, err)
	}
	if x := s.ended("aborted"); x.outcome("none", "forward") != "refused" || x.outcome("none", "undo") != "none" {
		t.Errorf("history = %s, want the forward refused by the query and no undo", x.events())
	}
	s.third.does("")
}

// Barrier Database: nobody is asked, the undo goes out at once, because the service itself makes it harmless.
func TestDatabaseBarrierIsUndoneUnasked(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("third", "/database", order{Ref: "d1", Wait: "never"})}}.json())
	s.third.waits("never")
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.ended("aborted")
	s.third.does("DELETE /database/d1 200")
}

// onUnknown Stop: stuck at once, and stuck after a kill; an operator who retries has the undo sent.
func TestStopIsForTheOperator(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("third", "/stop", order{Ref: "s1", Hold: "go"})}}.json())
	s.third.does("POST /stop 201")
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	x := s.ended("stuck")
	if got, want := x.Branches[0].Ops[len(x.Branches[0].Ops)-1].Cause, "the forward call was not answered, and the policy neither asks nor undoes"; got != want {
		t.Errorf("cause = %q, want %q", got, want)
	}
	s.eventually("the age of the stuck one is seen", func() (bool, string) {
		age, err := s.shop.metric("txmesh_oldest_non_terminal_seconds")
		return err == nil && age > 0, errText(err)
	})
	r := s.shop.admin("POST", "/v1/transactions/"+x.ID+"/branches/0/undo/retry", `{"why":"undo it","by":"pat"}`)
	if r.status != 200 {
		t.Errorf("retry = %d %s", r.status, r.body)
	}
	s.ended("aborted")
	s.third.does("POST /stop 201, DELETE /stop/s1 200")
	r = s.shop.admin("POST", "/v1/transactions/"+x.ID+"/branches/0/undo/retry", `{"why":"again"}`)
	if r.status != 409 {
		t.Errorf("retry of a finished one = %d %s, want 409", r.status, r.body)
	}
}

// A reservation is confirmed after the commit, although the sidecar dies while the confirm is not taken.
func TestReservationIsConfirmedAfterKill(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.stock.override(`{"PUT":{"status":503}}`)
	r := s.shop.root("/orders", order{Calls: []step{s.shop.calling("stock", "/reserve", order{})}}.json())
	if r.status != 201 || r.header.Get("Tx-Status") != "committing" {
		t.Fatalf("order = %d %s %v, want 201 committing", r.status, r.body, r.header)
	}
	s.eventually("a confirm was turned away", func() (bool, string) { return strings.Contains(s.stock.did(), "PUT /reserve/e1 503"), s.stock.did() })
	s.shop.sidecar.Kill()
	s.stock.override(`{}`)
	s.must(s.shop.startSidecar())
	s.ended("committed")
	if did := s.stock.did(); !strings.HasSuffix(did, "PUT /reserve/e1 200") || strings.Count(did, "PUT /reserve/e1 200") != 1 {
		t.Errorf("stock did %s, want one confirm that succeeded, at the end", did)
	}
}

// A reservation is cancelled after the abort, although both sidecars die on the way.
func TestReservationIsCancelledAfterKill(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.stock.override(`{"DELETE":{"status":503}}`)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("stock", "/reserve", order{})}, Status: 422}.json())
	s.eventually("a cancel was turned away", func() (bool, string) { return strings.Contains(s.stock.did(), "DELETE /reserve/e1 503"), s.stock.did() })
	s.shop.sidecar.Kill()
	s.stock.sidecar.Kill()
	s.stock.override(`{}`)
	s.must(s.shop.startSidecar())
	s.must(s.stock.startSidecar())
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.ended("aborted")
	if did := s.stock.did(); !strings.HasSuffix(did, "DELETE /reserve/e1 200") || strings.Count(did, "DELETE /reserve/e1 200") != 1 {
		t.Errorf("stock did %s, want one cancel that succeeded, at the end", did)
	}
}

// A held call is sent after the commit and never before, again and again until it is taken, across a kill, with its
// body as it was.
func TestHeldCallIsDeliveredAfterKill(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.third.override(`{"POST /mails":{"status":503}}`)
	r := s.shop.root("/orders", order{Calls: []step{s.shop.calling("third", "/mails", order{Ref: "m1"})}}.json())
	if r.status != 201 || !strings.Contains(r.body, `"status":202`) {
		t.Fatalf("order = %d %s, want 201, and 202 for the held call", r.status, r.body)
	}
	s.eventually("a delivery was turned away", func() (bool, string) { return len(s.third.effects()) > 0, "none" })
	if e := s.third.effects()[0]; e.Op != "deliver" || e.Body != `{"ref":"m1","body":{}}` && e.Body != `{"ref":"m1"}` {
		t.Errorf("delivery = %+v, want the body as the application sent it", e)
	}
	s.shop.sidecar.Kill()
	s.third.override(`{}`)
	s.third.service.Kill() // ... which has kept the refused tries by their key
	s.must(s.shop.startSidecar())
	s.eventually("the delivery is still owed", func() (bool, string) { x, err := s.shop.open(); return len(x) == 1, errText(err) })
	s.third.service.Args = s.third.service.Args[:len(s.third.service.Args)-1] // no --keyed
	s.must(s.third.startService())
	s.ended("committed")
	if did := s.third.did(); strings.Count(did, "POST /mails 201") != 1 {
		t.Errorf("third did %s, want one delivery that was taken", did)
	}
}

func TestHeldCallIsDroppedByAnAbort(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("third", "/mails", order{})}, Hold: "go"}.json())
	s.shop.does("POST /orders 201")
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.ended("aborted")
	s.third.does("")
}

// Irreversible: it stands whatever happens; the history says so.
func TestIrreversibleStands(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{
		s.shop.calling("stock", "/proxy", order{}),
		s.shop.calling("third", "/shipments", order{}),
	}, Hold: "go"}.json())
	s.shop.does("POST /orders 201")
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.ended("aborted")
	s.third.does("POST /shipments 201")
	s.stock.does("POST /proxy 201, DELETE /proxy/e1 200")
}

// Branch 0: the root's own write is found by its query after the kill, and undone.
func TestOwnWriteOfTheRootIsUndone(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/own", order{Ref: "o1", Calls: []step{s.shop.calling("stock", "/proxy", order{})}, Hold: "go"}.json())
	s.shop.does("POST /own 201")
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.ended("aborted")
	s.shop.does("POST /own 201, DELETE /own/e1 200")
	s.stock.does("POST /proxy 201, DELETE /proxy/e1 200")
}

// Two hops: stock's sidecar relays its own call to the owner. The owner dies while the last service keeps its answer;
// then the child is undone before its parent.
func TestChainIsUndoneFromItsEnd(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("stock", "/middle", order{
		Calls: []step{s.stock.calling("deep", "/last", order{Hold: "go"})}})}}.json())
	s.deep.does("POST /last 201")
	if x := s.shop.only(); len(x.Branches) != 2 || x.Branches[0].Home != s.stock.owner || x.Branches[1].Home != s.deep.owner {
		t.Errorf("branches = %+v, want one at stock and one at deep", x.Branches)
	}
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.deep.release("go")
	x := s.ended("aborted")
	s.deep.does("POST /last 201, DELETE /last/e1 200")
	s.stock.does("POST /middle 201, DELETE /middle/e1 200")
	events := x.events()
	if child, parent := strings.Index(events, "answered 1 undo ok"), strings.Index(events, "answered 0 undo ok"); child < 0 || parent < child {
		t.Errorf("history = %s, want the undo of the child 1 before that of its parent 0", events)
	}
}

// A service that answers 503 says nothing of its effect, and neither can a barrier Proxy: stuck, for an operator who
// looks. A barrier Key asks again under the call's key.
func TestUnclearAnswerAtABarrier(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.stock.override(`{"POST /proxy":{"status":503}}`)
	r := s.shop.root("/orders", order{Calls: []step{s.shop.calling("stock", "/proxy", order{})}}.json())
	if r.status != 500 || r.header.Get("Tx-Error") != "TXM0119" || r.header.Get("Tx-Status") != "stuck" {
		t.Errorf("order = %d %s, want 500 TXM0119", r.status, r.body)
	}
	s.shop.crash()
	x := s.ended("stuck")
	for _, o := range x.Branches[0].Ops {
		if o.Halted {
			t.Logf("halted %s: %s", o.Op, o.Cause)
		}
	}
	s.stock.does("POST /proxy 503")
}

// A service that is down was sent nothing: its home says so, and nobody has to look.
func TestCallOfAServiceThatIsDownIsAbsent(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.stock.service.Kill()
	r := s.shop.root("/orders", order{Calls: []step{s.shop.calling("stock", "/proxy", order{})}}.json())
	if r.status != 503 || r.header.Get("Tx-Status") != "aborted" {
		t.Errorf("order = %d %s %v, want 503 aborted", r.status, r.body, r.header)
	}
	if x := s.ended("aborted"); x.outcome("proxy", "forward") != "refused" {
		t.Errorf("history = %s, want the forward refused", x.events())
	}
	s.must(s.stock.startService())
	if r := s.shop.root("/orders", order{Calls: []step{s.shop.calling("stock", "/proxy", order{})}}.json()); r.status != 201 {
		t.Errorf("order afterwards = %d %s, want 201", r.status, r.body)
	}
}
