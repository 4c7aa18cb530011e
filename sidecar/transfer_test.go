package sidecar

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"txmesh/interceptor"
	"txmesh/sidecar/peer"
	"txmesh/txlog"
	"txmesh/txn"
)

const transferPolicy = `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: transfer, namespace: bank}
spec:
  start:
  - {name: transfer, match: {service: transfers, method: POST, path: /transfers}, timeout: 20s}
  calls:
  - name: withdraw
    match: {service: accounts, method: POST, path: "/accounts/{id}/withdrawals"}
    undo: {method: DELETE, path: "/accounts/{path.id}/withdrawals/{response.body.id}"}
    undoRetry: {delay: 10ms, maxDelay: 50ms}
  - name: deposit
    match: {service: savings, method: POST, path: "/accounts/{id}/deposits"}
    undo: {method: DELETE, path: "/accounts/{path.id}/deposits/{response.body.id}"}
    undoRetry: {delay: 10ms, maxDelay: 50ms}
  - name: mail
    match: {service: mail, method: POST, path: /mails}
    hold: {}
`

// bank is three services with a sidecar each: transfers calls accounts, then savings.
type bank struct {
	transfers, accounts, savings *service
	at, aa, as                   *running
}

func newBank(t *testing.T, change ...func(c *Config)) *bank {
	return newBankOf(t, func(*Config) {}, change...)
}

// newBankOf changes the configuration of all three, and then that of transfers.
func newBankOf(t *testing.T, all func(c *Config), change ...func(c *Config)) *bank {
	b := &bank{transfers: newService(t), accounts: newService(t), savings: newService(t)}
	of := func(name string, s *service) Config {
		c := config(t, name, s.address(), transferPolicy)
		all(&c)
		return c
	}
	b.aa = start(t, of("bank/accounts", b.accounts))
	b.as = start(t, of("bank/savings", b.savings))
	cfg := of("bank/transfers", b.transfers)
	cfg.Peers = []string{b.aa.Peer, b.as.Peer}
	cfg.Upstreams = []Upstream{{Service: "bank/accounts", Listen: "127.0.0.1:0", To: []string{b.aa.Inbound}, Host: "accounts"},
		{Service: "bank/savings", Listen: "127.0.0.1:0", To: []string{b.as.Inbound}}}
	for _, f := range change {
		f(&cfg)
	}
	b.at = start(t, cfg)
	b.transfers.then = func(r *http.Request) int {
		for _, to := range []string{b.at.Upstreams["bank/accounts"] + "/accounts/alice/withdrawals",
			b.at.Upstreams["bank/savings"] + "/accounts/bob/deposits"} {
			if status := callOn(t, r, "http://"+to); status >= 300 {
				return status
			}
		}
		return 201
	}
	return b
}

func TestTransferHappensEverywhere(t *testing.T) {
	b := newBank(t)
	res, text := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}", "Idempotency-Key", "k1")
	if res.StatusCode != 201 || res.Header.Get("tx-status") != "committed" || text != `{"id":"e1"}` {
		t.Errorf("transfer = %d %s %v, want 201 committed", res.StatusCode, text, res.Header)
	}
	if got := b.accounts.saw() + "; " + b.savings.saw(); got != "POST /accounts/alice/withdrawals; POST /accounts/bob/deposits" {
		t.Errorf("services saw %s", got)
	}
	again, text := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}", "Idempotency-Key", "k1")
	if again.StatusCode != 201 || again.Header.Get("tx-replayed") != "true" || text != `{"id":"e1"}` {
		t.Errorf("repeated transfer = %d %s %v, want the first answer", again.StatusCode, text, again.Header)
	}
}

