package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"txmesh/interceptor"
	"txmesh/sidecar/engine"
	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txn"
)

const token = "a token of the tests"

// refusing answers every undo with a refusal, so that it halts.
type refusing struct{}

func (refusing) Call(context.Context, txn.Call) (txn.Outcome, []byte, string) {
	return txn.Refused, nil, "answered 404"
}

// fixture is the API over a real engine and the reference store.
type fixture struct {
	t      *testing.T
	engine *engine.Engine
	keys   *interceptor.Keys
	url    string
	ready  []string
	ids    int
	seen   map[string]bool // "METHOD pattern status" of every answer
	mux    *http.ServeMux
}

func newFixture(t *testing.T) *fixture { return newFixtureCalling(t, refusing{}) }

func newFixtureCalling(t *testing.T, caller engine.Caller) *fixture {
	f := &fixture{t: t, seen: map[string]bool{}}
	store := memory.New(memory.Options{})
	var err error
	if f.keys, err = interceptor.NewKeys([]byte("0123456789abcdef")); err != nil {
		t.Fatal(err)
	}
	if f.engine, err = engine.New(engine.Config{Store: store, Caller: caller, Limits: engine.Limits{Open: 5, Branches: 4}}); err != nil {
		t.Fatal(err)
	}
	if err := f.engine.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := New(Options{Engine: f.engine, Journal: store, Keys: f.keys, Token: token, Ready: func() []string { return f.ready },
		NewID:      func() txn.ID { f.ids++; return txn.ID(fmt.Sprintf("OWNER.%d", f.ids)) },
		Metrics:    http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "some 1") }),
		TakeOver:   takeOverOf,
		CommitWait: 10 * time.Millisecond, TimeoutDefault: time.Minute, Log: slog.New(slog.DiscardHandler)})
	f.mux = s.mux
	server := httptest.NewServer(s)
	f.url = server.URL
	t.Cleanup(func() {
		server.Close()
		if err := f.engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// do makes one request with the token and returns the answer.
func (f *fixture) do(method, path, body string) (*http.Response, string) {
	f.t.Helper()
	return f.as("Bearer "+token, method, path, body)
}

func (f *fixture) as(authorization, method, path, body string) (*http.Response, string) {
	f.t.Helper()
	req, err := http.NewRequest(method, f.url+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	_, pattern := f.mux.Handler(req)
	f.seen[fmt.Sprintf("%s %d", pattern, res.StatusCode)] = true
	return res, strings.TrimSuffix(string(text), "\n")
}

func (f *fixture) want(method, path, body string, status int, text string) {
	f.t.Helper()
	res, got := f.do(method, path, body)
	if res.StatusCode != status {
		f.t.Errorf("%s %s = %d, want %d", method, path, res.StatusCode, status)
	}
	if diff := cmp.Diff(text, got); diff != "" {
		f.t.Errorf("%s %s differs (-want +got):\n%s", method, path, diff)
	}
}

// refused is the whole body of a problem.
func refused(code, detail, id string) string {
	for _, c := range Codes() {
		if c.Code != code {
			continue
		}
		tx := ""
		if id != "" {
			tx = `"tx":"` + id + `",`
		}
		if detail != "" {
			b, _ := json.Marshal(detail)
			detail = `"detail":` + string(b) + ","
		}
		remedy, _ := json.Marshal(c.Remedy)
		return fmt.Sprintf(`{"type":"https://txmesh.io/codes#%s","title":"%s","status":%d,%s"code":"%s",%s"remedy":%s,"retryable":%v}`,
			code, c.Title, c.Status, detail, code, tx, remedy, c.Status == 503)
	}
	panic(code)
}

// explicit opens a transaction by the API.
func (f *fixture) explicit() string {
	f.t.Helper()
	res, text := f.do("POST", "/v1/transactions", `{"name":"import","timeout":"10s"}`)
	if res.StatusCode != 201 {
		f.t.Fatalf("begin = %d %s", res.StatusCode, text)
	}
	return strings.TrimPrefix(res.Header.Get("Location"), "/v1/transactions/")
}

// branch enlists one that is answered by out.
func (f *fixture) branch(id string, out txn.Outcome) {
	f.t.Helper()
	b := txn.Branch{Key: "b", Name: "withdraw", Unanswered: txn.ResolveStop}
	b.Ops[txn.Undo] = []byte{'+'}
	ctx := f.t.Context()
	if _, err := f.engine.Do(ctx, txn.ID(id), txn.Enlist{Branch: b, Calling: true}); err != nil {
		f.t.Fatal(err)
	}
	if out == txn.None {
		return
	}
	if _, err := f.engine.Do(ctx, txn.ID(id), txn.Returned{Branch: "0", Outcome: out}); err != nil {
		f.t.Fatal(err)
	}
}

// stuck makes a transaction whose undo was refused.
func (f *fixture) stuck() string {
	f.t.Helper()
	id := f.explicit()
	f.branch(id, txn.OK)
	if res, text := f.do("POST", "/v1/transactions/"+id+"/abort", ""); res.StatusCode != 200 {
		f.t.Fatalf("abort = %d %s", res.StatusCode, text)
	}
	f.wait(id, txn.Stuck)
	return id
}

func (f *fixture) wait(id string, p txn.Phase) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	if _, err := f.engine.Wait(ctx, txn.ID(id), func(s txn.State) bool { return s.Phase == p }); err != nil {
		f.t.Fatalf("transaction %s does not come to %s: %v", id, p, err)
	}
}

func TestBeginGivesASignedContext(t *testing.T) {
	f := newFixture(t)
	before := time.Now()
	res, text := f.do("POST", "/v1/transactions", `{"name":"import","timeout":"10s"}`)
	var got begun
	if err := strict([]byte(text), &got); err != nil {
		t.Fatalf("begin = %s: %v", text, err)
	}
	c, err := f.keys.Verify(got.Context, time.Now())
	if err != nil || c.ID != "OWNER.1" || got.ID != "OWNER.1" || got.Status != "open" {
		t.Errorf("begin = %s, context %+v %v", text, c, err)
	}
	if got.Expires.Before(before.Add(10*time.Second)) || got.Expires.After(time.Now().Add(10*time.Second)) {
		t.Errorf("expires = %v, want 10 s after %v", got.Expires, before)
	}
	if res.StatusCode != 201 || res.Header.Get("Location") != "/v1/transactions/OWNER.1" || res.Header.Get("tx-id") != "OWNER.1" {
		t.Errorf("begin = %d %v", res.StatusCode, res.Header)
	}
}

func TestDecisions(t *testing.T) {
	f := newFixture(t)
	id := f.explicit()
	f.branch(id, txn.OK)
	f.want("POST", "/v1/transactions/"+id+"/commit", "", 200, `{"id":"OWNER.1","status":"committed"}`)
	f.want("POST", "/v1/transactions/"+id+"/commit", "", 200, `{"id":"OWNER.1","status":"committed"}`)
	f.want("POST", "/v1/transactions/"+id+"/abort", "", 409,
		refused("TXM0304", "transaction OWNER.1: "+txn.ErrDecided.Error(), id))
	id = f.explicit()
	f.want("POST", "/v1/transactions/"+id+"/abort", "", 200, `{"id":"OWNER.2","status":"aborted","reason":"aborted over the API"}`)
	f.want("POST", "/v1/transactions/"+id+"/commit", "", 409,
		refused("TXM0304", "transaction OWNER.2: "+txn.ErrDecided.Error(), id))
	f.want("POST", "/v1/transactions/NONE.1/commit", "", 404, refused("TXM0303", "transaction NONE.1: txn: no such transaction", "NONE.1"))
	f.want("POST", "/v1/transactions/NONE.1/abort", "", 404, refused("TXM0303", "transaction NONE.1: txn: no such transaction", "NONE.1"))
}

func TestCommitWaitsForAnswers(t *testing.T) {
	f := newFixture(t)
	id := f.explicit()
	f.branch(id, txn.None)
	f.want("POST", "/v1/transactions/"+id+"/commit", "", 202,
		`{"id":"OWNER.1","status":"open","waiting":[{"branch":"0","name":"withdraw"}]}`)
	if _, err := f.engine.Do(t.Context(), txn.ID(id), txn.Returned{Branch: "0", Outcome: txn.OK}); err != nil {
		t.Fatal(err)
	}
	f.wait(id, txn.Committed)
	f.want("POST", "/v1/transactions/"+id+"/commit", "", 200, `{"id":"OWNER.1","status":"committed"}`)
}

func TestRootsAreNotCommittedByTheAPI(t *testing.T) {
	f := newFixture(t)
	spec := txn.Spec{ID: "OWNER.9", Mode: txn.Intercepted, Plan: txn.Intercepted.Plan(), Timeout: time.Minute}
	if _, err := f.engine.Do(t.Context(), spec.ID, txn.Begin{Spec: spec}); err != nil {
		t.Fatal(err)
	}
	f.want("POST", "/v1/transactions/OWNER.9/commit", "", 409, refused("TXM0305", "mode intercepted", "OWNER.9"))
	f.want("POST", "/v1/transactions/OWNER.9/abort", "", 200, `{"id":"OWNER.9","status":"aborted","reason":"aborted over the API"}`)
}

func TestBadRequests(t *testing.T) {
	f := newFixture(t)
	id := f.explicit()
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"not JSON", "POST", "/v1/transactions", `{`, 400, refused("TXM0301", "unexpected EOF", "")},
		{"unknown field", "POST", "/v1/transactions", `{"nam":"x"}`, 400, refused("TXM0301", `json: unknown field "nam"`, "")},
		{"two values", "POST", "/v1/transactions", `{} {}`, 400, refused("TXM0301", "more than one JSON value", "")},
		{"bad timeout", "POST", "/v1/transactions", `{"timeout":"-1s"}`, 400, refused("TXM0302", `timeout "-1s": want a duration such as 30s, from 1ms to 24h0m0s`, "")},
		{"bad name", "POST", "/v1/transactions", `{"name":"a b"}`, 400, refused("TXM0302", `name "a b": want at most 128 letters, digits and any of . _ / -`, "")},
		{"too large", "POST", "/v1/transactions", strings.Repeat(" ", bodyMax+1), 413, refused("TXM0312", "", "")},
		{"bad phase", "GET", "/v1/transactions?phase=done", "", 400, refused("TXM0302", `phase "done": want open, committing, aborting, stuck, committed, aborted or stopped`, "")},
		{"bad limit", "GET", "/v1/transactions?limit=0", "", 400, refused("TXM0302", `limit "0": want a number from 1 to 1000`, "")},
		{"bad parameter", "GET", "/v1/transactions?state=open", "", 400, refused("TXM0302", `parameter "state": want phase, name, limit or cursor`, "")},
		{"no such transaction", "GET", "/v1/transactions/NONE.1", "", 404, refused("TXM0303", "", "NONE.1")},
		{"no such route", "GET", "/v2/transactions", "", 404, refused("TXM0310", "GET /v2/transactions", "")},
		{"wrong method", "DELETE", "/v1/transactions/" + id, "", 405, refused("TXM0311", "DELETE /v1/transactions/"+id, "")},
		{"no such act", "POST", "/v1/transactions/" + id + "/branches/0/undo/forget", "", 404, refused("TXM0307", "forget of undo of branch 0", id)},
		{"no such op", "POST", "/v1/transactions/" + id + "/branches/0/forward/retry", "", 404, refused("TXM0307", "retry of forward of branch 0", id)},
		{"no reason", "POST", "/v1/transactions/" + id + "/branches/0/undo/retry", "{}", 400, refused("TXM0302", "why is missing: it is journaled with the act", id)},
		{"no body", "POST", "/v1/transactions/" + id + "/branches/0/undo/retry", "[]", 400, refused("TXM0301", "json: cannot unmarshal array into Go value of type admin.forceRequest", "")},
		{"not waiting", "POST", "/v1/transactions/" + id + "/branches/0/undo/retry", `{"why":"x"}`, 409, refused("TXM0306", "transaction "+id+": txn: that op is not waiting for an operator", id)},
		{"act on nothing", "POST", "/v1/transactions/NONE.1/branches/0/undo/retry", `{"why":"x"}`, 404, refused("TXM0303", "transaction NONE.1: txn: no such transaction", "NONE.1")},
	} {
		t.Run(tt.name, func(t *testing.T) { f.want(tt.method, tt.path, tt.body, tt.status, tt.want) })
	}
	res, _ := f.do("DELETE", "/v1/transactions/"+id, "")
	if got := res.Header.Get("Allow"); got != "GET, HEAD" {
		t.Errorf("Allow = %q, want GET, HEAD", got)
	}
}

