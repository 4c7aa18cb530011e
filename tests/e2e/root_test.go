package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A repeat while the first request is served is told to come again; after the end it gets the recorded answer, also
// after a kill; with another payload it is refused.
func TestRootIsRepeatedByItsKey(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	body := order{Hold: "go"}.json()
	p := s.shop.later("/orders", body, "Idempotency-Key", `"k1"`)
	s.shop.does("POST /orders 201")
	r := s.shop.root("/orders", body, "Idempotency-Key", "k1")
	if r.status != 409 || r.header.Get("Tx-Error") != "TXM0114" || r.header.Get("Retry-After") != "1" || r.header.Get("Tx-Status") != "open" {
		t.Errorf("repeat meanwhile = %d %s %v, want 409 TXM0114", r.status, r.body, r.header)
	}
	s.shop.release("go")
	first, err := p.wait(t)
	if err != nil || first.status != 201 {
		t.Fatalf("order = %d %s %v", first.status, first.body, err)
	}
	s.shop.crash()
	r = s.shop.root("/orders", body, "Idempotency-Key", `"k1"`)
	if r.status != 201 || r.header.Get("Tx-Replayed") != "true" || r.body != first.body || r.header.Get("Tx-Id") != first.header.Get("Tx-Id") {
		t.Errorf("repeat after the kill = %d %s %v, want the first answer", r.status, r.body, r.header)
	}
	if r := s.shop.root("/orders", `{"ref":"other"}`, "Idempotency-Key", `"k1"`); r.status != 422 || r.header.Get("Tx-Error") != "TXM0115" {
		t.Errorf("other payload = %d %s, want 422 TXM0115", r.status, r.body)
	}
	s.shop.does("POST /orders 201")
}

// A repeat of a request that died with its sidecar says what became of it.
func TestRepeatAfterKillSaysAborted(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	body := order{Hold: "go"}.json()
	p := s.shop.later("/orders", body, "Idempotency-Key", `"k1"`)
	s.shop.does("POST /orders 201")
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	r := s.shop.root("/orders", body, "Idempotency-Key", `"k1"`)
	if r.status != 409 || r.header.Get("Tx-Error") != "TXM0116" || r.header.Get("Tx-Replayed") != "true" {
		t.Errorf("repeat = %d %s %v, want 409 TXM0116", r.status, r.body, r.header)
	}
}

// Shadow: everything passes as if there were no policy; only the metric counts.
func TestShadowOnlyCounts(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	r := s.shop.root("/shadow", order{Calls: []step{s.shop.calling("stock", "/shadow", order{})}, Status: 500}.json())
	if r.status != 500 || r.header.Get("Tx-Id") != "" {
		t.Errorf("answer = %d %v, want the application's 500 and no transaction", r.status, r.header)
	}
	s.shop.crash()
	if all, err := s.shop.list(""); err != nil || len(all) != 0 {
		t.Errorf("transactions = %v %v, want none", all, err)
	}
	s.stock.does("POST /shadow 201")
	s.shop.root("/shadow", "{}")
	s.eventually("it is counted", func() (bool, string) {
		v, err := s.shop.metric("txmesh_shadowed_total")
		return v == 1, fmt.Sprint(v, err)
	})
}

// A call that leaves after the decision is refused and not forwarded, also by a sidecar that was killed meanwhile:
// the context in its baggage names the transaction. With async: Detach it passes outside of it.
func TestLateCallIsRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.shop.root("/orders", "{}")
	e := s.shop.effects()[0]
	late := func(path string, header ...string) reply {
		return s.call("POST", "http://"+s.shop.to["stock"]+path, "{}", header...)
	}
	if r := late("/proxy", "Traceparent", e.Traceparent); r.status != 409 || r.header.Get("Tx-Error") != "TXM0105" {
		t.Errorf("late call by its trace = %d %s, want 409 TXM0105", r.status, r.body)
	}
	s.shop.crash()
	if r := late("/proxy", "Traceparent", e.Traceparent, "Baggage", e.Baggage); r.status != 409 || r.header.Get("Tx-Error") != "TXM0105" {
		t.Errorf("late call by its baggage after the kill = %d %s, want 409 TXM0105", r.status, r.body)
	}
	s.stock.does("")
	if r := late("/detach", "Traceparent", e.Traceparent, "Baggage", e.Baggage); r.status != 201 || r.header.Get("Tx-Error") != "" {
		t.Errorf("detached late call = %d %s, want 201", r.status, r.body)
	}
	s.stock.does("POST /detach 201")
	if e := s.stock.effects()[0]; e.Tx != "" || strings.Contains(e.Baggage, "tx=") {
		t.Errorf("the detached call came with %+v, want no context", e)
	}
}

