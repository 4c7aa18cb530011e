package admin

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/interceptor"
	"txmesh/txn"
)

// services answer the requests that the door makes, as their paths say: "/409" does, and the rest with 200.
type services struct {
	door Door
	gate chan struct{} // closed: paths with "wait" go on

	mu   sync.Mutex // guards seen
	seen []string   // "op method path body"
}

func (s *services) Call(ctx context.Context, c txn.Call) (txn.Outcome, []byte, string) {
	r, err := s.door.Request(c)
	if err != nil {
		return txn.Refused, nil, err.Error()
	}
	path := strings.TrimPrefix(r.URL, "http://a")
	if strings.Contains(path, "wait") {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return txn.Unknown, nil, ctx.Err().Error()
		}
	}
	s.mu.Lock()
	s.seen = append(s.seen, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Header.Get("Tx-Op"), r.Method, path, r.Body)))
	s.mu.Unlock()
	reply := &interceptor.Reply{Status: 200, Header: http.Header{}}
	var body string
	switch n, _ := fmt.Sscanf(path, "/%3d-%s", &reply.Status, &body); {
	case n == 0 || reply.Status < 200:
		reply.Status = 200
	case n == 2:
		reply.Body = []byte(`{"decision":"` + body + `"}`)
	}
	return s.door.Judge(c, interceptor.DirectAnswer{Reply: reply})
}

func (s *services) did() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

func newModes(t *testing.T) (*fixture, *services) {
	s := &services{door: newDoor(t), gate: make(chan struct{})}
	return newFixtureCalling(t, s), s
}

// begun opens a transaction and returns its id and status.
func (f *fixture) begun(query, body string) (id, status string) {
	f.t.Helper()
	res, text := f.do("POST", "/v1/transactions"+query, body)
	var got begun
	if err := strict([]byte(text), &got); err != nil || res.StatusCode != 201 {
		f.t.Fatalf("begin %s = %d %s: %v", body, res.StatusCode, text, err)
	}
	return string(got.ID), got.Status
}

func wantDid(t *testing.T, s *services, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, s.did()); diff != "" {
		t.Errorf("calls differ (-want +got):\n%s", diff)
	}
}

func TestSagasAreDriven(t *testing.T) {
	for _, tt := range []struct {
		name, body, status string
		did                []string
	}{
		{"committed", `{"mode":"saga","branches":[{"action":{"url":"http://a/x","body":{"n":1}},"compensate":{"url":"http://a/x","method":"DELETE"}},{"forward":{"url":"http://a/y"}}],"tell":{"url":"http://a/told"}}`,
			"committed", []string{`forward POST /x {"n":1}`, "forward POST /y", "tell POST /told"}},
		{"aborted", `{"mode":"saga","branches":[{"action":{"url":"http://a/x"},"compensate":{"url":"http://a/ux"}},{"action":{"url":"http://a/409"},"compensate":{"url":"http://a/u409"}}]}`,
			"aborted", []string{"forward POST /x", "forward POST /409", "undo POST /ux"}},
		{"stuck", `{"mode":"saga","branches":[{"action":{"url":"http://a/x"},"compensate":{"url":"http://a/404"}},{"action":{"url":"http://a/409"}}]}`,
			"stuck", []string{"forward POST /x", "forward POST /409", "undo POST /404"}},
		{"graph", `{"mode":"saga-graph","branches":[{"id":"c","after":["b"],"action":{"url":"http://a/c"}},{"id":"b","action":{"url":"http://a/b"}}]}`,
			"committed", []string{"forward POST /b", "forward POST /c"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, s := newModes(t)
			if _, status := f.begun("?wait=10s", tt.body); status != tt.status {
				t.Errorf("status = %s, want %s", status, tt.status)
			}
			wantDid(t, s, tt.did...)
		})
	}
}