func TestOnlyTheTokenOpens(t *testing.T) {
	f := newFixture(t)
	for _, authorization := range []string{"", "Bearer", "Bearer wrong", "Basic " + token, token} {
		res, text := f.as(authorization, "POST", "/v1/transactions", "")
		if want := refused("TXM0300", "", ""); res.StatusCode != 401 || text != want || res.Header.Get("WWW-Authenticate") != `Bearer realm="txmesh"` {
			t.Errorf("with %q = %d %s, want 401 %s", authorization, res.StatusCode, text, want)
		}
	}
	for path, want := range map[string]string{"/healthz": `{"status":"ok"}`, "/readyz": `{"status":"ready"}`, "/metrics": "some 1"} {
		if res, text := f.as("", "GET", path, ""); res.StatusCode != 200 || text != want {
			t.Errorf("GET %s without token = %d %s, want 200 %s", path, res.StatusCode, text, want)
		}
	}
	f.ready = []string{"draining", "disk full"}
	if res, text := f.as("", "GET", "/readyz", ""); res.StatusCode != 503 || text != refused("TXM0313", "draining; disk full", "") {
		t.Errorf("GET /readyz = %d %s, want 503", res.StatusCode, text)
	}
}

func TestOperatorActsAreJournaled(t *testing.T) {
	f := newFixture(t)
	id := f.stuck()
	res, _ := f.do("POST", "/v1/transactions/"+id+"/branches/0/undo/retry", `{"by":"ops","why":"service is mended"}`)
	if res.StatusCode != 200 {
		t.Fatalf("retry = %d", res.StatusCode)
	}
	f.wait(id, txn.Stuck) // it is refused again
	f.want("POST", "/v1/transactions/"+id+"/branches/0/undo/skip", `{"why":"undone by hand"}`, 200, `{"id":"OWNER.1","status":"aborted","reason":"aborted over the API"}`)
	_, text := f.do("GET", "/v1/transactions/"+id, "")
	var d detail
	if err := strict([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range d.History {
		lines = append(lines, strings.Join(slices.DeleteFunc([]string{e.Event, e.Branch, e.Op, e.Outcome, e.By, e.Cause},
			func(s string) bool { return s == "" }), " "))
	}
	want := []string{"began", "enlisted 0", "answered 0 forward ok", "decided aborted aborted over the API", "halted 0 undo answered 404",
		"forced 0 undo retry ops service is mended", "halted 0 undo answered 404", "forced 0 undo skip api undone by hand", "finished aborted"}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("history differs (-want +got):\n%s", diff)
	}
	if d.Phase != "aborted" || d.Name != "import" || len(d.Branches) != 1 || d.Branches[0].Fate != "undone" || d.Finished.IsZero() {
		t.Errorf("transaction = %s", text)
	}
	undo := d.Branches[0].Ops[1]
	if diff := cmp.Diff(opView{Op: "undo", Outcome: "ok", Forced: true, Cause: "answered 404"}, undo); diff != "" {
		t.Errorf("undo differs (-want +got):\n%s", diff)
	}
}

func TestListingFiltersAndPages(t *testing.T) {
	f := newFixture(t)
	for range 3 {
		id := f.explicit()
		f.do("POST", "/v1/transactions/"+id+"/abort", "")
	}
	open := f.explicit()
	ids := func(query string) (out []string, next string) {
		res, text := f.do("GET", "/v1/transactions"+query, "")
		var l listing
		if err := strict([]byte(text), &l); err != nil || res.StatusCode != 200 {
			t.Fatalf("list %s = %d %s: %v", query, res.StatusCode, text, err)
		}
		for _, s := range l.Transactions {
			out = append(out, string(s.ID))
		}
		return out, l.Next
	}
	if got, _ := ids("?phase=open"); !slices.Equal(got, []string{open}) {
		t.Errorf("open = %v, want %s", got, open)
	}
	if got, _ := ids("?phase=open&phase=aborted&name=import"); len(got) != 4 {
		t.Errorf("open and aborted = %v, want 4", got)
	}
	if got, _ := ids("?name=other"); len(got) != 0 {
		t.Errorf("other = %v, want none", got)
	}
	first, next := ids("?limit=3")
	rest, end := ids("?limit=3&cursor=" + next)
	if len(first) != 3 || len(rest) != 1 || end != "" {
		t.Errorf("pages = %v and %v, then %q; want 3 and 1", first, rest, end)
	}
}

func TestTooManyAreRefused(t *testing.T) {
	f := newFixture(t)
	for range 5 {
		f.explicit()
	}
	f.want("POST", "/v1/transactions", "", 503, refused("TXM0308", "transaction OWNER.6: engine: too many open transactions: 5 are open, max-open", ""))
}

// broken is a journal that cannot be read.
type broken struct{ Journal }

func (broken) List(context.Context, txlog.Query) ([]txlog.Summary, txlog.Cursor, error) {
	return nil, "", txlog.ErrClosed
}

func (broken) History(context.Context, txn.ID) iter.Seq2[txlog.Entry, error] {
	return func(yield func(txlog.Entry, error) bool) { yield(txlog.Entry{}, txlog.ErrClosed) }
}

// everyStatus sends requests that, together, make every route give every answer that it has.
func everyStatus(t *testing.T) map[string]bool {
	f := newFixture(t)
	f.do("GET", "/healthz", "")
	f.do("GET", "/readyz", "")
	f.do("GET", "/metrics", "")
	f.ready = []string{"starting"}
	f.do("GET", "/readyz", "")
	for _, p := range []string{"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/symbol", "/debug/pprof/profile?seconds=1", "/debug/pprof/trace?seconds=0.01"} {
		f.do("GET", p, "")
		f.as("", "GET", p, "")
	}
	open, stuck := f.explicit(), f.stuck()
	waiting := f.explicit()
	f.branch(waiting, txn.None)
	f.do("POST", "/v1/transactions/"+waiting+"/commit", "")
	for _, r := range [][2]string{{"POST", "/v1/transactions"}, {"GET", "/v1/transactions"}, {"GET", "/v1/transactions/" + open},
		{"POST", "/v1/transactions/" + open + "/commit"}, {"POST", "/v1/transactions/" + open + "/abort"},
		{"POST", "/v1/transactions/" + stuck + "/branches/0/undo/retry"}} {
		f.as("", r[0], r[1], "")
	}
	f.do("GET", "/v1/transactions", "")
	f.do("GET", "/v1/transactions?limit=x", "")
	f.do("GET", "/v1/transactions/"+open, "")
	f.do("GET", "/v1/transactions/NONE", "")
	f.do("POST", "/v1/transactions", "{")
	f.do("POST", "/v1/transactions", strings.Repeat(" ", bodyMax+1))
	act := "/v1/transactions/" + stuck + "/branches/0/undo/retry"
	f.do("POST", act, "{")
	f.do("POST", act, strings.Repeat(" ", bodyMax+1))
	f.do("POST", act, `{"why":"x"}`)
	f.do("POST", "/v1/transactions/NONE/branches/0/undo/retry", `{"why":"x"}`)
	f.do("POST", "/v1/transactions/"+open+"/branches/0/undo/retry", `{"why":"x"}`)
	for _, act := range []string{"commit", "abort", "commit"} {
		f.do("POST", "/v1/transactions/"+open+"/"+act, "")
	}
	f.do("POST", "/v1/transactions/"+f.explicit()+"/abort", "")
	f.do("POST", "/v1/transactions/"+stuck+"/commit", "")
	f.do("POST", "/v1/transactions/NONE/commit", "")
	f.do("POST", "/v1/transactions/NONE/abort", "")
	everyStatusOfTakeovers(f)
	driven := everyStatusOfDriven(f)
	if err := f.engine.Close(); err != nil {
		t.Error(err)
	}
	for _, act := range driven {
		f.do("POST", act, `{"timeout":"1s"}`)
		f.do("POST", act, `{"why":"x"}`)
	}
	f.do("POST", "/v1/transactions", "")
	f.do("POST", "/v1/transactions/"+open+"/commit", "")
	f.do("POST", "/v1/transactions/"+waiting+"/abort", "")
	f.do("POST", act, `{"why":"x"}`)
	// ... and of a journal that cannot be read.
	blind := httptest.NewServer(New(Options{Journal: broken{}, Token: token, Metrics: http.NotFoundHandler()}))
	defer blind.Close()
	f.url = blind.URL
	f.do("GET", "/v1/transactions", "")
	f.do("GET", "/v1/transactions/"+open, "")
	f.do("POST", takeovers, "{}") // and without a door
	return f.seen
}

// everyStatusOfDriven does the same for what is asked of transactions with targets. It returns its acts, for an engine
// that is closed.
func everyStatusOfDriven(f *fixture) []string {
	lra := `{"mode":"lra","key":"k"}`
	res, _ := f.do("POST", "/v1/transactions", lra)
	path := res.Header.Get("Location")
	f.do("POST", "/v1/transactions", lra)
	f.do("POST", "/v1/transactions", `{"mode":"lra", "key":"k", "name":"x"}`)
	f.do("POST", "/v1/transactions", `{"mode":"saga","branches":[`+strings.Repeat(`{"action":{"url":"http://a"}},`, 4)+`{"action":{"url":"http://a"}}]}`)
	acts := []string{path + "/branches", path + "/branches/p/leave", path + "/extend", path + "/hasten", path + "/stop"}
	for _, act := range acts {
		f.as("", "POST", act, "")
		f.do("POST", strings.Replace(act, "OWNER", "NONE", 1), `{"why":"x"}`)
		f.do("POST", strings.Replace(act, "OWNER", "NONE", 1), `{"timeout":"1s"}`)
		f.do("POST", act, strings.Repeat(" ", bodyMax+1))
	}
	for _, body := range []string{`{"id":"p","complete":{"url":"http://a"}}`, `{"id":"p","complete":{"url":"http://b"}}`, `{"x":1}`} {
		f.do("POST", path+"/branches", body)
	}
	f.do("POST", path+"/branches/p/leave", "")
	f.do("POST", path+"/extend", `{"timeout":"x"}`)
	f.do("POST", path+"/extend", `{"timeout":"1s"}`)
	f.do("POST", path+"/commit?wait=x", "")
	f.do("POST", path+"/abort?wait=x", "")
	f.do("POST", path+"/stop", "")
	f.do("POST", path+"/stop", `{"why":"x"}`)
	f.do("POST", path+"/stop", `{"why":"x"}`)
	f.do("POST", path+"/extend", `{"timeout":"1s"}`)
	f.do("POST", path+"/branches", `{"id":"q","complete":{"url":"http://b"}}`)
	f.do("POST", path+"/branches/p/leave", "")
	res, _ = f.do("POST", "/v1/transactions", `{"mode":"lra","branches":[{"id":"p","complete":{"url":"http://a"}}]}`)
	f.do("POST", res.Header.Get("Location")+"/abort", "")
	f.do("POST", res.Header.Get("Location")+"/branches/p/leave", "")
	return acts
}

// openapi is what the test reads of the document.
type openapi struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		Security  []map[string][]string
		Responses map[string]any
	}
}