// A late call of a request that died with its sidecar is known by its trace: the map of calls is rebuilt before the
// ports open.
func TestCallOfADeadRequestIsRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/own", order{Ref: "x", Hold: "go"}.json())
	s.shop.does("POST /own 201")
	s.shop.sidecar.Kill()
	s.shop.override(`{"GET":{"status":503}}`) // the query is not answered: the transaction stays open over the start
	s.must(s.shop.startSidecar())
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	r := s.call("POST", "http://"+s.shop.to["stock"]+"/proxy", "{}", "Traceparent", s.shop.effects()[0].Traceparent)
	if r.status != 409 || r.header.Get("Tx-Error") != "TXM0105" {
		t.Errorf("call of the dead request = %d %s, want 409 TXM0105", r.status, r.body)
	}
	s.shop.override(`{}`)
	s.ended("aborted")
	s.stock.does("")
}

// A call that a rule names and that has lost its context is refused while a transaction is in flight, and only then.
func TestLostContextIsRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	lost := func() reply { return s.call("POST", "http://"+s.shop.to["stock"]+"/proxy", "{}") }
	if r := lost(); r.status != 201 {
		t.Errorf("call outside of any transaction = %d %s, want 201", r.status, r.body)
	}
	r := s.shop.root("/orders", order{Calls: []step{s.shop.calling("stock", "/proxy", order{}, "Traceparent", "Baggage")}}.json())
	if r.status != 428 || r.header.Get("Tx-Status") != "aborted" {
		t.Errorf("order = %d %s, want the 428 that its call got", r.status, r.body)
	}
	p := s.shop.later("/orders", order{Hold: "go"}.json())
	s.eventually("the request is in flight", func() (bool, string) { return strings.Count(s.shop.did(), "/orders") == 2, s.shop.did() })
	if r := lost(); r.status != 428 || r.header.Get("Tx-Error") != "TXM0103" {
		t.Errorf("call without context = %d %s, want 428 TXM0103", r.status, r.body)
	}
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	if r := lost(); r.status != 201 {
		t.Errorf("call after the kill, nothing in flight = %d %s, want 201", r.status, r.body)
	}
}

// Two requests under one trace-id: a call with the trace alone could belong to either, and is never guessed at; with
// baggage it is clear.
func TestAmbiguousContextIsRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	const trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
	a := s.shop.later("/orders", order{Ref: "a", Hold: "go"}.json(), "Traceparent", trace)
	b := s.shop.later("/orders", order{Ref: "b", Hold: "go"}.json(), "Traceparent", trace)
	s.shop.does("POST /orders 201, POST /orders 201")
	url := "http://" + s.shop.to["stock"] + "/proxy"
	if r := s.call("POST", url, "{}", "Traceparent", trace); r.status != 409 || r.header.Get("Tx-Error") != "TXM0104" {
		t.Errorf("call by the trace = %d %s, want 409 TXM0104", r.status, r.body)
	}
	if r := s.call("POST", url, "{}", "Traceparent", trace, "Baggage", s.shop.effects()[0].Baggage); r.status != 201 {
		t.Errorf("call by the baggage = %d %s, want 201", r.status, r.body)
	}
	s.shop.release("go")
	for _, p := range []pending{a, b} {
		if r, err := p.wait(t); err != nil || r.status != 201 {
			t.Errorf("order = %d %s %v, want 201", r.status, r.body, err)
		}
	}
	s.stock.does("POST /proxy 201")
}

