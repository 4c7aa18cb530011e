package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// modes is a sidecar that begins transactions for its service, the initiator, and participants without sidecars, which
// keep their answers by key as the engine's repeats need it.
type modes struct {
	*mesh
	t                    *testing.T
	home, stock, savings *node
}

func newModes(t *testing.T, flags ...string) *modes {
	t.Helper()
	m := newMesh(t, shopPolicy,
		member{name: "stock", bare: true, app: []string{"--keyed"}},
		member{name: "savings", bare: true, app: []string{"--keyed"}},
		member{name: "shop", flags: flags})
	m.start()
	return &modes{mesh: m, t: t, home: m.nodes["shop"], stock: m.nodes["stock"], savings: m.nodes["savings"]}
}

// aim writes a target at a node.
func aim(n *node, method, path string, body string) string {
	if body == "" {
		body = "{}"
	}
	return fmt.Sprintf(`{"url":"http://%s%s","method":%q,"body":%s}`, n.listen, path, method, body)
}

// api makes a request that must be answered with this status.
func (m *modes) api(path, body string, status int) reply {
	m.t.Helper()
	r := m.home.admin("POST", "/v1/transactions"+path, body)
	if r.status != status {
		m.t.Fatalf("POST %s %s = %d %s, want %d", path, body, r.status, r.body, status)
	}
	return r
}

// begin opens a transaction and gives its id.
func (m *modes) begin(body string) string {
	m.t.Helper()
	return decode[begun](m.t, m.api("", body, 201).body).ID
}

// direct calls a participant as an initiator does.
func (m *modes) direct(n *node, method, path, body string) {
	m.t.Helper()
	if r := m.call(method, "http://"+n.listen+path, body); r.status >= 300 {
		m.t.Fatalf("%s %s = %d %s", method, path, r.status, r.body)
	}
}

// restart kills a service with -9 and starts it again: what it did is in its file.
func (n *node) restart() {
	n.m.t.Helper()
	n.service.Kill()
	n.m.must(n.startService())
}

// keys are the Idempotency-Keys of what a participant did, without the transaction.
func (n *node) keys(id string) string {
	var out []string
	for _, e := range n.effects() {
		out = append(out, strings.TrimPrefix(strings.Trim(e.Key, `"`), id))
	}
	return strings.Join(out, " ")
}

// A saga whose begin is repeated after the kill, whose second call is in flight in the next one, and whose participant
// dies as well: each call takes effect once.
func TestSagaSurvivesKill(t *testing.T) {
	t.Parallel()
	m := newModes(t)
	body := fmt.Sprintf(`{"mode":"saga","key":"order-7","timeout":"60s","branches":[{"name":"withdraw","action":%s,"compensate":%s},{"name":"deposit","action":%s,"compensate":%s}]}`,
		aim(m.stock, "POST", "/withdrawals", ""), aim(m.stock, "DELETE", "/withdrawals", ""),
		aim(m.savings, "POST", "/deposits", `{"wait":"go"}`), aim(m.savings, "DELETE", "/deposits", ""))
	id := m.begin(body)
	m.savings.waits("go")
	m.home.crash()
	m.savings.restart()
	again := m.api("", body, 200)
	if got := decode[begun](t, again.body).ID; got != id || again.header.Get("Tx-Replayed") != "true" {
		t.Errorf("repeated begin = %s %v, want %s replayed", again.body, again.header, id)
	}
	m.api("", strings.Replace(body, "/deposits", "/others", 1), 422)
	m.savings.release("go")
	m.home.reaches(id, "committed")
	m.stock.does("POST /withdrawals 201")
	m.savings.does("POST /deposits 201")
	if got := m.stock.keys(id) + m.savings.keys(id); got != "-0-forward-1-forward" {
		t.Errorf("keys = %s", got)
	}
}

// A saga that is refused is compensated, although the sidecar dies between an undo and its answer.
func TestSagaIsCompensatedAfterKill(t *testing.T) {
	t.Parallel()
	m := newModes(t)
	m.stock.override(`{"DELETE":{"hold":"go"}}`)
	id := m.begin(fmt.Sprintf(`{"mode":"saga","branches":[{"action":%s,"compensate":%s},{"action":%s,"compensate":%s}]}`,
		aim(m.stock, "POST", "/withdrawals", ""), aim(m.stock, "DELETE", "/withdrawals", ""),
		aim(m.savings, "POST", "/deposits", `{"status":409}`), aim(m.savings, "DELETE", "/deposits", "")))
	m.stock.waits("go")
	m.home.crash()
	m.stock.restart()
	m.stock.release("go")
	x := m.home.reaches(id, "aborted")
	if x.Reason != "refused by branch 1" {
		t.Errorf("reason = %q", x.Reason)
	}
	m.stock.does("POST /withdrawals 201, DELETE /withdrawals 200")
	m.savings.does("POST /deposits 409")
}

