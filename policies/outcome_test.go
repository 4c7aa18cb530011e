package policies

import (
	"strings"
	"testing"

	"txmesh/txn"
)

func TestBuiltInOutcomes(t *testing.T) {
	s := compiled(t, undoCall)
	undo, hold, reserve := s.Calls()[0], s.Calls()[1], s.Calls()[2]
	root, err := Compile(Source{Name: "p.yaml", Data: []byte(strings.Replace(policyOf("  - {name: r, match: {service: s}, undo: {path: /u}}\n"), "calls:", "start:", 1))})
	if err != nil {
		t.Fatal(err)
	}
	own := root.Starts()[0].Own
	for _, tt := range []struct {
		name string
		call *Call
		op   txn.Op
		want map[int]txn.Outcome
	}{
		{"forward", undo, txn.Forward, map[int]txn.Outcome{
			200: txn.OK, 201: txn.OK, 202: txn.OK, 204: txn.OK, 101: txn.Unknown, 301: txn.Unknown, 304: txn.Unknown, 307: txn.Unknown,
			400: txn.Refused, 404: txn.Refused, 408: txn.Unknown, 409: txn.Refused, 410: txn.Refused, 425: txn.Pending,
			429: txn.Unknown, 500: txn.Unknown, 502: txn.Unknown, 503: txn.Unknown, 504: txn.Unknown, 599: txn.Unknown, 0: txn.Unknown, 999: txn.Unknown,
		}},
		{"the root's own writes", own, txn.Forward, map[int]txn.Outcome{
			200: txn.OK, 302: txn.OK, 399: txn.OK, 409: txn.Refused, 425: txn.Pending, 500: txn.Unknown, 101: txn.Unknown,
		}},
		{"undo with its own rule for 404", undo, txn.Undo, map[int]txn.Outcome{
			200: txn.OK, 202: txn.Pending, 404: txn.OK, 409: txn.Refused, 410: txn.OK, 425: txn.Pending, 429: txn.Unknown, 500: txn.Unknown,
		}},
		{"cancel", reserve, txn.Undo, map[int]txn.Outcome{200: txn.OK, 202: txn.Pending, 404: txn.Refused, 410: txn.OK, 302: txn.Unknown}},
		{"confirm", reserve, txn.Commit, map[int]txn.Outcome{204: txn.OK, 202: txn.Pending, 404: txn.Refused, 410: txn.OK, 408: txn.Unknown}},
		{"delivery", hold, txn.Commit, map[int]txn.Outcome{200: txn.OK, 202: txn.OK, 400: txn.Refused, 410: txn.Refused, 503: txn.Unknown}},
		{"query", undo, txn.Ask, map[int]txn.Outcome{
			200: txn.OK, 202: txn.Pending, 404: txn.Refused, 410: txn.Refused, 400: txn.Unknown, 401: txn.Unknown, 403: txn.Unknown,
			408: txn.Unknown, 425: txn.Pending, 429: txn.Unknown, 500: txn.Unknown, 302: txn.Unknown,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for code, want := range tt.want {
				got, cause := tt.call.Outcome(tt.op, nil, &Message{Status: code})
				if got != want {
					t.Errorf("outcome of %d = %v, want %v", code, got, want)
				}
				if (cause == "") != (got == txn.OK) {
					t.Errorf("cause of %d = %q with outcome %v", code, cause, got)
				}
			}
			if got, cause := tt.call.Outcome(tt.op, nil, nil); got != txn.Unknown || cause != "no answer" {
				t.Errorf("outcome of no answer = %v, %q", got, cause)
			}
		})
	}
}

func TestExpressionsAreBounded(t *testing.T) {
	s := compiled(t, `  - name: a
    match: {service: s}
    outcome: [{when: 'response.body.l.all(a, response.body.l.all(b, response.body.l.all(c, a + b + c != "x")))', is: OK}]
    undo: {path: /u}
`)
	items := strings.Repeat(`"yyyyyyyyyy",`, 200)
	body := `{"l":[` + strings.TrimSuffix(items, ",") + `]}`
	out, cause := s.Calls()[0].Outcome(txn.Forward, nil, &Message{Status: 200, Body: []byte(body)})
	if out != txn.Unknown || !strings.Contains(cause, "cost limit exceeded") {
		t.Errorf("outcome = %v, %s", out, cause)
	}
	_, err := Compile(Source{Name: "p.yaml", Data: []byte(policyOf("  - {name: a, match: {service: s}, undo: {path: /u}, key: \"'" + strings.Repeat("x", 5000) + "'\"}\n"))})
	if err == nil || !strings.Contains(err.Error(), "TXM0016: call.key: expression") {
		t.Errorf("error of a long expression = %v", err)
	}
}

func TestOutcomeOverTheRequestNeedsTheRequest(t *testing.T) {
	c := compiled(t, `  - name: a
    match: {service: s}
    outcome: [{when: response.body.n < request.body.n, is: Refused}]
    undo: {path: /u}
`).Calls()[0]
	res := &Message{Status: 200, Body: []byte(`{"n":4}`)}
	out, cause := c.Outcome(txn.Forward, nil, res)
	if want := "answered 200; the outcome rules read the request, which is not at hand"; out != txn.Unknown || cause != want {
		t.Errorf("outcome = %v, %q, want unknown, %q", out, cause, want)
	}
	record, err := c.Record(&Message{Path: "/", Body: []byte(`{"n":5,"m":1}`)})
	if want := `{"request":{"body":{"n":5}}}`; err != nil || string(record) != want {
		t.Fatalf("record = %s, %v, want %s", record, err, want)
	}
	if out, cause := c.RecordedOutcome(record, res); out != txn.Refused {
		t.Errorf("outcome by the record = %v, %q, want refused", out, cause)
	}
	if out, cause := c.RecordedOutcome(record, &Message{Status: 200, Body: []byte(`{"n":5}`)}); out != txn.OK {
		t.Errorf("outcome by the record = %v, %q, want ok", out, cause)
	}
}

func TestBuiltinTableServesWhoHasNoRule(t *testing.T) {
	for _, tt := range []struct {
		op    txn.Op
		code  int
		want  txn.Outcome
		cause string
	}{
		{txn.Forward, 201, txn.OK, ""},
		{txn.Forward, 409, txn.Refused, "answered 409"},
		{txn.Forward, 303, txn.Unknown, "answered 303"},
		{txn.Undo, 410, txn.OK, ""},
		{txn.Commit, 202, txn.Pending, "answered 202"},
		{txn.Ask, 410, txn.Refused, "answered 410"},
	} {
		if got, cause := BuiltinOutcome(tt.op, &Message{Status: tt.code}); got != tt.want || cause != tt.cause {
			t.Errorf("BuiltinOutcome(%v, %d) = %v, %q, want %v, %q", tt.op, tt.code, got, cause, tt.want, tt.cause)
		}
	}
}