func TestOpenAPIMatchesTheHandlers(t *testing.T) {
	data, err := os.ReadFile("../../docs/reference/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc openapi
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("openapi = %q, want 3.1.0", doc.OpenAPI)
	}
	var described, routed, answered []string
	tokens := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			route := strings.ToUpper(method) + " " + path
			routed = append(routed, route)
			tokens[route] = len(op.Security) > 0
			for status := range op.Responses {
				described = append(described, route+" "+status)
			}
		}
	}
	s := New(Options{Metrics: http.NotFoundHandler()})
	var have []string
	for _, r := range s.routes() {
		have = append(have, r.pattern)
		if got, ok := tokens[r.pattern]; ok && got != r.token {
			t.Errorf("%s: the document says token %v, the handler %v", r.pattern, got, r.token)
		}
	}
	for line := range everyStatus(t) {
		if !strings.HasPrefix(line, " ") {
			answered = append(answered, line)
		}
	}
	for _, l := range []*[]string{&described, &routed, &answered, &have} {
		slices.Sort(*l)
	}
	if diff := cmp.Diff(routed, have); diff != "" {
		t.Errorf("routes differ (-document +handlers):\n%s", diff)
	}
	if diff := cmp.Diff(described, answered); diff != "" {
		t.Errorf("answers differ (-document +handlers):\n%s", diff)
	}
}

func TestUnreadableJournalSaysSo(t *testing.T) {
	s := New(Options{Journal: broken{}, Token: token, Metrics: http.NotFoundHandler()})
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/v1/transactions", nil)
	r.Header.Set("Authorization", "bearer "+token)
	s.ServeHTTP(w, r)
	if got, want := strings.TrimSpace(w.Body.String()), refused("TXM0309", "txlog: closed", ""); w.Code != 503 || got != want {
		t.Errorf("list = %d %s, want 503 %s", w.Code, got, want)
	}
}

func TestCodesAreInOrderAndInRange(t *testing.T) {
	last := ""
	for _, c := range Codes() {
		if !regexp.MustCompile(`^TXM03[0-4][0-9]$`).MatchString(c.Code) || c.Code <= last || c.Title == "" || c.Remedy == "" {
			t.Errorf("code %+v after %s", c, last)
		}
		last = c.Code
	}
}