// A graph: two branches at the same time, the third after both; killed while it runs, then undone backwards.
func TestSagaGraphSurvivesKill(t *testing.T) {
	t.Parallel()
	for phase, status := range map[string]int{"committed": 201, "aborted": 409} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			m := newModes(t)
			id := m.begin(fmt.Sprintf(`{"mode":"saga-graph","timeout":"60s","branches":[{"id":"last","after":["a","b"],"action":%s},{"id":"a","action":%s,"compensate":%s},{"id":"b","action":%s,"compensate":%s}]}`,
				aim(m.savings, "POST", "/last", fmt.Sprintf(`{"wait":"go","status":%d}`, status)),
				aim(m.stock, "POST", "/a", ""), aim(m.stock, "DELETE", "/a", ""),
				aim(m.savings, "POST", "/b", ""), aim(m.savings, "DELETE", "/b", "")))
			m.savings.waits("go")
			m.home.crash()
			m.savings.restart()
			m.savings.release("go")
			m.home.reaches(id, phase)
			if phase == "committed" {
				m.stock.does("POST /a 201")
				m.savings.does("POST /b 201, POST /last 201")
				return
			}
			m.stock.does("POST /a 201, DELETE /a 200")
			m.savings.does("POST /b 201, POST /last 409, DELETE /b 200")
		})
	}
}

// TCC and XA: the initiator reserves or prepares, durably, under branches that are enlisted before. Kills come between
// that and the decision, and between a confirm and its answer. Silence cancels.
func TestTwoPhasesSurviveKill(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ mode, commit, undo, act, phase string }{
		{"tcc", "confirm", "cancel", "commit", "committed"},
		{"tcc", "confirm", "cancel", "", "aborted"},
		{"xa", "commit", "rollback", "commit", "committed"},
		{"xa", "commit", "rollback", "abort", "aborted"},
	} {
		t.Run(tt.mode+" "+tt.phase, func(t *testing.T) {
			t.Parallel()
			m := newModes(t)
			id := m.begin(fmt.Sprintf(`{"mode":%q,"timeout":"60s"}`, tt.mode))
			for i, n := range []*node{m.stock, m.savings} {
				branch := fmt.Sprintf(`{"id":"b%d",%q:%s,%q:%s}`, i, tt.commit, aim(n, "PUT", "/prepared", ""), tt.undo, aim(n, "DELETE", "/prepared", ""))
				m.api("/"+id+"/branches", branch, 200)
				m.home.crash()
				m.api("/"+id+"/branches", branch, 200) // its answer might have been lost
				m.direct(n, "POST", "/prepared", "{}")
			}
			m.stock.restart()
			m.stock.override(`{"PUT":{"hold":"go"},"DELETE":{"hold":"go"}}`)
			if tt.act != "" {
				m.api("/"+id+"/"+tt.act, "", 200)
			} else {
				m.api("/"+id+"/extend", `{"timeout":"50ms"}`, 200)
			}
			m.stock.waits("go")
			m.home.crash()
			m.stock.release("go")
			if tt.act != "" {
				if r := m.api("/"+id+"/"+tt.act+"?wait=20s", "", 200); !strings.Contains(r.body, `"status":"`+tt.phase+`"`) {
					t.Errorf("%s = %s, want %s", tt.act, r.body, tt.phase)
				}
			}
			if x := m.home.reaches(id, tt.phase); len(x.Branches) != 2 {
				t.Errorf("branches = %+v, want two", x.Branches)
			}
			second := map[string]string{"committed": "PUT", "aborted": "DELETE"}[tt.phase]
			for _, n := range []*node{m.stock, m.savings} {
				n.does("POST /prepared 201, " + second + " /prepared 200")
			}
		})
	}
}

