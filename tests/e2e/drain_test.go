package e2e

import (
	"strings"
	"testing"
	"time"
)

// SIGTERM: the sidecar says that it is not ready, and serves on until its application is gone and nothing is open.
func TestSIGTERMFinishesOpenWork(t *testing.T) {
	t.Parallel()
	s := newShop(t, "--grace-period", "30s")
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("stock", "/proxy", order{})}, Hold: "go"}.json())
	s.shop.does("POST /orders 201")
	if r := s.shop.admin("GET", "/readyz", ""); r.status != 200 || strings.TrimSpace(r.body) != `{"status":"ready"}` {
		t.Errorf("readyz = %d %s, want ready", r.status, r.body)
	}
	s.shop.sidecar.Term()
	s.eventually("readiness flips", func() (bool, string) {
		r, err := s.shop.ask("GET", "/readyz", "")
		return err == nil && r.status == 503 && strings.Contains(r.body, `"detail":"draining"`), r.body + errText(err)
	})
	if r := s.shop.admin("GET", "/healthz", ""); r.status != 200 {
		t.Errorf("healthz while draining = %d %s, want 200", r.status, r.body)
	}
	// The application still works: its calls are still branches, its answer still decides.
	if r := s.call("POST", "http://"+s.shop.to["stock"]+"/proxy", "{}", "Traceparent", s.shop.effects0().Traceparent); r.status != 201 {
		t.Errorf("call while draining = %d %s", r.status, r.body)
	}
	s.shop.release("go")
	r, err := p.wait(t)
	if err != nil || r.status != 201 || r.header.Get("Tx-Status") != "committed" {
		t.Errorf("order = %d %s %v, want 201 committed", r.status, r.body, err)
	}
	if !s.shop.sidecar.Running() {
		t.Fatal("the sidecar has ended before its application")
	}
	s.shop.service.Kill()
	if code, err := s.shop.sidecar.End(10 * time.Second); err != nil || code != 0 {
		t.Errorf("exit status = %d %v, want 0\n%s", code, err, s.shop.sidecar.Tail())
	}
}

// With work left at the end of the grace period the exit status says so and the ids are listed; the next start on
// the same directory goes on.
func TestSIGTERMNamesWhatIsLeftOpen(t *testing.T) {
	t.Parallel()
	s := newShop(t, "--grace-period", "300ms")
	s.stock.override(`{"DELETE":{"status":503}}`)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("stock", "/proxy", order{})}, Status: 422}.json())
	x := s.shop.only()
	s.eventually("an undo was turned away", func() (bool, string) { return strings.Contains(s.stock.did(), "DELETE"), s.stock.did() })
	s.shop.sidecar.Term()
	code, err := s.shop.sidecar.End(20 * time.Second)
	if err != nil || code != 1 {
		t.Errorf("exit status = %d %v, want 1", code, err)
	}
	// The client is told that the undo goes on, or its connection is cut when the time is up.
	if r, err := p.wait(t); err == nil && r.status != 202 {
		t.Errorf("the client got %d %s", r.status, r.body)
	}
	want := "\nstopped with 1 transactions open; start again on the same data directory to end them: " + x.ID + "\n"
	if said := s.shop.sidecar.Output(); !strings.Contains(said, want) {
		t.Errorf("it said %q, want %q", said, want)
	}
	s.stock.override(`{}`)
	s.must(s.shop.startSidecar())
	s.ended("aborted")
	if did := s.stock.did(); !strings.HasSuffix(did, "DELETE /proxy/e1 200") {
		t.Errorf("stock did %s, want the undo at the end", did)
	}
}

// The second signal ends the process at once.
func TestSecondSIGTERMEndsAtOnce(t *testing.T) {
	t.Parallel()
	s := newShop(t, "--grace-period", "10m")
	s.shop.sidecar.Term()
	s.eventually("it drains", func() (bool, string) {
		r, err := s.shop.ask("GET", "/readyz", "")
		return err == nil && strings.Contains(r.body, `"detail":"draining"`), r.body + errText(err)
	})
	s.shop.sidecar.Term()
	if _, err := s.shop.sidecar.End(5 * time.Second); err != nil {
		t.Error(err)
	}
	s.must(s.shop.startSidecar())
}

func (n *node) effects0() effect {
	n.m.t.Helper()
	all := n.effects()
	if len(all) == 0 {
		n.m.t.Fatalf("%s has done nothing", n.name)
	}
	return all[0]
}
