package dtm

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"txmesh/interceptor"
	"txmesh/interceptor/dtm/dtmgimp"
	"txmesh/txn"
)

// The law of these tests: whatever a client sends, nobody panics, and no answer blames the server.

// machines is an engine of real machines that remembers everything and stands still: what is to be called waits in calls.
type machines struct {
	byID  map[txn.ID]*txn.Machine
	facts map[txn.ID][]interceptor.Fact
	rows  map[string][]byte
	calls []txn.Call
	now   time.Time
}

func (m *machines) reset() {
	*m = machines{byID: map[txn.ID]*txn.Machine{}, facts: map[txn.ID][]interceptor.Fact{}, rows: map[string][]byte{},
		now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func (m *machines) Do(_ context.Context, id txn.ID, e txn.Event) (txn.State, error) {
	x := m.byID[id]
	if x == nil {
		x = txn.Restore(nil)
	}
	out, err := x.Step(m.now, e)
	if err != nil {
		return x.State(), err
	}
	m.byID[id] = x
	for _, r := range out.Records {
		m.facts[id] = append(m.facts[id], interceptor.Fact{At: m.now, Record: r})
	}
	m.calls = append(m.calls, out.Calls...)
	return x.State(), nil
}

func (m *machines) Wait(ctx context.Context, id txn.ID, until func(txn.State) bool) (txn.State, error) {
	st, err := m.State(ctx, id)
	if err == nil && !until(st) {
		err = context.DeadlineExceeded
	}
	return st, err
}

func (m *machines) DoAndWait(ctx context.Context, id txn.ID, e txn.Event, until func(txn.State) bool) (txn.State, error) {
	if st, err := m.Do(ctx, id, e); err != nil {
		return st, err
	}
	return m.Wait(ctx, id, until)
}

func (m *machines) State(_ context.Context, id txn.ID) (txn.State, error) {
	if x := m.byID[id]; x != nil {
		return x.State(), nil
	}
	return txn.State{}, txn.ErrUnknown
}

func (m *machines) Story(_ context.Context, id txn.ID) ([]interceptor.Fact, error) {
	return m.facts[id], nil
}

func (m *machines) Titles(_ context.Context, q interceptor.TitleQuery) iter.Seq2[interceptor.Title, error] {
	return func(yield func(interceptor.Title, error) bool) {
		if strings.HasPrefix(q.From, "x") {
			yield(interceptor.Title{}, errors.New("no cursor"))
			return
		}
		for _, id := range slices.Sorted(maps.Keys(m.byID)) {
			if string(id) > q.From && !yield(interceptor.Title{ID: id, Next: string(id)}, nil) {
				return
			}
		}
	}
}

func (m *machines) Get(_ context.Context, key string) ([]byte, bool, error) {
	row, found := m.rows[key]
	return row, found, nil
}

func (m *machines) Put(_ context.Context, key string, value []byte) error {
	if m.rows[key] = value; value == nil {
		delete(m.rows, key)
	}
	return nil
}

func (m *machines) Scan(_ context.Context, prefix string) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for _, key := range slices.Sorted(maps.Keys(m.rows)) {
			if strings.HasPrefix(key, prefix) && !yield(Row{key, m.rows[key]}, nil) {
				return
			}
		}
	}
}

// fuzzed is a door over such machines.
type fuzzed struct {
	machines
	s       *Service
	handler fasthttp.RequestHandler
}

func newFuzzed(f *testing.F) *fuzzed {
	x := &fuzzed{}
	x.reset()
	x.s = New(Options{Engine: x, Chronicle: x, Rows: x, NewGID: func() string { return "g" }, Now: func() time.Time { return x.now },
		Defaults: Defaults{TimeoutToFail: time.Minute, RetryInterval: time.Second, RetryMax: time.Minute, RequestTimeout: time.Second,
			ResumeAfter: time.Second}, BodyMax: 1 << 20, Log: slog.New(slog.DiscardHandler)})
	x.handler = x.s.Handler()
	f.Cleanup(x.s.Close)
	return x
}

// fresh begins one input: nothing is remembered of those before.
func (x *fuzzed) fresh() {
	x.reset()
	x.s.sagas.loaded = false
}

