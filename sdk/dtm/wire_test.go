package dtm

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func transfer() map[string]int { return map[string]int{"amount": 30} }

func TestSagaOnTheWire(t *testing.T) {
	rec := newRecorder(t)
	saga := NewSaga(rec.door()+"/", "g1").
		Add("http://bank/out", "http://bank/out-back", transfer()).
		Add("http://bank/in", "", []byte("as it is")).
		Add("", "http://bank/log-back", nil)
	if err := saga.Submit(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec.wants(t, `POST /api/dtmsvr/submit {"gid":"g1","trans_type":"saga","protocol":"","concurrent":false,
		"steps":[{"action":"http://bank/out","compensate":"http://bank/out-back"},{"action":"http://bank/in","compensate":""},{"action":"","compensate":"http://bank/log-back"}],
		"payloads":["{\"amount\":30}","as it is",""]}`)
}

func TestSagaOptionsOnTheWire(t *testing.T) {
	rec := newRecorder(t)
	saga := NewSaga(rec.door(), "g1").Add("a", "", 1).Add("b", "", 2).Add("c", "", 3).Order(2, 0, 1)
	saga.Concurrent = true
	saga.Options = Options{WaitResult: true, TimeoutToFail: 1500 * time.Millisecond, RetryInterval: 10 * time.Second, RequestTimeout: 5 * time.Second,
		RetryLimit: 3, BranchHeaders: map[string]string{"X-Tenant": "t1"}}
	if err := saga.Submit(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec.wants(t, `POST /api/dtmsvr/submit {"gid":"g1","trans_type":"saga","protocol":"","concurrent":true,
		"steps":[{"action":"a","compensate":""},{"action":"b","compensate":""},{"action":"c","compensate":""}],"payloads":["1","2","3"],
		"custom_data":"{\"concurrent\":true,\"orders\":{\"2\":[0,1]}}","wait_result":true,"timeout_to_fail":2,"retry_interval":10,"request_timeout":5,
		"retry_limit":3,"branch_headers":{"X-Tenant":"t1"}}`)
}

func TestSagaMistakesNeverLeave(t *testing.T) {
	rec := newRecorder(t)
	unordered := NewSaga(rec.door(), "g").Add("a", "", nil).Order(0)
	beyond := NewSaga(rec.door(), "g").Add("a", "", nil).Order(0, 1)
	beyond.Concurrent = true
	for name, s := range map[string]*Saga{
		"an order without concurrency": unordered,
		"an order beyond the steps":    beyond,
		"a payload that is no JSON":    NewSaga(rec.door(), "g").Add("a", "", make(chan int)),
		"a payload that is no text":    NewSaga(rec.door(), "g").Add("a", "", []byte{0xff}),
		"no gid":                       NewSaga(rec.door(), "").Add("a", "", nil),
	} {
		if err := s.Submit(t.Context()); err == nil {
			t.Errorf("%s: is submitted", name)
		}
	}
	rec.wants(t)
}

func TestDoorAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   error // nil: success; errUnknown: any other
	}{
		{"success", 200, success, nil},
		{"success that tells of a failure", 200, `{"transaction":{"rollback_reason":"no FAILURE"}}`, nil},
		{"conflict", 409, `{"dtm_result":"FAILURE","message":"m"}`, ErrFailure},
		{"word of failure", 200, `{"dtm_result":"FAILURE"}`, ErrFailure},
		{"too early", 425, `{"dtm_result":"ONGOING"}`, ErrOngoing},
		{"error", 500, `{"message":"panic: FAILURE"}`, errUnknown},
		{"no door", 404, `404 page not found`, errUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := newRecorder(t)
			rec.answer = func(string) (int, string) { return tt.status, tt.body }
			checkError(t, NewSaga(rec.door(), "g").Submit(t.Context()), tt.want)
		})
	}
}

var errUnknown = errors.New("of unknown outcome")

func checkError(t *testing.T, err, want error) {
	t.Helper()
	if want == nil && err != nil || want != nil && err == nil {
		t.Errorf("error = %v, want %v", err, want)
	}
	for _, known := range []error{ErrFailure, ErrOngoing} {
		if is := errors.Is(err, known); is != errors.Is(want, known) {
			t.Errorf("error %v is %v: %v", err, known, is)
		}
	}
}

func TestBranchAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   error
	}{
		{"success", 200, ``, nil},
		{"conflict", 409, ``, ErrFailure},
		{"word of failure", 200, `{"dtm_result":"FAILURE"}`, ErrFailure},
		{"word of failure in an error", 500, `FAILURE`, ErrFailure},
		{"too early", 425, ``, ErrOngoing},
		{"word of ongoing", 200, `ONGOING`, ErrOngoing},
		{"conflict that is ongoing", 409, `ONGOING`, ErrOngoing},
		{"created", 201, ``, errUnknown},
		{"error", 502, ``, errUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := newRecorder(t)
			rec.answer = func(string) (int, string) { return tt.status, tt.body }
			_, err := Branch{TransType: "t", GID: "g", ID: "01", Op: "o"}.Post(t.Context(), rec.URL+"/x?own=1", transfer())
			checkError(t, err, tt.want)
			rec.wants(t, `POST /x?gid=g&trans_type=t&branch_id=01&op=o&own=1 {"amount":30}`)
		})
	}
}

func TestTCCOnTheWire(t *testing.T) {
	rec := newRecorder(t)
	tcc := NewTCC(rec.door(), "g1")
	tcc.BranchHeaders = map[string]string{"X-Tenant": "t1"}
	err := tcc.GlobalTransaction(t.Context(), func(ctx context.Context, tcc *TCC) error {
		_, err := tcc.CallBranch(ctx, transfer(), rec.URL+"/try?own=1", "http://bank/confirm", "http://bank/cancel")
		if err == nil {
			_, err = tcc.CallBranch(ctx, transfer(), rec.URL+"/try", "http://bank/confirm", "http://bank/cancel")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const base = `{"gid":"g1","trans_type":"tcc","protocol":"","concurrent":false,"branch_headers":{"X-Tenant":"t1"}}`
	const branch = `"gid":"g1","trans_type":"tcc","data":"{\"amount\":30}","confirm":"http://bank/confirm","cancel":"http://bank/cancel"}`
	rec.wants(t,
		"POST /api/dtmsvr/prepare "+base,
		`POST /api/dtmsvr/registerBranch {"branch_id":"01",`+branch,
		`POST /try?dtm=DOOR/api/dtmsvr&gid=g1&trans_type=tcc&branch_id=01&op=try&own=1 X-Tenant:t1 {"amount":30}`,
		`POST /api/dtmsvr/registerBranch {"branch_id":"02",`+branch,
		`POST /try?dtm=DOOR/api/dtmsvr&gid=g1&trans_type=tcc&branch_id=02&op=try X-Tenant:t1 {"amount":30}`,
		"POST /api/dtmsvr/submit "+base)
}

func TestTCCAborts(t *testing.T) {
	const prepare = `POST /api/dtmsvr/prepare {"gid":"g1","trans_type":"tcc","protocol":"","concurrent":false}`
	abort := func(reason string) string {
		return `POST /api/dtmsvr/abort {"gid":"g1","trans_type":"tcc","protocol":"","concurrent":false,"rollback_reason":"` + reason + `"}`
	}
	boom := errors.New("boom")
	t.Run("after an error", func(t *testing.T) {
		rec := newRecorder(t)
		err := NewTCC(rec.door(), "g1").GlobalTransaction(t.Context(), func(context.Context, *TCC) error { return boom })
		if !errors.Is(err, boom) {
			t.Errorf("error = %v", err)
		}
		rec.wants(t, prepare, abort("boom"))
	})
	t.Run("although the caller has gone", func(t *testing.T) {
		rec := newRecorder(t)
		ctx, cancel := context.WithCancel(t.Context())
		err := NewTCC(rec.door(), "g1").GlobalTransaction(ctx, func(context.Context, *TCC) error { cancel(); return boom })
		if !errors.Is(err, boom) {
			t.Errorf("error = %v", err)
		}
		rec.wants(t, prepare, abort("boom"))
	})
	t.Run("after a panic", func(t *testing.T) {
		rec := newRecorder(t)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic is lost")
				}
			}()
			_ = NewTCC(rec.door(), "g1").GlobalTransaction(t.Context(), func(context.Context, *TCC) error { panic("boom") })
		}()
		rec.wants(t, prepare, abort("panic"))
	})
	t.Run("never after a submit whose answer is lost", func(t *testing.T) {
		rec := newRecorder(t)
		rec.answer = failing(map[string]string{"POST /api/dtmsvr/submit": "500"})
		err := NewTCC(rec.door(), "g1").GlobalTransaction(t.Context(), func(context.Context, *TCC) error { return nil })
		checkError(t, err, errUnknown)
		rec.wants(t, prepare, strings.ReplaceAll(prepare, "prepare", "submit"))
	})
	t.Run("without a try if the branch is not registered", func(t *testing.T) {
		rec := newRecorder(t)
		rec.answer = failing(map[string]string{"POST /api/dtmsvr/registerBranch": "500"})
		err := NewTCC(rec.door(), "g1").GlobalTransaction(t.Context(), func(ctx context.Context, tcc *TCC) error {
			_, err := tcc.CallBranch(ctx, nil, rec.URL+"/try", "", "")
			return err
		})
		checkError(t, err, errUnknown)
		if got := len(rec.lines); got != 3 || !strings.HasPrefix(rec.lines[2], "POST /api/dtmsvr/abort") {
			t.Errorf("requests: %q", rec.lines)
		}
	})
}