func TestRefusedTransferIsUndoneEverywhere(t *testing.T) {
	b := newBank(t)
	b.savings.status = 409
	res, _ := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}", "Idempotency-Key", "k1")
	if res.StatusCode != 409 || res.Header.Get("tx-status") != "aborted" {
		t.Errorf("transfer = %d %v, want 409 aborted", res.StatusCode, res.Header)
	}
	if got, want := b.accounts.saw(), "POST /accounts/alice/withdrawals, DELETE /accounts/alice/withdrawals/e1"; got != want {
		t.Errorf("accounts saw %s, want %s", got, want)
	}
	if got := b.savings.saw(); got != "" {
		t.Errorf("savings saw %s, want nothing", got)
	}
	undo := b.accounts.headers[1]
	if undo.Get("tx-op") != "undo" || undo.Get("tx-attempt") != "1" || undo.Get("tx-context") != "" ||
		undo.Get("Idempotency-Key") != `"`+undo.Get("tx-branch")+`-undo"` {
		t.Errorf("undo came with %v", undo)
	}
}

// A transaction that a stopped sidecar left behind is aborted when it starts again, by what the home knows of the
// call that was never answered.
func TestUnansweredBranchIsUndoneAfterRestart(t *testing.T) {
	var cfg Config
	b := newBank(t, func(c *Config) { cfg = *c })
	b.savings.hang = make(chan struct{})
	go func() {
		// The client sees its connection break, or an error of the proxy.
		if req, err := http.NewRequest("POST", "http://"+b.at.Inbound+"/transfers", strings.NewReader("{}")); err == nil {
			if res, err := http.DefaultTransport.RoundTrip(req); err == nil {
				res.Body.Close()
			}
		}
	}()
	eventually(t, "savings has the deposit", func() bool { return b.savings.saw() != "" })
	err := b.at.end()
	if work, ok := errors.AsType[*OpenWork](err); !ok || len(work.IDs) != 1 ||
		!strings.HasPrefix(err.Error(), "stopped with 1 transactions open; start again on the same data directory to end them: "+b.at.Owner+".") {
		t.Errorf("Run = %v, want OpenWork with one id", err)
	}
	close(b.savings.hang)
	at := start(t, cfg)
	if at.Owner != b.at.Owner {
		t.Errorf("owner after restart = %s, was %s", at.Owner, b.at.Owner)
	}
	eventually(t, "both are undone", func() bool {
		return strings.Contains(b.savings.saw(), "DELETE") && strings.Contains(b.accounts.saw(), "DELETE")
	})
	eventually(t, "nothing is open", func() bool { return len(at.owners.IDs()) == 0 })
	if got, want := b.savings.saw(), "POST /accounts/bob/deposits, DELETE /accounts/bob/deposits/e1"; got != want {
		t.Errorf("savings saw %s, want %s", got, want)
	}
}

func TestChainIsUndoneFromItsEnd(t *testing.T) {
	first, middle, last := newService(t), newService(t), newService(t)
	const policy = `apiVersion: txmesh.io/v1beta1
kind: TransactionPolicy
metadata: {name: chain, namespace: a}
spec:
  start:
  - {name: start, match: {service: first, method: POST, path: /go}}
  calls:
  - {name: middle, match: {service: middle, method: POST, path: /m}, undo: {method: DELETE, path: "/m/{response.body.id}"}}
  - {name: last, match: {service: last, method: POST, path: /l}, undo: {method: DELETE, path: "/l/{response.body.id}"}}
`
	// The first sidecar knows no rule of the last call: the document travels with the branch.
	upper := strings.Replace(policy, "  - {name: last,", "  - {name: other,", 1)
	board := newSwitchboard(t)
	c := start(t, config(t, "a/last", last.address()))
	cfg := config(t, "a/middle", middle.address(), policy)
	cfg.Peers = []string{c.Peer, board.Addr().String()}
	cfg.Upstreams = []Upstream{{Service: "a/last", Listen: "127.0.0.1:0", To: []string{c.Inbound}}}
	b := start(t, cfg)
	cfg = config(t, "a/first", first.address(), upper)
	cfg.Peers = []string{b.Peer, c.Peer}
	cfg.Upstreams = []Upstream{{Service: "a/middle", Listen: "127.0.0.1:0", To: []string{b.Inbound}}}
	a := start(t, cfg)
	board.point(a.Peer)
	eventually(t, "the middle knows the first", func() bool {
		b.directory.Refresh(t.Context())
		return len(b.directory.Unanswered()) == 0
	})

	middle.then = func(r *http.Request) int { return callOn(t, r, "http://"+b.Upstreams["a/last"]+"/l") }
	first.then = func(r *http.Request) int {
		callOn(t, r, "http://"+a.Upstreams["a/middle"]+"/m")
		return 500
	}
	res, text := call(t, "POST", "http://"+a.Inbound+"/go", "{}")
	if res.StatusCode != 500 || res.Header.Get("tx-status") != "aborted" {
		t.Fatalf("go = %d %v %s, want 500 aborted", res.StatusCode, res.Header, text)
	}
	if got := middle.saw() + "; " + last.saw(); got != "POST /m, DELETE /m/e1; POST /l, DELETE /l/e1" {
		t.Errorf("services saw %s", got)
	}
	d := a.history(res.Header.Get("tx-id"))
	var undone []string
	for _, e := range d {
		if e.Event == "answered" && e.Op == "undo" {
			undone = append(undone, e.Branch)
		}
	}
	if strings.Join(undone, " ") != "1 0" {
		t.Errorf("undone in the order %v, want the child 1 before its parent 0", undone)
	}
}