func (x *fuzzed) http(t *testing.T, method, uri string, body []byte) {
	t.Helper()
	var r fasthttp.RequestCtx
	r.Request.Header.SetMethod(method)
	r.Request.SetRequestURI(uri)
	r.Request.SetBody(body)
	x.handler(&r)
	status, text := r.Response.StatusCode(), string(r.Response.Body())
	if status >= 500 {
		t.Errorf("%s %s %q: answered %d %s", method, uri, body, status, text)
	}
	if status < 300 && strings.Contains(text, `"message"`) && !strings.Contains(uri, "query") && !strings.Contains(uri, "json-rpc") &&
		!strings.Contains(uri, "all") && !strings.Contains(uri, "KV") && !strings.Contains(uri, "Workflow") {
		t.Errorf("%s %s %q: answered %d with a problem: %s", method, uri, body, status, text)
	}
}

// play makes and answers some of the calls that wait.
func (x *fuzzed) play(t *testing.T, answers []interceptor.DirectAnswer) {
	t.Helper()
	for i := 0; i < 20 && len(x.calls) > 0; i++ {
		c := x.calls[0]
		x.calls = x.calls[1:]
		e := txn.Returned{Branch: c.Branch, Op: c.Op, Outcome: txn.Unknown}
		if _, err := x.s.Request(c); err == nil {
			e.Outcome, e.Result, e.Cause = x.s.Judge(c, answers[i%len(answers)])
		}
		if _, err := x.Do(t.Context(), c.Tx, e); err != nil {
			t.Errorf("answer of %+v: %v", c, err)
		}
		x.now = x.now.Add(time.Minute)
		if _, err := x.Do(t.Context(), c.Tx, txn.Wake{}); err != nil {
			t.Errorf("wake %s: %v", c.Tx, err)
		}
	}
}

func answered(status int, body string) interceptor.DirectAnswer {
	return interceptor.DirectAnswer{Reply: &interceptor.Reply{Status: status, Body: []byte(body)}}
}

func FuzzTransaction(f *testing.F) {
	for _, body := range []string{
		`{"gid":"g","trans_type":"saga","steps":[{"action":"http://h/a","compensate":"h:1/s/m"}],"payloads":["{}"],"wait_result":true}`,
		`{"gid":"g","trans_type":"saga","custom_data":"{\"concurrent\":true,\"orders\":{\"1\":[0]}}","steps":[{"action":"u","data":"d"},{}],"payloads":["",""]}`,
		`{"gid":"g","trans_type":"msg","query_prepared":"http://h/q","custom_data":"{\"delay\":1.5}","steps":[{"action":"topic://t"}],"payloads":["1"]}`,
		`{"gid":"g","trans_type":"workflow","custom_data":"{\"name\":\"n\",\"data\":\"ZA==\"}","query_prepared":"http://h/method","protocol":"json-rpc","req_extra":{"status":"succeed"}}`,
		`{"gid":"g","trans_type":"tcc","timeout_to_fail":1,"branch_headers":[],"retry_limit":3,"protocol":"grpc"}`,
		`null`, `[]`, `{"gid":null}`,
	} {
		for verbs := range uint8(4) {
			f.Add([]byte(body), verbs)
		}
	}
	x := newFuzzed(f)
	f.Fuzz(func(t *testing.T, body []byte, verbs uint8) {
		x.fresh()
		paths := []string{"submit", "prepare", "abort", "prepareWorkflow"}
		for _, verb := range []uint8{verbs, verbs >> 2, verbs >> 4, verbs >> 6} {
			x.http(t, "POST", apiBase+paths[verb&3], body)
			x.play(t, []interceptor.DirectAnswer{answered(200, ""), answered(500, ""), answered(409, "")})
		}
		for id := range x.byID {
			if _, err := x.s.query(t.Context(), string(id)); err != nil {
				t.Errorf("query %q: %v", id, err)
			}
		}
		x.http(t, "GET", apiBase+"all", nil)
		x.http(t, "POST", apiBase+"forceStop", body)
		x.http(t, "POST", apiBase+"resetNextCronTime", body)
	})
}

