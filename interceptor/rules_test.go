package interceptor

import (
	"strings"
	"testing"
	"time"

	"txmesh/txn"
)

const rulesPolicy = `
apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: transfer, namespace: bank}
spec:
  start:
  - name: transfer
    match: {service: transfers, method: POST, path: /transfers}
  - name: rejecting
    match: {service: transfers, method: POST, path: /rejecting}
    nested: Reject
  - name: new
    match: {service: transfers, method: POST, path: /new}
    nested: New
  - name: judged
    match: {service: transfers, method: POST, path: /judged}
    commitWhen: response.body.done == true
  calls:
  - name: refusing
    match: {service: accounts, method: POST, path: /refusing}
    undo: {method: DELETE, path: /refusing}
  - name: ignoring
    match: {service: accounts, method: POST, path: /ignoring}
    onAmbiguous: Ignore
    undo: {method: DELETE, path: /ignoring}
  - name: reading
    match: {service: accounts, method: POST, path: /reading}
    undo: {method: DELETE, path: "/reading/{request.body.ref}/{response.body.id}"}
  - name: mail
    match: {service: mail, method: POST, path: /mails}
    hold: {}
`

func newRules(t *testing.T) *world {
	w := newWorld(t, "bank/transfers")
	w.withPolicy(rulesPolicy)
	return w
}

func TestNestedStart(t *testing.T) {
	for path, want := range map[string]string{"/transfers": "joined", "/rejecting": "TXM0120", "/new": "began"} {
		w := newRules(t)
		outer := Context{ID: someID, Parent: "1", Expires: w.now.Add(time.Minute)}
		r := newRequest("POST", "http://transfers"+path, HeaderContext, w.gate.Keys.Sign(outer))
		v := w.in(r)
		inner, err := w.gate.Keys.Verify(r.Header(HeaderContext), w.now)
		got := "joined"
		switch {
		case v.Answer != nil:
			got = code(v.Answer)
		case err != nil:
			t.Errorf("%s: the application gets %q: %v", path, r.Header(HeaderContext), err)
		case inner.ID != someID:
			got = "began"
		}
		if got != want {
			t.Errorf("a request to %s with a context of its own: %s, want %s", path, got, want)
		}
	}
}

// Two requests in flight under one trace: the call could belong to either, and nobody guesses.
func TestAmbiguousTrace(t *testing.T) {
	for path, want := range map[string]string{"/refusing": "TXM0104", "/ignoring": "passes"} {
		w := newRules(t)
		trace := "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		w.root("traceparent", trace)
		_, second := w.root("traceparent", trace)
		got := "passes"
		if v := w.out("bank/accounts", newRequest("POST", "http://accounts"+path, "traceparent", trace)); v.Answer != nil {
			got = code(v.Answer)
		} else if v.Ticket != nil {
			got = "branch"
		}
		if got != want {
			t.Errorf("a call by the trace alone to %s: %s, want %s", path, got, want)
		}
		v := w.out("bank/accounts", newRequest("POST", "http://accounts"+path, "traceparent", trace, "baggage", second.Header("baggage")))
		if v.Ticket == nil {
			t.Errorf("a call with baggage to %s: %s, want a branch", path, show(v.Answer))
		}
	}
}

func TestBodyBeyondTheBuffer(t *testing.T) {
	long := strings.Repeat("x", 1<<20+1)
	w := newRules(t)
	_, root := w.root()
	for service, path := range map[string]string{"bank/accounts": "/reading", "bank/mail": "/mails"} {
		r := newRequest("POST", "http://x"+path, "baggage", root.Header("baggage"))
		r.body = []byte(long)
		if a := w.out(service, r).Answer; a == nil || code(a) != string(CodeTooLarge) || a.Status != 413 {
			t.Errorf("a request of %d bytes to %s: %s, want %s", len(long), path, show(a), CodeTooLarge)
		}
	}
	if n := len(w.machines[w.lastID()].State().Branches); n != 0 {
		t.Errorf("%d branches were enlisted for calls that did not leave", n)
	}
	r := newRequest("POST", "http://x/reading", "baggage", root.Header("baggage"))
	r.body = []byte(`{"ref":"r"}`)
	a := w.after(w.out("bank/accounts", r), newResponse(201, `{"id":"`+long+`"}`), nil)
	known := w.machines[w.lastID()].State().Branches[0].Known[txn.Forward]
	if a == nil || a.Status != 502 || code(a) != string(CodeUnjudgeable) || known.Outcome != txn.None {
		t.Errorf("an answer that cannot be read: %s, forward %v; want 502 %s and unknown", show(a), known.Outcome, CodeUnjudgeable)
	}
	v := w.in(newRequest("POST", "http://transfers/judged"))
	a = w.after(v, newResponse(200, `{"done":true,"x":"`+long+`"}`), nil)
	if s := w.machines[w.lastID()].State(); a == nil || a.Status != 502 || s.Commit || !s.Decided() {
		t.Errorf("a root's answer that cannot be read: %s, %v, commit %v; want 502 and an abort", show(a), s.Phase, s.Commit)
	}
}

// A policy in mode Shadow only counts, whoever names its rules.
func TestShadowStartsNothing(t *testing.T) {
	w := newWorld(t, "bank/transfers")
	w.withPolicy(strings.Replace(rulesPolicy, "spec:\n", "spec:\n  mode: Shadow\n", 1))
	seen := 0
	w.gate.Observe.Shadowed = func(string) { seen++ }
	ports := []Port{{Direction: Inbound}, {Direction: Inbound, Trusted: true}, {Direction: Outbound, Service: "bank/transfers"}}
	for _, p := range ports {
		r := newRequest("POST", "http://transfers/transfers", HeaderStart, "bank/transfer/transfer")
		if v := w.gate.Before(t.Context(), p, r); v != (Verdict{}) || r.Header(HeaderStart) != "" {
			t.Errorf("%+v: %+v %s, headers %v; want it passed without tx-start", p, v.Ticket, show(v.Answer), r.header)
		}
	}
	if seen != len(ports) || len(w.machines) != 0 {
		t.Errorf("counted %d times and began %d, want %d and none", seen, len(w.machines), len(ports))
	}
}