type historyLine struct {
	Event, Branch, Op, Outcome string
}

func (r *running) history(id string) []historyLine {
	r.t.Helper()
	status, text := r.api("GET", "/v1/transactions/"+id, "")
	if status != 200 {
		r.t.Fatalf("GET transaction %s = %d %s", id, status, text)
	}
	var d struct{ History []historyLine }
	unmarshal(r.t, text, &d)
	return d.History
}

func TestHeadersOfTheApplicationMakeABranch(t *testing.T) {
	b := newBank(t)
	b.transfers.then = func(r *http.Request) int {
		callOn(t, r, "http://"+b.at.Upstreams["bank/accounts"]+"/orders", "tx-undo", "DELETE /orders/{response.body.id}")
		return 500
	}
	res, _ := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}")
	if res.Header.Get("tx-status") != "aborted" {
		t.Errorf("transfer = %d %v, want aborted", res.StatusCode, res.Header)
	}
	if got, want := b.accounts.saw(), "POST /orders, DELETE /orders/e1"; got != want {
		t.Errorf("accounts saw %s, want %s", got, want)
	}
}

func TestHeldCallIsSentAfterTheCommit(t *testing.T) {
	mail := newService(t)
	b := newBank(t, func(c *Config) {
		c.Upstreams = append(c.Upstreams, Upstream{Service: "bank/mail", Listen: "127.0.0.1:0", To: []string{mail.address()}})
	})
	answered := make(chan int, 1)
	b.transfers.then = func(r *http.Request) int {
		answered <- callOn(t, r, "http://"+b.at.Upstreams["bank/mail"]+"/mails")
		if got := mail.saw(); got != "" {
			t.Errorf("mail saw %s before the commit", got)
		}
		return 201
	}
	call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}")
	if got := <-answered; got != 202 {
		t.Errorf("held call = %d, want 202", got)
	}
	eventually(t, "the mail is sent", func() bool { return mail.saw() == "POST /mails" })
	mail.mu.Lock()
	defer mail.mu.Unlock()
	if op := mail.headers[0].Get("tx-op"); op != "deliver" {
		t.Errorf("mail came with tx-op %q, want deliver", op)
	}
}

