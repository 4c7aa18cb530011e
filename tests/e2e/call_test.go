package e2e

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// The application's own headers make a branch where no policy names the call; what they said survives the kill.
func TestHeadersOfTheApplicationSurviveKill(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	undone := s.shop.calling("stock", "/unnamed", order{})
	undone.Header = map[string]string{"Tx-Undo": "DELETE /unnamed/{response.body.id}"}
	held := s.shop.calling("stock", "/unheld", order{Ref: "h"})
	held.Header = map[string]string{"Tx-Hold": "POST /unheld"}
	p := s.shop.later("/orders", order{Calls: []step{undone, held}, Hold: "go"}.json())
	s.shop.does("POST /orders 201")
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	x := s.ended("aborted")
	if len(x.Branches) != 2 {
		t.Errorf("branches = %+v, want two", x.Branches)
	}
	s.stock.does("POST /unnamed 201, DELETE /unnamed/e1 200")
}

// A call repeated with the application's key is the same branch: the second is answered from the record of the home,
// also after the home was killed, and undone once.
func TestRepeatedCallIsOneBranch(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	b := s.begin("20s")
	call := func() reply {
		t.Helper()
		return s.call("POST", "http://"+s.shop.to["stock"]+"/proxy", "{}", "Tx-Context", b.Context, "Idempotency-Key", `"same"`)
	}
	first := call()
	s.stock.crash()
	again := call()
	if first.status != 201 || again.status != 201 || again.body != first.body || again.header.Get("Tx-Replayed") != "true" {
		t.Errorf("first = %d %s, repeat = %d %s %v, want the recorded answer", first.status, first.body, again.status, again.body, again.header)
	}
	if r := s.shop.admin("POST", "/v1/transactions/"+b.ID+"/abort", ""); r.status != 200 {
		t.Errorf("abort = %d %s", r.status, r.body)
	}
	if x := s.shop.reaches(b.ID, "aborted"); len(x.Branches) != 1 {
		t.Errorf("branches = %+v, want one", x.Branches)
	}
	s.stock.does("POST /proxy 201, DELETE /proxy/e1 200")
}

// The forward proxy knows the services by their hosts.
func TestForwardProxyMakesBranches(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	b := s.begin("20s")
	proxied := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: s.shop.outbound})}
	defer proxied.CloseIdleConnections()
	s.client = &http.Client{Transport: proxied, Timeout: 20 * time.Second}
	if r := s.call("POST", "http://stock.test/proxy", "{}", "Tx-Context", b.Context); r.status != 201 {
		t.Fatalf("call = %d %s", r.status, r.body)
	}
	s.client = newClient()
	s.shop.crash()
	if r := s.shop.admin("POST", "/v1/transactions/"+b.ID+"/abort", ""); r.status != 200 {
		t.Errorf("abort = %d %s", r.status, r.body)
	}
	s.shop.reaches(b.ID, "aborted")
	s.stock.does("POST /proxy 201, DELETE /proxy/e1 200")
}

// A sidecar that is not there delays an undo and never loses it; its owner says meanwhile what it waits for.
func TestUndoWaitsForItsHome(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("stock", "/proxy", order{})}, Hold: "go"}.json())
	s.shop.does("POST /orders 201")
	s.stock.sidecar.Kill()
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.eventually("the undo was tried", func() (bool, string) {
		all, err := s.shop.open()
		if err != nil || len(all) != 1 {
			return false, errText(err)
		}
		x, err := s.shop.show(all[0].ID)
		return err == nil && strings.Contains(x.events(), "deferred 0 undo unknown"), x.events()
	})
	if err := s.stock.startSidecar(); err != nil {
		t.Fatal(err)
	}
	s.ended("aborted")
	s.stock.does("POST /proxy 201, DELETE /proxy/e1 200")
}

// A request that a start rule names joins the transaction that it comes with, and opens one of its own without.
func TestInnerStartJoinsTheOuterTransaction(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	inner := func(hold string) order {
		return order{Calls: []step{s.stock.calling("deep", "/last", order{Hold: hold})}}
	}
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("stock", "/inner", inner("go"))}}.json())
	s.deep.does("POST /last 201")
	s.shop.crash()
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.deep.release("go")
	if x := s.ended("aborted"); len(x.Branches) != 2 {
		t.Errorf("branches = %+v, want the inner call and its own call", x.Branches)
	}
	s.deep.does("POST /last 201, DELETE /last/e1 200")
	s.stock.does("POST /inner 201, DELETE /inner/e1 200")
	if own, err := s.stock.list(""); err != nil || len(own) != 0 {
		t.Errorf("transactions of stock = %v %v, want none", own, err)
	}
	r := s.stock.root("/inner", inner("").json())
	if own, err := s.stock.list(""); err != nil || len(own) != 1 || own[0].ID != r.header.Get("Tx-Id") || own[0].Phase != "committed" {
		t.Errorf("transactions of stock = %v %v, want its own one", own, err)
	}
}
