package admin

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"txmesh/interceptor"
	"txmesh/txn"
)

func newDoor(t *testing.T) Door {
	t.Helper()
	keys, err := interceptor.NewKeys([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	return Door{Keys: keys}
}

// aim is a target as a client writes it.
func aim(t *testing.T, o txn.Op, text string) []byte {
	t.Helper()
	var q targetRequest
	if err := strict([]byte(text), &q); err != nil {
		t.Fatal(err)
	}
	b, err := q.encoded(o)
	if err != nil {
		t.Fatalf("target %s: %v", text, err)
	}
	return b
}

func TestRequestsCarryTheTargetAndTheProtocol(t *testing.T) {
	d := newDoor(t)
	for _, tt := range []struct {
		name, target string
		call         txn.Call
		want         interceptor.Direct
	}{
		{"forward", `{"url":"http://a:1/w%2Fx?q=1","headers":{"x-who":"me"},"body":{"n": 9007199254740993, "s":"<"}}`,
			txn.Call{Mode: txn.Saga, Branch: "0", Op: txn.Forward, Attempt: 2},
			interceptor.Direct{Method: "POST", URL: "http://a:1/w%2Fx?q=1", Body: []byte(`{"n": 9007199254740993, "s":"<"}`),
				Header: http.Header{"Content-Type": {"application/json"}, "X-Who": {"me"}, "User-Agent": {"txmesh-sidecar"}, "Tx-Id": {"O.1"},
					"Tx-Branch": {"O.1-0"}, "Tx-Op": {"forward"}, "Tx-Attempt": {"2"}, "Idempotency-Key": {`"O.1-0-forward"`}}}},
		{"text", `{"url":"https://a","method":"PUT","body":"a \"b\""}`, txn.Call{Mode: txn.LRA, Branch: "x", Op: txn.Commit, Attempt: 1},
			interceptor.Direct{Method: "PUT", URL: "https://a/", Body: []byte(`a "b"`),
				Header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "User-Agent": {"txmesh-sidecar"}, "Tx-Id": {"O.1"},
					"Tx-Branch": {"O.1-x"}, "Tx-Op": {"confirm"}, "Tx-Attempt": {"1"}, "Idempotency-Key": {`"O.1-x-confirm"`}}}},
		{"own content type", `{"url":"http://a/x","headers":{"Content-Type":"text/xml"},"body":"<a/>"}`, txn.Call{Mode: txn.Msg, Branch: "1", Op: txn.Commit, Attempt: 1},
			interceptor.Direct{Method: "POST", URL: "http://a/x", Body: []byte(`<a/>`),
				Header: http.Header{"Content-Type": {"text/xml"}, "User-Agent": {"txmesh-sidecar"}, "Tx-Id": {"O.1"},
					"Tx-Branch": {"O.1-1"}, "Tx-Op": {"deliver"}, "Tx-Attempt": {"1"}, "Idempotency-Key": {`"O.1-1-deliver"`}}}},
		{"question", `{"url":"http://a/x"}`, txn.Call{Mode: txn.Msg, Op: txn.Ask, Attempt: 1},
			interceptor.Direct{Method: "GET", URL: "http://a/x", Header: http.Header{"User-Agent": {"txmesh-sidecar"}, "Tx-Id": {"O.1"},
				"Tx-Op": {"query"}, "Tx-Attempt": {"1"}}}},
		{"end", `{"url":"http://a/x"}`, txn.Call{Mode: txn.LRA, Op: txn.Tell, Commit: true, Attempt: 1},
			interceptor.Direct{Method: "POST", URL: "http://a/x", Header: http.Header{"User-Agent": {"txmesh-sidecar"}, "Tx-Id": {"O.1"},
				"Tx-Op": {"tell"}, "Tx-Attempt": {"1"}, "Tx-Status": {"committed"}, "Idempotency-Key": {`"O.1-tell"`}}}},
		{"gRPC", `{"grpc":"a:1/p.S/M","headers":{"x-a":"b"},"body":"` + base64.StdEncoding.EncodeToString([]byte{0, 255}) + `"}`,
			txn.Call{Mode: txn.TCC, Branch: "0", Op: txn.Undo, Attempt: 1},
			interceptor.Direct{Protocol: interceptor.GRPC, URL: "a:1/p.S/M", Body: []byte{0, 255}, Header: http.Header{"X-A": {"b"}, "Tx-Id": {"O.1"},
				"Tx-Branch": {"O.1-0"}, "Tx-Op": {"undo"}, "Tx-Attempt": {"1"}, "Idempotency-Key": {`"O.1-0-undo"`}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.call
			c.Tx, c.Target = "O.1", aim(t, c.Op, tt.target)
			got, err := d.Request(c)
			if err != nil {
				t.Fatal(err)
			}
			signed := got.Header.Get("Tx-Context")
			got.Header.Del("Tx-Context")
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Errorf("request differs (-want +got):\n%s", diff)
			}
			ctx, err := d.Keys.Verify(signed, time.Now())
			if settles := c.Branch != "" && c.Op != txn.Forward; settles != (err == nil) || settles && ctx.ID != "O.1" {
				t.Errorf("context %q = %+v %v; want one on settling calls and on no others", signed, ctx, err)
			}
		})
	}
	if _, err := d.Request(txn.Call{Target: []byte("http://a/x?no CBOR")}); err == nil {
		t.Error("a target of nobody was called")
	}
}

func TestDestinationsStandBeforeTheQuestionMark(t *testing.T) {
	for text, want := range map[string]string{
		`{"url":"http://a:1/x?q=1","body":{"a":1}}`: "http://a:1/x",
		`{"url":"http://a:1/x","body":{"a":"?"}}`:   "http://a:1/x",
		`{"grpc":"a:1/p.S/M"}`:                      "a:1/p.S/M",
	} {
		got, _, _ := strings.Cut(string(aim(t, txn.Forward, text)), "?")
		if got != want || host(aim(t, txn.Forward, text)) != "a:1" {
			t.Errorf("target %s is at %q, host %q; want %q and a:1", text, got, host(aim(t, txn.Forward, text)), want)
		}
	}
}

func TestBadTargetsAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                                  "want url or grpc",
		`{"url":"http://a","grpc":"a:1/s/m"}`: "want url or grpc",
		`{"url":"ftp://a"}`:                   "want http://host:port/path",
		`{"url":"/path"}`:                     "want http://host:port/path",
		`{"url":"http://:80/"}`:               "want http://host:port/path",
		`{"url":"http://user:secret@a/"}`:     "without user",
		`{"url":"http://a/#f"}`:               "fragment",
		`{"url":"http://a/?q=a b"}`:           "encoded",
		`{"url":"http://a/é"}`:                "encoded",
		`{"url":"http://a/` + strings.Repeat("x", 4<<10) + `"}`: "at most 4096 bytes",
		`{"url":"http://a","method":"CONNECT"}`:                 "want GET, POST",
		`{"url":"http://a","headers":{"Authorization":"x"}}`:    "credentials",
		`{"url":"http://a","headers":{"cookie":"x"}}`:           "credentials",
		`{"url":"http://a","headers":{"Tx-Id":"x"}}`:            "set by txmesh",
		`{"url":"http://a","headers":{"Host":"x"}}`:             "set by txmesh",
		`{"url":"http://a","headers":{"a b":"x"}}`:              "no name of a header",
		`{"url":"http://a","headers":{"a":"x\r\ny"}}`:           "control characters",
		`{"url":"http://a","headers":{"a":"x","A":"y"}}`:        "stands twice",
		`{"grpc":"a/p.S/M"}`:                                    "want host:port",
		`{"grpc":"a:1/p.S"}`:                                    "want host:port",
		`{"grpc":"a:1/p.S/M/N"}`:                                "want host:port",
		`{"grpc":"a:1/p.S/M","method":"POST"}`:                  "gRPC has none",
		`{"grpc":"a:1/p.S/M","body":{"a":1}}`:                   "base64",
		`{"grpc":"a:1/p.S/M","body":"%"}`:                       "base64",
	} {
		var q targetRequest
		if err := strict([]byte(text), &q); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if _, err := q.parse(txn.Forward); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("target %.60s: %v, want an error with %q", text, err, want)
		}
	}
	headers := map[string]string{}
	for i := range headersMax + 1 {
		headers["x"+strings.Repeat("y", i)] = ""
	}
	if _, err := (targetRequest{URL: "http://a", Headers: headers}).parse(txn.Forward); err == nil {
		t.Error("too many headers were taken")
	}
}

