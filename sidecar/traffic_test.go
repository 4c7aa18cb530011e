package sidecar

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// endpoint is one of a service. A request for /held is answered when the test lets it go.
type endpoint struct {
	*httptest.Server
	requests atomic.Int64
	held     chan struct{} // gets one for each request that is held
	free     func()        // lets all of them go
}

func newEndpoint(t *testing.T, status int) *endpoint {
	t.Helper()
	gate := make(chan struct{})
	e := &endpoint{held: make(chan struct{}, 100), free: sync.OnceFunc(func() { close(gate) })}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.requests.Add(1)
		if r.URL.Path == "/held" {
			e.held <- struct{}{}
			<-gate
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(e.Close)
	t.Cleanup(e.free)
	return e
}

// caller is a sidecar whose application calls accounts at some endpoints.
func caller(t *testing.T, policy string, to ...*endpoint) *running {
	t.Helper()
	cfg := config(t, "bank/transfers", newService(t).address(), policy)
	u := Upstream{Service: "bank/accounts", Listen: "127.0.0.1:0"}
	for _, e := range to {
		u.To = append(u.To, e.Listener.Addr().String())
	}
	cfg.Upstreams = []Upstream{u}
	return start(t, cfg)
}

// ask makes one request of accounts, and returns the status and the code of a refusal.
func (r *running) ask(method, path string) string {
	r.t.Helper()
	res, _ := call(r.t, method, "http://"+r.Upstreams["bank/accounts"]+path, "")
	return strings.TrimSpace(res.Status[:3] + " " + res.Header.Get("tx-error"))
}

// later is ask beside the test.
func (r *running) later(path string) chan string {
	out := make(chan string, 1)
	go func() {
		res, err := http.Get("http://" + r.Upstreams["bank/accounts"] + path)
		if err != nil {
			out <- err.Error()
			return
		}
		res.Body.Close()
		out <- strings.TrimSpace(res.Status[:3] + " " + res.Header.Get("tx-error"))
	}()
	return out
}

// toAccounts are the series of that destination that are not 0.
func (r *running) toAccounts() map[string]string {
	r.t.Helper()
	_, text := call(r.t, "GET", "http://"+r.API+"/metrics", "")
	out := map[string]string{}
	for line := range strings.Lines(text) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.Contains(series, `{destination="bank/accounts"`) && value != "0" {
			out[series] = value
		}
	}
	return out
}

// becomes waits until the series of accounts are these.
func (r *running) becomes(want map[string]string) {
	r.t.Helper()
	var got map[string]string
	defer func() {
		if r.t.Failed() {
			r.t.Log(cmp.Diff(want, got))
		}
	}()
	eventually(r.t, "the metrics are as wanted", func() bool {
		got = r.toAccounts()
		return cmp.Equal(want, got)
	})
}

const limitedAccounts = `apiVersion: txmesh.io/v1beta1
kind: TrafficPolicy
metadata: {name: accounts, namespace: bank}
spec:
  to: accounts
  timeouts: {connect: 1m}
  connections: {maxRequests: 1, maxPending: 1}
  circuitBreaker: {consecutiveErrors: 3, interval: 1h, ejectFor: 1h}
  retries: {on: [gateway-error]}
  loadBalancing: RoundRobin
`

// One of two endpoints fails: what may be repeated is, the endpoint is left out, and more than the limit is turned away.
// All of it is counted, in the series that the reference names.
func TestTrafficOfADestinationIsCounted(t *testing.T) {
	bad, good := newEndpoint(t, 503), newEndpoint(t, 200)
	r := caller(t, limitedAccounts, bad, good)
	if got := [2]string{r.ask("POST", "/"), r.ask("POST", "/")}; got != [2]string{"503", "200"} && got != [2]string{"200", "503"} {
		t.Errorf("POST = %q, want the answer of each endpoint", got)
	}
	for range 10 {
		if got := r.ask("PUT", "/"); got != "200" {
			t.Errorf("PUT = %s, want 200", got)
		}
	}
	if got := [2]int64{bad.requests.Load(), good.requests.Load()}; got != [2]int64{3, 11} {
		t.Errorf("the endpoints saw %v requests, want 3 until the first is ejected, and 11", got)
	}
	first := r.later("/held")
	<-good.held
	second := r.later("/held")
	want := map[string]string{
		`txmesh_picks_total{destination="bank/accounts",endpoint="healthy"}`: "15",
		`txmesh_retries_total{destination="bank/accounts",granted="true"}`:   "2",
		`txmesh_ejections_total{destination="bank/accounts"}`:                "1",
		`txmesh_pending_requests{destination="bank/accounts"}`:               "1",
	}
	r.becomes(want)
	if got := r.ask("GET", "/"); got != "503 TXM0236" {
		t.Errorf("a third request = %s, want 503 TXM0236", got)
	}
	want[`txmesh_refused_by_limit_total{destination="bank/accounts",op="false"}`] = "1"
	r.becomes(want)
	good.free()
	if got := [2]string{<-first, <-second}; got != [2]string{"200", "200"} {
		t.Errorf("what ran and what waited = %q, want 200 twice", got)
	}
	delete(want, `txmesh_pending_requests{destination="bank/accounts"}`)
	want[`txmesh_picks_total{destination="bank/accounts",endpoint="healthy"}`] = "16"
	r.becomes(want)
	_, text := call(t, "GET", "http://"+r.API+"/metrics", "")
	for _, m := range trafficMetrics() {
		if !strings.Contains(text, "\n"+m.name+`{destination="bank/accounts"`) {
			t.Errorf("%s is in the reference and not at /metrics", m.name)
		}
	}
}

const plainAccounts = `apiVersion: txmesh.io/v1beta1
kind: TrafficPolicy
metadata: {name: accounts, namespace: bank}
spec:
  to: accounts
  retries: {attempts: 0}
  loadBalancing: RoundRobin
`

// A changed policy holds for what comes; what runs goes on as it began.
func TestAChangedTrafficPolicyTakesForce(t *testing.T) {
	bad, good := newEndpoint(t, 503), newEndpoint(t, 200)
	r := caller(t, plainAccounts, good, bad)
	running := r.later("/held")
	select {
	case <-good.held:
	case <-bad.held:
		t.Fatal("the first request went to the second endpoint")
	}
	if got := [2]string{r.ask("PUT", "/"), r.ask("PUT", "/")}; got != [2]string{"503", "200"} {
		t.Errorf("PUT without repeats = %q, want the answer of each endpoint", got)
	}
	before := r.Current()
	r.replacePolicy(strings.Replace(plainAccounts, "{attempts: 0}", "{on: [gateway-error]}", 1) + `  routes:
  - {name: held, match: {method: GET, path: /held}, timeouts: {request: 20ms}}
`)
	eventually(t, "the new set is in force", func() bool { return r.Current() != before })
	for range 4 {
		if got := r.ask("PUT", "/"); got != "200" {
			t.Fatalf("PUT with repeats = %s, want 200", got)
		}
	}
	for range 2 { // at either endpoint
		if got := r.ask("GET", "/held"); got != "504 TXM0223" {
			t.Errorf("a request that is held = %s, want 504 TXM0223", got)
		}
	}
	good.free()
	if got := <-running; got != "200" {
		t.Errorf("the request that ran meanwhile = %s, want 200", got)
	}
}