func TestNestedTCCExtendsItsBranch(t *testing.T) {
	rec := newRecorder(t)
	r := httptest.NewRequest(http.MethodPost, "/try?dtm="+rec.door()+"&gid=g1&trans_type=tcc&branch_id=02&op=try", nil)
	b, err := BranchOf(r)
	if err != nil {
		t.Fatal(err)
	}
	tcc, err := TCCOf(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tcc.CallBranch(t.Context(), nil, rec.URL+"/try", "", ""); err != nil {
		t.Fatal(err)
	}
	rec.wants(t, `POST /api/dtmsvr/registerBranch {"gid":"g1","trans_type":"tcc","branch_id":"0201","data":"","confirm":"","cancel":""}`,
		`POST /try?dtm=DOOR/api/dtmsvr&gid=g1&trans_type=tcc&branch_id=0201&op=try`)
	b.Op = OpConfirm
	if _, err := TCCOf(b); err == nil {
		t.Error("a confirm has branches")
	}
	b.Op, b.Server = OpTry, ""
	if _, err := TCCOf(b); err == nil {
		t.Error("a branch without a door has branches")
	}
}

func TestBranchNumbersHaveBounds(t *testing.T) {
	n := numbers{parent: "01"}
	for range 98 {
		if _, err := n.next(); err != nil {
			t.Fatal(err)
		}
	}
	if id, err := n.next(); id != "0199" || err != nil {
		t.Errorf("last = %s, %v", id, err)
	}
	if id, err := n.next(); err == nil {
		t.Errorf("after the last comes %s", id)
	}
	deep := numbers{parent: strings.Repeat("01", 10)}
	if id, err := deep.next(); err == nil {
		t.Errorf("below ten levels comes %s", id)
	}
}

func TestXAOnTheWire(t *testing.T) {
	rec := newRecorder(t)
	err := NewXA(rec.door(), "g1").GlobalTransaction(t.Context(), func(ctx context.Context, x *XA) error {
		_, err := x.CallBranch(ctx, transfer(), rec.URL+"/xa")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b := Branch{TransType: TypeXA, GID: "g1", ID: "01", Op: OpAction, Server: rec.door(), Phase2URL: rec.URL + "/xa"}
	if err := b.RegisterXA(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec.wants(t,
		`POST /api/dtmsvr/prepare {"gid":"g1","trans_type":"xa","protocol":"","concurrent":false}`,
		`POST /xa?dtm=DOOR/api/dtmsvr&gid=g1&trans_type=xa&branch_id=01&op=action&phase2_url=DOOR/xa {"amount":30}`,
		`POST /api/dtmsvr/submit {"gid":"g1","trans_type":"xa","protocol":"","concurrent":false}`,
		`POST /api/dtmsvr/registerBranch {"gid":"g1","trans_type":"xa","branch_id":"01","url":"DOOR/xa"}`)
	b.Phase2URL = ""
	if err := b.RegisterXA(t.Context()); err == nil {
		t.Error("a branch is registered that nobody can end")
	}
}

func TestMsgOnTheWire(t *testing.T) {
	rec := newRecorder(t)
	m := NewMsg(rec.door(), "g1").Add("http://bank/in", transfer()).AddTopic("moved", 1)
	m.Delay, m.Concurrent = 4*time.Second, true
	if err := errors.Join(m.Prepare(t.Context(), "http://bank/asked"), m.Submit(t.Context())); err != nil {
		t.Fatal(err)
	}
	const text = ` {"gid":"g1","trans_type":"msg","protocol":"","concurrent":true,"query_prepared":"http://bank/asked",
		"steps":[{"action":"http://bank/in"},{"action":"topic://moved"}],"payloads":["{\"amount\":30}","1"],"custom_data":"{\"delay\":4}"}`
	rec.wants(t, "POST /api/dtmsvr/prepare"+text, "POST /api/dtmsvr/submit"+text)
}

func TestDoAndSubmitFollowsTheBusiness(t *testing.T) {
	boom := errors.New("boom")
	refused := errors.Join(errors.New("too little"), ErrFailure)
	for _, tt := range []struct {
		name    string
		do      error
		asked   string // the answer of queryPrepared
		answers map[string]string
		want    []string
	}{
		{"done", nil, "", nil, []string{"prepare", "submit"}},
		{"refused", refused, "", nil, []string{"prepare", "abort"}},
		{"unknown and committed", boom, success, nil, []string{"prepare", "asked", "submit"}},
		{"unknown and not committed", boom, "409", nil, []string{"prepare", "asked", "abort"}},
		{"unknown and undecided", boom, "425", nil, []string{"prepare", "asked"}},
		{"unknown for good", boom, "500", nil, []string{"prepare", "asked"}},
		{"duplicated", ErrDuplicated, "409", nil, []string{"prepare", "asked", "abort"}},
		{"not prepared", nil, "", map[string]string{"POST /api/dtmsvr/prepare": "500"}, []string{"prepare"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := newRecorder(t)
			rec.answer = failing(tt.answers)
			if tt.asked != "" {
				rec.answer = failing(map[string]string{"GET /asked": tt.asked})
			}
			var got Branch
			err := NewMsg(rec.door(), "g1").Add("http://bank/in", nil).DoAndSubmit(t.Context(), rec.URL+"/asked", func(_ context.Context, b Branch) error {
				got = b
				return tt.do
			})
			if tt.do != nil && !errors.Is(err, tt.do) || (tt.do != nil || tt.answers != nil) != (err != nil) {
				t.Errorf("error = %v, want %v", err, tt.do)
			}
			if want := (Branch{TransType: "msg", GID: "g1", ID: "00", Op: "msg", Server: rec.door()}); tt.answers == nil && got != want {
				t.Errorf("branch = %+v", got)
			}
			var verbs []string
			for _, line := range rec.lines {
				if strings.HasPrefix(line, "GET") && line != "GET /asked?dtm=DOOR/api/dtmsvr&gid=g1&trans_type=msg&branch_id=00&op=msg" {
					t.Errorf("asked with %s", line)
				}
				verb, _, _ := strings.Cut(strings.Fields(line)[1], "?")
				verbs = append(verbs, verb[strings.LastIndex(verb, "/")+1:])
			}
			if diff := cmp.Diff(tt.want, verbs); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
	if err := NewMsg("", "g").DoAndSubmit(t.Context(), "", func(context.Context, Branch) error { return nil }); err == nil {
		t.Error("without a question, a door takes silence for yes")
	}
}

func TestBranchOf(t *testing.T) {
	want := Branch{TransType: "tcc", GID: "g", ID: "01", Op: "try", Server: "http://door"}
	r := httptest.NewRequest(http.MethodPost, "/?gid=g&trans_type=tcc&branch_id=01&branch_type=try&dtm=http://door", nil)
	if got, err := BranchOf(r); err != nil || got != want {
		t.Errorf("of a query = %+v, %v", got, err)
	}
	r = httptest.NewRequest(http.MethodPost, "/?op=try", nil)
	for name, value := range map[string]string{"gid": "g", "trans_type": "tcc", "branch_id": "01", "op": "other", "dtm": "http://door"} {
		r.Header.Set("dtm-"+name, value)
	}
	if got, err := BranchOf(r); err != nil || got != want {
		t.Errorf("of headers = %+v, %v", got, err)
	}
	r = httptest.NewRequest(http.MethodPost, "/?gid=g&trans_type=tcc&op=try", nil)
	if _, err := BranchOf(r); err == nil || !strings.Contains(err.Error(), "branch_id") {
		t.Errorf("without a branch_id: %v", err)
	}
}

func TestHandleAnswersAsTheProtocolWants(t *testing.T) {
	for _, tt := range []struct {
		name   string
		result string
		err    error
		status int
		body   string
	}{
		{"success", "", nil, 200, `{"dtm_result":"SUCCESS"}`},
		{"result", `{"n":1}`, nil, 200, `{"n":1}`},
		{"result with a word", `{"word":"FAILURE"}`, nil, 200, `{"word":"\u0046AILURE"}`},
		{"refused", "", errors.Join(errors.New("ONGOING trouble"), ErrFailure), 409, `{"dtm_result":"FAILURE","message":"\u004fNGOING trouble\n\u0046AILURE"}`},
		{"ongoing", "", ErrOngoing, 425, `{"dtm_result":"ONGOING","message":"\u004fNGOING"}`},
		{"error with a word", "", errors.New("FAILURE of a disk"), 500, `{"message":"\u0046AILURE of a disk"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(Handle(func(_ context.Context, b Branch, payload []byte) ([]byte, error) {
				if string(payload) != `{"amount":30}` || b.ID != "01" {
					t.Errorf("called with %s for %+v", payload, b)
				}
				return []byte(tt.result), tt.err
			}))
			defer s.Close()
			status, body, err := exchange(t.Context(), nil, http.MethodPost, s.URL+"/?gid=g&trans_type=saga&branch_id=01&op=action", []byte(`{"amount":30}`), nil)
			if err != nil || status != tt.status || string(body) != tt.body {
				t.Errorf("answer = %d %s, %v; want %d %s", status, body, err, tt.status, tt.body)
			}
			want := errUnknown
			for _, known := range []error{ErrFailure, ErrOngoing} {
				if tt.status != 500 && errors.Is(tt.err, known) {
					want = known
				}
			}
			if tt.err == nil {
				want = nil
			}
			checkError(t, outcome(status, body), want)
		})
	}
}

func TestQueryAndNewGID(t *testing.T) {
	rec := newRecorder(t)
	c := Client{Server: rec.door()}
	rec.answer = func(string) (int, string) { return 200, `{"dtm_result":"SUCCESS","gid":"abc"}` }
	if gid, err := c.NewGID(t.Context()); gid != "abc" || err != nil {
		t.Errorf("gid = %s, %v", gid, err)
	}
	rec.answer = func(string) (int, string) {
		return 200, `{"transaction":{"id":0,"create_time":"2026-01-02T03:04:05.6Z","update_time":null,"gid":"a b","trans_type":"saga","status":"failed","rollback_reason":"no FAILURE","concurrent":false},
			"branches":[{"id":0,"gid":"a b","url":"u","bin_data":"eyJhIjoxfQ==","branch_id":"01","op":"action","status":"failed"}]}`
	}
	got, err := c.Query(t.Context(), "a b")
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC)
	want := Transaction{GID: "a b", TransType: "saga", Status: StatusFailed, RollbackReason: "no FAILURE", CreateTime: &at,
		Branches: []Row{{BranchID: "01", Op: "action", Status: "failed", URL: "u", Data: []byte(`{"a":1}`)}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("query: %v (-want +got):\n%s", err, diff)
	}
	rec.answer = func(string) (int, string) { return 200, `{"transaction":null,"branches":[]}` }
	if _, err := c.Query(t.Context(), "g"); !errors.Is(err, ErrNotFound) {
		t.Errorf("error = %v", err)
	}
	rec.wants(t, "GET /api/dtmsvr/newGid", "GET /api/dtmsvr/query?gid=a b", "GET /api/dtmsvr/query?gid=g")
}
