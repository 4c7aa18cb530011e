package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// upstream answers every call alike and remembers what it was asked.
type upstream struct {
	status int
	body   string
	seen   []string
	header http.Header
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body) // a broken body shows in what was seen
	u.seen = append(u.seen, r.Method+" "+r.URL.EscapedPath()+" "+string(body))
	u.header = r.Header.Clone()
	w.WriteHeader(u.status)
	_, _ = io.WriteString(w, u.body) // a broken answer shows at the client
}

// transferFor asks a transfers service in front of the two upstreams.
func transferFor(t *testing.T, accounts, savings http.Handler, body string, headers http.Header) reply {
	t.Helper()
	a, s := httptest.NewServer(accounts), httptest.NewServer(savings)
	defer a.Close()
	defer s.Close()
	return transferAt(t, a.URL, s.URL, body, headers)
}

func transferAt(t *testing.T, accounts, savings, body string, headers http.Header) reply {
	t.Helper()
	req := httptest.NewRequest(http.MethodPost, "/transfers", strings.NewReader(body))
	for name, values := range headers {
		req.Header[name] = values
	}
	w := httptest.NewRecorder()
	newTransfers(config{accounts: accounts, savings: savings}).handler().ServeHTTP(w, req)
	return reply{w.Code, w.Body.String()}
}

func TestTransferStopsAtTheFirstFailure(t *testing.T) {
	const order = `{"from":"alice","to":"b/ob","amount":30}`
	withdraw := `POST /accounts/alice/withdrawals {"amount":30,"transfer":"t-1"}`
	deposit := `POST /accounts/b%2Fob/deposits {"amount":30,"transfer":"t-1"}`
	created := `{"id":"w-1","balance":70}`
	for _, tt := range []struct {
		name              string
		accounts, savings upstream
		want              reply
		called            []string
	}{
		{"both agree", upstream{status: 201, body: created}, upstream{status: 200, body: created},
			reply{201, `{"id":"t-1"}`}, []string{withdraw, deposit}},
		{"accounts refuses", upstream{status: 409, body: `{"error":"insufficient funds"}`}, upstream{status: 201},
			reply{409, `{"error":"insufficient funds"}`}, []string{withdraw}},
		{"savings refuses", upstream{status: 201, body: created}, upstream{status: 409, body: `{"error":"account closed"}`},
			reply{409, `{"error":"account closed"}`}, []string{withdraw, deposit}},
		{"savings refuses in words of its own", upstream{status: 201}, upstream{status: 404, body: "<html>"},
			reply{409, `{"error":"SAVINGS/accounts/b%2Fob/deposits answered 404"}`}, []string{withdraw, deposit}},
		{"savings breaks", upstream{status: 201}, upstream{status: 500, body: `{"error":"no disk"}`},
			reply{502, `{"error":"no disk"}`}, []string{withdraw, deposit}},
		{"savings is busy, which says nothing", upstream{status: 201}, upstream{status: 429, body: `{"error":"later"}`},
			reply{502, `{"error":"later"}`}, []string{withdraw, deposit}},
		{"savings points elsewhere", upstream{status: 201}, upstream{status: 307},
			reply{502, `{"error":"SAVINGS/accounts/b%2Fob/deposits answered 307"}`}, []string{withdraw, deposit}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, s := httptest.NewServer(&tt.accounts), httptest.NewServer(&tt.savings)
			defer a.Close()
			defer s.Close()
			got := transferAt(t, a.URL, s.URL, order, http.Header{"Idempotency-Key": {`"t-1"`}})
			got.body = strings.ReplaceAll(got.body, s.URL, "SAVINGS")
			if got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if diff := cmp.Diff(tt.called, append(tt.accounts.seen, tt.savings.seen...)); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnreachableServiceIsBadGateway(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	got := transferAt(t, gone.URL, gone.URL, `{"from":"alice","to":"bob","amount":30}`, nil)
	if got.status != http.StatusBadGateway || !strings.Contains(got.body, "connection refused") {
		t.Errorf("got %v, want 502 with connection refused", got)
	}
}

// TestTraceTravelsAndNothingElse: the service copies what any traced service copies. It neither makes nor passes
// on a header of transactions, nor the client's idempotency key, which names another request.
func TestTraceTravelsAndNothingElse(t *testing.T) {
	a, s := &upstream{status: 201}, &upstream{status: 201}
	in := http.Header{
		"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "Tracestate": {"a=1", "b=2"},
		"Baggage": {"tx=1.x,user=7"}, "X-Bank-Hold-Ms": {"1"},
		"Tx-Context": {"1.x"}, "Authorization": {"Bearer secret"}, "Idempotency-Key": {"t-1"},
	}
	transferFor(t, a, s, `{"from":"alice","to":"bob","amount":30}`, in)
	want := http.Header{
		"Traceparent": in["Traceparent"], "Tracestate": in["Tracestate"], "Baggage": in["Baggage"],
		"X-Bank-Hold-Ms": in["X-Bank-Hold-Ms"],
		"Content-Type":   {"application/json"}, "Content-Length": {"30"},
		"Accept-Encoding": {"gzip"}, "User-Agent": {"Go-http-client/1.1"},
	}
	for name, got := range map[string]http.Header{"accounts": a.header, "savings": s.header} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("headers at %s (-want +got):\n%s", name, diff)
		}
	}
}

func TestBadOrderReachesNobody(t *testing.T) {
	const shape = `{"error":"body: want a JSON object with from, to and amount"}`
	const amount = `{"error":"amount: want an integer from 1 to 9007199254740991"}`
	for _, tt := range []struct{ name, body, want string }{
		{"no JSON", `from`, shape},
		{"nobody to take from", `{"to":"bob","amount":30}`, shape},
		{"nobody to give to", `{"from":"alice","amount":30}`, shape},
		{"text for an amount", `{"from":"alice","to":"bob","amount":"30"}`, shape},
		{"no amount", `{"from":"alice","to":"bob"}`, amount},
		{"nothing to move", `{"from":"alice","to":"bob","amount":0}`, amount},
		{"a fraction", `{"from":"alice","to":"bob","amount":0.5}`, amount},
		{"more than is exact", `{"from":"alice","to":"bob","amount":9007199254740992}`, amount},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, s := &upstream{status: 201}, &upstream{status: 201}
			got := transferFor(t, a, s, tt.body, nil)
			if want := (reply{400, tt.want}); got != want || len(a.seen)+len(s.seen) > 0 {
				t.Errorf("got %v after calls %v %v, want %v and no call", got, a.seen, s.seen, want)
			}
		})
	}
}