func FuzzRegisterBranch(f *testing.F) {
	for _, body := range []string{
		`{"gid":"tcc","trans_type":"tcc","branch_id":"01","confirm":"http://h/a","cancel":"","data":"d"}`,
		`{"gid":"xa","trans_type":"xa","branch_id":"01","url":"h:1/s/m"}`,
		`{"gid":"workflow","trans_type":"workflow","branch_id":"01","op":"action","status":"failed","data":"d"}`,
		`null`, `{"gid":7}`,
	} {
		f.Add([]byte(body))
	}
	x := newFuzzed(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		x.fresh()
		for _, kind := range []string{typeTCC, typeXA, typeWorkflow} {
			prepared := `{"gid":"` + kind + `","trans_type":"` + kind + `","custom_data":"{}"}`
			x.http(t, "POST", apiBase+"prepare", []byte(prepared))
			x.http(t, "POST", apiBase+"registerBranch", body)
			x.http(t, "POST", apiBase+"registerBranch", body)
			x.http(t, "GET", apiBase+"query?gid="+kind, nil)
			x.http(t, "POST", apiBase+"submit", []byte(prepared))
			x.play(t, []interceptor.DirectAnswer{answered(200, "")})
		}
	})
}

func FuzzJSONRPC(f *testing.F) {
	for _, body := range []string{
		`{"jsonrpc":"2.0","id":"1","method":"newGid"}`,
		`{"jsonrpc":"2.0","id":2,"method":"submit","params":{"gid":"g","trans_type":"saga"}}`,
		`{"jsonrpc":"2.0","id":"3","method":"registerBranch","params":null}`,
		`{"jsonrpc":"2.0","id":"3","method":"abort","params":{"gid":"g","trans_type":"tcc"}}`,
		`null`, `[]`, `{"id":{}}`,
	} {
		f.Add([]byte(body))
	}
	x := newFuzzed(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		x.fresh()
		var r fasthttp.RequestCtx
		r.Request.Header.SetMethod("POST")
		r.Request.SetRequestURI("/api/json-rpc")
		r.Request.SetBody(body)
		x.handler(&r)
		text := string(r.Response.Body())
		if status := r.Response.StatusCode(); status != 200 && status != 400 || strings.Contains(text, "internal error") {
			t.Errorf("%q: answered %d %s", body, status, text)
		}
		for _, key := range []string{`"jsonrpc":"2.0"`, `"id":`, `"result":`, `"error":`} {
			if !strings.Contains(text, key) {
				t.Errorf("%q: answered %s without %s", body, text, key)
			}
		}
		x.play(t, []interceptor.DirectAnswer{answered(200, "{}")})
	})
}

func FuzzGRPC(f *testing.F) {
	add := func(m proto.Message, method uint8) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, method)
	}
	saga := &dtmgimp.DtmRequest{Gid: "g", TransType: "saga", Steps: `[{"action":"h:1/s/m"}]`, BinPayloads: [][]byte{{1}},
		TransOptions: &dtmgimp.DtmTransOptions{WaitResult: true, RetryLimit: 1, BranchHeaders: map[string]string{"a": "b"}}}
	for method := range uint8(4) {
		add(saga, method)
	}
	add(&dtmgimp.DtmRequest{Gid: "g", TransType: "workflow", CustomedData: `{"name":"n"}`, QueryPrepared: "h:1/s/m"}, 3)
	add(&dtmgimp.DtmBranchRequest{Gid: "g", TransType: "tcc", BranchID: "01", Data: map[string]string{"confirm": "h:1/s/m"}}, 4)
	add(&dtmgimp.DtmTopicRequest{Topic: "t", URL: "u"}, 5)
	x := newFuzzed(f)
	g := &grpcServer{s: x.s}
	f.Fuzz(func(t *testing.T, body []byte, method uint8) {
		x.fresh()
		for _, call := range grpcCalls(g, body, method) {
			_, err := x.s.intercept(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/dtmgimp.Dtm/Fuzzed"}, call)
			switch code := grpcstatus.Code(err); code {
			case codes.Unknown, codes.Internal, codes.Unavailable:
				t.Errorf("%q: answered %v", body, err)
			default:
			}
			x.play(t, []interceptor.DirectAnswer{{Reply: &interceptor.Reply{}}, {Reply: &interceptor.Reply{}, Code: 14}})
		}
	})
}

