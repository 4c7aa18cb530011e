package outbound

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/interceptor"
	"txmesh/policies"
	"txmesh/txn"
)

const policy = `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: p, namespace: bank}
spec:
  calls:
  - name: withdraw
    match: {service: accounts, method: POST, path: "/accounts/{id}/withdrawals"}
    undo:
      when: response.body.status != "failed"
      method: DELETE
      path: "/accounts/{path.id}/withdrawals/{response.body.id}"
    outcome:
    - {when: 'response.body.status == "declined"', is: Refused}
  - name: charge
    match: {host: api.pay.example, method: POST, path: /v1/charges}
    barrier: None
    undo:
      method: POST
      path: /v1/refunds
      body: {charge: "{response.body.id}", amount: "{request.body.amount}"}
      auth: {bearer: {secretRef: {name: pay-api, key: token}}}
    query: {method: GET, path: /v1/charges, params: {order: "{request.body.order}"}, answer: "response.body.data[0]", absentAfter: 2m}
  - name: reserve
    match: {service: stock, method: POST, path: /reservations}
    reserve:
      confirm: {method: PUT, path: "/reservations/{response.body.id}"}
      cancel:
        method: DELETE
        path: "/reservations/{response.body.id}"
        outcome:
        - {when: 'response.body.state == "busy"', is: Pending}
  - name: notify
    match: {service: mail, method: POST, path: /mails}
    hold: {}
`

var now = time.UnixMilli(1_800_000_000_000)

// world is everything around a Caller.
type world struct {
	t        *testing.T
	caller   *Caller
	keys     *interceptor.Keys
	set      *policies.Set
	docsErr  error
	places   map[string][]string
	home     func(interceptor.HomeCall) (interceptor.HomeReply, error)
	homeSaw  []interceptor.HomeCall
	service  *httptest.Server
	answer   http.HandlerFunc
	requests []*http.Request
	bodies   []string
}

func (w *world) Get(_ context.Context, hash string) (policies.Source, error) {
	if w.docsErr != nil {
		return policies.Source{}, w.docsErr
	}
	src, ok := w.set.Document(hash)
	if !ok {
		return src, ErrDocument
	}
	return src, nil
}

func (w *world) Settle(_ context.Context, c interceptor.HomeCall) (interceptor.HomeReply, error) {
	w.homeSaw = append(w.homeSaw, c)
	return w.home(c)
}

func (w *world) Endpoints(service string) []string    { return w.places[service] }
func (w *world) EndpointsOfHost(host string) []string { return w.places[host] }