func TestAnswersBecomeOutcomes(t *testing.T) {
	d := newDoor(t)
	said := func(status int, body string, header ...string) interceptor.DirectAnswer {
		h := http.Header{}
		for i := 0; i < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		return interceptor.DirectAnswer{Reply: &interceptor.Reply{Status: status, Header: h, Body: []byte(body)}}
	}
	for _, tt := range []struct {
		name   string
		mode   txn.Mode
		op     txn.Op
		answer interceptor.DirectAnswer
		want   txn.Outcome
		cause  string
	}{
		{"done", txn.Saga, txn.Forward, said(201, "x"), txn.OK, ""},
		{"refused", txn.Saga, txn.Forward, said(409, ""), txn.Refused, "answered 409"},
		{"too early", txn.Saga, txn.Forward, said(425, ""), txn.Pending, "answered 425"},
		{"time-out of the service", txn.Saga, txn.Forward, said(408, ""), txn.Unknown, "answered 408"},
		{"too many", txn.Saga, txn.Forward, said(429, ""), txn.Unknown, "answered 429"},
		{"failure", txn.Saga, txn.Forward, said(500, ""), txn.Unknown, "answered 500"},
		{"redirect", txn.Saga, txn.Forward, said(302, ""), txn.Unknown, "answered 302"},
		{"gone", txn.Saga, txn.Undo, said(410, ""), txn.OK, ""},
		{"not found", txn.Saga, txn.Undo, said(404, ""), txn.Refused, "answered 404"},
		{"accepted undo", txn.Saga, txn.Undo, said(202, ""), txn.Pending, "answered 202"},
		{"accepted confirm", txn.TCC, txn.Commit, said(202, ""), txn.Pending, "answered 202"},
		{"accepted message", txn.Msg, txn.Commit, said(202, ""), txn.OK, ""},
		{"gone receiver", txn.Msg, txn.Commit, said(410, ""), txn.Refused, "answered 410"},
		{"accepted news", txn.LRA, txn.Tell, said(202, ""), txn.OK, ""},
		{"no answer", txn.Saga, txn.Forward, interceptor.DirectAnswer{Err: errors.New("reset")}, txn.Unknown, "reset"},
		{"a sidecar's refusal", txn.Saga, txn.Forward, said(409, "", "tx-error", "TXM0105"), txn.Unknown, "a sidecar answered 409 TXM0105"},
		{"a sidecar's patience", txn.Saga, txn.Forward, said(425, "", "tx-error", "TXM0112"), txn.Pending, "a sidecar answered 425 TXM0112"},
		{"decided commit", txn.Msg, txn.Ask, said(200, `{"decision":"commit"}`), txn.OK, ""},
		{"decided abort", txn.Msg, txn.Ask, said(200, `{"decision":"abort"}`), txn.Refused, "answered 200 and decided abort"},
		{"decided abort by conflict", txn.Msg, txn.Ask, said(409, `{"title":"no"}`), txn.Refused, "answered 409"},
		{"not decided", txn.Msg, txn.Ask, said(200, `{"decision":"pending"}`), txn.Pending, "answered 200 and decided pending"},
		{"empty is commit", txn.Msg, txn.Ask, said(200, ""), txn.OK, ""},
		{"a page is no decision", txn.Msg, txn.Ask, said(200, "<html>"), txn.Unknown, "answered 200 with a body without decision"},
		{"another word", txn.Msg, txn.Ask, said(200, `{"decision":"maybe"}`), txn.Unknown, `answered 200 and decided "maybe": want commit, abort or pending`},
		{"accepted question", txn.Msg, txn.Ask, said(202, ""), txn.Pending, "answered 202: not decided yet"},
		{"early question", txn.Msg, txn.Ask, said(425, "x"), txn.Pending, "answered 425: not decided yet"},
		{"nobody there is no abort", txn.Msg, txn.Ask, said(404, ""), txn.Unknown, "answered 404"},
		{"a decision of a failure", txn.Msg, txn.Ask, said(500, `{"decision":"abort"}`), txn.Unknown, "answered 500"},
		{"resumed", txn.Workflow, txn.Ask, said(200, ""), txn.Pending, "answered 200: not decided yet"},
		{"resumed and decided", txn.Workflow, txn.Ask, said(200, `{"decision":"commit"}`), txn.OK, ""},
		{"resume refused", txn.Workflow, txn.Ask, said(409, ""), txn.Unknown, "answered 409"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, result, cause := d.Judge(txn.Call{Mode: tt.mode, Op: tt.op, Target: aim(t, tt.op, `{"url":"http://a"}`)}, tt.answer)
			if out != tt.want || cause != tt.cause || result != nil {
				t.Errorf("judged %v %q %q, want %v %q and no result", out, cause, result, tt.want, tt.cause)
			}
		})
	}
}