// A message whose initiator fell silent: it is asked after the kill until it knows, and its word counts. Deliveries
// keep their order and are repeated until they are taken.
func TestMsgAsksAfterKill(t *testing.T) {
	t.Parallel()
	for word, phase := range map[string]string{"commit": "committed", "abort": "aborted"} {
		t.Run(word, func(t *testing.T) {
			t.Parallel()
			m := newModes(t)
			m.home.override(`{"POST /decided":{"status":425}}`)
			m.stock.override(`{"POST":{"status":503}}`)
			id := m.begin(fmt.Sprintf(`{"mode":"msg","timeout":"300ms","query":%s,"branches":[{"action":%s},{"action":%s}]}`,
				aim(m.home, "POST", "/decided", ""), aim(m.stock, "POST", "/mails", ""), aim(m.savings, "POST", "/mails", "")))
			m.home.crash()
			m.home.asked(1)
			m.home.crash()
			m.home.restart()
			m.home.override(`{"POST /decided":{"status":200,"answer":{"decision":"` + word + `"}}}`)
			if word == "commit" {
				m.eventually("a delivery was tried", func() (bool, string) { return len(m.stock.effects()) > 0, m.stock.did() })
				m.home.crash()
				if got := m.savings.did(); got != "" {
					t.Errorf("the second delivery overtook the first: %s", got)
				}
				m.stock.override(`{}`)
			}
			m.home.reaches(id, phase)
			got := map[string]string{"stock": strings.TrimLeft(strings.ReplaceAll(m.stock.did(), "POST /mails 503", ""), ", "), "savings": m.savings.did()}
			for name, did := range got {
				if want := map[string]string{"commit": "POST /mails 201", "abort": ""}[word]; did != want {
					t.Errorf("%s did %q, want %q", name, did, want)
				}
			}
		})
	}
}

// asked waits until the initiator was asked so often.
func (n *node) asked(times int) {
	n.m.t.Helper()
	n.m.eventually("the initiator was asked", func() (bool, string) {
		count := 0
		for _, e := range n.effects() {
			if e.Op == "query" {
				count++
			}
		}
		return count >= times, n.did()
	})
}

// A workflow: the initiator falls silent, sidecar and initiator die, the resume comes, the kept results are read, the
// rest is done. What it told is not told twice.
func TestWorkflowIsResumedAfterKill(t *testing.T) {
	t.Parallel()
	for act, phase := range map[string]string{"commit": "committed", "abort": "aborted"} {
		t.Run(act, func(t *testing.T) {
			t.Parallel()
			m := newModes(t)
			id := m.begin(fmt.Sprintf(`{"mode":"workflow","timeout":"500ms","resume":%s}`, aim(m.home, "POST", "/resume", "")))
			enlist := func(name string, n *node, outcome string) string {
				return fmt.Sprintf(`{"id":%q,"commit":%s,"rollback":%s%s}`, name, aim(n, "PUT", "/"+name, ""), aim(n, "DELETE", "/"+name, ""), outcome)
			}
			m.api("/"+id+"/branches", enlist("hotel", m.stock, ""), 200)
			m.direct(m.stock, "POST", "/hotel", "{}")
			told := enlist("hotel", m.stock, `,"outcome":"ok","result":{"room": 7}`)
			m.api("/"+id+"/branches", told, 200)
			m.home.crash()
			m.home.restart()
			m.home.asked(1)
			if x := m.home.admin("GET", "/v1/transactions/"+id, ""); !strings.Contains(x.body, `"result":{"room":7}`) || !strings.Contains(x.body, `"phase":"open"`) {
				t.Errorf("resumed = %s, want it open with the result of hotel", x.body)
			}
			m.api("/"+id+"/branches", told, 200)
			m.api("/"+id+"/branches", strings.Replace(told, "7", "8", 1), 422)
			m.api("/"+id+"/extend", `{"timeout":"60s"}`, 200)
			m.api("/"+id+"/branches", enlist("car", m.savings, `,"outcome":"refused"`), 200)
			m.home.crash()
			m.api("/"+id+"/"+act, "", 200)
			m.home.reaches(id, phase)
			if act == "commit" {
				m.stock.does("POST /hotel 201, PUT /hotel 200")
				return
			}
			m.stock.does("POST /hotel 201, DELETE /hotel 200")
			m.savings.does("")
		})
	}
}