func TestInitiatorsDecide(t *testing.T) {
	for _, tt := range []struct {
		name, body, act, status string
		branches                []string
		did                     []string
	}{
		{"tcc confirmed", `{"mode":"tcc"}`, "commit", "committed", []string{`{"id":"r","confirm":{"url":"http://a/c"},"cancel":{"url":"http://a/u"}}`},
			[]string{"confirm POST /c"}},
		{"tcc cancelled", `{"mode":"tcc"}`, "abort", "aborted", []string{`{"confirm":{"url":"http://a/c"},"cancel":{"url":"http://a/u"}}`},
			[]string{"undo POST /u"}},
		{"xa", `{"mode":"xa","branches":[{"commit":{"url":"http://a/c"},"rollback":{"url":"http://a/u"}}]}`, "commit", "committed", nil,
			[]string{"confirm POST /c"}},
		{"msg", `{"mode":"msg","query":{"url":"http://a/200-abort"},"branches":[{"action":{"url":"http://a/1"}},{"action":{"url":"http://a/2"}}]}`, "commit", "committed", nil,
			[]string{"deliver POST /1", "deliver POST /2"}},
		{"msg dropped", `{"mode":"msg","branches":[{"action":{"url":"http://a/1"}}]}`, "abort", "aborted", nil, nil},
		{"workflow", `{"mode":"workflow"}`, "abort", "aborted", []string{`{"id":"a","outcome":"ok","result":1,"rollback":{"url":"http://a/u"}}`,
			`{"id":"b","outcome":"refused","rollback":{"url":"http://a/never"}}`}, []string{"undo POST /u"}},
		{"lra", `{"mode":"lra"}`, "commit", "committed", []string{`{"complete":{"url":"http://a/409"},"compensate":{"url":"http://a/u"},"tell":{"url":"http://a/after"}}`},
			[]string{"confirm POST /409", "tell POST /after"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, s := newModes(t)
			id, _ := f.begun("", tt.body)
			for _, b := range tt.branches {
				if res, text := f.do("POST", "/v1/transactions/"+id+"/branches", b); res.StatusCode != 200 {
					t.Fatalf("enlist %s = %d %s", b, res.StatusCode, text)
				}
			}
			res, text := f.do("POST", "/v1/transactions/"+id+"/"+tt.act+"?wait=10s", "")
			if res.StatusCode != 200 || !strings.Contains(text, `"status":"`+tt.status+`"`) {
				t.Errorf("%s = %d %s, want %s", tt.act, res.StatusCode, text, tt.status)
			}
			wantDid(t, s, tt.did...)
		})
	}
}

func TestInitiatorsAreAsked(t *testing.T) {
	for word, end := range map[string]txn.Phase{"commit": txn.Committed, "abort": txn.Aborted} {
		f, s := newModes(t)
		id, _ := f.begun("", `{"mode":"msg","timeout":"5ms","ask":{"url":"http://a/200-`+word+`"},"branches":[{"commit":{"url":"http://a/1"}}]}`)
		f.wait(id, end)
		want := []string{"query GET /200-" + word}
		if end == txn.Committed {
			want = append(want, "deliver POST /1")
		}
		wantDid(t, s, want...)
	}
}

func TestDecidedAtOnce(t *testing.T) {
	f, s := newModes(t)
	start := time.Now()
	_, status := f.begun("?wait=10s", `{"mode":"msg","decide":"commit","delay":"60ms","branches":[{"action":{"url":"http://a/1"}}]}`)
	if took := time.Since(start); status != "committed" || took < 60*time.Millisecond {
		t.Errorf("it is %s after %v, want committed after 60ms", status, took)
	}
	wantDid(t, s, "deliver POST /1")
}