func TestCodesOfGRPCBecomeOutcomes(t *testing.T) {
	d := newDoor(t)
	for c, want := range map[codes.Code][3]txn.Outcome{ // forward, undo, ask of msg
		codes.OK: {txn.OK, txn.OK, txn.OK}, codes.Aborted: {txn.Refused, txn.Refused, txn.Refused},
		codes.FailedPrecondition: {txn.Refused, txn.Refused, txn.Unknown}, codes.NotFound: {txn.Refused, txn.Refused, txn.Unknown},
		codes.AlreadyExists: {txn.Refused, txn.Refused, txn.Unknown}, codes.InvalidArgument: {txn.Refused, txn.Refused, txn.Unknown},
		codes.OutOfRange: {txn.Refused, txn.Refused, txn.Unknown}, codes.PermissionDenied: {txn.Refused, txn.Refused, txn.Unknown},
		codes.Unauthenticated: {txn.Refused, txn.Refused, txn.Unknown}, codes.Unknown: {txn.Unknown, txn.Unknown, txn.Unknown},
		codes.Unavailable: {txn.Unknown, txn.Unknown, txn.Unknown}, codes.DeadlineExceeded: {txn.Unknown, txn.Unknown, txn.Unknown},
		codes.Canceled: {txn.Unknown, txn.Unknown, txn.Unknown}, codes.Internal: {txn.Unknown, txn.Unknown, txn.Unknown},
		codes.DataLoss: {txn.Unknown, txn.Unknown, txn.Unknown}, codes.Unimplemented: {txn.Unknown, txn.Unknown, txn.Unknown},
		codes.ResourceExhausted: {txn.Unknown, txn.Unknown, txn.Unknown}, 99: {txn.Unknown, txn.Unknown, txn.Unknown},
	} {
		for i, op := range []txn.Op{txn.Forward, txn.Undo, txn.Ask} {
			call := txn.Call{Mode: txn.Msg, Op: op, Target: aim(t, op, `{"grpc":"a:1/p.S/M"}`)}
			out, _, _ := d.Judge(call, interceptor.DirectAnswer{Reply: &interceptor.Reply{}, Code: uint32(c)})
			if out != want[i] {
				t.Errorf("%v of %v = %v, want %v", c, op, out, want[i])
			}
		}
	}
}