func newWorld(t *testing.T, change ...func(*Options)) *world {
	w := &world{t: t, places: map[string][]string{}, answer: func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(200) }}
	var err error
	if w.set, err = policies.Compile(policies.Source{Name: "p.yaml", Data: []byte(policy)}); err != nil {
		t.Fatal(err)
	}
	if w.keys, err = interceptor.NewKeys([]byte("0123456789abcdef")); err != nil {
		t.Fatal(err)
	}
	w.service = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.requests, w.bodies = append(w.requests, r), append(w.bodies, string(body))
		w.answer(rw, r)
	}))
	at := w.service.Listener.Addr().String()
	for _, s := range []string{"bank/accounts", "bank/stock", "bank/mail", "api.pay.example"} {
		w.places[s] = []string{at}
	}
	opt := Options{Documents: w, Homes: w, Places: w, Keys: w.keys, SecretsDir: t.TempDir(), BodyMax: 1000, Now: func() time.Time { return now }}
	if err := os.MkdirAll(filepath.Join(opt.SecretsDir, "pay-api"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(opt.SecretsDir, "pay-api", "token"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(&opt)
	}
	w.caller = New(opt)
	t.Cleanup(func() {
		w.caller.Close()
		w.service.Close()
	})
	return w
}

// calls are requests as the Gate saw them.
func calls() map[string]struct {
	target policies.Target
	body   string
	answer string
} {
	type c = struct {
		target policies.Target
		body   string
		answer string
	}
	return map[string]c{
		"withdraw": {policies.Target{Service: "bank/accounts", Method: "POST", Path: "/accounts/a%2Fb/withdrawals"}, `{}`, `{"id":9007199254740993,"status":"ok"}`},
		"charge":   {policies.Target{Host: "api.pay.example", Method: "POST", Path: "/v1/charges"}, `{"order":"o 1","amount":12.50}`, `{"id":"c1"}`},
		"reserve":  {policies.Target{Service: "bank/stock", Method: "POST", Path: "/reservations"}, `{}`, `{"id":"r1"}`},
		"notify":   {policies.Target{Service: "bank/mail", Method: "POST", Path: "/mails"}, `{"to":"x"}`, ``},
	}
}

// call is what the engine would ask for: the forward call was answered ok unless the test takes that away.
func (w *world) call(rule string, op txn.Op) txn.Call {
	w.t.Helper()
	spec := calls()[rule]
	r := w.set.Call(spec.target)
	if r == nil || r.Name != rule {
		w.t.Fatalf("no rule %s", rule)
	}
	header := func(name string) string {
		return map[string]string{"content-type": "application/json", "host": spec.target.Host}[name]
	}
	values, err := r.Record(&policies.Message{Method: "POST", Path: spec.target.Path, Header: header, Body: []byte(spec.body)})
	if err != nil {
		w.t.Fatal(err)
	}
	note := interceptor.BranchNote{Document: r.Document, Rule: rule, Service: spec.target.Service, Host: spec.target.Host,
		Values: values, Deadline: now.Add(time.Minute)}
	c := txn.Call{Tx: "OWNER.1", Branch: "2", Op: op, Note: note.Encode(), Outcome: txn.OK, Attempt: 1}
	if spec.answer != "" {
		if c.Answer, err = r.RecordAnswer(&policies.Message{Status: 201, Header: header, Body: []byte(spec.answer)}); err != nil {
			w.t.Fatal(err)
		}
	}
	return c
}

// said is an outcome in one line.
func (w *world) said(c txn.Call) string {
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	out, result, cause := w.caller.Call(ctx, c)
	s := out.String()
	if result != nil {
		s += " " + string(result)
	}
	if cause != "" {
		s += ": " + cause
	}
	return strings.ReplaceAll(s, w.service.Listener.Addr().String(), "SERVICE")
}

func TestUndoOnTheWire(t *testing.T) {
	w := newWorld(t)
	c := w.call("withdraw", txn.Undo)
	c.Attempt = 3
	if got := w.said(c); got != "ok" {
		t.Fatalf("undo = %s", got)
	}
	r := w.requests[0]
	if got := r.Method + " " + r.RequestURI; got != "DELETE /accounts/a%2Fb/withdrawals/9007199254740993" {
		t.Errorf("undo went to %s", got)
	}
	ctx, err := w.keys.Verify(r.Header.Get("tx-context"), now)
	if err != nil || ctx.ID != "OWNER.1" || ctx.Parent != "2" {
		t.Errorf("context = %+v, %v", ctx, err)
	}
	if trace := r.Header.Get("traceparent"); !regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-01$`).MatchString(trace) {
		t.Errorf("traceparent = %q", trace)
	}
	for _, name := range []string{"Tx-Context", "Traceparent"} {
		r.Header.Del(name)
	}
	want := http.Header{"Tx-Id": {"OWNER.1"}, "Tx-Branch": {"OWNER.1-2"}, "Tx-Op": {"undo"}, "Tx-Attempt": {"3"},
		"Idempotency-Key": {`"OWNER.1-2-undo"`}, "User-Agent": {"txmesh-sidecar"}, "Content-Length": {"0"}}
	if diff := cmp.Diff(want, r.Header); diff != "" {
		t.Errorf("header differs (-want +got):\n%s", diff)
	}
}

func TestUndoWithBodyAndSecret(t *testing.T) {
	w := newWorld(t)
	if got := w.said(w.call("charge", txn.Undo)); got != "ok" {
		t.Fatalf("refund = %s", got)
	}
	r := w.requests[0]
	if got := r.Method + " " + r.Host + r.RequestURI + " " + r.Header.Get("Authorization"); got != "POST api.pay.example/v1/refunds Bearer s3cret" {
		t.Errorf("refund = %s", got)
	}
	var body, want any
	if err := json.Unmarshal([]byte(w.bodies[0]), &body); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{"charge":"c1","amount":12.5}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, body); diff != "" || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("body %s %s (-want +got):\n%s", r.Header.Get("Content-Type"), w.bodies[0], diff)
	}
}

func TestConfirmCancelAndDelivery(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		rule string
		op   txn.Op
		want string
	}{
		{"reserve", txn.Commit, "PUT /reservations/r1 confirm"},
		{"reserve", txn.Undo, "DELETE /reservations/r1 undo"},
		{"notify", txn.Commit, "POST /mails deliver"},
	} {
		if got := w.said(w.call(tt.rule, tt.op)); got != "ok" {
			t.Errorf("%s of %s = %s", tt.op, tt.rule, got)
			continue
		}
		r := w.requests[len(w.requests)-1]
		if got := r.Method + " " + r.RequestURI + " " + r.Header.Get("tx-op"); got != tt.want {
			t.Errorf("%s of %s went to %s, want %s", tt.op, tt.rule, got, tt.want)
		}
	}
	if got := w.bodies[2]; got != `{"to":"x"}` {
		t.Errorf("delivered body = %s", got)
	}
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

func TestAnswersBecomeOutcomes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"done", status(204), "ok"},
		{"gone is done", status(410), "ok"},
		{"accepted is not done yet", status(202), "pending: answered 202"},
		{"not found", status(404), "refused: answered 404"},
		{"server error", status(500), "unknown: answered 500"},
		{"redirects are not followed", status(302, "Location", "/elsewhere"), "unknown: answered 302"},
		{"a sidecar is not the service", status(503, "tx-error", "TXM0107"), "unknown: a sidecar answered 503 TXM0107"},
		{"nor when it refuses", status(404, "tx-error", "TXM0310"), "unknown: a sidecar answered 404 TXM0310"},
		{"a sidecar asks for patience", status(425, "tx-error", "TXM0112"), "pending: a sidecar answered 425 TXM0112"},
		{"too long", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 1001)) },
			"unknown: DELETE /accounts/a%2Fb/withdrawals/9007199254740993 at SERVICE: answered 200: the answer has more than 1000 bytes"},
		{"broken off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			fmt.Fprint(w, "half")
		}, "unknown: DELETE /accounts/a%2Fb/withdrawals/9007199254740993 at SERVICE: unexpected EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.answer = tt.answer
			if got := w.said(w.call("withdraw", txn.Undo)); got != tt.want {
				t.Errorf("undo = %s, want %s", got, tt.want)
			}
			if len(w.requests) != 1 {
				t.Errorf("requests = %d, want 1", len(w.requests))
			}
		})
	}
}

func TestSilenceIsUnknown(t *testing.T) {
	w := newWorld(t)
	hang := make(chan struct{})
	w.answer = func(http.ResponseWriter, *http.Request) { <-hang }
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if out, _, cause := w.caller.Call(ctx, w.call("withdraw", txn.Undo)); out != txn.Unknown || !strings.HasSuffix(cause, "context deadline exceeded") {
		t.Errorf("undo = %v: %s, want unknown by time-out", out, cause)
	}
	close(hang)
	w.service.Close()
	if got := w.said(w.call("withdraw", txn.Undo)); !strings.HasPrefix(got, "unknown: DELETE") || !strings.HasSuffix(got, "connection refused") {
		t.Errorf("undo of a service that is gone = %s", got)
	}
	w.places["bank/accounts"] = nil
	if got, want := w.said(w.call("withdraw", txn.Undo)), `unknown: no endpoint of service "bank/accounts" is known: add it to upstreams, or its sidecar to peers`; got != want {
		t.Errorf("undo of a service that nobody knows = %s, want %s", got, want)
	}
}

func TestAttemptsTakeTurns(t *testing.T) {
	w := newWorld(t)
	w.places["bank/accounts"] = append([]string{"127.0.0.1:1"}, w.places["bank/accounts"]...)
	c := w.call("withdraw", txn.Undo)
	for attempt, want := range map[int]string{1: "unknown", 2: "ok", 3: "unknown", 4: "ok"} {
		c.Attempt = attempt
		if got := w.said(c); !strings.HasPrefix(got, want) {
			t.Errorf("attempt %d = %s, want %s", attempt, got, want)
		}
	}
}

func TestLinkLocalTargetsAreRefused(t *testing.T) {
	for _, target := range []string{"169.254.169.254:80", "[fe80::1]:80"} {
		w := newWorld(t)
		w.places["bank/accounts"] = []string{target}
		got := w.said(w.call("withdraw", txn.Undo))
		if !strings.HasPrefix(got, "refused: ") || !strings.Contains(got, "is link-local, where clouds serve credentials; set allow-link-local if it is meant") {
			t.Errorf("undo at %s = %s", target, got)
		}
	}
	if err := notLinkLocal("127.0.0.1:80"); err != nil {
		t.Errorf("loopback: %v", err)
	}
	if err := notLinkLocal("[::ffff:169.254.169.254]:80"); !errors.Is(err, errForbidden) {
		t.Errorf("mapped link-local address: %v, want errForbidden", err)
	}
}

func TestWhatCannotBeCalledHalts(t *testing.T) {
	w := newWorld(t)
	w.places["api.pay.example"] = nil
	answerless := w.call("reserve", txn.Commit)
	answerless.Answer = nil
	noNote := w.call("withdraw", txn.Undo)
	noNote.Note = []byte("{")
	lost := w.call("withdraw", txn.Undo)
	lost.Note = interceptor.BranchNote{Document: "gone", Rule: "r"}.Encode()
	lostAsk := lost
	lostAsk.Op = txn.Ask
	initiator := w.call("withdraw", txn.Ask)
	initiator.Branch = ""
	for _, tt := range []struct {
		name string
		call txn.Call
		want string
	}{
		{"answer not known", answerless, "refused: render confirm of reserve: the answer of the forward call is not known"},
		{"no note", noNote, "refused: note of a branch: unexpected end of JSON input"},
		{"no document", lost, "refused: policy document gone of rule r: policy document is not kept"},
		{"no document for a query", lostAsk, "none: policy document gone of rule r: policy document is not kept"},
		{"question to an initiator", initiator, `none: ask of "" is not made by this sidecar`},
	} {
		if got := w.said(tt.call); got != tt.want {
			t.Errorf("%s = %s, want %s", tt.name, got, tt.want)
		}
	}
	if len(w.requests) != 0 {
		t.Errorf("requests = %d, want none", len(w.requests))
	}
	w = newWorld(t)
	w.docsErr = errors.New("disk on fire")
	if got, want := w.said(w.call("withdraw", txn.Undo)), "unknown: policy document "; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "disk on fire") {
		t.Errorf("undo without a store = %s, want %s ...", got, want)
	}
}

func TestNothingToUndo(t *testing.T) {
	w := newWorld(t)
	c := w.call("withdraw", txn.Undo)
	r := w.set.Call(calls()["withdraw"].target)
	var err error
	c.Answer, err = r.RecordAnswer(&policies.Message{Status: 201, Header: func(string) string { return "" }, Body: []byte(`{"id":1,"status":"failed"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.said(c); got != "ok: nothing to undo: undo.when is false" || len(w.requests) != 0 {
		t.Errorf("undo = %s after %d requests", got, len(w.requests))
	}
}

func TestMissingSecretHalts(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.SecretsDir = "" })
	if got, want := w.said(w.call("charge", txn.Undo)), "refused: secret pay-api/token: secrets-dir is not configured"; got != want {
		t.Errorf("refund = %s, want %s", got, want)
	}
	w = newWorld(t, func(o *Options) { o.SecretsDir = "/nonexistent" })
	if got, want := w.said(w.call("charge", txn.Undo)), "refused: secret pay-api/token: open /nonexistent/pay-api/token: no such file or directory"; got != want {
		t.Errorf("refund = %s, want %s", got, want)
	}
}

