package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"txmesh/tests/processes"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// golden compares what was seen with a file. What differs from run to run is named: <shop.api>, <dir>, <tx>.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

// named puts names in place of addresses, directories, ids and times.
func (m *mesh) named(text string) string {
	var pairs []string
	for _, n := range m.order {
		for _, a := range [][2]string{{n.listen, "listen"}, {n.inbound, "inbound"}, {n.api, "api"}, {n.peer, "peer"}, {n.outbound, "outbound"}} {
			pairs = append(pairs, a[0], "<"+n.name+"."+a[1]+">")
		}
		for other, a := range n.to {
			pairs = append(pairs, a, "<"+n.name+"."+other+">")
		}
		if n.owner != "" {
			pairs = append(pairs, n.owner, "<owner>")
		}
	}
	text = strings.NewReplacer(append(pairs, m.dir, "<dir>")...).Replace(text)
	text = regexp.MustCompile(`<owner>\.[0-9A-HJKMNP-TV-Z]{26}`).ReplaceAllString(text, "<tx>")
	text = regexp.MustCompile(`127\.0\.0\.1:\d+->`).ReplaceAllString(text, "<ephemeral>->")
	return regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`).ReplaceAllString(text, "<time>")
}

// shown is an answer as the golden file has it: status, our own headers and those that tell the client what to do, body.
func (m *mesh) shown(name string, r reply) string {
	var b strings.Builder
	fmt.Fprintf(&b, "== %s\n%d\n", name, r.status)
	for _, h := range []string{"Content-Type", "Retry-After", "Tx-Error", "Tx-Id", "Tx-Status", "Www-Authenticate"} {
		if v := r.header.Get(h); v != "" {
			fmt.Fprintf(&b, "%s: %s\n", strings.ToLower(h), m.named(v))
		}
	}
	fmt.Fprintf(&b, "\n%s\n\n", strings.TrimSpace(m.named(r.body)))
	return b.String()
}

// Each refusal that a client or an application can meet on the wire, whole.
func TestRefusalsOnTheWire(t *testing.T) {
	t.Parallel()
	s := newShop(t, "--max-body", "1KiB")
	var b strings.Builder
	show := func(name string, r reply) { b.WriteString(s.shown(name, r)) }
	stock, third := "http://"+s.shop.to["stock"], "http://"+s.shop.to["third"]
	tx := s.begin("10m")
	in := func(extra ...string) []string { return append([]string{"Tx-Context", tx.Context}, extra...) }
	large := `{"ref":"` + strings.Repeat("x", 2000) + `"}`

	show("forged context", s.call("POST", stock+"/proxy", "{}", "Tx-Context", strings.Repeat("1.", 20)+"forged"))
	changed := strings.Replace(tx.Context, ".-.", ".1.", 1)
	show("context with another parent", s.call("POST", stock+"/proxy", "{}", "Tx-Context", changed))
	show("held body over the limit", s.call("POST", third+"/mails", large, in()...))
	show("read body over the limit", s.call("POST", third+"/none", large, in()...))
	show("root body over the limit", s.shop.root("/orders", large, "Idempotency-Key", `"k"`))
	show("tx-undo without a path", s.call("POST", stock+"/other", "{}", in("Tx-Undo", "DELETE")...))
	show("tx-undo to another service", s.call("POST", stock+"/other", "{}", in("Tx-Undo", "DELETE http://evil.test/x")...))
	show("tx-undo with a broken template", s.call("POST", stock+"/other", "{}", in("Tx-Undo", "DELETE /x/{response.body.id")...))
	show("tx-undo beside tx-hold", s.call("POST", stock+"/other", "{}", in("Tx-Undo", "DELETE /x", "Tx-Hold", "POST /y")...))
	show("tx-confirm without tx-cancel", s.call("POST", stock+"/other", "{}", in("Tx-Confirm", "PUT /x")...))
	show("header too large", s.call("GET", stock+"/", "", "X-Large", strings.Repeat("x", 200<<10)))
	show("key with other content", func() reply {
		s.call("POST", third+"/database", `{"ref":"1"}`, in("Idempotency-Key", `"same"`)...)
		return s.call("POST", third+"/database", `{"ref":"2"}`, in("Idempotency-Key", `"same"`)...)
	}())
	s.third.service.Kill()
	show("untagged call of a service that is down", s.call("GET", third+"/", ""))
	show("branch at a service that is down", s.call("POST", third+"/database", `{"ref":"3"}`, in()...))
	s.shop.service.Kill()
	show("root whose service is down", s.shop.root("/orders", "{}"))
	golden(t, "wire", b.String())
}

// A context that is over joins nothing.
func TestExpiredContextIsRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	tx := s.begin("1s")
	var r reply
	s.eventually("the context has expired", func() (bool, string) {
		r = s.call("POST", "http://"+s.shop.to["stock"]+"/proxy", "{}", "Tx-Context", tx.Context)
		return r.header.Get("Tx-Error") == "TXM0102", r.body
	})
	golden(t, "expired", s.shown("expired context", r))
}

// A forged context from the network is stripped, and so is every other header of the protocol.
func TestForgedHeadersFromTheNetworkAreStripped(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	r := s.stock.root("/anything", "{}", "Tx-Context", "1.x.y.-.z.forged", "Tx-Id", "forged", "Tx-Branch", "forged-1", "Tx-Op", "undo",
		"Tx-Attempt", "7", "Baggage", "tx=1.x.y.-.z.forged,other=1")
	if r.status != 201 {
		t.Fatalf("request = %d %s", r.status, r.body)
	}
	e := s.stock.effects()[0]
	if e.Tx+e.Branch+e.Op+e.Attempt != "" || e.Baggage != "other=1" {
		t.Errorf("the application saw %+v, want no header of the protocol and baggage other=1", e)
	}
	s.eventually("it is counted", func() (bool, string) {
		v, err := s.stock.metric("txmesh_context_forged_total")
		return v == 1, fmt.Sprint(v, err)
	})
}

// The API without its token, and with wrong requests.
func TestRefusalsOfTheAPI(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var b strings.Builder
	url := "http://" + s.shop.api
	show := func(name string, r reply) { b.WriteString(s.shown(name, r)) }
	show("no token", s.call("GET", url+"/v1/transactions", ""))
	show("wrong token", s.call("POST", url+"/v1/transactions", "{}", "Authorization", "Bearer no"))
	show("profile without token", s.call("GET", url+"/debug/pprof/", ""))
	show("unknown transaction", s.shop.admin("GET", "/v1/transactions/nobody.knows", ""))
	show("commit of an unknown transaction", s.shop.admin("POST", "/v1/transactions/nobody.knows/commit", ""))
	show("malformed body", s.shop.admin("POST", "/v1/transactions", `{"name"`))
	show("unknown key", s.shop.admin("POST", "/v1/transactions", `{"timeuot":"1s"}`))
	show("wrong timeout", s.shop.admin("POST", "/v1/transactions", `{"timeout":"soon"}`))
	show("wrong phase", s.shop.admin("GET", "/v1/transactions?phase=lost", ""))
	show("unknown act", s.shop.admin("POST", "/v1/transactions/nobody.knows/branches/0/undo/burn", "{}"))
	show("act without a reason", s.shop.admin("POST", "/v1/transactions/nobody.knows/branches/0/undo/skip", "{}"))
	show("no such resource", s.shop.admin("GET", "/v2/transactions", ""))
	show("wrong method", s.shop.admin("DELETE", "/v1/transactions", ""))
	golden(t, "api", b.String())
}

// refused runs a sidecar that must not start, and gives what it says.
func (n *node) refused(args ...string) string {
	n.m.t.Helper()
	p := &processes.Process{Name: "sidecar", Path: n.m.bin.sidecar(), Args: args, Log: filepath.Join(n.m.dir, "refused.log")}
	if err := os.RemoveAll(p.Log); err != nil {
		n.m.t.Fatal(err)
	}
	var ready struct{ Ready bool }
	if err := p.Start(&ready); err == nil {
		p.Kill()
		n.m.t.Fatalf("a sidecar with %v started", args)
	}
	if code, err := p.End(processes.ReadyMax); err != nil || code != 1 {
		n.m.t.Errorf("exit status = %d %v, want 1", code, err)
	}
	return n.m.named(p.Output())
}

// Everything that is wrong with the configuration or the policies is said at once, and nothing starts.
func TestRefusalsAtTheStart(t *testing.T) {
	t.Parallel()
	m := newMesh(t, shopPolicy, member{name: "shop"})
	n := m.nodes["shop"]
	var b strings.Builder
	show := func(name, text string) { fmt.Fprintf(&b, "== %s\n%s\n", name, text) }
	show("nothing configured", n.refused())
	file := m.write("sidecar.yaml", "service: bank/shop\napp: 127.0.0.1:1\ninbond: 127.0.0.1:2\nupstreams:\n- {service: a, listen: '127.0.0.1:0', to: ['127.0.0.1:3'], host: x}\n"+
		"- {service: b, to: ['127.0.0.1:3'], host: X, weight: 3}\n- {service: a, listen: nowhere, to: []}\nretention: forever\nmax-body: much\n")
	show("a file with unknown keys and more", n.refused("--config", file))
	show("an unknown flag", n.refused("--inbond", "127.0.0.1:0"))
	bad := m.write("bad.yaml", "apiVersion: txmesh.io/v1beta1\nkind: TransactionPolicy\nmetadata: {name: bad, namespace: bank}\nspec:\n  start:\n"+
		"  - {name: s, match: {service: shop, method: POST, path: /orders}, timeuot: 3s}\n  calls:\n"+
		"  - {name: c, match: {service: stock, method: POST, path: /c}, barrier: None, undo: {method: DELETE, path: '/c/{response.body.id}'}}\n"+
		"  - {name: d, match: {service: stock, method: POST, path: /d}, barrier: Proxi}\n")
	args := slices.Clone(n.sidecar.Args)
	args[slices.Index(args, "--policies")+1] = bad
	show("a policy with three faults", n.refused(args...))
	args[slices.Index(args, "--policies")+1] = filepath.Join(m.dir, "absent.yaml")
	show("a policy that is not there", n.refused(args...))
	m.must(n.startService())
	m.must(n.startSidecar())
	show("a data directory in use", n.refused(n.sidecar.Args...))
	golden(t, "start", b.String())
}

// A bad file at a reload is refused, said and counted; the last good set stays in force.
func TestBadReloadKeepsTheLastGoodPolicies(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	m := s.mesh
	count := func(name string, want float64) {
		t.Helper()
		m.eventually(fmt.Sprintf("%s is %v", name, want), func() (bool, string) {
			v, err := s.shop.metric(name)
			return v == want, fmt.Sprint(v, err)
		})
	}
	m.write("policy.yaml", strings.Replace(shopPolicy, "barrier: Database", "barrier: Databse", 1))
	count("txmesh_policy_reload_errors_total", 1)
	var said []string
	for line := range strings.Lines(s.shop.sidecar.Output()) {
		if strings.Contains(line, "not reloaded") {
			said = append(said, m.named(line))
		}
	}
	golden(t, "reload", strings.Join(said, ""))
	abort := order{Calls: []step{s.shop.calling("stock", "/proxy", order{})}, Status: 422}.json()
	if r := s.shop.root("/orders", abort); r.status != 422 || r.header.Get("Tx-Status") != "aborted" {
		t.Errorf("order under the last good set = %d %s, want 422 aborted", r.status, r.body)
	}
	m.write("policy.yaml", strings.Replace(shopPolicy, "path: /orders}", "path: /purchases}", 1))
	count("txmesh_policy_reloads_total", 1)
	if r := s.shop.root("/purchases", abort); r.header.Get("Tx-Status") != "aborted" {
		t.Errorf("purchase under the new set = %d %v, want a transaction", r.status, r.header)
	}
	if r := s.shop.root("/orders", "{}"); r.header.Get("Tx-Id") != "" {
		t.Errorf("order under the new set = %v, want no transaction", r.header)
	}
	s.stock.does("POST /proxy 201, DELETE /proxy/e1 200, POST /proxy 201, DELETE /proxy/e2 200")
}

// A branch is settled by the document under which it was made, whatever the policies say after the restart.
func TestBranchIsSettledByItsOwnDocument(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	p := s.shop.later("/orders", order{Calls: []step{s.shop.calling("stock", "/proxy", order{})}, Hold: "go"}.json())
	s.shop.does("POST /orders 201")
	s.shop.sidecar.Kill()
	s.mesh.write("policy.yaml", strings.ReplaceAll(shopPolicy, "/proxy", "/elsewhere"))
	s.must(s.shop.startSidecar())
	if _, err := p.wait(t); err == nil {
		t.Error("the client was answered by a killed sidecar")
	}
	s.ended("aborted")
	s.stock.does("POST /proxy 201, DELETE /proxy/e1 200")
}