// FuzzBegin: what is accepted can be begun, called and journaled; nothing panics.
func FuzzBegin(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"mode":"saga","branches":[{"action":{"url":"http://a/x?q=1","body":"t"},"compensate":{"url":"http://a"}}]}`,
		`{"mode":"saga-graph","key":"k","branches":[{"id":"a","forward":{"grpc":"a:1/p.S/M","body":"AA=="}},{"after":["a"],"undo":{"url":"http://a","headers":{"x":"y"}}}]}`,
		`{"mode":"msg","query":{"url":"http://a"},"timeout":"1s","decide":"commit","delay":"1s","branches":[{"action":{"url":"http://a"},"retry":{"delay":"1s"}}]}`,
		`{"mode":"workflow","resume":{"url":"http://a"},"tell":{"url":"http://a"},"retry":{"stuckAfter":"1s"}}`,
		`{"mode":"lra","timeout":"0s","branches":[{"complete":{"url":"http://a"},"tell":{"url":"http://[::1]:80/x"}}]}`,
	} {
		f.Add([]byte(seed))
	}
	keys, err := interceptor.NewKeys([]byte("0123456789abcdef"))
	if err != nil {
		f.Fatal(err)
	}
	d := Door{Keys: keys}
	f.Fuzz(func(t *testing.T, body []byte) {
		var q beginRequest
		if strict(body, &q) != nil {
			return
		}
		fingerprint(body)
		e, err := q.event(time.Minute)
		if err != nil {
			return
		}
		e.Spec.ID = "O.1"
		out, err := new(txn.Machine).Step(time.Unix(1, 0), e)
		if err != nil && !errors.Is(err, txn.ErrOrder) && !errors.Is(err, txn.ErrNoBranch) {
			t.Fatalf("accepted, but not begun: %v", err)
		}
		for _, c := range out.Calls {
			callable(t, d, c)
		}
		for _, b := range e.Spec.Branches {
			for op := range txn.NumOps {
				if b.Ops[op] != nil {
					callable(t, d, txn.Call{Tx: "O.1", Mode: e.Spec.Mode, Branch: "0", Op: op, Target: b.Ops[op], Attempt: 1})
				}
			}
		}
	})
}

func callable(t *testing.T, d Door, c txn.Call) {
	t.Helper()
	r, err := d.Request(c)
	if err != nil {
		t.Fatalf("accepted, but cannot be called: %v", err)
	}
	for _, values := range r.Header {
		if strings.ContainsAny(strings.Join(values, ""), "\r\n") {
			t.Fatalf("header %q breaks the line", values)
		}
	}
	if strings.ContainsAny(r.URL+r.Method, " \r\n") {
		t.Fatalf("%q %q breaks the line", r.Method, r.URL)
	}
	if r.Protocol == interceptor.HTTP {
		if _, err := http.NewRequest(r.Method, r.URL, nil); err != nil {
			t.Fatalf("accepted, but no request: %v", err)
		}
	}
	if _, err := json.Marshal(host(c.Target)); err != nil {
		t.Fatal(err)
	}
}