func TestTransferWithoutKeyGetsAnIDOfItsOwn(t *testing.T) {
	u := &upstream{status: 201}
	first := transferFor(t, u, u, `{"from":"alice","to":"bob","amount":30}`, nil)
	second := transferFor(t, u, u, `{"from":"alice","to":"bob","amount":30}`, nil)
	if first.status != 201 || second.status != 201 || first.body == second.body {
		t.Errorf("two transfers without a key were answered %v and %v", first, second)
	}
}

// TestMoneyMovesThroughThreeProcesses runs the bank as it stands in the example: Go, Python and Node, or Go where
// one of them is missing. Without sidecars a refused deposit leaves the withdrawal behind.
func TestMoneyMovesThroughThreeProcesses(t *testing.T) {
	for _, tt := range []struct {
		name              string
		accounts, savings implementation
	}{
		{"in Go alone", implementations()[0], implementations()[2]},
		{"in three languages", implementations()[1], implementations()[3]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := start(t, tt.accounts, tempLedger(t), "--balances", openings)
			s := start(t, tt.savings, tempLedger(t), "--balances", openings)
			transfers := implementation{name: "transfers in Go", service: "transfers"}
			root := start(t, transfers, "", "--accounts-url", a.url, "--savings-url", s.url)
			ok := root.mustCall(t, "POST", "/transfers", `"t-1"`, `{"from":"alice","to":"bob","amount":30}`)
			refused := root.mustCall(t, "POST", "/transfers", `"t-2"`, `{"from":"alice","to":"carol","amount":30}`)
			if want := (reply{201, `{"id":"t-1"}`}); ok != want {
				t.Errorf("the transfer was answered %v, want %v", ok, want)
			}
			if want := (reply{409, `{"error":"account closed"}`}); refused != want {
				t.Errorf("the transfer to a closed account was answered %v, want %v", refused, want)
			}
			left, right := a.mustCall(t, "GET", "/balances", "", ""), s.mustCall(t, "GET", "/balances", "", "")
			if want := `{"alice":40,"bob":50,"carol":0,"slow":10}`; left.body != want {
				t.Errorf("accounts hold %s, want %s", left.body, want)
			}
			if want := `{"alice":100,"bob":80,"carol":0,"slow":10}`; right.body != want {
				t.Errorf("savings hold %s, want %s", right.body, want)
			}
			root.stop(t)
		})
	}
}

func TestConfigurationErrorsNameTheFlag(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		env  map[string]string
		want string
	}{
		{"unknown service", []string{"--as", "loans"}, nil, `--as "loans": want transfers, accounts or savings`},
		{"no data file", []string{"--as", "savings"}, nil, `--data is missing: name the file that keeps the entries of savings`},
		{"no upstreams", nil, map[string]string{"BANK_SAVINGS_URL": "ftp://x"},
			"--accounts-url \"\": want http://host:port\n--savings-url \"ftp://x\": want http://host:port"},
		{"bad balance", []string{"--as", "accounts", "--data", "d", "--balances", "alice=-1"}, nil,
			`--balances "alice=-1": want account=amount or account=closed, found "alice=-1"`},
		{"bad durations", []string{"--delay", "soon", "--hold", "-1s"},
			map[string]string{"BANK_AS": "accounts", "BANK_DATA": "d"},
			"--delay \"soon\": want a duration such as 250ms or 5s\n--hold \"-1s\": want a duration such as 250ms or 5s"},
		{"stray argument", []string{"accounts"}, nil, `unexpected argument "accounts": everything is a --flag`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseConfig(tt.args, func(name string) string { return tt.env[name] })
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}
