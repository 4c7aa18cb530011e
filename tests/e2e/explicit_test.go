package e2e

import (
	"strings"
	"testing"
)

type begun struct{ ID, Context, Status string }

func (s *shop) begin(timeout string) begun {
	s.t.Helper()
	r := s.shop.admin("POST", "/v1/transactions", `{"name":"import","timeout":"`+timeout+`"}`)
	if r.status != 201 {
		s.t.Fatalf("begin = %d %s", r.status, r.body)
	}
	return decode[begun](s.t, r.body)
}

// A transaction of the API outlives the sidecar: it is decided by the API or by its time, never by a restart.
func TestExplicitTransactionSurvivesKill(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ act, timeout, phase, did string }{
		{"commit", "30s", "committed", "POST /proxy 201, POST /reserve 201, PUT /reserve/e2 200"},
		{"abort", "30s", "aborted", "POST /proxy 201, POST /reserve 201, DELETE /reserve/e2 200, DELETE /proxy/e1 200"},
		{"", "1500ms", "aborted", "POST /proxy 201, POST /reserve 201, DELETE /reserve/e2 200, DELETE /proxy/e1 200"},
	} {
		t.Run(strings.TrimSpace(tt.act+" "+tt.timeout), func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			b := s.begin(tt.timeout)
			for _, path := range []string{"/proxy", "/reserve"} {
				if r := s.call("POST", "http://"+s.shop.to["stock"]+path, "{}", "Tx-Context", b.Context); r.status != 201 {
					t.Fatalf("call = %d %s", r.status, r.body)
				}
			}
			s.shop.crash()
			if tt.act != "" {
				r := s.shop.admin("POST", "/v1/transactions/"+b.ID+"/"+tt.act, "")
				if r.status != 200 || r.header.Get("Tx-Id") != b.ID {
					t.Errorf("%s = %d %s", tt.act, r.status, r.body)
				}
			}
			s.ended(tt.phase)
			s.stock.does(tt.did)
			r := s.shop.admin("POST", "/v1/transactions/"+b.ID+"/commit", "")
			if want := map[string]int{"committed": 200, "aborted": 409}[tt.phase]; r.status != want {
				t.Errorf("commit afterwards = %d %s, want %d", r.status, r.body, want)
			}
		})
	}
}

// A commit waits for an answer that is still out, says so, and is carried out once the home has told it after a kill.
func TestExplicitCommitWaitsForAnAnswer(t *testing.T) {
	t.Parallel()
	s := newShop(t, "--commit-wait", "100ms")
	b := s.begin("20s")
	called := make(chan answered, 1)
	go func() {
		r, err := s.send("POST", "http://"+s.shop.to["stock"]+"/proxy", order{Hold: "go"}.json(), "Tx-Context", b.Context)
		called <- answered{r, err}
	}()
	s.stock.does("POST /proxy 201")
	r := s.shop.admin("POST", "/v1/transactions/"+b.ID+"/commit", "")
	if r.status != 202 || !strings.Contains(r.body, `"waiting":[{"branch":"0","name":"proxy"`) {
		t.Errorf("commit = %d %s, want 202 that names branch 0", r.status, r.body)
	}
	s.shop.crash()
	if a := <-called; a.err == nil {
		t.Error("the application was answered by a killed sidecar")
	}
	s.stock.release("go")
	// The wish to commit was not a decision: it died with the sidecar and is repeated.
	s.eventually("the commit is decided", func() (bool, string) {
		r, err := s.shop.ask("POST", "/v1/transactions/"+b.ID+"/commit", "")
		return err == nil && r.status == 200, r.body + errText(err)
	})
	s.ended("committed")
	s.stock.does("POST /proxy 201")
}

// A commit that waits tells so and is carried out when the answer comes, if the sidecar lives.
func TestExplicitCommitIsCarriedOutLater(t *testing.T) {
	t.Parallel()
	s := newShop(t, "--commit-wait", "100ms")
	b := s.begin("20s")
	called := make(chan answered, 1)
	go func() {
		r, err := s.send("POST", "http://"+s.shop.to["stock"]+"/proxy", order{Hold: "go"}.json(), "Tx-Context", b.Context)
		called <- answered{r, err}
	}()
	s.stock.does("POST /proxy 201")
	if r := s.shop.admin("POST", "/v1/transactions/"+b.ID+"/commit", ""); r.status != 202 {
		t.Errorf("commit = %d %s, want 202", r.status, r.body)
	}
	s.stock.release("go")
	if a := <-called; a.err != nil || a.status != 201 {
		t.Errorf("call = %d %s %v, want 201", a.status, a.body, a.err)
	}
	s.ended("committed")
}

// Limits are refusals that say which, and a refused call is not forwarded.
func TestLimitsAreRefusals(t *testing.T) {
	t.Parallel()
	s := newShop(t, "--max-open", "2", "--max-branches", "2")
	b := s.begin("20s")
	url := "http://" + s.shop.to["stock"] + "/proxy"
	var last reply
	for range 3 {
		last = s.call("POST", url, "{}", "Tx-Context", b.Context)
	}
	s.stock.does("POST /proxy 201, POST /proxy 201")
	other := s.begin("20s")
	var text strings.Builder
	text.WriteString(s.shown("third branch of two", last))
	text.WriteString(s.shown("third transaction of two", s.shop.root("/orders", "{}")))
	text.WriteString(s.shown("third transaction of two over the API", s.shop.admin("POST", "/v1/transactions", "{}")))
	golden(t, "limits", text.String())
	for _, x := range []begun{b, other} {
		if r := s.shop.admin("POST", "/v1/transactions/"+x.ID+"/abort", ""); r.status != 200 {
			t.Errorf("abort = %d %s", r.status, r.body)
		}
		s.shop.reaches(x.ID, "aborted")
	}
	if r := s.shop.root("/orders", "{}"); r.status != 201 {
		t.Errorf("order afterwards = %d %s, want 201", r.status, r.body)
	}
}