// LRA: a branch leaves, listeners hear the end, a failed completion is reported and not a person's business; silence
// compensates. The kills come while it is open and while it ends.
func TestLRASurvivesKill(t *testing.T) {
	t.Parallel()
	for act, phase := range map[string]string{"commit": "committed", "": "aborted"} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			m := newModes(t)
			m.savings.override(`{"PUT /complete":{"status":409}}`)
			m.stock.override(`{"PUT /complete":{"hold":"go"},"PUT /compensate":{"hold":"go"}}`)
			id := m.begin(fmt.Sprintf(`{"mode":"lra","timeout":"0s","tell":%s}`, aim(m.home, "PUT", "/ended", "")))
			join := func(name string, n *node) {
				m.api("/"+id+"/branches", fmt.Sprintf(`{"id":%q,"complete":%s,"compensate":%s,"tell":%s}`, name,
					aim(n, "PUT", "/complete", ""), aim(n, "PUT", "/compensate", ""), aim(n, "PUT", "/after", "")), 200)
			}
			join("stock", m.stock)
			join("savings", m.savings)
			join("gone", m.stock)
			m.home.crash()
			m.api("/"+id+"/branches/gone/leave", "", 200)
			m.api("/"+id+"/extend", `{"timeout":"1h"}`, 200)
			m.home.crash()
			if x := m.home.reaches(id, "open"); x.Expires.Before(time.Now().Add(30 * time.Minute)) {
				t.Errorf("it expires %v, want in an hour", x.Expires)
			}
			if act == "" {
				m.api("/"+id+"/extend", `{"timeout":"200ms"}`, 200)
			} else {
				m.api("/"+id+"/"+act, "", 200)
			}
			m.stock.waits("go")
			m.home.crash()
			m.stock.restart()
			m.api("/"+id+"/branches/gone/leave", "", 200) // a repeat
			m.stock.release("go")
			m.home.reaches(id, phase)
			if act == "" {
				m.stock.does("PUT /compensate 200, PUT /after 200")
				m.savings.does("PUT /compensate 200, PUT /after 200")
			} else {
				m.stock.does("PUT /complete 200, PUT /after 200")
				m.savings.does("PUT /complete 409, PUT /after 200")
			}
			m.home.does("PUT /ended 200")
		})
	}
}

// An operator makes due what waits, and stops what must not go on; both hold after a kill.
func TestOperatorHastensAndStops(t *testing.T) {
	t.Parallel()
	m := newModes(t)
	m.stock.override(`{"POST":{"status":503}}`)
	id := m.begin(fmt.Sprintf(`{"mode":"msg","decide":"commit","retry":{"delay":"1h","maxDelay":"24h"},"branches":[{"action":%s}]}`, aim(m.stock, "POST", "/mails", "")))
	tried := func(times int) func() (bool, string) {
		return func() (bool, string) {
			x, err := m.home.show(id)
			return err == nil && strings.Count(x.events(), "deferred 0 commit unknown") == times, x.events() + errText(err)
		}
	}
	m.eventually("the first try is noted", tried(1))
	m.home.crash()
	m.api("/"+id+"/hasten", "", 200)
	m.stock.does("POST /mails 503, POST /mails 503")
	m.eventually("the second try is noted", tried(2))
	m.api("/"+id+"/stop", `{"by":"ops","why":"sent by post"}`, 200)
	m.home.crash()
	if x := m.home.reaches(id, "stopped"); x.Reason != "stopped by ops: sent by post" {
		t.Errorf("reason = %q", x.Reason)
	}
	m.api("/"+id+"/stop", `{"why":"once more"}`, 409)
	m.stock.does("POST /mails 503, POST /mails 503")
}

// A try ends with its own time, whatever the call does; the next one comes when it is due, or at the word of an operator.
func TestTriesEndWithTheirTime(t *testing.T) {
	t.Parallel()
	m := newModes(t)
	start := time.Now()
	id := m.begin(fmt.Sprintf(`{"mode":"saga","timeout":"60s","branches":[{"action":%s,"retry":{"tryTimeout":"200ms","delay":"1h","maxDelay":"1h"}}]}`,
		aim(m.stock, "POST", "/slow", `{"wait":"go"}`)))
	m.stock.waits("go")
	m.eventually("the try has ended", func() (bool, string) {
		x, err := m.home.show(id)
		return err == nil && strings.Contains(x.events(), "deferred 0 forward unknown"), x.events() + errText(err)
	})
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("a try of 200ms took %v", took)
	}
	m.stock.release("go")
	m.api("/"+id+"/extend", `{"timeout":"10m"}`, 200)
	m.api("/"+id+"/hasten", "", 200)
	m.home.reaches(id, "committed")
	m.stock.does("POST /slow 201")
}