func TestQueryFindsOut(t *testing.T) {
	found := `{"data":[{"id":"c7"}]}`
	for _, tt := range []struct {
		name  string
		code  int
		body  string
		since time.Duration // before now; 0: first try
		want  string
	}{
		{"found", 200, found, 0, `ok {"response":{"body":{"id":"c7"}}}`},
		{"absent at once", 200, `{"data":[]}`, 0, "pending: response.body.data[0] selects nothing; believed after absentAfter 2m0s"},
		{"absent too early", 404, "", time.Minute, "pending: answered 404; believed after absentAfter 2m0s"},
		{"absent for long", 200, `{"data":[]}`, 2 * time.Minute, "refused: response.body.data[0] selects nothing"},
		{"turned away", 403, "", 2 * time.Minute, "unknown: answered 403"},
		{"server error", 500, "", 2 * time.Minute, "unknown: answered 500"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.answer = func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", "application/json")
				rw.WriteHeader(tt.code)
				fmt.Fprint(rw, tt.body)
			}
			c := w.call("charge", txn.Ask)
			c.Answer, c.Outcome = nil, txn.None
			if tt.since > 0 {
				c.Since = now.Add(-tt.since)
			}
			if got := w.said(c); got != tt.want {
				t.Errorf("query = %s, want %s", got, tt.want)
			}
			r := w.requests[0]
			if got := r.Method + " " + r.RequestURI + " " + r.Header.Get("tx-op") + " " + r.Header.Get("Idempotency-Key"); got != `GET /v1/charges?order=o%201 query "OWNER.1-2-query"` {
				t.Errorf("query went as %s", got)
			}
		})
	}
}