// grpcCalls reads the bytes as the message of a method.
func grpcCalls(g *grpcServer, body []byte, method uint8) []grpc.UnaryHandler {
	var request dtmgimp.DtmRequest
	var branch dtmgimp.DtmBranchRequest
	var topic dtmgimp.DtmTopicRequest
	handlers := []grpc.UnaryHandler{
		func(ctx context.Context, _ any) (any, error) { return g.Prepare(ctx, &request) },
		func(ctx context.Context, _ any) (any, error) { return g.Submit(ctx, &request) },
		func(ctx context.Context, _ any) (any, error) { return g.Abort(ctx, &request) },
		func(ctx context.Context, _ any) (any, error) { return g.PrepareWorkflow(ctx, &request) },
		func(ctx context.Context, _ any) (any, error) { return g.RegisterBranch(ctx, &branch) },
		func(ctx context.Context, _ any) (any, error) { return g.Subscribe(ctx, &topic) },
		func(ctx context.Context, _ any) (any, error) { return g.Unsubscribe(ctx, &topic) },
		func(ctx context.Context, _ any) (any, error) { return g.DeleteTopic(ctx, &topic) },
	}
	i := int(method) % len(handlers)
	into := []proto.Message{&request, &request, &request, &request, &branch, &topic, &topic, &topic}[i]
	if proto.Unmarshal(body, into) != nil {
		return nil // gRPC answers by itself
	}
	return []grpc.UnaryHandler{handlers[i], handlers[(i+1)%len(handlers)], handlers[i]}
}

func FuzzCustomData(f *testing.F) {
	for _, text := range []string{`{"concurrent":true,"orders":{"1":[0],"2":[0,1]}}`, `{"orders":null}`, `{"delay":1e300}`, `{"delay":3}`,
		`{"orders":{"-1":[]}}`, `{"name":"n","data":"ZA=="}`, `null`, `7`} {
		f.Add(text, uint8(3))
	}
	x := newFuzzed(f)
	f.Fuzz(func(t *testing.T, text string, steps uint8) {
		for _, kind := range []string{typeSaga, typeMsg, typeWorkflow} {
			x.fresh()
			r := &transaction{GID: "g", Type: kind, CustomData: text, QueryPrepared: "http://h/q"}
			for range steps % 8 {
				r.Steps, r.Payloads = append(r.Steps, map[string]string{"action": "http://h/a"}), append(r.Payloads, "{}")
			}
			err := x.s.submit(t.Context(), r)
			if kind == typeWorkflow {
				_, err = x.s.prepareWorkflow(t.Context(), r)
			}
			if err != nil && faultOf(err).status >= http.StatusInternalServerError {
				t.Errorf("%s with %q: %v", kind, text, err)
			}
			x.play(t, []interceptor.DirectAnswer{answered(200, "")})
		}
	})
}

func FuzzParameters(f *testing.F) {
	for _, query := range []string{"gid=g", "limit=2&position=g&status=failed&transType=saga&createTimeStart=1&createTimeEnd=2",
		"cat=topics&position=a&limit=1", "cat=topics&key=t", "timeout=0&limit=1", "topic=t&url=u&remark=r", "limit=%zz&a;b"} {
		f.Add(query)
	}
	x := newFuzzed(f)
	f.Fuzz(func(t *testing.T, query string) {
		x.fresh()
		x.http(t, "POST", apiBase+"submit", []byte(`{"gid":"g","trans_type":"msg","steps":[{"action":"http://h/a"}],"payloads":["{}"]}`))
		for _, path := range []string{"subscribe", "query", "all", "scanKV", "queryKV", "resetCronTime", "unsubscribe"} {
			x.http(t, "GET", apiBase+path+"?"+query, nil)
		}
		x.http(t, "DELETE", apiBase+"topic/"+query, nil)
		x.http(t, "GET", query, nil)
	})
}

func FuzzNote(f *testing.F) {
	f.Add(note{Protocol: protocolJSONRPC, CustomData: `{"name":"n"}`, Options: options{BranchHeaders: headers{"a": "b"}}}.encode(), []byte("{}"), "http://h/?method=m", uint8(0))
	f.Add(note{Protocol: protocolGRPC, Topics: []map[string]string{{"action": "topic://t"}}}.encode(), []byte{0xff}, "h:1/s/m", uint8(3))
	f.Add([]byte{0xa1}, []byte(nil), "::", uint8(9))
	x := newFuzzed(f)
	modes := []txn.Mode{txn.Saga, txn.SagaGraph, txn.TCC, txn.XA, txn.Msg, txn.Workflow}
	f.Fuzz(func(t *testing.T, text, body []byte, target string, pick uint8) {
		c := txn.Call{Tx: "g", Mode: modes[int(pick)%len(modes)], Op: txn.Op(pick/8) % txn.NumOps, Branch: "01", Target: []byte(target),
			Note: body, TxNote: text}
		if c.Op == txn.Ask {
			c.Branch = ""
		}
		d, err := x.s.Request(c)
		if (d == nil) == (err == nil) {
			t.Errorf("request of %+v: %v, %v", c, d, err)
		}
		if _, decoded := decodeNote(text); decoded != nil && err == nil {
			t.Errorf("a note that is none made a request: %q", text)
		}
	})
}