// TestKeysMakeBeginRepeatable: one transaction, whoever asks how often at the same time.
func TestKeysMakeBeginRepeatable(t *testing.T) {
	f, s := newModes(t)
	body := `{"mode":"saga","key":"order-7","branches":[{"action":{"url":"http://a/x"}}]}`
	var wg sync.WaitGroup
	statuses := make([]int, 8)
	for i := range statuses {
		wg.Go(func() {
			req, err := http.NewRequest("POST", f.url+"/v1/transactions?wait=5s", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+token)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
			statuses[i] = res.StatusCode
			if replayed := res.Header.Get("tx-replayed"); res.Header.Get("tx-id") != "OWNER.1" || (replayed == "true") != (res.StatusCode == 200) {
				t.Errorf("begin = %d %v", res.StatusCode, res.Header)
			}
		})
	}
	wg.Wait()
	slices.Sort(statuses)
	if diff := cmp.Diff([]int{200, 200, 200, 200, 200, 200, 200, 201}, statuses); diff != "" {
		t.Errorf("answers differ (-want +got):\n%s", diff)
	}
	f.want("POST", "/v1/transactions", strings.ReplaceAll(body, ",", ", "), 200, `{"id":"OWNER.1","status":"committed","expires":"`+f.expires("OWNER.1")+`"}`)
	f.want("POST", "/v1/transactions", strings.ReplaceAll(body, "/x", "/y"), 422,
		refused("TXM0315", "its key belongs to another body: "+txn.ErrConflict.Error(), "OWNER.1"))
	wantDid(t, s, "forward POST /x")
	// The key of a root request is not one of ours.
	spec := txn.Spec{ID: "OWNER.root", Mode: txn.Explicit, Plan: txn.Explicit.Plan(), Key: "bank/transfer/transfer//k", Timeout: time.Minute}
	if _, err := f.engine.Do(t.Context(), spec.ID, txn.Begin{Spec: spec}); err != nil {
		t.Fatal(err)
	}
	if id, _ := f.begun("", `{"key":"bank/transfer/transfer//k"}`); id != "OWNER.2" {
		t.Errorf("begin = %s, want a transaction of its own", id)
	}
}

func (f *fixture) expires(id string) string {
	f.t.Helper()
	st, err := f.engine.State(f.t.Context(), txn.ID(id))
	if err != nil {
		f.t.Fatal(err)
	}
	return st.Expires.UTC().Format(time.RFC3339Nano)
}

func TestBranchesAreEnlistedOnce(t *testing.T) {
	f, _ := newModes(t)
	id, _ := f.begun("", `{"mode":"tcc"}`)
	path := "/v1/transactions/" + id + "/branches"
	f.want("POST", path, `{"id":"r","confirm":{"url":"http://a/c"}}`, 200, `{"id":"OWNER.1","branch":"r","status":"open"}`)
	f.want("POST", path, `{"id":"r","commit":{"url":"http://a/c"}}`, 200, `{"id":"OWNER.1","branch":"r","status":"open"}`)
	f.want("POST", path, `{"id":"r","confirm":{"url":"http://a/other"}}`, 422,
		refused("TXM0315", "transaction OWNER.1: branch r: "+txn.ErrConflict.Error(), id))
	f.want("POST", path, `{"confirm":{"url":"http://a/c"}}`, 200, `{"id":"OWNER.1","branch":"1","status":"open"}`)
	f.want("POST", path, `{"confirm":{"url":"http://a/c"}}`, 200, `{"id":"OWNER.1","branch":"2","status":"open"}`)
	f.want("POST", path, `{"after":["x"],"confirm":{"url":"http://a/c"}}`, 400,
		refused("TXM0302", "transaction OWNER.1: branch 3 follows x: "+txn.ErrNoBranch.Error(), id))
	f.want("POST", path, `{"confirm":{"url":"http://a/c"}}`, 200, `{"id":"OWNER.1","branch":"3","status":"open"}`)
	f.want("POST", path, `{"confirm":{"url":"http://a/c"}}`, 409,
		refused("TXM0316", "transaction OWNER.1: engine: too many branches in one transaction: there are 4, max-branches", id))
}