func reply(code int, body string) *interceptor.Reply {
	return &interceptor.Reply{Status: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(body)}
}

func TestHomeIsAskedAndJudgedByTheRule(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reply interceptor.HomeReply
		err   error
		want  string
	}{
		{"recorded", interceptor.HomeReply{Outcome: txn.OK, Reply: reply(201, `{"id":5,"status":"ok"}`)}, nil, `ok {"response":{"body":{"id":5}},"undo":true}`},
		{"recorded, refused by the rule", interceptor.HomeReply{Outcome: txn.OK, Reply: reply(201, `{"status":"declined"}`)}, nil, `refused: answered 201 and response.body.status == "declined"`},
		{"never came", interceptor.HomeReply{Outcome: txn.Refused, Cause: "never arrived"}, nil, "refused: never arrived"},
		{"running", interceptor.HomeReply{Outcome: txn.Pending, Cause: "still running"}, nil, "pending: still running"},
		{"nobody knows", interceptor.HomeReply{Outcome: txn.None, Cause: "crashed"}, nil, "none: crashed"},
		{"answer without what the undo reads", interceptor.HomeReply{Outcome: txn.OK, Reply: reply(201, `[`)}, nil, ""},
		{"not reached", interceptor.HomeReply{}, errors.New("peer down"), "unknown: peer down"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.home = func(interceptor.HomeCall) (interceptor.HomeReply, error) { return tt.reply, tt.err }
			c := w.call("withdraw", txn.Ask)
			c.Home, c.Answer, c.Outcome = "HOME", nil, txn.None
			got := w.said(c)
			if tt.want != "" && got != tt.want {
				t.Errorf("ask = %s, want %s", got, tt.want)
			}
			if tt.want == "" && strings.HasPrefix(got, "ok") {
				t.Errorf("ask = %s, want no ok", got)
			}
			want := []interceptor.HomeCall{{Home: "HOME", Branch: "OWNER.1-2", Op: txn.Ask, Attempt: 1, Deadline: now.Add(time.Minute).UTC()}}
			for i := range w.homeSaw {
				w.homeSaw[i].Deadline = w.homeSaw[i].Deadline.UTC()
			}
			if diff := cmp.Diff(want, w.homeSaw); diff != "" {
				t.Errorf("home saw (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUndoGoesThroughTheHome(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reply interceptor.HomeReply
		want  string
	}{
		{"empty", interceptor.HomeReply{Outcome: txn.OK, Cause: "nothing to undo"}, "ok: nothing to undo"},
		{"done", interceptor.HomeReply{Outcome: txn.OK, Reply: reply(200, "{}")}, "ok"},
		{"refused", interceptor.HomeReply{Outcome: txn.Refused, Reply: reply(409, "{}")}, "refused: answered 409"},
		{"early", interceptor.HomeReply{Outcome: txn.Pending, Cause: "running"}, "pending: running"},
	} {
		w := newWorld(t)
		w.home = func(interceptor.HomeCall) (interceptor.HomeReply, error) { return tt.reply, nil }
		c := w.call("withdraw", txn.Undo)
		c.Home = "HOME"
		if got := w.said(c); got != tt.want {
			t.Errorf("%s: undo = %s, want %s", tt.name, got, tt.want)
		}
		saw := w.homeSaw[0]
		if got := saw.Request.Method + " " + saw.Request.Path; got != "DELETE /accounts/a%2Fb/withdrawals/9007199254740993" || saw.Op != txn.Undo || saw.Known != txn.OK {
			t.Errorf("%s: home saw %s %v known %v", tt.name, got, saw.Op, saw.Known)
		}
	}
}

// The home may note an undo as done by its status only where no rule of the owner reads the answer.
func TestHomeIsToldWhoJudgesTheAnswer(t *testing.T) {
	for _, tt := range []struct {
		rule string
		op   txn.Op
		want bool
		said string
	}{{"withdraw", txn.Undo, false, "ok"}, {"reserve", txn.Undo, true, `pending: answered 200 and response.body.state == "busy"`},
		{"reserve", txn.Commit, false, "ok"}} {
		w := newWorld(t)
		w.home = func(interceptor.HomeCall) (interceptor.HomeReply, error) {
			return interceptor.HomeReply{Outcome: txn.OK, Reply: reply(200, `{"state":"busy"}`)}, nil
		}
		c := w.call(tt.rule, tt.op)
		c.Home = "HOME"
		if got := w.said(c); got != tt.said || w.homeSaw[0].Judged != tt.want {
			t.Errorf("%s of %s = %s, judged by the owner: %v; want %s, %v", tt.op, tt.rule, got, w.homeSaw[0].Judged, tt.said, tt.want)
		}
	}
}

// An undo that reads an answer which the owner does not know is rendered from what the home recorded.
func TestUndoAsksItsHomeForTheAnswer(t *testing.T) {
	for _, tt := range []struct {
		name string
		ask  interceptor.HomeReply
		want string
	}{
		{"recorded", interceptor.HomeReply{Outcome: txn.OK, Reply: reply(201, `{"id":5}`)}, "ok"},
		{"never came", interceptor.HomeReply{Outcome: txn.Refused, Cause: "never arrived"}, "ok: nothing to undo: never arrived"},
		{"nobody knows", interceptor.HomeReply{Outcome: txn.None, Cause: "crashed"}, "refused: the answer of the forward call cannot be found out: crashed"},
		{"still running", interceptor.HomeReply{Outcome: txn.Pending, Cause: "running"}, "pending: running"},
	} {
		w := newWorld(t)
		w.home = func(c interceptor.HomeCall) (interceptor.HomeReply, error) {
			if c.Op == txn.Ask {
				return tt.ask, nil
			}
			if c.Request.Path != "/accounts/a%2Fb/withdrawals/5" || c.Known != txn.OK {
				return interceptor.HomeReply{}, fmt.Errorf("undo with %s, known %v", c.Request.Path, c.Known)
			}
			return interceptor.HomeReply{Outcome: txn.OK}, nil
		}
		c := w.call("withdraw", txn.Undo)
		c.Home, c.Answer, c.Outcome = "HOME", nil, txn.None
		if got := w.said(c); got != tt.want {
			t.Errorf("%s: undo = %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestAppGetsRequestsAsTheyAre(t *testing.T) {
	w := newWorld(t)
	app := NewApp(w.service.Listener.Addr().String(), 1000, nil)
	defer app.Close()
	w.answer = func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("X-Answer", "1")
		rw.WriteHeader(201)
		fmt.Fprint(rw, "done")
	}
	got, err := app.Send(t.Context(), &interceptor.Outgoing{Method: "POST", Host: "accounts", Path: "/a%2Fb/./c", Query: "q=%20",
		Header: http.Header{"Idempotency-Key": {"k"}}, Body: []byte("body")})
	if err != nil || got.Status != 201 || string(got.Body) != "done" || got.Header.Get("X-Answer") != "1" {
		t.Fatalf("Send = %+v, %v", got, err)
	}
	r := w.requests[0]
	if line := r.Method + " " + r.Host + " " + r.RequestURI + " " + w.bodies[0] + " " + r.Header.Get("Idempotency-Key"); line != "POST accounts /a%2Fb/./c?q=%20 body k" {
		t.Errorf("application saw %s", line)
	}
}