// What the root itself wrote is branch 0: its undo goes to the application through its own inbound port.
func TestOwnWritesOfTheRootAreUndone(t *testing.T) {
	b := newBank(t, func(c *Config) {
		text := strings.Replace(transferPolicy, "path: /transfers}, timeout: 20s}", `path: /transfers}, commitWhen: response.code == 299,
    undo: {method: DELETE, path: "/transfers/{response.body.id}"}}`, 1)
		if text == transferPolicy {
			t.Fatal("the policy has another form")
		}
		if err := os.WriteFile(c.Policies[0], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	res, _ := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}")
	if res.Header.Get("tx-status") != "aborted" {
		t.Errorf("transfer = %d %v, want aborted", res.StatusCode, res.Header)
	}
	if got, want := b.transfers.saw(), "POST /transfers, DELETE /transfers/e1"; got != want {
		t.Errorf("transfers saw %s, want %s", got, want)
	}
	if got, want := b.accounts.saw(), "POST /accounts/alice/withdrawals, DELETE /accounts/alice/withdrawals/e1"; got != want {
		t.Errorf("accounts saw %s, want %s", got, want)
	}
}

func TestTransactionOfTheAPI(t *testing.T) {
	b := newBank(t)
	for _, tt := range []struct{ act, status, saw string }{
		{"commit", "committed", "POST /accounts/x/withdrawals"},
		{"abort", "aborted", "POST /accounts/x/withdrawals, DELETE /accounts/x/withdrawals/e1"},
	} {
		t.Run(tt.act, func(t *testing.T) {
			b.accounts.change(func() { b.accounts.entries, b.accounts.answers = nil, map[string]int{} })
			status, text := b.at.api("POST", "/v1/transactions", `{"name":"import","timeout":"10s"}`)
			begun := decode[struct {
				ID, Context, Status string
				Expires             time.Time
			}](t, text)
			if status != 201 || begun.Status != "open" || !strings.HasPrefix(begun.ID, b.at.Owner+".") {
				t.Fatalf("begin = %d %s", status, text)
			}
			res, _ := call(t, "POST", "http://"+b.at.Upstreams["bank/accounts"]+"/accounts/x/withdrawals", "{}", "tx-context", begun.Context)
			if res.StatusCode != 201 {
				t.Fatalf("call = %d", res.StatusCode)
			}
			if status, text := b.at.api("POST", "/v1/transactions/"+begun.ID+"/"+tt.act, ""); status != 200 {
				t.Fatalf("%s = %d %s", tt.act, status, text)
			}
			eventually(t, tt.status, func() bool {
				_, text := b.at.api("GET", "/v1/transactions/"+begun.ID, "")
				return strings.Contains(text, `"phase":"`+tt.status+`"`)
			})
			if got := b.accounts.saw(); got != tt.saw {
				t.Errorf("accounts saw %s, want %s", got, tt.saw)
			}
		})
	}
}

func TestForwardProxyKnowsUpstreamsByHost(t *testing.T) {
	b := newBank(t)
	b.transfers.then = func(r *http.Request) int {
		return callOn(t, r, "http://"+b.at.Upstreams["bank/accounts"]+"/accounts/alice/withdrawals")
	}
	_, text := b.at.api("POST", "/v1/transactions", "")
	begun := decode[struct {
		ID, Context, Status string
		Expires             time.Time
	}](t, text)
	proxied := &http.Transport{Proxy: http.ProxyURL(mustURL(t, "http://"+b.at.Outbound))}
	defer proxied.CloseIdleConnections()
	req, err := http.NewRequest("POST", "http://accounts/accounts/y/withdrawals", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("tx-context", begun.Context)
	res, err := proxied.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 201 {
		t.Errorf("call through the forward proxy = %d, want 201", res.StatusCode)
	}
	if status, text := b.at.api("POST", "/v1/transactions/"+begun.ID+"/abort", ""); status != 200 {
		t.Errorf("abort = %d %s", status, text)
	}
	eventually(t, "it is undone", func() bool {
		return b.accounts.saw() == "POST /accounts/y/withdrawals, DELETE /accounts/y/withdrawals/e1"
	})
}

func TestBadPolicyKeepsTheLastGoodSet(t *testing.T) {
	b := newBank(t)
	before := b.at.Current()
	b.at.replacePolicy("apiVersion: txmesh.io/v1beta1\nkind: Nonsense\n")
	eventually(t, "the error is counted", func() bool {
		_, text := call(t, "GET", "http://"+b.at.API+"/metrics", "")
		return strings.Contains(text, "txmesh_policy_reload_errors_total 1\n")
	})
	if b.at.Current() != before {
		t.Error("a bad file took the last good set out of force")
	}
	b.at.replacePolicy(strings.Replace(transferPolicy, "name: withdraw\n", "name: debit\n", 1))
	eventually(t, "the new set is in force", func() bool { return b.at.Current() != before })
	if res, _ := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}"); res.StatusCode != 201 {
		t.Errorf("transfer under the new set = %d, want 201", res.StatusCode)
	}
}

func TestRowsGoWhenTheirOwnerHasFinished(t *testing.T) {
	b := newBank(t, func(c *Config) {
		text, err := os.ReadFile(c.Policies[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.Policies[0], []byte(strings.Replace(string(text), "timeout: 20s", "timeout: 1s", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	count := func(r *running) (n int) {
		if err := (rows{table: r.store.Table("barrier")}).Each(t.Context(), func(string, []byte) bool { n++; return true }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}")
	if count(b.aa) != 1 || count(b.as) != 1 {
		t.Fatalf("rows = %d and %d, want one each", count(b.aa), count(b.as))
	}
	// accounts has no peers: it cannot ask, and says so by its gauge.
	eventually(t, "the row at accounts is an orphan", func() bool {
		if err := b.aa.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.aa.orphans.mu.Lock()
		defer b.aa.orphans.mu.Unlock()
		return b.aa.orphans.count == 1
	})
	if err := b.as.end(); err != nil {
		t.Fatal(err)
	}
	cfg := b.as.cfg
	cfg.Peers = []string{b.at.Peer}
	as := start(t, cfg)
	eventually(t, "the row at savings is gone", func() bool {
		if err := as.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		return count(as) == 0
	})
	_, text := call(t, "GET", "http://"+as.API+"/metrics", "")
	if !strings.Contains(text, "txmesh_oldest_orphan_seconds 0\n") {
		t.Error("savings still shows an orphan")
	}
}

func TestSweepDropsOnlyWhatHasEnded(t *testing.T) {
	s := start(t, config(t, "a/b", newService(t).address()))
	table := s.store.Table("barrier")
	begin := func() string {
		_, text := s.api("POST", "/v1/transactions", "")
		var begun struct{ ID string }
		unmarshal(t, text, &begun)
		return begun.ID
	}
	ended := begin()
	if status, text := s.api("POST", "/v1/transactions/"+ended+"/abort", ""); status != 200 {
		t.Fatalf("abort = %d %s", status, text)
	}
	long := time.Now().Add(-s.cfg.Retention - time.Minute)
	for _, tt := range []struct {
		name     string
		id       string
		deadline time.Time
		kept     bool
	}{
		{"open", begin(), long, true},
		{"ended", ended, time.Now(), false},
		{"unknown", s.Owner + ".x", time.Now().Add(-time.Minute), true},
		{"unknown for long", s.Owner + ".y", long, false},
	} {
		branch := interceptor.BranchName(txn.ID(tt.id), "0")
		if err := table.Put(t.Context(), []txlog.Row{{Key: branch, Value: []byte("row")}}, false); err != nil {
			t.Fatal(err)
		}
		if left := s.sweepOwner(t.Context(), s.Owner, []interceptor.Overdue{{Branch: branch, Deadline: tt.deadline}}); len(left) != 0 {
			t.Errorf("%s: orphans = %v, though the owner answers", tt.name, left)
		}
		if _, err := table.Get(t.Context(), branch); (err == nil) != tt.kept {
			t.Errorf("%s: row = %v, want kept %v", tt.name, err, tt.kept)
		}
	}
	if _, text := s.api("GET", "/v1/transactions?phase=open", ""); !strings.Contains(text, `"phase":"open"`) {
		t.Errorf("open transactions = %s", text)
	}
}

func TestStrangerAtThePeerPortIsRefused(t *testing.T) {
	b := newBank(t)
	res, text := call(t, "POST", "http://"+b.at.Peer+"/v1/status", `{"ids":[]}`)
	if want := `{"code":"unauthorized","text":"` + peer.ErrUnsigned.Error() + `"}`; res.StatusCode != 401 || text != want {
		t.Errorf("status without signature = %d %s, want 401 %s", res.StatusCode, text, want)
	}
	eventually(t, "it is counted", func() bool {
		_, text := call(t, "GET", "http://"+b.at.API+"/metrics", "")
		return strings.Contains(text, `txmesh_peer_refused_total{cause="unsigned"} 1`)
	})
}

var _ interceptor.Policies = (*Sidecar)(nil)