func TestWorkflowsKeepResults(t *testing.T) {
	f, _ := newModes(t)
	id, _ := f.begun("", `{"mode":"workflow"}`)
	path := "/v1/transactions/" + id + "/branches"
	for _, body := range []string{`{"id":"hotel","rollback":{"url":"http://a/u"}}`, `{"id":"hotel","rollback":{"url":"http://a/u"},"outcome":"ok","result":{"room":7}}`,
		`{"id":"hotel","rollback":{"url":"http://a/u"},"outcome":"ok","result":{"room":7}}`} {
		f.want("POST", path, body, 200, `{"id":"OWNER.1","branch":"hotel","status":"open"}`)
	}
	f.want("POST", path, `{"id":"hotel","rollback":{"url":"http://a/u"},"outcome":"ok","result":{"room":8}}`, 422,
		refused("TXM0315", "transaction OWNER.1: branch hotel: "+txn.ErrConflict.Error(), id))
	_, text := f.do("GET", "/v1/transactions/"+id, "")
	var d detail
	if err := strict([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	want := branchView{Branch: "hotel", Service: "a", Fate: "open", Ops: []opView{{Op: "forward", Outcome: "ok"}, {Op: "undo", Outcome: "none"}},
		Result: []byte(`{"room":7}`)}
	if diff := cmp.Diff([]branchView{want}, d.Branches); diff != "" {
		t.Errorf("branches differ (-want +got):\n%s", diff)
	}
}

func TestLeaveExtendHastenStop(t *testing.T) {
	f, s := newModes(t)
	id, _ := f.begun("", `{"mode":"lra","timeout":"0s","branches":[{"id":"p","compensate":{"url":"http://a/p"}},{"id":"q","compensate":{"url":"http://a/500"},"retry":{"delay":"1h","maxDelay":"1h"}}]}`)
	path := "/v1/transactions/" + id
	f.want("POST", path+"/branches/p/leave", "", 200, `{"id":"OWNER.1","status":"open"}`)
	f.want("POST", path+"/branches/p/leave", "", 200, `{"id":"OWNER.1","status":"open"}`)
	f.want("POST", path+"/branches/z/leave", "", 404, refused("TXM0307", "transaction OWNER.1: branch z: "+txn.ErrNoBranch.Error(), id))
	before := time.Now()
	res, text := f.do("POST", path+"/extend", `{"timeout":"1h"}`)
	var got decided
	if err := strict([]byte(text), &got); err != nil || res.StatusCode != 200 || got.Expires.Before(before.Add(time.Hour)) {
		t.Errorf("extend = %d %s %v, want an hour", res.StatusCode, text, err)
	}
	f.want("POST", path+"/extend", `{}`, 400, refused("TXM0302", `timeout "": want a duration such as 30s, from 0s to 24h0m0s`, id))
	f.want("POST", path+"/extend", `{"timeout":"0s"}`, 200, `{"id":"OWNER.1","status":"open"}`)
	f.want("POST", path+"/abort?wait=1ms", "", 200, `{"id":"OWNER.1","status":"aborting","reason":"aborted over the API"}`)
	f.eventually("the compensation was tried", func() bool { return f.attempts(id, 1) == 1 })
	f.want("POST", path+"/hasten", "", 200, `{"id":"OWNER.1","status":"aborting","reason":"aborted over the API"}`)
	f.eventually("it was tried again", func() bool { return f.attempts(id, 1) >= 2 })
	f.want("POST", path+"/stop", "", 400, refused("TXM0302", "why is missing: it is journaled with the act", id))
	f.want("POST", path+"/stop", `{"by":"ops","why":"settled by phone"}`, 200, `{"id":"OWNER.1","status":"stopped","reason":"stopped by ops: settled by phone"}`)
	f.want("POST", path+"/stop", `{"by":"ops","why":"settled by phone"}`, 409, refused("TXM0304", "transaction OWNER.1: "+txn.ErrDecided.Error(), id))
	for _, call := range s.did() {
		if call != "undo POST /500" {
			t.Errorf("called %q: a branch that has left is asked nothing", call)
		}
	}
}

func (f *fixture) attempts(id string, branch int) int {
	st, err := f.engine.State(f.t.Context(), txn.ID(id))
	if err != nil {
		f.t.Fatal(err)
	}
	return st.Branches[branch].Known[txn.Undo].Attempt
}

func (f *fixture) eventually(what string, holds func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("not within 10s: %s", what)
		}
	}
}

