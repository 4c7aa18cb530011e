package admin

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"txmesh/policies"
)

// guarding is the API with certificates and a policy, and with handlers that only say that they were reached.
type guarding struct {
	*Server
	denied []string
}

const accessPolicy = `apiVersion: txmesh.io/v1beta1
kind: AccessPolicy
metadata: {name: x, namespace: bank}
spec:
  rules:
  - {from: [starter], may: [start]}
  - {from: [decider], may: [decide]}
  - {from: [operator], may: [operate]}
  - {from: [narrow], may: [start], requests: [{path: /elsewhere}]}
  - {from: ["*"], may: [join]}
`

func newGuarding(t *testing.T, policy string) *guarding {
	t.Helper()
	g := &guarding{}
	var access *policies.Access
	if policy != "" {
		set, err := policies.Compile(policies.Source{Name: "p", Data: []byte(policy)})
		if err != nil {
			t.Fatal(err)
		}
		access = set.Access("bank/transfers")
	}
	g.Server = New(Options{Service: "bank/transfers", Token: token, Log: slog.New(slog.DiscardHandler),
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }),
		Ready:   func() []string { return nil },
		Caller:  func(r *http.Request) string { return r.Header.Get("caller") },
		Access:  func() *policies.Access { return access },
		Denied:  func(act policies.Act, reason string) { g.denied = append(g.denied, act.String()+" "+reason) }})
	return g
}

// ask makes a request that gets past the guard at most as far as to a body that is malformed, or to a panic of an
// engine that is not there.
func (g *guarding) ask(pattern, remote, caller, authorization string) (status int) {
	method, path, _ := strings.Cut(pattern, " ")
	for _, part := range []string{"{id}", "{branch}", "{op}", "{act}"} {
		path = strings.ReplaceAll(path, part, "x")
	}
	if strings.HasPrefix(path, "/debug/pprof/profile") || strings.HasPrefix(path, "/debug/pprof/trace") {
		path += "?seconds=x" // it would take its time
		method = "GET"
	}
	r := httptest.NewRequest(method, path, strings.NewReader("{"))
	r.RemoteAddr = remote
	r.Header.Set("caller", caller)
	r.Header.Set("Authorization", authorization)
	w := httptest.NewRecorder()
	defer func() {
		if recover() != nil {
			status = 200 // it got as far as to the engine
		}
	}()
	g.ServeHTTP(w, r)
	return w.Code
}

const here, elsewhere = "127.0.0.1:5", "192.0.2.7:5"

// From outside nothing but health is answered without a right; on this host metrics are as well.
func TestWhatIsOpenToWhom(t *testing.T) {
	g := newGuarding(t, "")
	open := func(remote string) []string {
		var out []string
		for _, r := range g.routes() {
			if g.ask(r.pattern, remote, "", "") != 401 {
				out = append(out, r.pattern)
			}
		}
		return out
	}
	if diff := cmp.Diff([]string{"GET /healthz", "GET /readyz"}, open(elsewhere)); diff != "" {
		t.Errorf("open to others differs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"GET /healthz", "GET /readyz", "GET /metrics"}, open(here)); diff != "" {
		t.Errorf("open to this host differs (-want +got):\n%s", diff)
	}
	if got := g.ask("GET /metrics", elsewhere, "", "Bearer "+token); got != 200 {
		t.Errorf("metrics with the token from outside = %d", got)
	}
}

func TestCertificatesGrantWhatARuleSays(t *testing.T) {
	want := map[string]string{
		"GET /metrics":                                            "decider operator",
		"POST /v1/transactions":                                   "starter",
		"GET /v1/transactions":                                    "decider operator",
		"GET /v1/transactions/{id}":                               "decider operator",
		"POST /v1/transactions/{id}/commit":                       "decider",
		"POST /v1/transactions/{id}/abort":                        "decider",
		"POST /v1/transactions/{id}/branches":                     "decider",
		"POST /v1/transactions/{id}/extend":                       "decider",
		"POST /v1/transactions/{id}/hasten":                       "operator",
		"POST /v1/transactions/{id}/stop":                         "operator",
		"POST /v1/takeovers/dtm":                                  "operator",
		"GET /debug/pprof/":                                       "operator",
		"GET /debug/pprof/cmdline":                                "operator",
		"GET /debug/pprof/symbol":                                 "operator",
		"POST /v1/transactions/{id}/branches/{branch}/leave":      "decider",
		"POST /v1/transactions/{id}/branches/{branch}/{op}/{act}": "operator",
	}
	g := newGuarding(t, accessPolicy)
	for _, r := range g.routes() {
		allowed, known := want[r.pattern]
		if !known {
			continue
		}
		var got []string
		for _, name := range []string{"starter", "decider", "operator", "narrow", "nobody"} {
			switch status := g.ask(r.pattern, elsewhere, "spiffe://mesh/ns/bank/sa/"+name, ""); status {
			case 403:
			case 401:
				t.Errorf("%s by %s = 401, want 403: it has shown a certificate", r.pattern, name)
			default:
				got = append(got, name)
			}
		}
		if strings.Join(got, " ") != allowed {
			t.Errorf("%s is allowed to %v, want %s", r.pattern, got, allowed)
		}
		if status := g.ask(r.pattern, elsewhere, "spiffe://mesh/ns/bank/sa/nobody", "Bearer "+token); status == 401 || status == 403 {
			t.Errorf("%s with the token and a certificate of nobody = %d", r.pattern, status)
		}
	}
	g.denied = nil
	g.ask("POST /v1/transactions/{id}/stop", here, "spiffe://mesh/ns/bank/sa/decider", "")
	g.ask("POST /v1/transactions", here, "", "Bearer wrong")
	if diff := cmp.Diff([]string{"operate not_authorised", "start no_token"}, g.denied); diff != "" {
		t.Errorf("counted differs (-want +got):\n%s", diff)
	}
}

// Without a policy a certificate is no token.
func TestCertificatesGrantNothingWithoutAPolicy(t *testing.T) {
	if got := newGuarding(t, "").ask("POST /v1/transactions/{id}/stop", here, "spiffe://mesh/ns/bank/sa/operator", ""); got != 403 {
		t.Errorf("stop by certificate without a policy = %d, want 403", got)
	}
}
