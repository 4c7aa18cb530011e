package policies

import (
	"fmt"
	"testing"

	"txmesh/txn"
)

// crowd is a set of a thousand rules over a hundred services.
func crowd(t testing.TB) *Set {
	var sources []Source
	for i := range 100 {
		text := fmt.Sprintf("apiVersion: txmesh.io/v1beta1\nkind: TransactionPolicy\nmetadata: {name: p%d, namespace: bank}\nspec:\n  start:\n"+
			"  - {name: root, match: {service: s%d, method: POST, path: /roots}}\n  calls:\n", i, i)
		for n := range 9 {
			text += fmt.Sprintf("  - {name: c%d, match: {service: s%d, method: POST, path: \"/things%d/{id}/parts/{part}\"}, undo: {path: \"/u/{path.id}\"}}\n", n, i, n)
		}
		text += fmt.Sprintf("  - {name: h, match: {host: h%d.example, method: POST, path: \"/v1/{id}\"}, irreversible: {reason: x}}\n", i)
		sources = append(sources, Source{Name: fmt.Sprintf("%d.yaml", i), Data: []byte(text)})
	}
	s, err := Compile(sources...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func targets() map[string]Target {
	return map[string]Target{
		"service hit":     {Service: "bank/s50", Host: "s50:8080", Method: "POST", Path: "/things7/1234/parts/9"},
		"encoded hit":     {Service: "bank/s50", Host: "s50:8080", Method: "POST", Path: "/thing%737/12%2034/parts/9"},
		"host hit":        {Host: "h50.example:443", Method: "POST", Path: "/v1/x"},
		"service miss":    {Service: "bank/other", Host: "other:80", Method: "POST", Path: "/things7/1234/parts/9"},
		"path miss":       {Service: "bank/s50", Host: "s50:8080", Method: "GET", Path: "/things7/1234/parts/9/more"},
		"nothing is said": {},
	}
}

func TestMatchingAllocatesNothing(t *testing.T) {
	s := crowd(t)
	for name, target := range targets() {
		if n := testing.AllocsPerRun(100, func() {
			s.Call(target)
			s.Start(target)
			s.Names(target.Service, target.Host)
		}); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
	if s.Call(targets()["encoded hit"]) == nil || s.Call(targets()["host hit"]) == nil || s.Call(targets()["path miss"]) != nil {
		t.Error("the targets do not hit and miss as they are named")
	}
}

func BenchmarkMatch(b *testing.B) {
	s := crowd(b)
	for name, target := range targets() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Call(target)
			}
		})
	}
}

func BenchmarkExchange(b *testing.B) {
	c := compiled(b, `  - name: a
    match: {service: accounts, method: POST, path: "/a/{id}"}
    outcome: [{when: response.body.status == "declined", is: Refused}]
    undo: {method: DELETE, path: "/a/{path.id}/{response.body.id}", body: {amount: "{request.body.amount}"}}
`).Calls()[0]
	req := &Message{Method: "POST", Path: "/a/alice", Body: []byte(`{"amount":30,"currency":"EUR","to":"bob"}`)}
	res := &Message{Status: 201, Body: []byte(`{"id":"w-1","balance":70,"status":"done"}`)}
	record, err := c.Record(req)
	if err != nil {
		b.Fatal(err)
	}
	answer, err := c.RecordAnswer(res)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("record", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Record(req); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("record answer", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.RecordAnswer(res); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("outcome", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if out, cause := c.Outcome(txn.Forward, req, res); out != txn.OK {
				b.Fatal(cause)
			}
		}
	})
	b.Run("render", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Render(txn.Undo, record, answer); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("inline", func(b *testing.B) {
		b.ReportAllocs()
		head := header("tx-undo", "DELETE /w/{response.body.id}")
		for b.Loop() {
			if _, err := Inline("bank/accounts", head); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("compile 100 documents", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			crowd(b)
		}
	})
}