// TestWaitEndsWithItsTime: a wait is no promise.
func TestWaitEndsWithItsTime(t *testing.T) {
	f, s := newModes(t)
	id, status := f.begun("?wait=20ms", `{"mode":"saga","branches":[{"action":{"url":"http://a/wait"}}]}`)
	if status != "open" {
		t.Errorf("status = %s, want open", status)
	}
	close(s.gate)
	f.wait(id, txn.Committed)
	f.want("POST", "/v1/transactions/"+id+"/abort?wait=1s", "", 409, refused("TXM0304", "transaction OWNER.1: "+txn.ErrDecided.Error(), id))
}

func TestModesRefuseWhatIsNotTheirs(t *testing.T) {
	f, _ := newModes(t)
	saga, _ := f.begun("", `{"mode":"saga","branches":[{"action":{"url":"http://a/wait"}}]}`)
	explicit := f.explicit()
	for _, tt := range []struct{ name, path, body, code, detail, id string }{
		{"mode", "", `{"mode":"2pc"}`, "TXM0302", `mode "2pc": want one of explicit, lra, msg, saga, saga-graph, tcc, workflow, xa`, ""},
		{"intercepted", "", `{"mode":"intercepted"}`, "TXM0302", `mode "intercepted": want one of explicit, lra, msg, saga, saga-graph, tcc, workflow, xa`, ""},
		{"explicit with branches", "", `{"branches":[]}`, "TXM0302", "mode explicit has name, timeout and key: policies say what its branches are; name another mode for branches of your own", ""},
		{"word of another mode", "", `{"mode":"tcc","branches":[{"action":{"url":"http://a"}}]}`, "TXM0302",
			"branch 0: action: a branch of this mode has id, name, after, commit (confirm), undo (cancel), tell, retry", ""},
		{"outcome too early", "", `{"mode":"workflow","branches":[{"outcome":"ok"}]}`, "TXM0302", "branch 0: outcome: is told of branches that are enlisted", ""},
		{"twice", "", `{"mode":"saga","branches":[{"action":{"url":"http://a"},"forward":{"url":"http://a"}}]}`, "TXM0302", "branch 0: forward: is forward in other words; write one of them", ""},
		{"no target", "", `{"mode":"saga","branches":[{"id":"x"}]}`, "TXM0302", "branch 0: nothing can be asked of it: give it a target", ""},
		{"bad target", "", `{"mode":"saga","branches":[{"action":{"url":"ftp://a"}}]}`, "TXM0302", `branch 0: action: url "ftp://a": want http://host:port/path, encoded, without user and fragment, at most 4096 bytes`, ""},
		{"id", "", `{"mode":"saga","branches":[{"id":"a-b","action":{"url":"http://a"}}]}`, "TXM0302", `branch 0: id: "a-b": want at most 64 letters, digits and _`, ""},
		{"order in a saga", "", `{"mode":"saga","branches":[{"after":["x"],"action":{"url":"http://a"}}]}`, "TXM0302",
			"branch 0: after: a branch of this mode has id, name, forward (action), undo (compensate), tell, retry", ""},
		{"unknown branch", "", `{"mode":"saga-graph","branches":[{"after":["x"],"action":{"url":"http://a"}}]}`, "TXM0302",
			"transaction OWNER.3: transaction OWNER.3: branch 0 follows x: " + txn.ErrNoBranch.Error(), ""},
		{"circle", "", `{"mode":"saga-graph","branches":[{"after":["0"],"action":{"url":"http://a"}}]}`, "TXM0302",
			"transaction OWNER.4: transaction OWNER.4: branches follow each other in a circle: " + txn.ErrOrder.Error(), ""},
		{"question to nobody", "", `{"mode":"tcc","ask":{"url":"http://a"}}`, "TXM0302", "ask: is not of mode tcc", ""},
		{"question in another word", "", `{"mode":"workflow","query":{"url":"http://a"}}`, "TXM0302", "query: is not of mode workflow", ""},
		{"two questions", "", `{"mode":"msg","query":{"url":"http://a"},"ask":{"url":"http://a"}}`, "TXM0302", "query: is ask in other words; write one of them", ""},
		{"decision of a saga", "", `{"mode":"saga","decide":"commit"}`, "TXM0302", "decide: in this mode the answers of the branches decide", ""},
		{"abort at once", "", `{"mode":"msg","decide":"abort"}`, "TXM0302", `decide "abort": want commit, or nothing and no delay`, ""},
		{"delay of nothing", "", `{"mode":"msg","delay":"1s"}`, "TXM0302", `decide "": want commit, or nothing and no delay`, ""},
		{"delay", "", `{"mode":"msg","decide":"commit","delay":"x"}`, "TXM0302", `delay "x": want a duration such as 30s, from 0s to 24h0m0s`, ""},
		{"retry", "", `{"mode":"msg","retry":{"delay":"0s"}}`, "TXM0302", `retry.delay "0s": want a duration such as 30s, from 1ms to 1h0m0s`, ""},
		{"tell", "", `{"mode":"msg","tell":{}}`, "TXM0302", "tell: want url or grpc", ""},
		{"no limit", "", `{"mode":"tcc","timeout":"0s"}`, "TXM0302", `timeout "0s": want a duration such as 30s, from 1ms to 24h0m0s`, ""},
		{"key", "", `{"key":"a b"}`, "TXM0302", `key "a b": want at most 255 printable characters without spaces`, ""},
		{"wait", "?wait=2m", `{}`, "TXM0302", `wait "2m": want a duration such as 30s, from 0s to 1m0s`, ""},
		{"parameter", "?await=2s", `{}`, "TXM0302", `parameter "await": want wait`, ""},
		{"branches of a saga", "/" + saga + "/branches", `{}`, "TXM0314", "branches are named when it begins", saga},
		{"leaving a saga", "/" + saga + "/branches/0/leave", ``, "TXM0314", "branches stay as it began", saga},
		{"branches of policies", "/" + explicit + "/branches", `{}`, "TXM0314", "mode explicit is not driven over this API", explicit},
		{"commit of a saga", "/" + saga + "/commit", ``, "TXM0305", "mode saga", saga},
		{"nobody", "/NONE.1/extend", `{}`, "TXM0303", "transaction NONE.1: " + txn.ErrUnknown.Error(), "NONE.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := slices.IndexFunc(Codes(), func(c Code) bool { return c.Code == tt.code })
			f.want("POST", "/v1/transactions"+tt.path, tt.body, Codes()[i].Status, refused(tt.code, tt.detail, tt.id))
		})
	}
	many := `{"mode":"saga","branches":[` + strings.TrimSuffix(strings.Repeat(`{"action":{"url":"http://a"}},`, 5), ",") + `]}`
	f.want("POST", "/v1/transactions", many, 409, refused("TXM0316", "transaction OWNER.5: engine: too many branches in one transaction: 5 of at most 4, max-branches", ""))
}

// TestPlansKeepTheMeaningOfOutcomes: the door changes how the modes take refusals, and nothing else of them.
func TestPlansKeepTheMeaningOfOutcomes(t *testing.T) {
	for mode := range surfaces() {
		p, row := planOf(mode), mode.Plan()
		if p.UndoRefused || p.Refusal == txn.RefusalRetries || p.Retry.StuckAfter == 0 {
			t.Errorf("%s: plan %+v", mode, p)
		}
		p.UndoRefused, p.Refusal, p.Retry = row.UndoRefused, row.Refusal, row.Retry
		if p != row {
			t.Errorf("%s: plan %+v differs from its row %+v", mode, p, row)
		}
		if (row.Silence == txn.SilenceAsks) != (surfaces()[mode].ask != "") {
			t.Errorf("%s: silence %v, asked in the word %q", mode, row.Silence, surfaces()[mode].ask)
		}
	}
}