// FuzzTakeOver takes over what any server may show of a transaction: an error that says why not, or a transaction that is
// there, and none after a dry run. The same again is known.
func FuzzTakeOver(f *testing.F) {
	f.Add([]byte(`{"transaction":{"gid":"g","trans_type":"saga","status":"submitted","steps":[{"action":"http://h/a","compensate":"http://h/c"}],"payloads":["{}"]},`+
		`"branches":[{"branch_id":"01","op":"compensate","status":"prepared","url":"http://h/c"},{"branch_id":"01","op":"action","status":"succeed","url":"http://h/a"}]}`), false)
	f.Add([]byte(`{"transaction":{"gid":"g","trans_type":"tcc","status":"aborting","rollback_reason":"r"},"branches":[`+
		`{"branch_id":"01","op":"cancel","status":"prepared","url":"u"},{"branch_id":"01","op":"confirm","status":"prepared","url":"u"}]}`), true)
	f.Add([]byte(`{"transaction":{"gid":"g","trans_type":"workflow","status":"prepared"},"branches":[{"branch_id":"01","op":"action","status":"failed","bin_data":"ZA=="}]}`), false)
	f.Add([]byte(`{"transaction":null}`), false)
	x := newFuzzed(f)
	f.Fuzz(func(t *testing.T, body []byte, dryRun bool) {
		x.fresh()
		got, err := x.s.TakeOver(t.Context(), body, dryRun)
		if (got == nil) == (err == nil) {
			t.Fatalf("%q: %+v, %v", body, got, err)
		}
		if err != nil {
			if !errors.Is(err, interceptor.ErrRefused) {
				t.Errorf("%q: an error that is no refusal: %v", body, err)
			}
			return
		}
		if dryRun {
			if len(x.byID) > 0 || len(x.rows) > 0 {
				t.Errorf("%q: a dry run left something behind", body)
			}
			return
		}
		if again, err := x.s.TakeOver(t.Context(), body, false); err != nil || again.Outcome != outcomeKnown {
			t.Errorf("%q: the second time %+v, %v", body, again, err)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"dtm_result":"SUCCESS"}`), uint32(0), "", true)
	f.Add(425, []byte(""), uint32(0), "", false)
	f.Add(200, []byte(`{"jsonrpc":"2.0","error":{"code":-32901,"message":{}}}`), uint32(0), "", true)
	f.Add(0, []byte(nil), uint32(10), "ONGOING", false)
	f.Add(0, []byte(nil), uint32(9), "", false)
	x := newFuzzed(f)
	f.Fuzz(func(t *testing.T, status int, body []byte, code uint32, message string, rpc bool) {
		n := note{}
		if rpc {
			n.Protocol = protocolJSONRPC
		}
		c := txn.Call{Tx: "g", Mode: txn.Saga, Branch: "01", Op: txn.Forward, Target: []byte("http://h/?method=m"), TxNote: n.encode()}
		a := interceptor.DirectAnswer{Reply: &interceptor.Reply{Status: status, Body: body}, Code: code, Message: message}
		out, _, cause := x.s.Judge(c, a)
		ongoing := status == 425 || strings.Contains(string(body), wordOngoing)
		refused := status == 409 || strings.Contains(string(body), wordFailure)
		switch {
		case status == 0:
			if (out == txn.OK) != (code == 0) || out == txn.Refused && code != 10 {
				t.Errorf("gRPC %d %q is %v", code, message, out)
			}
		case ongoing && out != txn.Pending:
			t.Errorf("answer ONGOING taken as %v: %d %q", out, status, body)
		case refused && !ongoing && out != txn.Refused:
			t.Errorf("answer FAILURE taken as %v: %d %q", out, status, body)
		case !ongoing && !refused && status != 200 && out != txn.Unknown:
			t.Errorf("%d %q is %v", status, body, out)
		}
		if len(cause) > causeMax+100 {
			t.Errorf("a cause of %d bytes", len(cause))
		}
	})
}