// AfterConfirm: the client is answered when the confirm is done, though the callee's sidecar is killed before it.
func TestAnswerWaitsForTheConfirm(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.stock.override(`{"PUT":{"status":503}}`)
	p := s.shop.later("/confirmed", order{Calls: []step{s.shop.calling("stock", "/reserve", order{})}}.json())
	s.eventually("a confirm was turned away", func() (bool, string) { return strings.Contains(s.stock.did(), "PUT"), s.stock.did() })
	select {
	case a := <-p.done:
		t.Fatalf("answered before the confirm: %+v", a)
	default:
	}
	s.stock.sidecar.Kill()
	s.stock.override(`{}`)
	s.must(s.stock.startSidecar())
	r, err := p.wait(t)
	if err != nil || r.status != 201 || r.header.Get("Tx-Status") != "committed" {
		t.Errorf("order = %d %v %v, want 201 committed", r.status, r.header, err)
	}
	if did := s.stock.did(); !strings.HasSuffix(did, "PUT /reserve/e1 200") {
		t.Errorf("stock did %s, want the confirm at the end", did)
	}
}

// AfterUndo waits no longer than reply.max: then 202 with the place where the end can be seen, also after a kill.
func TestSlowUndoIsAnswered202(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.stock.override(`{"DELETE":{"status":503}}`)
	body := order{Calls: []step{s.shop.calling("stock", "/proxy", order{})}, Status: 422}.json()
	r := s.shop.root("/impatient", body, "Idempotency-Key", `"k1"`)
	id := r.header.Get("Tx-Id")
	if r.status != 202 || r.header.Get("Tx-Error") != "TXM0118" || r.header.Get("Tx-Status") != "aborting" || r.header.Get("Retry-After") != "5" {
		t.Errorf("order = %d %s %v, want 202 TXM0118", r.status, r.body, r.header)
	}
	if got, want := r.header.Get("Location"), "http://"+s.shop.api+"/v1/transactions/"+id; got != want {
		t.Errorf("location = %q, want %q", got, want)
	}
	s.shop.sidecar.Kill()
	s.stock.override(`{}`)
	s.must(s.shop.startSidecar())
	if x := s.ended("aborted"); x.ID != id {
		t.Errorf("ended %s, want %s", x.ID, id)
	}
	r = s.shop.root("/impatient", body, "Idempotency-Key", `"k1"`)
	if r.status != 422 || r.header.Get("Tx-Status") != "aborted" || r.header.Get("Tx-Replayed") != "true" {
		t.Errorf("repeat = %d %s %v, want the application's 422", r.status, r.body, r.header)
	}
}

// A client that goes away decides nothing.
func TestClientThatLeavesAbortsNothing(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	client := &http.Client{Timeout: 100 * time.Millisecond}
	body := order{Calls: []step{s.shop.calling("stock", "/proxy", order{Hold: "go"})}}.json()
	if res, err := client.Post("http://"+s.shop.inbound+"/orders", "application/json", strings.NewReader(body)); err == nil {
		res.Body.Close()
		t.Fatal("the client was answered")
	}
	s.stock.does("POST /proxy 201")
	s.stock.release("go")
	s.ended("committed")
}

// A root that answers after its time is told that the transaction is aborted.
func TestExpiredRootIsAborted(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/brief", order{Calls: []step{s.shop.calling("stock", "/proxy", order{})}, Hold: "go"}.json())
	s.shop.does("POST /brief 201")
	x := s.ended("aborted")
	if x.Reason != "expired" {
		t.Errorf("reason = %q, want expired", x.Reason)
	}
	s.shop.release("go")
	r, err := p.wait(t)
	if err != nil || r.status < 400 || r.header.Get("Tx-Status") != "aborted" {
		t.Errorf("order = %d %s %v, want an error and aborted", r.status, r.body, err)
	}
	s.stock.does("POST /proxy 201, DELETE /proxy/e1 200")
}
